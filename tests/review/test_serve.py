"""The page on a server: each verdict is in the run when it is answered, and nobody else may ask."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser

from diffugen.review.guard import cookie_name
from diffugen.review.serve import Review
from diffugen.run.store import RunStore
from tests.support import run_for_review as made
from tests.support.children import WAIT_SECONDS, restore_signals
from tests.support.page import Reviewer

ROOT = Path(__file__).parents[2]


class Server:
    """``diffugen review RUN --serve`` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "diffugen.cli", "review", str(folder), "--serve"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--reviewer", "anna"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=restore_signals,
        )
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://\S+", line):
                self.address = found[0]
                self.token = parse_qs(urlsplit(self.address).query)["token"][0]
                return
        raise AssertionError(self.said)

    def end(self, signal_: int | None = None) -> int:
        if signal_ is not None:
            self.process.send_signal(signal_)
        self.said += self.process.communicate(timeout=WAIT_SECONDS)[0]
        return self.process.returncode

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str | None
    ) -> tuple[int, dict[str, str], str]:
        """Send a request as the page would, but for the given headers; None leaves one out."""
        usual: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Cookie": f"{cookie_name(self.token)}={self.token}",
            "Content-Type": "application/json",
        }
        chosen = {**usual, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        connection.putrequest(method, path, skip_host=True)
        for name, value in chosen.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), text


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "piano run"
    made.make_run(path, config=None).close()
    return path


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[Server], Reviewer]]:
    opened: list[Reviewer] = []

    def open(server: Server) -> Reviewer:
        opened.append(Reviewer(browser, server.address))
        return opened[-1]

    yield open
    for one in opened:
        one.context.close()


def stored(folder: Path) -> dict[str, tuple[str, str]]:
    with RunStore.open(folder, readonly=True) as store:
        return {one.image_id: (one.verdict, one.reviewer) for one in store.decisions()}


def wait_until_stored(reviewer: Reviewer) -> None:
    reviewer.until("!sending && Object.keys(unsent).length === 0")


def test_a_verdict_is_in_the_run_and_other_browsers_see_it(
    tmp_path: Path, open_page: Callable[[Server], Reviewer]
) -> None:
    path = tmp_path / "piano run"
    made.make_run(path, config=None).close()
    with serving(path) as server:
        first, second = open_page(server), open_page(server)
        first.press("m")
        wait_until_stored(first)
        assert stored(path) == {made.image_id(5): ("model", "anna")}
        second.page.reload()
        assert second.count == "1 of 5 decided" and second.rank == "#2"
        second.page.locator("#reviewer").fill("ben")
        second.page.locator("#reviewer").press("Enter")
        second.page.locator("#reviewer").blur()
        second.press("1", "Enter")
        wait_until_stored(second)
        assert stored(path)[made.image_id(1)] == ("attention", "ben")
        first.press("u")
        wait_until_stored(first)
        assert made.image_id(5) not in stored(path), "it was taken back"
        first.press("1", "ArrowRight")
        wait_until_stored(first)
        assert made.image_id(5) not in stored(path), "half decided"
        with RunStore.open(path, readonly=True) as store:
            assert [one.kept for one in list(store.votes(made.image_id(5)))[-1].judged] == [True]
        # What a browser has in its memory is not asked of the run that knows better.
        second.page.reload()
        assert second.rank == "#1" and second.kept() == [True]
        assert first.errors == second.errors == []
        first.page.locator("#save").click()
        first.page.locator("#finish-save").click()
        first.until("ended")
        assert "The review has ended" in first.page.locator("#finish-state").inner_text()
        assert server.end() == 0
    assert "1 image decided in this review" in server.said
    assert "new decisions:" in server.said and "Traceback" not in server.said


def test_kill_loses_no_answered_verdict(tmp_path: Path, open_page: Callable[[Server], Reviewer]) -> None:
    path = tmp_path / "piano run"
    made.make_run(path, config=None).close()
    with serving(path) as server:
        reviewer = open_page(server)
        reviewer.press("m", "r")
        wait_until_stored(reviewer)
        server.end(signal.SIGKILL)
        assert len(stored(path)) == 2
        reviewer.press("e")
        reviewer.until("document.getElementById('state').textContent.startsWith('NOT stored')")
        assert reviewer.page.evaluate("Object.keys(unsent).length") == 1


