"""What the log says, to whom it is said, and the trace that a request belongs to."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from shiftnas_serve.http.context import continue_trace
from shiftnas_serve.log import LineWriter

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


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
    writer.finish()
    os.close(writes)
    reader.join(20)
    os.close(reads)
    assert b"%d lines of the log were lost" % lost in said
    assert said.count(long.encode()) == 100 - lost


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(given):
    trace = continue_trace({b"traceparent": given.encode()})
    assert trace.parent_id is None
    assert trace.trace_id != TRACE_ID
    assert len(trace.trace_id) == 32
    assert len(trace.span_id) == 16


@pytest.mark.parametrize(
    ("given", "answered"), [("00", "00"), ("01", "01"), ("02", "00"), ("ff", "01"), ("fe", "00")]
)
def test_of_the_flags_of_a_trace_only_sampled_is_passed_on(given, answered):
    trace = continue_trace({b"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-{given}".encode()})
    assert trace.trace_id == TRACE_ID
    assert trace.header().endswith(f"-{answered}")


def test_later_versions_of_traceparent_are_read_as_far_as_they_are_known():
    trace = continue_trace({b"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-more".encode()})
    assert (trace.trace_id, trace.parent_id) == (TRACE_ID, SPAN_ID)
    assert trace.span_id != SPAN_ID
