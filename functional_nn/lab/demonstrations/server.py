"""The server: a page for each demonstration and one that leads to them, on this machine's own address by default."""

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
_TRIES = 20  # ports from the one asked for
_UNUSED = 5_000  # milliseconds after which a session that no browser is connected to is forgotten


class Served(NamedTuple):
    """A running server, and the address of its first page."""

    server: Server
    address: str

    @property
    def port(self) -> int:
        return self.server.port


class _Index(RequestHandler):
    """The page that leads to the demonstrations, and says which of them still wait for their first program."""

    def initialize(self, waiting: Sequence[Demonstration]) -> None:
        self.waiting = waiting

    def get(self) -> None:
        page = templates().get_template("demonstrations.html")
        self.write(page.render(demonstrations=DEMONSTRATIONS, waiting=self.waiting))


def start(port: int = 5006, address: str = LOOPBACK, waiting: Sequence[Demonstration] = ()) -> Served:
    """A server that listens, whose `server.io_loop` is the caller's to run.

    waiting: what is being compiled, as the first page says; whoever compiles takes it out. Takes the next free port
    where `port` is in use, and says so. Raises ValueError for a port that is none, OSError where no port is free or the
    address is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {port}")
    number = next((number for number in range(port, min(port + _TRIES, 65536)) if _is_free(address, number)), None)
    if number is None:
        raise OSError(f"ports {port} to {port + _TRIES - 1} are all in use; choose another with --port")
    if number != port:
        print(f"port {port} is in use; taking {number}", file=sys.stderr)
    pages = {f"/{one.path}": FunctionHandler(functools.partial(_page, one)) for one in DEMONSTRATIONS}
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
    """Whether a server can listen there. Raises OSError where the address is not this machine's."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has just closed is free
        try:
            tried.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise OSError(f"{address}:{port}: {error.strerror}") from None
    return True


def _page(demonstration: Demonstration, document: Document) -> None:
    document.template_variables["pages"] = [(one.path, one.title) for one in DEMONSTRATIONS]
    demonstration.build(document)


def serve(port: int = 5006, address: str = LOOPBACK, browser: bool = True, sweep: Path | None = None) -> None:
    """Serves the pages until Ctrl-C, compiles behind them, and opens a browser, where there is one.

    sweep: the folder of a sweep, for the page of populations; by default a small one is trained first. Raises as
    `start`, and ValueError where `sweep` is not a sweep's folder.
    """
    sweep_members.use(sweep)
    asyncio.set_event_loop(asyncio.new_event_loop())  # which a server needs, and no longer makes for itself
    waiting = list(DEMONSTRATIONS)
    served = start(port, address, waiting)
    opened = browser and _open(served.address)
    print(f"demonstrations: {served.address}" + ("" if opened else " (open it in a browser)"), flush=True)
    if address != LOOPBACK:
        print("whoever reaches this address can use them", file=sys.stderr)
    print("Ctrl-C stops; compiling behind the pages, which are slow until that is done ...", flush=True)
    stopped = threading.Event()
    behind = threading.Thread(target=_compile, args=(waiting, stopped))
    try:
        behind.start()
        served.server.io_loop.start()
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
    finally:
        stopped.set()
        served.server.stop()
        behind.join()  # a program that is being compiled is not left half done
    print("stopped")


def _compile(waiting: list[Demonstration], stopped: threading.Event) -> None:
    """What each page begins with, which takes it out of `waiting`; then the rest."""
    gc.freeze()  # what is there now stays: Bokeh collects garbage whenever a session ends, while all others wait
    programs = [(one, one.warm_up()) for one in waiting]
    for one, its in programs:
        next(its)
        waiting.remove(one)
        if stopped.is_set():
            return
    for _ in itertools.chain.from_iterable(its for _, its in programs):
        if stopped.is_set():
            return
    gc.collect()
    gc.freeze()
    print("all is compiled", flush=True)


def _open(address: str) -> bool:
    """Whether a browser was opened; on a machine without one, none is."""
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False
