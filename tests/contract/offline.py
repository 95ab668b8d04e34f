"""In a network that ends nowhere: run a command, or a server that answers a few requests, and fail
if anybody outside was called. The kernel counts it: here nothing has a route, and no name server
answers."""

from __future__ import annotations

import fcntl
import runpy
import socket
import struct
import sys
from pathlib import Path

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1


def main() -> None:
    command, *arguments = sys.argv[1:]
    _loopback_up()
    before = _calls()
    if command == "serve":
        _serve(Path(arguments[0]))
    else:
        sys.argv = [command, *arguments]
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code, ended.code
    calls = {name: number - before[name] for name, number in _calls().items()}
    assert not any(calls.values()), f"somebody was called: {calls}"


def _serve(bundle: Path) -> None:
    from tests.contract.process import serving
    from tests.pictures import encoded, picture

    with serving(bundle) as server:
        assert server.post(encoded(picture())).status_code == 200
        for path in ("/docs", "/metrics", "/budgets", "/readyz"):
            assert server.get(path).status_code == 200


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh", b"lo", 0)
        name, flags = struct.unpack("16sh", fcntl.ioctl(any_socket, _GET_FLAGS, asked))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", name, flags | _UP))


def _calls() -> dict[str, int]:
    """How often something was sent that has no route, or a datagram to anybody."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    named = {
        f"{names[0]}{name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return {
        "no route": named["Ip:OutNoRoutes"],
        "datagrams": named["Udp:OutDatagrams"] + named["Udp:NoPorts"],
        "no route, IPv6": int(six["Ip6OutNoRoutes"]),
    }


if __name__ == "__main__":
    main()
