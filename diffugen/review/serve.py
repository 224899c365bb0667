"""The review page on a server of this machine, which stores each decision before it answers.

The server listens on 127.0.0.1 and answers only whoever was given its address, by the rules of
`diffugen.review.guard`. Threads read the requests, for a browser opens connections that it does not use; the
thread that owns the run answers them, one after the other.
"""

from __future__ import annotations

import hmac
import json
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from diffugen.config.foreign import parse_json
from diffugen.errors import DiffugenError, StoreError
from diffugen.records import Decision
from diffugen.review.decisions import is_news, to_decision
from diffugen.review.guard import ENTRY, HOSTS, cookie_name, is_for_this_machine, is_of_this_origin
from diffugen.review.judged import Unclear
from diffugen.review.queue import Queue, read_queue, run_name
from diffugen.review.static import Pictures, page_text
from diffugen.run.store import RunStore
from diffugen.run.votes import newest_votes

ADDRESS = "127.0.0.1"
MOST_BYTES = 64 << 20
SECONDS = 30
"""How long a connection may stay silent."""

LOOKS_SECONDS = 0.5
"""How often the server looks for Ctrl-C, which some systems do not deliver to a thread that waits."""

Answer = tuple[int, str, str]
"""Status, content type and text."""


class Review:
    """What the server answers, without knowing of connections; for the thread that owns the run.

    Args:
        store: The run, open for writing.
        reviewer: Who decides, if the page does not say.
        round: The round in which is decided.

    Attributes:
        stored: The decisions that were stored, in order.
        finished: Whether the reviewer has ended the review.
    """

    def __init__(self, store: RunStore, reviewer: str, round: int) -> None:
        self.stored: list[Decision] = []
        self.finished = False
        self._store, self._reviewer, self._round = store, reviewer, round
        self._pictures: Pictures = {}
        self._queue = read_queue(store)

    def page(self) -> Answer:
        """Return the page, with everything that was decided so far."""
        self._queue = read_queue(self._store)
        text = page_text(self._store, self._queue, self._reviewer, served=True, known=self._pictures)
        return 200, "text/html", text

    def decide(self, body: bytes) -> Answer:
        """Store decisions, given like a decisions file; all of them, or none if there is a mistake."""
        try:
            items = _items(body, run_name(self._store))
            found = [to_decision(self._queue, item, self._reviewer, self._round) for item in items]
        except (ValueError, Unclear) as mistake:
            return _json(400, error=str(mistake))
        news = [one for one in found if is_news(self._queue, one)]
        try:
            self._store.add_decisions(news)
        except StoreError as error:
            return _json(500, error=str(error))
        self.stored += news
        self._queue = _with_votes(self._queue, news)
        return _json(200, stored=len(news))

    def finish(self) -> Answer:
        """End the review."""
        self.finished = True
        return _json(200, decisions=self.decided)

    @property
    def decided(self) -> int:
        """How many images were decided here; what was said twice or taken back counts once or not at all."""
        last = {one.image_id: one for one in self.stored}
        return sum(1 for one in last.values() if one.verdict != "open")


