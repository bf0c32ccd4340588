"""The demonstrations' server, and a page of it in a real browser, used like a visitor does."""

import asyncio
import gc
import threading
import time

import pytest

pytest.importorskip("bokeh")

from functional_nn.lab import demonstrations
from functional_nn.lab.demonstrations import one_text, server

_KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
    " ": 32,
}
# The view of the model of a name.
_VIEW = """
function all(v) { return [v, ...(v.child_views ?? []).flatMap(all)]; }
const view = name => [...Bokeh.index].flatMap(root => all(root)).find(v => v.model.name === name);
"""


@pytest.fixture(scope="session")
def served():
    """A running server that has compiled nothing yet, quickly deletes sessions without a browser, and trains the
    networks for texts only briefly.
    """
    server._UNUSED = 500
    one_text.UPDATES = dict.fromkeys(one_text.UPDATES, 10)  # what a network predicts, no test asks
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
    """What a person does on a page, and what the page then shows."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get_log("browser")
        browser.get(address)
        self.until(lambda: self.script("return window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"))
        self.wait_for_answer()

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def until(self, holds, seconds=60, described=None):
        """Waits until `holds()` and returns its value. described(): what an error message quotes; by default the
        status.
        """
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, f"not within {seconds} s; the page says {(described or self.status)()!r}"
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
            name,
            attribute,
        )

    def data(self, name):
        return self.get(name, "data")

    def set(self, name, attribute, value):
        """As the widget itself does when it is used."""
        self.script(
            "Bokeh.documents[0].get_model_by_name(arguments[0])[arguments[1]] = arguments[2]", name, attribute, value
        )

    def status(self):
        text = self.script("return window.Bokeh && Bokeh.documents[0]?.get_model_by_name('status')?.text") or ""
        return self.script(
            "const d = document.createElement('div'); d.innerHTML = arguments[0]; return d.innerText", text
        )

    def status_kind(self):
        """The status line's kind: "", "warns" or "refuses"."""
        return self.script("return Bokeh.documents[0].get_model_by_name('status').text.match(/status (\\w*)/)[1]")

    def wait_for_answer(self):
        """Waits until the page shows a result."""
        self.until(lambda: self.status() and not self.status().startswith(("computing", "compiling")))

    def changed(self, doing, what):
        """Does something, waits until `what()` has changed, and returns its new value."""
        before = what()
        doing()
        self.until(lambda: what() != before)
        return what()

    def script_with_view(self, code, *arguments):
        """Like `script`, with view(name) for a model's name."""
        return self.script(_VIEW + code, *arguments)

    def at(self, figure, x, y):
        """Data coordinates of a figure in the window's coordinates."""
        return self.script_with_view(
            "const plotted = view(arguments[0]), box = plotted.canvas_view.el.getBoundingClientRect();"
            "return [box.x + plotted.frame.x_scale.compute(arguments[1]),"
            "        box.y + plotted.frame.y_scale.compute(arguments[2])]",
            figure,
            x,
            y,
        )

    def click(self, figure, x, y):
        """A real click at data coordinates of a figure."""
        at = self.at(figure, x, y)
        place = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})

    def drag(self, figure, *points, rests=0.0):
        """Presses the mouse at the first of the points (x, y) in data coordinates, rests so many seconds, moves it
        over the others, and releases it.
        """
        places = [self.at(figure, *point) for point in points]
        kinds = ["mouseMoved", "mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, at in zip(kinds, [places[0], *places, places[-1]], strict=True):
            place = {"x": at[0], "y": at[1], "button": "left", "buttons": 1, "clickCount": 1}
            self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})
            time.sleep(rests if kind == "mousePressed" else 0)

    def focus(self, name, selector):
        """Moves the keyboard's focus to a part of a widget."""
        self.script_with_view("view(arguments[0]).shadow_el.querySelector(arguments[1]).focus()", name, selector)

    def press(self, key, times=1):
        """A real key, `times` times, to whatever has the focus."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                event = {
                    "type": kind,
                    "key": key,
                    "code": "Space" if key == " " else key,
                    "windowsVirtualKeyCode": _KEYS[key],
                }
                if text and kind == "keyDown":
                    event["text"] = text
                self.browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def type(self, name, text):
        """Types a text into a box, replacing its content."""
        self.focus(name, "input")
        self.script_with_view("view(arguments[0]).shadow_el.querySelector('input').select()", name)
        self.browser.execute_cdp_cmd("Input.insertText", {"text": text})
        self.press("Enter")

    def box(self, name):
        """What a box shows: (its text, the reason for a refusal or ""); None as reason while the mark is still to
        come.
        """
        return tuple(
            self.script_with_view(
                """
            const box = view(arguments[0]), why = view(arguments[0] + "-refused");
            const marked = getComputedStyle(box.shadow_el.querySelector("input")).borderTopWidth === "2px";
            const said = why.el.checkVisibility() ? why.shadow_el.textContent.trim() : "";
            return [box.shadow_el.querySelector("input").value, marked === (said !== "") ? said : null]""",
                name,
            )
        )

    def complaints(self):
        """What the page has written to the console, apart from information."""
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] != "INFO"]


@pytest.fixture
def visit(browser, served):
    """visit("gradient-descent") opens that page, at 1280 x 720; no page may write errors to the console."""
    opened = []

    def open_page(path, width=1280, height=720):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        opened.append(Visitor(browser, served.address + path))
        return opened[-1]

    yield open_page
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for visitor in opened[-1:]:
        assert visitor.complaints() == []
    browser.get("about:blank")
