"""Open the FiftyOne App on the review queue of a dataset, on 127.0.0.1, and wait for the reviewer.

Knows FiftyOne's App and server; nothing of runs, labels or decisions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffugen.errors import DiffugenError
from diffugen.review.database import environment

ADDRESS = "127.0.0.1"
APP_SECONDS = 300.0
"""Maximum time for the App's server to start."""

INSTRUCTIONS = """The review of {name} is open: {url}
  1. The view "queue" has {images} images, worst first. Attention labels are orange, model labels are blue.
  2. Select images, click the tag icon, and tag them: accept_attention, accept_model, empty (nothing to
     label) or reject. To accept single labels: open an image, select the labels, and tag them: accept.
  3. When you are done, press Ctrl-C here or close the page. Tagged images are imported; the others stay in
     the queue."""


def open_app(dataset: Any, *, port: int, notify: Callable[[str], None]) -> None:
    """Open the App on the queue, wait for Ctrl-C or until the page is closed, and close the App.

    If there is a display, a browser opens too.

    Args:
        dataset: What `diffugen.review.push.push` returned.
        port: Port of the App.
        notify: Called with the address and the instructions.

    Raises:
        DiffugenError: The port is taken, or the App does not start.
    """
    session = _start_app(dataset, port, notify)
    try:
        session.wait()
    except KeyboardInterrupt:
        pass
    finally:
        session.close()


def _start_app(dataset: Any, port: int, notify: Callable[[str], None]) -> Any:
    import webbrowser

    import fiftyone as fo

    _check_free(port)
    view = dataset.load_saved_view("queue")
    home = Path(dataset.info["run"]["folder"]) / "review" / "home"
    home.mkdir(parents=True, exist_ok=True)
    # The server would write a user id into the home folder.
    with environment({"HOME": str(home)}):
        _start_server(port)
    # Not launch_app, which prints an advertisement. Remote: FiftyOne opens no browser by itself.
    session = fo.Session(dataset=dataset, view=view, address=ADDRESS, port=port, remote=True)
    url = f"http://{ADDRESS}:{port}"
    if _has_display():
        webbrowser.open(url)
    notify(INSTRUCTIONS.format(name=dataset.name, url=url, images=len(view)))
    return session


def _start_server(port: int) -> None:
    """Start the App's server in FiftyOne's own care, which stops it with the last session on its port.

    FiftyOne itself gives up after a minute, which is too early on a machine that is busy with training, and
    keeps waiting if the server has ended.
    """
    from fiftyone.core.service import ServerService, ServiceListenTimeout
    from fiftyone.core.session import session as sessions

    class Server(ServerService):
        def _wait_for_child_port(self, port: int | None = None, timeout: float = APP_SECONDS) -> int:
            deadline = time.monotonic() + timeout
            while self.child.is_running() and time.monotonic() < deadline:
                with contextlib.suppress(ServiceListenTimeout):
                    return super()._wait_for_child_port(port, timeout=1)
            raise ServiceListenTimeout("server", port)

    try:
        sessions._server_services[port] = Server(port, address=ADDRESS, do_not_track=True)
    except ServiceListenTimeout as error:
        raise DiffugenError(
            f"the App's server does not start on {ADDRESS}:{port}. Try again when the machine is less busy, "
            "or review on a page: --review static"
        ) from error


def _check_free(port: int) -> None:
    """Refuse a port that is taken: FiftyOne would join the App there, with another run and database."""
    if not 0 < port < 65536:
        raise DiffugenError(f"port {port} is not between 1 and 65535; choose another with --port")
    try:
        with socket.socket() as probe:
            # A port that an App has just left can be used again.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ADDRESS, port))
    except OSError as error:
        raise DiffugenError(
            f"the App cannot listen on {ADDRESS}:{port}: {error.strerror or error}. Choose another port with "
            "--port, or stop the program that uses it"
        ) from error


def _has_display() -> bool:
    return sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
