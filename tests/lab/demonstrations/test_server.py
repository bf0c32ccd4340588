"""The server: where it listens, who sees what, what it keeps, and what it says of what it cannot have."""

import asyncio
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from bokeh.client import pull_session
from tornado.websocket import websocket_connect

from functional_nn.lab import demonstrations
from functional_nn.lab.demonstrations import DEMONSTRATIONS, server


def fetched(address):
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


def test_the_first_page_leads_to_all(served):
    page = fetched(served.address)
    assert all(f'href="{one.path}"' in page and one.title in page for one in DEMONSTRATIONS)
    assert "http" not in page  # nothing is loaded from elsewhere


@pytest.mark.parametrize("path", [one.path for one in DEMONSTRATIONS])
def test_pages_load_nothing_from_elsewhere(served, path):
    """Scripts and styles come from this server: the pages work without a network."""
    page = fetched(served.address + path)
    loaded = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert loaded and all(part.startswith("/static/") for part in loaded)
    assert "cdn." not in page and "@import" not in page


def test_it_listens_on_loopback_alone(served):
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


def test_a_port_in_use_is_passed_over(served, capsys):
    asyncio.set_event_loop(asyncio.new_event_loop())
    other = demonstrations.start(served.port)
    try:
        assert served.port < other.port < served.port + 20
        assert f"port {served.port} is in use; taking {other.port}" in capsys.readouterr().err
    finally:
        other.server.stop()


def test_no_port_is_free(monkeypatch, served):
    monkeypatch.setattr(server, "_TRIES", 1)
    with pytest.raises(OSError, match="all in use; choose another with --port"):
        demonstrations.start(served.port)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_is_none(port):
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


# A process of its own, whose memory is the server's alone.
_SERVER = """
import gc, jax
jax.config.update("jax_enable_x64", True)
from functional_nn.lab.demonstrations import server
server._UNUSED = 200
served = server.start(5900)
gc.freeze()
print(served.address, flush=True)
served.server.io_loop.start()
"""


@pytest.fixture
def apart():
    """A server in another process: (address, that process)."""
    command = [sys.executable, "-c", _SERVER]
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
        time.sleep(2)  # what nobody looks at is forgotten
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
def test_the_command_refuses_in_a_line(given, said):
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
        assert said[1] == f"demonstrations: http://127.0.0.1:5700/{ending}" and said[-1] == "stopped"


class _Interrupted:
    def start(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(one.path, marks=pytest.mark.slow if one.path == "populations" else ())  # it trains some first
        for one in DEMONSTRATIONS
    ],
)
def test_pages_fit_a_phone_and_fetch_nothing_from_elsewhere(visit, served, path):
    page = visit(path, 390, 844)
    assert page.script("return document.documentElement.scrollWidth") <= 390
    fetched = page.script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert fetched and all(address.startswith((served.address, "data:")) for address in fetched)
