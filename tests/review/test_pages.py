"""Pages of the App are one to FiftyOne's server, so that none is told what another one does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from diffugen.review.pages import PAGES, Pages, rename


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An App that answers with what it was sent."""
    from starlette.requests import Request
    from starlette.responses import Response

    await Response(await Request(scope, receive).body())(scope, receive, send)


def post(path: str, *parts: bytes, method: str = "POST", **headers: str) -> bytes:
    """Send one request in several parts, and return what the App was sent."""
    waiting = [
        {"type": "http.request", "body": part, "more_body": left > 0}
        for left, part in zip(reversed(range(len(parts))), parts, strict=True)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": raw}
    asyncio.run(Pages(app)(scope, receive, send))
    return b"".join(one.get("body", b"") for one in sent)


@pytest.mark.parametrize("path", ["/event", "/sort", "/graphql"])
def test_all_pages_name_the_same_subscription(path: str) -> None:
    for given, expected in [
        ({"subscription": "a", "x": [1]}, {"subscription": PAGES, "x": [1]}),
        ({"variables": {"id": "b", "subscription": "a"}}, {"variables": {"id": "b", "subscription": PAGES}}),
        ({"query": "q", "variables": {"id": "b"}}, {"query": "q", "variables": {"id": "b"}}),
        ({"query": "q", "variables": None}, {"query": "q", "variables": None}),
    ]:
        body = json.dumps(given).encode()
        assert json.loads(post(path, body[:7], body[7:], b"", cookie="c")) == expected


def test_the_client_in_the_run_s_process_keeps_its_own() -> None:
    body = json.dumps({"subscription": "session"}).encode()
    assert post("/event", body, Authorization="Basic x") == body


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[1]", b"null", b"\xff\xfe"])
def test_what_is_no_object_is_passed_on(body: bytes) -> None:
    assert post("/event", body) == rename(body) == body


def test_other_requests_are_passed_on_untouched() -> None:
    body = json.dumps({"subscription": "a"}).encode()
    assert post("/operators/execute", body) == post("/event", body, method="PUT") == body


def test_a_new_page_has_nothing_open_or_selected() -> None:
    from fiftyone.server.events import get_state

    state = get_state()
    state.sample_id, state.selected_samples, state.selected_labels = "1", ["1"], [{"label_id": "2"}]
    post("/event", b"{}")
    assert state.sample_id == "1"
    post("/events", b"{}", authorization="Basic x")
    assert state.sample_id == "1"
    post("/events", b"{}")
    assert (state.sample_id, state.selected_samples, state.selected_labels) == (None, [], [])
