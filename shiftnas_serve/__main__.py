"""``python -m shiftnas_serve``: see ``command``."""

import logging
import os
import signal
import sys


def obey_while_it_starts() -> None:
    """A signal ends a server that has not begun to serve; a hangup is not one to it."""
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, lambda number, frame: os._exit(128 + number))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, lambda number, frame: None)


if __name__ == "__main__":
    obey_while_it_starts()  # before anything is imported that takes its time
    from shiftnas_serve.command import main

    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)  # and not by and by: threads may still be at work in libraries
