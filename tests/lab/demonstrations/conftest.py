"""The demonstrations' server, and a page of it in a real browser, with a visitor's hands."""

import asyncio
import gc
import threading
import time

import pytest

pytest.importorskip("bokeh")

from functional_nn.lab import demonstrations
from functional_nn.lab.demonstrations import server

_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9,
         "Enter": 13, " ": 32}  # fmt: skip
# Where in the window data coordinates of a figure are.
_PIXELS = """
const view = [...Bokeh.index].flatMap(root => all(root)).find(v => v.model.name === arguments[0]);
function all(v) { return [v, ...(v.child_views ?? []).flatMap(all)]; }
const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame;
return [box.x + frame.x_scale.compute(arguments[1]), box.y + frame.y_scale.compute(arguments[2])];
"""


@pytest.fixture(scope="session")
def served():
    """A running server, which has compiled nothing yet, and soon forgets sessions that nobody looks at."""
    server._UNUSED = 500
    found, ready = [], threading.Event()

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())
        found.append(demonstrations.start(5600))
        ready.set()
        found[0].server.io_loop.start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    gc.freeze()  # as `serve` does
    yield found[0]
    gc.unfreeze()
    found[0].server.io_loop.add_callback(found[0].server.io_loop.stop)
    thread.join(10)


class Visitor:
    """What a person does on a page, and what it then holds."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get_log("browser")
        browser.get(address)
        self.until(lambda: self.script("return window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"))
        self.settled()

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def until(self, holds, seconds=60):
        """Waits until `holds()`; what it gave."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, f"not within {seconds} s; the page says {self.said()!r}"
            time.sleep(0.02)
        return found

    def get(self, name, attribute):
        """An attribute of the model of that name; columns as lists of numbers."""
        return self.script(
            "const plain = v => ArrayBuffer.isView(v) ? [...v] : v;"
            "const value = Bokeh.documents[0].get_model_by_name(arguments[0])[arguments[1]];"
            "return value && value.constructor === Object"
            " ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]))"
            " : value instanceof Map ? Object.fromEntries([...value].map(([k, v]) => [k, plain(v)])) : plain(value)",
            name, attribute,
        )  # fmt: skip

    def data(self, name):
        return self.get(name, "data")

    def set(self, name, attribute, value):
        """As the widget itself does when it is used."""
        self.script("Bokeh.documents[0].get_model_by_name(arguments[0])[arguments[1]] = arguments[2]",
                    name, attribute, value)  # fmt: skip

    def said(self):
        text = self.script("return window.Bokeh && Bokeh.documents[0]?.get_model_by_name('status')?.text") or ""
        return self.script(
            "const d = document.createElement('div'); d.innerHTML = arguments[0]; return d.innerText", text
        )

    def kind(self):
        """The status line's: "", "warns" or "refuses"."""
        return self.script("return Bokeh.documents[0].get_model_by_name('status').text.match(/status (\\w*)/)[1]")

    def settled(self):
        """Waits until the page has said what came of it."""
        self.until(lambda: self.said() and not self.said().startswith(("computing", "compiling")))

    def changed(self, doing, what):
        """Does something, and waits until `what()` is another than before; that."""
        before = what()
        doing()
        self.until(lambda: what() != before)
        return what()

    def click(self, figure, x, y):
        """A real click at data coordinates of a figure."""
        at = self.script(_PIXELS, figure, x, y)
        place = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})

    def focus(self, name, selector):
        """Puts the keyboard on a part of a widget."""
        self.script(
            "function all(v) { return [v, ...(v.child_views ?? []).flatMap(all)]; }"
            "const view = [...Bokeh.index].flatMap(root => all(root)).find(v => v.model.name === arguments[0]);"
            "view.shadow_el.querySelector(arguments[1]).focus()",
            name, selector,
        )  # fmt: skip

    def press(self, key, times=1):
        """A real key, `times` times, to whatever has the focus."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                event = {"type": kind, "key": key, "code": "Space" if key == " " else key,
                         "windowsVirtualKeyCode": _KEYS[key]}  # fmt: skip
                if text and kind == "keyDown":
                    event["text"] = text
                self.browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def complaints(self):
        """What the page has written to the console that is not information."""
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] != "INFO"]


@pytest.fixture
def visit(browser, served):
    """visit("gradient-descent") opens that page, at 1280 x 720; nothing on it may complain."""
    opened = []

    def open_page(path, width=1280, height=720):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        opened.append(Visitor(browser, served.address + path))
        return opened[-1]

    yield open_page
    for visitor in opened[-1:]:
        assert visitor.complaints() == []
    browser.get("about:blank")
