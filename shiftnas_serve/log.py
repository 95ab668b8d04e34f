"""Log: one line an event on standard error, for people (text) or for machines (json).

Lines of libraries go the same way. Nobody who logs waits for who reads: lines lie in a queue for a
thread that writes them. Where it is full they are lost, counted, and said. At the end
``logging.shutdown`` lets what was said be written.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import Literal

import structlog
from structlog.typing import Processor

STARTS = "shiftnas_serve.starts"
"""The logger of what a service's log should have though nothing is wrong."""
_MOST_LINES = 1_000
# At the end a reader that is slow is waited for, one that does not read is not.
_END_S = 1.0


class LineWriter(logging.Handler):
    """Writes to a file descriptor, in a thread of its own."""

    def __init__(self, descriptor: int, most_lines: int = _MOST_LINES) -> None:
        super().__init__()
        self.lost = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(most_lines)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._lines.put_nowait((self.format(record) + "\n").encode("utf-8", "replace"))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Let what is there be written, if that takes no longer than a moment."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=_END_S)
            self._thread.join(_END_S)
        super().close()

    def _write(self) -> None:
        said = 0
        while (line := self._lines.get()) is not None:
            if self.lost > said:
                new, said = self.lost - said, self.lost
                line += b"%d lines of the log were lost: nobody took them in time\n" % new
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # whoever read has gone
                self.lost += 1


def _writers() -> list[LineWriter]:
    """Of this process; one, once ``configure_log`` was called."""
    return [one for one in logging.getLogger().handlers if isinstance(one, LineWriter)]


def lost_lines() -> int:
    """How many lines nobody took in time."""
    return sum(writer.lost for writer in _writers())


def configure_log(level: str, form: Literal["text", "json"]) -> None:
    """Set up this process. ``level``: the least that is said; requests are said at info."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # Tracebacks without the values of variables, by default shown: keys are among them, and to
    # write down a bundle's weights would hold up everybody.
    last: list[Processor]
    if form == "json":
        told = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [structlog.processors.ExceptionRenderer(told), structlog.processors.JSONRenderer()]
    else:
        plain, colors = structlog.dev.plain_traceback, sys.stderr.isatty()
        last = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    last.insert(0, structlog.stdlib.ProcessorFormatter.remove_processors_meta)
    root = logging.getLogger()
    root.handlers[:] = _writers() or [LineWriter(2)]
    root.handlers[0].setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)
    )
    root.setLevel(level.upper())
    if root.level == logging.WARNING:
        logging.getLogger(STARTS).setLevel(logging.INFO)
    logging.captureWarnings(True)
