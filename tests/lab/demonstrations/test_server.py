"""The server: where it listens, what sessions see and leave behind, and its error messages."""

import asyncio
import gc
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import appearance
import jax
import pytest
from bokeh.client import pull_session
from bokeh.document import Document
from bokeh.models import LogAxis
from tornado.websocket import websocket_connect

from functional_nn.lab import demonstrations
from functional_nn.lab.demonstrations import DEMONSTRATIONS, page, server, surfaces
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, lay_out

_COMPILES = "a program is compiled when it is first used|compiling"


def fetched(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


def test_the_index_page_links_to_all(served):
    page = fetched(served.address)
    assert all(f'href="{one.path}"' in page and one.title in page for one in DEMONSTRATIONS)
    assert "http" not in page  # nothing is loaded from elsewhere


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("path", [one.path for one in DEMONSTRATIONS])
def test_pages_load_nothing_from_elsewhere(served, path):
    """Scripts and styles come from this server: the pages work without a network."""
    page = fetched(served.address + path)
    loaded = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert loaded and all(part.startswith("/static/") for part in loaded)
    assert "cdn." not in page and "@import" not in page


def test_it_listens_only_on_loopback(served):
    assert served.address == f"http://127.0.0.1:{served.port}/"
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:] if Path("/proc/net/tcp").exists() else []
    at = [
        line.split()[1]
        for line in listening
        if line.split()[3] == "0A" and line.split()[1].endswith(f"{served.port:04X}")
    ]
    assert at == [f"0100007F:{served.port:04X}"] or not listening


def test_other_pages_cannot_open_its_sockets(served):
    """A websocket from a page of another origin is refused."""
    request = (
        f"GET /gradient-descent/ws HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Origin: http://elsewhere.example\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), 10) as wire:
        wire.sendall(request.encode())
        assert b" 403 " in wire.recv(200)


def test_a_port_in_use_is_skipped(served, capsys):
    asyncio.set_event_loop(asyncio.new_event_loop())
    other = demonstrations.start(served.port)
    try:
        assert served.port < other.port < served.port + 20
        assert f"port {served.port} is in use; taking {other.port}" in capsys.readouterr().err
    finally:
        other.server.stop()


def test_without_a_free_port_it_is_refused(monkeypatch, served):
    monkeypatch.setattr(server, "_TRIES", 1)
    with pytest.raises(OSError, match="all in use; choose another with --port"):
        demonstrations.start(served.port)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_an_invalid_port_is_refused(port):
    with pytest.raises(ValueError, match=f"port must be 1 to 65535, got {port}"):
        demonstrations.start(port)


def test_one_session_is_invisible_to_another(served):
    first, second = (pull_session(url=served.address + "gradient-descent") for _ in range(2))
    try:
        first.document.get_model_by_name("steps").value = 7
        first.force_roundtrip()
        time.sleep(0.3)
        second.pull()
        assert second.document.get_model_by_name("steps").value == 100
        third = pull_session(url=served.address + "gradient-descent")
        assert third.document.get_model_by_name("steps").value == 100
        third.close()
    finally:
        first.close()
        second.close()


# A process of its own, whose memory is the server's alone, and what its pages begin with compiled.
_SERVER = """
import gc, jax, sys
jax.config.update("jax_enable_x64", True)
from functional_nn.lab.demonstrations import server
server._UNUSED = 200
for one in server.DEMONSTRATIONS:
    if one.path in sys.argv:
        next(one.warm_up())
served = server.start(5900)
gc.freeze()
print(served.address, flush=True)
served.server.io_loop.start()
"""


@pytest.fixture
def apart(pages):
    """A server in another process: (address, that process)."""
    command = [sys.executable, "-c", _SERVER, *pages]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process.stdout.readline().strip(), process
        process.kill()


async def _visited(address):
    """As a browser does: opens a page and its socket, and leaves."""
    token = re.search(r'"token":"([^"]+)"', fetched(address))[1]
    wire = await websocket_connect(address.replace("http", "ws", 1) + "/ws", subprotocols=["bokeh", token])
    assert "ACK" in await wire.read_message()
    wire.close()
    while await wire.read_message() is not None:  # until the server has closed it, too
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "pages",
    [("gradient-descent",), pytest.param([one.path for one in DEMONSTRATIONS], marks=pytest.mark.slow, id="all")],
)
def test_sessions_leave_nothing_behind(apart, pages):
    """50 sessions opened and closed: memory grows by less than 20 MB, and so do not the threads."""
    address, process = apart

    def after(sessions):
        for number in range(sessions):
            asyncio.run(_visited(address + pages[number % len(pages)]))
        time.sleep(2)  # sessions without a browser are deleted
        status = Path(f"/proc/{process.pid}/status").read_text()
        return [int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")]

    kilobytes, threads = after(10)  # what is compiled, and what Bokeh and the allocator keep for good
    kilobytes_after, threads_after = after(50)
    assert 1024 * (kilobytes_after - kilobytes) < 20e6
    assert threads_after < threads + 10  # Bokeh's own pool may not have been full; a leak would be 50


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--port", "0"), "port must be 1 to 65535, got 0"),
        (("--sweep", "nowhere"), "'nowhere' is not a sweep's folder"),
        (("--address", "203.0.113.7"), "203.0.113.7"),
    ],
)
@pytest.mark.slow
def test_the_command_refuses_in_one_line(given, said):
    command = [sys.executable, "-m", "functional_nn.lab.cli", "demo", "--no-browser", *given]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert found.returncode == 2 and said in found.stderr and len(found.stderr.strip().splitlines()) == 1


