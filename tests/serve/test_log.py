"""What the log says, and to whom it is said."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading

import pytest
from structlog.testing import capture_logs

from shiftnas_serve.http.context import RequestContext
from shiftnas_serve.log import LineWriter


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, "", 0, text, None, None)


def test_who_logs_does_not_wait_for_who_reads_and_what_is_lost_is_counted_and_said():
    reads, writes = os.pipe()
    writer = LineWriter(writes, most_lines=10)
    long = "x" * 100_000  # more than a pipe holds
    for _ in range(100):
        writer.emit(record(long))
    assert 80 <= writer.lost < 100
    lost, said = writer.lost, b""

    def read() -> None:
        nonlocal said
        while piece := os.read(reads, 1 << 20):
            said += piece

    reader = threading.Thread(target=read)
    reader.start()
    writer.close()
    os.close(writes)
    reader.join(20)
    os.close(reads)
    assert b"%d lines of the log were lost" % lost in said
    assert said.count(long.encode()) == 100 - lost


def test_a_request_has_its_callers_trace_in_its_line_as_it_came_and_nothing_else(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing(message=None):
        pass

    def line(*traces: bytes) -> dict:
        headers = [(b"traceparent", trace) for trace in traces]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
        with capture_logs() as lines:
            asyncio.run(RequestContext(app, lambda: False)(scope, nothing, nothing))
        return lines[0]

    caplog.set_level(logging.INFO, "shiftnas_serve.requests")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert line(trace.encode())["traceparent"] == trace
    for bad in (b"", b"a b", b"\xff", b"0" * 65):
        assert line(bad)["traceparent"] is None
    assert line()["traceparent"] is None


FAILS = """
import logging
import structlog
from shiftnas_serve.log import configure_log

def fails(headers):
    key = headers["authorization"]
    raise RuntimeError("nobody foresaw it")

configure_log("info", "{form}")
for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
    try:
        fails({{"authorization": "Bearer " + "s" + "ecret"}})
    except RuntimeError:
        log.exception("an error")
logging.shutdown()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_that_nobody_foresaw_is_told_without_the_values_of_variables(form):
    """A client's key is one of them."""
    command = [sys.executable, "-c", FAILS.format(form=form)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.count("nobody foresaw it") == 2, said
    assert "fails" in said
    assert "secret" not in said
