"""The FiftyOne App's server behind a guard, which answers only whoever was given its address.

FiftyOne's own server listens on a port of 127.0.0.1, where every user of the machine and every page in the
reviewer's browser can reach it, and it serves any file that the reviewer can read. The guard wraps it inside
its process, so there is no way around it:

- The address holds a token, which becomes a cookie. A request with neither is refused.
- A request for another host name is refused: a foreign page may have pointed its name here ("DNS rebinding").
  So is a request that a page of another origin makes.
- Files are read only from the folders of the review.
- Pages load nothing from other hosts; FiftyOne's would ask for fonts, map tiles and models.

Knows requests and FiftyOne's server; nothing of runs, images or databases. Starlette, which FiftyOne brings,
is imported inside functions.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffugen.review.pages import Pages

VARIABLE = "DIFFUGEN_REVIEW_GUARD"
"""Environment variable with what `serve` needs: unlike arguments, it is hidden from other users."""

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine, with any port: a tunnel may have another one at its near end."""

STOP_SECONDS = 5
"""How long the server has to stop before the kernel ends it."""

ENTRY = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>Review</title>'
"""Page that sets the cookie and moves on. A redirect would not do: the browser would regard the next request
as made by whoever linked here, and hold back the cookie."""

POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)


class Guard:
    """An ASGI application that passes on to another what its rules allow.

    Args:
        app: The application to guard.
        token: What a request must know.
        folders: Folders whose files may be read.
    """

    def __init__(self, app: Any, *, token: str, folders: Iterable[Path]) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = cookie_name(token)
        self._folders = [folder.resolve() for folder in folders]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on."""
        from starlette.datastructures import MutableHeaders
        from starlette.requests import HTTPConnection
        from starlette.responses import HTMLResponse, PlainTextResponse, Response

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        response: Response
        if not is_for_this_machine(request.headers.getlist("host")):
            response = PlainTextResponse(f"This App answers only on {' and '.join(HOSTS)}.", 403)
        elif scope["path"] == "/" and self._is_token(request.query_params.get("token", "")):
            response = HTMLResponse(ENTRY, headers={"Cache-Control": "no-store"})
            response.set_cookie(
                self._cookie, self._token.decode(), httponly=True, samesite="strict", path="/"
            )
        elif not self._knows_token(request):
            response = PlainTextResponse("Open the address that DiffuGen printed, with its token.", 403)
        elif not is_of_this_origin(request.headers):
            response = PlainTextResponse("A page of another origin may not use this App.", 403)
        elif not all(map(self._may_be_read, request.query_params.getlist("filepath"))):
            response = PlainTextResponse("This App serves only images and masks of the run.", 403)
        else:
            await self._app(scope, receive, send_with_policy)
            return
        await response(scope, receive, send)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)

    def _knows_token(self, request: Any) -> bool:
        """Whether a browser sends the cookie, or FiftyOne's own client the password in its address."""
        cookie = request.cookies.get(self._cookie, "")
        return self._is_token(cookie) or self._is_token(_password(request.headers))

    def _may_be_read(self, path: str) -> bool:
        try:
            found = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a circle of links
            return False
        return any(found.is_relative_to(folder) for folder in self._folders)


def cookie_name(token: str) -> str:
    """Return the name of the cookie that holds a token.

    A browser keeps one set of cookies for all ports, so each review has a cookie of its own.
    """
    return f"review-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def is_for_this_machine(hosts: Sequence[str]) -> bool:
    """Return whether a request with these ``Host`` headers is addressed to this machine by its own name."""
    try:
        return len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in HOSTS
    except ValueError:
        return False


def is_of_this_origin(headers: Any) -> bool:
    """Return whether a request comes from a page of this server, or from no page at all.

    Browsers say where a request comes from; other programs do not, and need not.

    Args:
        headers: A mapping whose names differ in case at will, with exactly one ``Host``.
    """
    return headers.get("origin", f"http://{headers['host']}") == f"http://{headers['host']}" and headers.get(
        "sec-fetch-site", "none"
    ) in ("none", "same-origin")


def _password(headers: Any) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    try:
        given = base64.b64decode(value, validate=True).decode()
    except ValueError:
        return ""
    return given.partition(":")[2] if scheme.lower() == "basic" else ""


def serve() -> None:
    """Serve the App, as `diffugen.review.app` asks for in the environment, until the process is stopped."""
    given = json.loads(os.environ.pop(VARIABLE))
    # Its `start_server` would serve the App without a guard.
    from fiftyone.server import main as server

    config = server.Config()
    config.bind = [f"{given['address']}:{given['port']}"]
    server.set_port(given["port"])
    guard = Guard(Pages(server.app), token=given["token"], folders=map(Path, given["folders"]))
    asyncio.run(server.serve(guard, config, shutdown_trigger=_until_stopped))


async def _until_stopped() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    # Requests may end; but if the database is gone, FiftyOne would wait for it for half a minute.
    signal.alarm(STOP_SECONDS)