def test_ctrl_c_says_what_was_stored_and_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "piano run"
    made.make_run(path, config=None).close()
    with serving(path) as server:
        body = json.dumps(
            {"run": "piano run", "decisions": [{"image_id": made.image_id(5), "verdict": "reject"}]}
        )
        assert server.ask("POST", "/decisions", body)[0] == 200
        assert server.end(signal.SIGINT) == 130
    assert "1 image decided in this review, all stored in the run" in server.said
    assert "diffugen teach --run" in server.said and "Traceback" not in server.said


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as opened:
        yield opened


GOOD = '{"run": "piano run", "decisions": []}'


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Cookie": None}, 403),
        ("GET", "/?token=wrong", {"Cookie": None}, 403),
        ("GET", "/", {"Cookie": "review-123456789012=wrong"}, 403),
        ("GET", "/", {"Host": "example.org"}, 403),
        ("GET", "/?token=TOKEN", {"Cookie": None, "Host": "example.org"}, 403),
        ("GET", "/", {"Host": None}, 403),
        ("GET", "/", {"Origin": "http://example.org"}, 403),
        ("GET", "/", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("GET", "/ledger.sqlite", {}, 404),
        ("GET", "/../ledger.sqlite", {}, 404),
        ("POST", "/decisions", {"Cookie": None}, 403),
        ("POST", "/decisions", {"Host": "example.org:80"}, 403),
        ("POST", "/decisions", {"Origin": "null"}, 403),
        ("POST", "/decisions", {"Origin": "http://localhost:1"}, 403),
        ("POST", "/decisions", {"Content_Type": "text/plain"}, 400),
        ("POST", "/finish", {"Cookie": None}, 403),
        ("POST", "/finish", {"Origin": "http://example.org"}, 403),
        ("POST", "/other", {}, 404),
        ("POST", "/decisions", {}, 200),
        ("GET", "/", {}, 200),
    ],
)
def test_who_may_ask(
    server: Server, method: str, path: str, headers: dict[str, str | None], status: int
) -> None:
    body = GOOD if method == "POST" else None
    found, _, text = server.ask(method, path.replace("TOKEN", server.token), body, **headers)
    assert found == status, text
    assert server.token not in text


def test_the_token_becomes_a_cookie_and_leaves_the_address(
    server: Server, open_page: Callable[[Server], Reviewer]
) -> None:
    status, headers, _ = server.ask("GET", f"/?token={server.token}", None, Cookie=None)
    assert status == 200 and "HttpOnly; SameSite=Strict" in headers["Set-Cookie"]
    reviewer = open_page(server)
    assert reviewer.page.url == f"http://127.0.0.1:{server.port}/"
    policy = reviewer.page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "connect-src 'self'" in policy and "unsafe" not in policy
    hosts = {urlsplit(url).netloc for url in reviewer.requests if not url.startswith("data:")}
    assert hosts == {f"127.0.0.1:{server.port}"}


def test_a_port_that_is_taken_is_named(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "other"
    made.make_run(path, config=None).close()
    command = [sys.executable, "-m", "diffugen.cli", "review", str(path), "--serve"]
    done = subprocess.run(
        [*command, "--port", str(server.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and "Choose another port" in " ".join(done.stderr.split())


# -------------------------------------------------------------------- without connections


def said(review: Review, *items: Any, run: str = "piano run") -> tuple[int, dict[str, Any]]:
    status, _, text = review.decide(json.dumps({"run": run, "decisions": items}).encode())
    return status, json.loads(text)


def test_mistakes_are_answered_and_nothing_is_stored(store: RunStore) -> None:
    review = Review(store, "anna", 0)
    good = {"image_id": made.image_id(1), "verdict": "empty"}
    for status, answer in (
        said(review, good, {"image_id": "nothing", "verdict": "empty"}),
        said(review, good, run="other"),
        said(review, good, 3),
    ):
        assert status == 400 and answer["error"]
    for body in (b"{", b"\xff", b"[]", b"null"):
        assert review.decide(body)[0] == 400
    assert list(store.votes()) == [] and review.decided == 0


def test_what_is_said_twice_is_stored_once(store: RunStore) -> None:
    review = Review(store, "anna", 2)
    item = {"image_id": made.image_id(1), "verdict": "empty", "at": "2026-01-01T00:00:00Z"}
    assert said(review, item) == (200, {"stored": 1})
    assert said(review, item) == (200, {"stored": 0})
    assert said(review, {**item, "verdict": "open"}) == (200, {"stored": 1})
    assert (review.decided, list(store.decisions())) == (0, [])
    assert said(review, {**item, "verdict": "reject", "reviewer": "ben"}) == (200, {"stored": 1})
    (decision,) = store.decisions()
    assert (decision.verdict, decision.reviewer, decision.round) == ("reject", "ben", 2)
