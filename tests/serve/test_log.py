"""What the log says of a request, and the trace it belongs to."""

from __future__ import annotations

import json

import httpx
import pytest

from shiftnas_serve.request_context import continue_trace
from tests.serve.conftest import start_server, stop_server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_every_line_is_json_and_requests_have_ids_and_what_they_cost(
    bundle_folder, bundle, png, capfd
):
    server = start_server(bundle_folder, "--log-level", "info", "--log-format", "json")
    headers = {
        "FLOPs-Budget": str(bundle.max_flops),
        "Request-Id": "seven",
        "Traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01",
    }
    answer = server.client.post("/classify", content=png, headers=headers)
    server.client.post("/classify", content=b"no image")
    server.stop()
    text = server.said()
    stop_server(server)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    # all but the greeting for people
    assert len(text.splitlines()) - len(lines) <= 3
    assert any(line["logger"].startswith("litserve") for line in lines)
    assert "litserve" not in capfd.readouterr().out
    requests = [line for line in lines if line["event"] == "request"]
    good, bad = (line for line in requests if line["path"] == "/classify")
    assert good["request_id"] == "seven"
    assert (good["trace_id"], good["parent_id"]) == (TRACE_ID, SPAN_ID)
    assert answer.headers["traceresponse"] == f"00-{TRACE_ID}-{good['span_id']}-01"
    assert good["asked"] == {"flops": bundle.max_flops}
    assert good["flops"] == answer.json()["subnet"]["flops"]
    assert good["duration_ms"] >= good["infer_ms"] > 0
    assert (good["level"], bad["level"]) == ("info", "info")
    assert bad["status"] == 415
    assert bad["trace_id"] != TRACE_ID


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
    trace = continue_trace({"traceparent": given})
    assert trace.parent_id is None
    assert trace.trace_id != TRACE_ID
    assert len(trace.trace_id) == 32
    assert len(trace.span_id) == 16


@pytest.mark.parametrize(
    ("given", "answered"), [("00", "00"), ("01", "01"), ("02", "00"), ("ff", "01"), ("fe", "00")]
)
def test_of_the_flags_of_a_trace_only_sampled_is_passed_on(given, answered):
    trace = continue_trace({"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-{given}"})
    assert trace.trace_id == TRACE_ID
    assert trace.header().endswith(f"-{answered}")


def test_later_versions_of_traceparent_are_read_as_far_as_they_are_known():
    trace = continue_trace({"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-more"})
    assert (trace.trace_id, trace.parent_id) == (TRACE_ID, SPAN_ID)
    assert trace.span_id != SPAN_ID


def test_pages_of_other_origins_are_kept_out_unless_named(server, keyed_server, png):
    origin = {"Origin": "https://example.org"}
    answer = server.client.post("/classify", content=png, headers=origin)
    assert "access-control-allow-origin" not in answer.headers

    def ask(page: str) -> httpx.Response:
        headers = {"Origin": page, "Authorization": "Bearer first-key"}
        return keyed_server.client.post("/classify", content=png, headers=headers)

    answer = ask("https://example.org")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "Served-FLOPs" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in ask("https://x.y").headers
