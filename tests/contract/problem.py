"""What every error looks like."""

from __future__ import annotations

import httpx


def assert_problem(response: httpx.Response, status: int, words: str = "") -> dict:
    """Assert that an answer is this problem, and answer its document."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["request_id"] == response.headers["Request-Id"]
    assert words.lower() in body["detail"].lower(), body["detail"]
    assert len(body["detail"]) < 500
    return body