def _items(body: bytes, run: str) -> list[Any]:
    content = parse_json(body.decode("utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("decisions"), list):
        raise ValueError('expected {"run": ..., "decisions": [...]}')
    if content.get("run") != run:
        raise ValueError(f"the page shows another run than {run!r}; open the address that DiffuGen printed")
    return content["decisions"]


def _with_votes(queue: Queue, news: list[Decision]) -> Queue:
    votes = dict(queue.votes)
    for image_id in {one.image_id for one in news}:
        votes |= newest_votes(queue.store.votes(image_id))
    return replace(queue, votes=votes)


def _json(status: int, **content: Any) -> Answer:
    return status, "application/json", json.dumps(content)


# -------------------------------------------------------------------- the server


def serve(
    store: RunStore, *, reviewer: str, round: int, port: int, notify: Callable[[str], None] = print
) -> Review:
    """Serve the review page of a run until the reviewer has finished.

    Args:
        store: The run, open for writing, of this thread.
        reviewer: Who decides, if the page does not say.
        round: The round in which is decided.
        port: Port of 127.0.0.1; 0 for any.
        notify: Called with the address.

    Returns:
        What was decided. It is not ``finished`` if Ctrl-C ended it.

    Raises:
        DiffugenError: The port is taken.
        StoreError: The run cannot be read.
    """
    review = Review(store, reviewer, round)
    server = _listen(port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        notify(
            f"Review at {server.url}\nEach verdict is stored in the run at once. "
            "To end: the button Finish, or Ctrl-C."
        )
        while not review.finished:
            _answer_next(server, review)
    except KeyboardInterrupt:
        pass  # what was answered is stored
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return review


@dataclass(frozen=True)
class _Job:
    """A request on its way to the thread that owns the run, and its answer on the way back."""

    work: Callable[[Review], Answer]
    answer: Future[Answer] = field(default_factory=Future)
    written: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    def __init__(self, port: int) -> None:
        self.jobs: queue.Queue[_Job] = queue.Queue()
        self.token = secrets.token_urlsafe(32)
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that closed its connection."""


def _listen(port: int) -> _Server:
    try:
        return _Server(port)
    except OSError as error:
        raise DiffugenError(
            f"cannot serve the review on {ADDRESS}:{port}: {error.strerror or error}. Choose another port "
            "with --port, or stop the program that uses it"
        ) from error


def _answer_next(server: _Server, review: Review) -> None:
    try:
        job = server.jobs.get(timeout=LOOKS_SECONDS)
    except queue.Empty:
        return
    try:
        job.answer.set_result(job.work(review))
    except DiffugenError as error:  # such as an image that cannot be read: the reviewer sees why
        job.answer.set_result((500, "text/plain", str(error)))
    except BaseException as error:
        job.answer.set_exception(error)
        raise
    if review.finished:
        job.written.wait(SECONDS)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SECONDS

    def do_GET(self) -> None:
        """Answer the entry, which hands out the cookie, or the page."""
        address = urlsplit(self.path)
        token = parse_qs(address.query).get("token", [""])[0]
        if not is_for_this_machine(self.headers.get_all("host", [])):
            self._refuse(f"This review answers only on {' and '.join(HOSTS)}.")
        elif address.path == "/" and self._is_token(token):
            cookie = f"{self._cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._write((200, "text/html", ENTRY), {"Set-Cookie": cookie})
        elif address.path == "/favicon.ico":
            self._write((204, "image/x-icon", ""))  # browsers ask for it without being told to
        elif self._may_pass():
            self._answer(Review.page) if address.path == "/" else self._refuse("There is no such page.", 404)

    def do_POST(self) -> None:
        """Store decisions, or end the review."""
        if not is_for_this_machine(self.headers.get_all("host", [])):
            self._refuse(f"This review answers only on {' and '.join(HOSTS)}.")
        elif self._may_pass():
            body = self._body()
            if body is None:
                self._refuse("This is no request of the review page.", 400)
            elif self.path == "/decisions":
                self._answer(lambda review: review.decide(body))
            elif self.path == "/finish":
                self._answer(Review.finish)
            else:
                self._refuse("There is no such page.", 404)

    def _may_pass(self) -> bool:
        """Return whether a request has the token and comes from the page; refuse it otherwise."""
        try:
            cookies = SimpleCookie(self.headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        given = cookies.get(self._cookie)
        if given is None or not self._is_token(given.value):
            self._refuse("Open the address that DiffuGen printed, with its token.")
            return False
        if not is_of_this_origin(self.headers):
            self._refuse("A page of another origin may not use this review.")
            return False
        return True

    @property
    def _cookie(self) -> str:
        return cookie_name(self.server.token)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.server.token.encode())

    def _body(self) -> bytes | None:
        length = self.headers.get("content-length", "")
        is_json = self.headers.get_content_type() == "application/json"
        if not is_json or not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            return None
        return self.rfile.read(int(length))

    def _answer(self, work: Callable[[Review], Answer]) -> None:
        job = _Job(work)
        self.server.jobs.put(job)
        try:
            self._write(job.answer.result())
        finally:
            job.written.set()

    def _refuse(self, reason: str, status: int = 403) -> None:
        self._write((status, "text/plain", reason))

    def _write(self, answer: Answer, headers: Mapping[str, str] | None = None) -> None:
        status, kind, text = answer
        data = text.encode()
        self.send_response(status)
        fixed = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "frame-ancestors 'none'",
        }
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal free of requests, and the token out of it."""
