"""Who may ask."""

from __future__ import annotations

import pytest

from tests.contract.conftest import ADMIN_KEY, API_KEYS
from tests.contract.hosts import Host
from tests.contract.problem import assert_problem
from tests.contract.process import PNG, Server
from tests.contract.wire import Wire


def test_keys_are_asked_for_where_they_are_set(keyed: Server, png):
    with keyed.client() as client:
        for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic first-key"}):
            for path in ("/budgets", "/subnets/x"):
                assert client.get(path, headers=wrong).status_code == 401
            refused = client.post("/classify", content=png, headers={**PNG, **wrong})
            assert_problem(refused, 401, "key")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        for key in API_KEYS:
            right = {**PNG, "Authorization": f"Bearer {key}".encode()}
            assert client.post("/classify", content=png, headers=right).status_code == 200
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/classify", ("Content-Type: image/png",), 401),
        ("/v2/models/x/infer", (), 401),
        ("/admin/reload", (f"Authorization: Bearer {API_KEYS[0]}",), 401),
        ("/nowhere", (), 404),
        ("/classify?flops=1M", (f"Authorization: Bearer {API_KEYS[0]}",), 400),
        ("/classify", (f"Authorization: Bearer {API_KEYS[0]}", "FLOPs-Budget: x"), 400),
        ("/classify", (f"Authorization: Bearer {API_KEYS[0]}", "Content-Type: text/html"), 415),
    ],
)
def test_a_body_that_would_be_refused_is_not_waited_for(
    host: Host, keyed: Server, path, headers, status
):
    if host.name == "ray":
        pytest.skip("connections are those of Ray's own proxy")
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Length: 9", *headers]
    with Wire(keyed) as wire:
        wire.send("\r\n".join([*lines, "Expect: 100-continue", "", ""]).encode())
        answer = wire.answer()
    assert answer is not None
    assert answer.status == status, answer.body


def test_reloads_have_keys_of_their_own(keyed: Server, server: Server):
    for sent, status in (("", 401), ("Bearer nope", 401), (f"Bearer {API_KEYS[0]}", 401)):
        assert keyed.post(b"", "/admin/reload", Authorization=sent).status_code == status
    # where none are set, nobody may
    assert server.post(b"", "/admin/reload", Authorization=f"Bearer {ADMIN_KEY}").status_code == 403


def test_pages_of_other_origins_are_kept_out_unless_named(keyed: Server, server: Server):
    def allowed(one: Server, origin: str) -> str | None:
        asks = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "flops-budget",
        }
        with one.client() as client:
            answer = client.request("OPTIONS", "/classify", headers=asks)
        return answer.headers.get("access-control-allow-origin")

    assert allowed(keyed, "https://example.org") == "https://example.org"
    assert allowed(keyed, "https://example.com") is None
    assert allowed(server, "https://example.org") is None
