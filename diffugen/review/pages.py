"""Keep the App's pages apart: none follows what another one does.

FiftyOne tells every page of a session what the others do, and each opens the image that any of them opens,
and selects the labels that any of them selects. Two people who review at the same time would decide images
that they have not looked at. Its server does not tell a change to the page that made it, which it knows by
the subscription that a request names; so here all pages name the same one. FiftyOne's own client, in the
process that has the run, is still told and heard.

Knows requests and FiftyOne's server; nothing of runs, images or databases.
"""

from __future__ import annotations

import json
from typing import Any

EVENTS = "/events"
"""Path at which a page begins to listen."""

PATHS = (EVENTS, "/event", "/graphql", "/sort")
"""Paths of the requests that name a subscription."""

SUBSCRIPTION = "subscription"
PAGES = "pages"
"""The subscription of all pages."""


class Pages:
    """An ASGI application that passes requests on to FiftyOne's server.

    Args:
        app: FiftyOne's server, in this process.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request on."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if is_post and scope["path"] in PATHS and _is_page(scope):
            receive = await _renamed(receive)
            if scope["path"] == EVENTS:
                _begin_afresh()
        await self._app(scope, receive, send)


def _is_page(scope: Any) -> bool:
    """Whether a browser sent a request: FiftyOne's own client sends a password instead of a cookie."""
    return all(name.lower() != b"authorization" for name, _ in scope["headers"])


async def _renamed(receive: Any) -> Any:
    """Return what receives a request whose subscription is that of all pages."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    messages = [{"type": "http.request", "body": rename(body), "more_body": False}]

    async def received() -> Any:
        return messages.pop() if messages else await receive()

    return received


def rename(body: bytes) -> bytes:
    """Return the JSON of a request, or a GraphQL request, with the subscription of all pages.

    What is no JSON object is returned as it is, for FiftyOne to answer.
    """
    try:
        given = json.loads(body)
    except ValueError:
        return body
    if not isinstance(given, dict):
        return body
    for one in (given, given.get("variables")):
        if isinstance(one, dict) and SUBSCRIPTION in one:
            one[SUBSCRIPTION] = PAGES
    return json.dumps(given).encode()


def _begin_afresh() -> None:
    """Let a page that begins have nothing open or selected but what its own address says."""
    from fiftyone.server.events import get_state

    state = get_state()
    state.sample_id, state.selected_samples, state.selected_labels = None, [], []