def test_serving_opens_a_browser_or_prints_where(monkeypatch, capsys):
    """And ends with Ctrl-C; nothing is compiled here."""
    monkeypatch.setattr(server, "DEMONSTRATIONS", ())
    monkeypatch.setattr(server.sweep_members, "use", lambda sweep: None)
    monkeypatch.setattr(server.Server, "io_loop", property(lambda self: _Interrupted()))
    for opens, ending in ((True, ""), (False, " (open it in a browser)")):
        monkeypatch.setattr(server.webbrowser, "open", lambda address, opens=opens: opens)
        server.serve(5700)
        said = capsys.readouterr().out.splitlines()
        assert (
            said[0] == f"demonstrations: http://127.0.0.1:5700/{ending}"
            and said[-1] == "stopped"
            and "stopping ..." in said
        )


class _Interrupted:
    def start(self):
        raise KeyboardInterrupt


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize(
    "path", [one.path for one in DEMONSTRATIONS if one.path != "populations"]
)  # which is elsewhere
def test_pages_on_every_screen_light_and_dark(visit, served, path):
    page = visit(path)
    fetched = page.script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert fetched and all(address.startswith((served.address, "data:")) for address in fetched)
    appearance.check(page)


def test_the_server_answers_while_it_compiles(monkeypatch, capsys):
    """Both pages are there at once, and say what is going on; the rest is compiled when all can begin."""
    began, go_on, more, started = threading.Event(), threading.Event(), [], []

    def warm_up():
        began.set()
        assert go_on.wait(30)
        yield
        more.append("more")

    def build(document):
        lay_out(document, "Slow", "Takes long.", status=Status().model)

    monkeypatch.setattr(server, "DEMONSTRATIONS", (Demonstration("slow", "Slow", "Takes long.", build, warm_up),))
    monkeypatch.setattr(server.sweep_members, "use", lambda sweep: None)
    start = server.start
    monkeypatch.setattr(server, "start", lambda *given: started.append(start(*given)) or started[0])
    thread = threading.Thread(target=server.serve, args=(5750,), kwargs={"browser": False})
    thread.start()
    assert began.wait(30)
    address = started[0].address
    assert "still compiling: Slow." in fetched(address)
    session = pull_session(url=address + "slow")
    assert re.search(_COMPILES, session.document.get_model_by_name("status").text)
    session.close()
    go_on.set()
    until = time.monotonic() + 30
    while not more or "still compiling" in fetched(address):
        assert time.monotonic() < until
    started[0].server.io_loop.add_callback(started[0].server.io_loop.stop)
    thread.join(30)
    gc.unfreeze()
    assert not thread.is_alive() and capsys.readouterr().out.endswith("all pages are compiled\nstopped\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_it_compiles():
    command = [sys.executable, "-m", "functional_nn.lab.cli", "demo", "--no-browser", "--port", "5850"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[1]
        assert "still compiling: Gradient descent, Adam" in fetched(address)
        fetched(address + "gradient-descent")
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == ""
    assert said.endswith("stopping ...\nstopped\n") and "all pages are compiled" not in said


@pytest.mark.parametrize("one", DEMONSTRATIONS, ids=lambda one: one.path)
def test_a_page_is_laid_out_without_computing(monkeypatch, caplog, one):
    """What it begins with is asked for once, and compiled elsewhere; log axes have no ticks between the decades."""
    asked = []
    monkeypatch.setattr(Live, "ask", lambda self, question: asked.append(question))
    surfaces.surfaces.cache_clear()
    document = Document()
    with jax.log_compiles():
        one.build(document)
    assert len(asked) == 1 and not [each for each in caplog.messages if "ompil" in each]
    assert re.search(_COMPILES, document.get_model_by_name("status").text)
    axes = list(document.select({"type": LogAxis}))
    assert all(axis.ticker.num_minor_ticks == 0 for axis in axes) and (
        axes or one.path in ("backpropagation", "convolution")
    )


class _Document:
    """A document whose callbacks wait until they are run."""

    def __init__(self):
        self.next, self.later = [], []

    def add_next_tick_callback(self, callback):
        self.next.append(callback)

    def add_timeout_callback(self, callback, milliseconds):
        self.later.append(callback)
        return callback

    def remove_timeout_callback(self, callback):
        self.later.remove(callback)

    def hold(self, policy):
        pass

    def unhold(self):
        return None


def test_an_answer_for_a_closed_page_is_ignored(caplog):
    """The session is destroyed while it is computed, as when a visitor has left."""
    document, status, go_on = Document(), Status(), threading.Event()
    live = Live(document, lambda question: go_on.wait(30), status.say, status)
    live.ask("something")
    document.callbacks.destroy()  # as Bokeh does, before it says so
    go_on.set()
    both = threading.Barrier(3)  # which all workers of the pool reach when they have done with it
    for _ in range(2):
        page._pool.submit(both.wait)
    both.wait(30)
    assert not caplog.records


def test_a_long_computation_is_shown_but_not_after_its_answer():
    document, status, go_on = _Document(), Status(), threading.Event()
    live = Live(document, lambda question: go_on.wait(30) and question, status.say, status)
    live.ask("the answer")
    status.say("something")
    (late,) = document.later
    late()
    assert "computing" in status.model.text
    go_on.set()
    while not document.next:
        time.sleep(0.001)
    document.next.pop()()
    assert "the answer" in status.model.text and not document.later
    late()  # its turn came when the answer had been shown
    assert "the answer" in status.model.text
