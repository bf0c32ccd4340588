"""The server: one page per demonstration and an index page, by default on this machine's own address."""

import asyncio
import errno
import functools
import gc
import itertools
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import Server
from tornado.web import RequestHandler

from functional_nn.lab.demonstrations import (
    attention,
    backpropagation,
    boundary,
    convolution,
    gradient_descent,
    learning_rules,
    populations,
    race,
    sweep_members,
)
from functional_nn.lab.demonstrations.page import Demonstration
from functional_nn.lab.report import templates

DEMONSTRATIONS: tuple[Demonstration, ...] = (
    gradient_descent.DEMONSTRATION,
    race.DEMONSTRATION,
    backpropagation.DEMONSTRATION,
    convolution.DEMONSTRATION,
    boundary.DEMONSTRATION,
    populations.DEMONSTRATION,
    attention.DEMONSTRATION,
    learning_rules.DEMONSTRATION,
)
LOOPBACK = "127.0.0.1"
_TRIES = 20  # ports to try, from the given one on
_UNUSED = 5_000  # milliseconds, after which a session without a browser is deleted


class Served(NamedTuple):
    """A running server, and the address of its first page."""

    server: Server
    address: str

    @property
    def port(self) -> int:
        return self.server.port


class _Index(RequestHandler):
    """The index page, which also names the demonstrations that are still being compiled."""

    def initialize(self, waiting: Sequence[Demonstration]) -> None:
        self.waiting = waiting

    def get(self) -> None:
        page = templates().get_template("demonstrations.html")
        self.write(page.render(demonstrations=DEMONSTRATIONS, waiting=self.waiting))


def start(port: int = 5006, address: str = LOOPBACK, waiting: Sequence[Demonstration] = ()) -> Served:
    """Starts a server that listens; the caller runs `server.io_loop`.

    waiting: the demonstrations that are being compiled, as the index page says; the one who compiles removes them. If
    `port` is in use, the next free one is taken and printed. Raises ValueError for an invalid port, and OSError if no
    port is free or the address is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {port}")
    number = next((number for number in range(port, min(port + _TRIES, 65536)) if _is_free(address, number)), None)
    if number is None:
        raise OSError(f"ports {port} to {port + _TRIES - 1} are all in use; choose another with --port")
    if number != port:
        print(f"port {port} is in use; taking {number}", file=sys.stderr)
    pages = {f"/{page.path}": FunctionHandler(functools.partial(_page, page)) for page in DEMONSTRATIONS}
    server = Server(
        {path: Application(handler) for path, handler in pages.items()},
        port=number,
        address=address,
        extra_patterns=[("/", _Index, {"waiting": waiting})],
        use_index=False,
        allow_websocket_origin=[f"{host}:{number}" for host in dict.fromkeys((address, LOOPBACK, "localhost"))],
        unused_session_lifetime_milliseconds=_UNUSED,
        check_unused_sessions_milliseconds=_UNUSED // 5,
    )
    server.start()
    return Served(server, f"http://{address}:{number}/")


def _is_free(address: str, port: int) -> bool:
    """Whether a server can listen there. Raises OSError if the address is not this machine's."""
    with socket.socket() as tried:
        tried.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: a port that was just closed is free
        try:
            tried.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise OSError(f"{address}:{port}: {error.strerror}") from None
    return True


def _page(demonstration: Demonstration, document: Document) -> None:
    document.template_variables["pages"] = [(page.path, page.title) for page in DEMONSTRATIONS]
    demonstration.build(document)


def serve(port: int = 5006, address: str = LOOPBACK, browser: bool = True, sweep: Path | None = None) -> None:
    """Serves the pages until Ctrl-C, compiles their programs in the background, and opens a browser if there is one.

    Args:
        port: the server's port; if it is in use, the next free one.
        address: the address to listen at.
        browser: whether to open a browser.
        sweep: the folder of a sweep, for the page of populations; by default a small one is trained first.

    Raises:
        ValueError: for an invalid port, or if `sweep` is not a sweep's folder.
        OSError: if no port is free, or the address is not this machine's.
    """
    sweep_members.use(sweep)
    asyncio.set_event_loop(asyncio.new_event_loop())  # a server needs one and no longer makes it itself
    waiting = list(DEMONSTRATIONS)
    served = start(port, address, waiting)
    opened = browser and _open(served.address)
    print(f"demonstrations: {served.address}" + ("" if opened else " (open it in a browser)"), flush=True)
    if address != LOOPBACK:
        print("everyone who can reach this address can use them", file=sys.stderr)
    print("Ctrl-C stops; compiling in the background, the pages are slow until that is done ...", flush=True)
    stopped = threading.Event()
    compiling = threading.Thread(target=_compile, args=(waiting, stopped))
    try:
        compiling.start()
        served.server.io_loop.start()
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
    finally:
        stopped.set()
        served.server.stop()
        compiling.join()  # lets the current compilation finish
    print("stopped")


def _compile(waiting: list[Demonstration], stopped: threading.Event) -> None:
    """Compiles the first program of each page, which removes the page from `waiting`; then the other programs."""
    gc.freeze()  # keeps existing objects: Bokeh collects garbage whenever a session ends, while all others wait
    programs = [(page, page.warm_up()) for page in waiting]
    for page, compiled in programs:
        next(compiled)
        waiting.remove(page)
        if stopped.is_set():
            return
    for _ in itertools.chain.from_iterable(compiled for _, compiled in programs):
        if stopped.is_set():
            return
    gc.collect()
    gc.freeze()
    print("all pages are compiled", flush=True)


def _open(address: str) -> bool:
    """Whether a browser was opened."""
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False
