"""The guard passes on what the reviewer asks for, and refuses everything else."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from diffugen.review.guard import POLICY, Guard

TOKEN = "the-token_of-this-review"
HOST = "127.0.0.1:5151"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a run's, with a link from the images to the ledger."""
    run = tmp_path_factory.mktemp("run")
    for name in ("images/a.png", "review/masks/a.png", "images-of-others/a.png", "ledger.sqlite"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"content")
    (run / "images" / "link.png").symlink_to(run / "ledger.sqlite")
    (run / "images" / "circle.png").symlink_to(run / "images" / "circle.png")
    return run


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An App that says which path it was asked for."""
    from starlette.responses import PlainTextResponse

    await PlainTextResponse(f"the App at {scope['path']}")(scope, receive, send)


def ask(
    headers: list[tuple[str, str]],
    path: str = "/",
    query: str = "",
    *,
    run: Path = Path("/"),
    kind: str = "http",
    token: str = TOKEN,
) -> tuple[int, dict[str, str], str]:
    """Send one request through a guard, and return status, headers and text of the answer."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, token=token, folders=[run / "images", run / "review" / "masks"])
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope: dict[str, Any] = {
        "type": kind,
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": raw,
    }
    scope["extensions"] = {"websocket.http.response": {}}
    asyncio.run(guard(scope, receive, send))
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, b"".join(one.get("body", b"") for one in sent[1:]).decode()


def entered(token: str = TOKEN) -> list[tuple[str, str]]:
    """The headers of a browser that was given the address."""
    status, headers, _ = ask([("host", HOST)], query=f"token={token}", token=token)
    assert status == 200
    return [("host", HOST), ("cookie", headers["set-cookie"].partition(";")[0])]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_the_address_gives_a_cookie_that_opens_the_app() -> None:
    status, headers, text = ask([("host", HOST)], query=f"token={TOKEN}")
    assert status == 200
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(headers["set-cookie"].split("; "))
    assert "url=/" in text and TOKEN not in text and "the App" not in text
    assert headers["cache-control"] == "no-store"
    assert ask(entered(), "/graphql")[::2] == (200, "the App at /graphql")


def test_pages_load_nothing_from_other_hosts() -> None:
    assert ask(entered())[1]["content-security-policy"] == POLICY
    assert "http" not in POLICY and "*" not in POLICY


def test_two_reviews_have_two_cookies() -> None:
    """A browser sends all cookies of a host to all its ports."""
    names = {entered(token)[1][1].partition("=")[0] for token in (TOKEN, "another")}
    assert len(names) == 2


def test_fiftyones_own_client_sends_a_password() -> None:
    assert ask([("host", HOST), ("authorization", basic(f"diffugen:{TOKEN}"))], "/events")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/media", "/graphql", "/events", "/plugins", "/datasets/a", "/fiftyone"]
)
@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], ""),
        ([], "token="),
        ([], f"token={TOKEN}x"),
        ([], f"token={TOKEN[:-1]}"),
        ([], f"Token={TOKEN}"),
        ([("cookie", f"review={TOKEN}")], ""),
        ([("cookie", "review-000000000000=")], ""),
        ([("cookie", "\xe9=\xe9; ;=;")], ""),
        ([("authorization", basic("diffugen:"))], ""),
        ([("authorization", basic(f"{TOKEN}:"))], ""),
        ([("authorization", basic(f"diffugen:{TOKEN}").replace("Basic", "Bearer"))], ""),
        ([("authorization", "Basic \xe9")], ""),
        ([("authorization", "Basic")], ""),
    ],
)
def test_without_the_token_nothing_is_answered(path: str, headers: list[tuple[str, str]], query: str) -> None:
    status, got, text = ask([("host", HOST), *headers], path, query)
    assert status == 403
    assert "set-cookie" not in got
    assert "Open the address" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:5151", "localhost:8080", "LOCALHOST:5151"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert ask([("host", host), *entered()[1:]])[0] == 200


@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"],
        ["evil.example:5151"],
        ["127.0.0.1.evil.example"],
        ["localhost.evil.example"],
        ["evil.example#127.0.0.1"],
        ["127.0.0.1@evil.example"],
        ["192.168.0.7:5151"],
        ["0.0.0.0:5151"],
        ["[::1"],
        [""],
        [],
        [HOST, "evil.example"],
        ["evil.example", HOST],
    ],
)
@pytest.mark.parametrize("query", ["", f"token={TOKEN}"])
def test_other_hosts_are_refused_even_with_the_token(hosts: list[str], query: str) -> None:
    status, got, text = ask([*(("host", host) for host in hosts), *entered()[1:]], query=query)
    assert (status, "set-cookie" in got) == (403, False)
    assert "only on 127.0.0.1 and localhost" in text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("origin", f"http://{HOST}"), ("sec-fetch-site", "same-origin")], 200),
        ([("sec-fetch-site", "none")], 200),
        ([("origin", "http://evil.example")], 403),
        ([("origin", "http://127.0.0.1:9999")], 403),
        ([("origin", f"https://{HOST}")], 403),
        ([("origin", "null")], 403),
        ([("sec-fetch-site", "same-site")], 403),
        ([("sec-fetch-site", "cross-site")], 403),
    ],
)
def test_pages_of_other_origins_are_refused(headers: list[tuple[str, str]], status: int) -> None:
    assert ask([*entered(), *headers], "/tag")[0] == status


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["images/a.png"], 200),
        (["review/masks/a.png"], 200),
        (["images/missing.png"], 200),
        (["images/a.png", "review/masks/a.png"], 200),
        (["ledger.sqlite"], 403),
        (["images/../ledger.sqlite"], 403),
        (["images/link.png"], 403),
        (["images/circle.png"], 403),
        (["images-of-others/a.png"], 403),
        (["images/a.png", "ledger.sqlite"], 403),
        (["ledger.sqlite", "images/a.png"], 403),
        (["images/a.png\0"], 403),
    ],
)
@pytest.mark.parametrize("path", ["/media", "/media\n", "/media/", "//media"])
def test_only_files_of_the_review_are_read(run: Path, path: str, names: list[str], status: int) -> None:
    query = urlencode([("filepath", str(run / name)) for name in names])
    assert ask(entered(), path, query, run=run)[0] == status


@pytest.mark.parametrize("given", ["/etc/passwd", "etc/passwd", "", "~/.ssh/id_rsa", "file:///etc/passwd"])
def test_no_other_file_of_the_machine_is_read(run: Path, given: str) -> None:
    assert ask(entered(), "/media", urlencode({"filepath": given}), run=run)[0] == 403


def test_websockets_are_guarded_too() -> None:
    assert ask([("host", HOST)], kind="websocket")[0] == 403
