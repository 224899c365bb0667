"""What hostile tests share: a guard against hangs, and damaged versions of valid files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import HealthCheck, settings, strategies as st

SECONDS = 30
"""Far more than any reader takes for the small files of these tests."""

FUZZ = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SNIPPETS = (
    *(b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000"),
    *(b"[" * 200, b"{" * 200, b'{"a":' * 100, b"]", b"}", b"[]", b"{}", b'""', b'"', b"'", b":", b",", b"- "),
    *(b"\n", b"\r", b"\t", b"&a [*a]", b"*a", b"<<: *a", b"!!python/object:os.system x", b"!!timestamp x"),
    *(b"~", b"null", b"true", b"1e999", b"-1", b"NaN", b"Infinity", b"9" * 400, b"9" * 5000, b"0.5"),
    *(b"../../../etc/passwd", b"/etc/passwd", b"x" * 300, b"a.b.c"),
)


@contextmanager
def no_hang(seconds: int = SECONDS) -> Iterator[None]:
    """Fail if the block does not end."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a file in which up to three parts are replaced by something odd, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = valid
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, 10_000])))
        data = data[:start] + draw(st.sampled_from(SNIPPETS) | st.binary(max_size=4)) + data[end:]
    return data
