"""Open the FiftyOne App on the review queue of a dataset, on 127.0.0.1, and wait for the reviewer.

Knows FiftyOne's App and server; nothing of runs, labels or decisions. Who may use the App is decided in
`diffugen.review.guard`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from diffugen.errors import DiffugenError
from diffugen.review import guard
from diffugen.review.database import environment
from diffugen.review.mongod import is_alive

ADDRESS = "127.0.0.1"
APP_SECONDS = 300.0
"""Maximum time for the App's server to start."""

POLL_SECONDS = 0.15
"""How often verdicts are taken over into the run; the App waits for that."""

PLUGIN = Path(__file__).parent / "plugin"

INSTRUCTIONS = """The review of {name} is open: {url}
  {images} images are undecided, worst first. Attention labels are orange, model labels are blue.
  Open an image. Keys: 1 attention is right, 2 model is right, 3 nothing here, 4 reject, 5 the selected labels
  are right, u undo, space changes what is drawn; the next image opens by itself. To correct a mask: e, paint,
  and press 1 or 2. Every verdict is stored in the run at once; a reload (F5) changes nothing.
  To finish: the flag in the App. Ctrl-C here stops the command, with everything kept.
Keep the address to yourself: whoever has it can see and change the review while it is open. Servers of other
users on this machine would get its cookie from your browser, so open none of their pages meanwhile."""


def open_app(
    dataset: Any, *, port: int, notify: Callable[[str], None], take_over: Callable[[], bool]
) -> bool:
    """Open the App on the undecided images of the queue, until somebody finishes, and close it.

    A page that is closed or loaded again does not end it. If there is a display, a browser opens.

    Args:
        dataset: What `diffugen.review.push.push` returned.
        port: Port of the App.
        notify: Called with the address and the instructions.
        take_over: Called every `POLL_SECONDS` to take over verdicts; returns whether somebody has finished.

    Returns:
        Whether somebody finished in the App; False after Ctrl-C.

    Raises:
        DiffugenError: The port is taken, the App does not start, or its server ended.
    """
    import fiftyone as fo

    _check_free(port)
    view = dataset.load_saved_view("undecided")
    folder = Path(dataset.info["run"]["folder"])
    token = secrets.token_urlsafe(32)
    url = f"http://{ADDRESS}:{port}/?token={token}"
    # A proxy of the user's cannot reach this machine, and must not see the token.
    with environment(dict.fromkeys(("NO_PROXY", "no_proxy"), ADDRESS)):
        server = _start_server(port, token, folder)
        # Not launch_app, which prints an advertisement. Remote: FiftyOne opens no browser by itself. Its
        # client knows no tokens, but sends the password of an address.
        address = f"diffugen:{token}@{ADDRESS}"
        session = fo.Session(dataset=dataset, view=view, address=address, port=port, remote=True)
        try:
            with _browser(url, folder / "review" / "open.html"):
                notify(INSTRUCTIONS.format(name=dataset.name, url=url, images=len(view)))
                while not take_over():
                    if not is_alive(server.child):
                        raise DiffugenError(
                            "the App's server has ended. Verdicts are stored; run the same command to go on"
                        )
                    time.sleep(POLL_SECONDS)
                return True
        except KeyboardInterrupt:
            return False
        finally:
            session.close()


@contextlib.contextmanager
def _browser(url: str, page: Path) -> Iterator[None]:
    """Open a browser, if there is a display, by a page that leads to the address.

    Every user can see the arguments that a browser is started with, and the address holds the token.
    """
    import webbrowser

    if not _has_display():
        yield
        return
    page.unlink(missing_ok=True)
    try:
        with open(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(url)}">')
        webbrowser.open(page.as_uri())
        yield
    finally:
        page.unlink(missing_ok=True)


def _start_server(port: int, token: str, folder: Path) -> Any:
    """Start the App's server in FiftyOne's own care, which stops it with the last session on its port.

    FiftyOne itself gives up after a minute, which is too early on a machine that is busy with training, and
    keeps waiting if the server has ended.
    """
    from fiftyone.core.service import ServerService, ServiceListenTimeout
    from fiftyone.core.session import session as sessions

    home = folder / "review" / "home"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    given = {
        "address": ADDRESS,
        "port": port,
        "token": token,
        "folders": [str(folder / "images"), *(str(folder / "review" / one) for one in ("masks", "strips"))],
    }
    # At the end of the search path, for a DiffuGen that is not installed, but lies where this process looks.
    source = str(Path(guard.__file__).parents[2])
    serve = f"import sys; sys.path.append({source!r}); from diffugen.review.guard import serve; serve()"

    class Server(ServerService):
        working_dir = str(home)

        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", serve]

        def _wait_for_child_port(self, port: int | None = None, timeout: float = APP_SECONDS) -> int:
            deadline = time.monotonic() + timeout
            while is_alive(self.child) and time.monotonic() < deadline:
                with contextlib.suppress(ServiceListenTimeout):
                    return super()._wait_for_child_port(port, timeout=1)
            raise ServiceListenTimeout("server", port)

    try:
        # The server would write a user id into the home folder.
        variables = {
            "HOME": str(home),
            "FIFTYONE_PLUGINS_DIR": str(_plugins(folder / "review" / "plugins")),
            guard.VARIABLE: json.dumps(given),
        }
        with environment(variables):
            server = sessions._server_services[port] = Server(port, address=ADDRESS, do_not_track=True)
        return server
    except ServiceListenTimeout as error:
        raise DiffugenError(
            f"the App's server does not start on {ADDRESS}:{port}. Try again when the machine is less busy, "
            "or review on a page: --review static"
        ) from error


def _plugins(folder: Path) -> Path:
    """Make the folder of plugins for a session, and return it: links to ours, and to the user's own."""
    folder.mkdir(parents=True, exist_ok=True)
    own = os.environ.get("FIFTYONE_PLUGINS_DIR")
    for name, target in (("diffugen", PLUGIN), ("own", Path(own) if own else None)):
        link = folder / name
        link.unlink(missing_ok=True)
        if target is not None and target.is_dir():
            link.symlink_to(target.resolve(), target_is_directory=True)
    return folder


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
