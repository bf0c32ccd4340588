#!/usr/bin/env python
"""Pictures of the demonstrations, and how quickly each answers, in a real browser.

    python scripts/demonstration_pictures.py --out results/demonstrations

Needs Chromium and its chromedriver (Debian: chromium, chromium-driver), and selenium, of the extra `test`. Each page is
opened at 1280 x 720, or higher. A control is set in the way its widget sets it, and the page measures the time until
the data that depend on it arrive, --rounds times after the first. That includes the socket, the library's computation
and the page's handling of the answer, but not the drawing.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from functional_nn.lab import experiments, require

try:
    from selenium import webdriver
except ImportError:
    require("test", "selenium")
    raise

WIDTH, HEIGHT = 1280, 720


class Scene(NamedTuple):
    """A page, its picture and its measurement.

    path: of the page. picture: the file's name. settings: what is set before the picture, (model, attribute, value).
    seconds: until the page is still. control: the model and attribute that are set, and the values in turn. shown: the
    data whose arrival ends the wait. height: of the window.
    """

    path: str
    picture: str
    settings: tuple[tuple[str, str, object], ...]
    seconds: float
    control: tuple[str, str, tuple]
    shown: str
    height: int = HEIGHT


SCENES = (
    Scene(
        "gradient-descent",
        "gradient_descent",
        (("rate-0", "value", 0.094), ("steps", "value", 60)),
        1,
        ("rate-0", "value", (0.02, 0.03)),
        "path",
    ),
    Scene("adam", "adam", (), 1, ("steps", "value", (300, 310)), "path-3"),
    Scene("backpropagation", "backpropagation", (("step", "value", 9),), 1, ("step", "value", (5, 6)), "nodes"),
    Scene("convolution", "convolution", (), 1, ("number", "value", (2, 3)), "back", 1080),
    Scene(
        "decision-boundary",
        "decision_boundary",
        (
            ("data", "value", "two spirals"),
            ("hidden", "value", "16, 16"),
            ("rate", "value", "0.02"),
            ("speed", "value", 20),
            ("go", "active", True),
        ),
        30,
        ("layer", "value", ("layer2", "layer1")),
        "units",
    ),
    Scene(
        "populations",
        "populations",
        (("choose-across", "value", [-1.2, 1]), ("choose-upwards", "active", [0, 1])),
        1,
        ("choose-upwards", "active", ([0], [0, 1, 2])),
        "lines",
    ),
    Scene("attention", "attention", (), 1, ("count", "value", (20, 21)), "back", 1080),
    Scene(
        "learning-rules",
        "learning_rules",
        (("go", "active", True),),
        10,
        ("task", "value", ("XOR", "moons")),
        "field-0",
        1080,
    ),
)

_ANSWERED = """
const done = arguments[arguments.length - 1], [name, attribute, value, shown] = arguments;
const page = Bokeh.documents[0], data = page.get_model_by_name(shown).properties.data.change;
const start = performance.now();
const slot = () => { data.disconnect(slot); done(performance.now() - start); };
data.connect(slot);
page.get_model_by_name(name)[attribute] = value;
"""


def chromium(folder: Path):
    """Returns a selenium driver of the installed Chromium or Chrome, headless, with its profile in
    `folder`, or None.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not (browser and driver):
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
        f"user-data-dir={folder}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))


@contextmanager
def served() -> Iterator[str]:
    """Yields the address of `functional-nn demo`, in another process, when everything is compiled."""
    command = [sys.executable, "-m", "functional_nn.lab.cli", "demo", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in process.stdout if line.startswith("demonstrations:")).split()[1]
        next(line for line in process.stdout if line.startswith("all pages are compiled"))
        yield address
    finally:
        process.terminate()
        process.wait()


def ready(browser) -> float:
    """Waits until the page is drawn and says what it shows. Returns the seconds that took."""
    start = time.perf_counter()
    is_ready = (
        "const page = window.Bokeh?.documents[0]; return page?.is_idle && "
        "!/comput|compil/.test(page.get_model_by_name('status')?.text ?? 'comput')"
    )
    while not browser.execute_script(is_ready):
        time.sleep(0.02)
    return time.perf_counter() - start


def measure(browser, address: str, scene: Scene, rounds: int, folder: Path) -> dict:
    """Takes the picture, and makes a row of the table."""
    screen = {"width": WIDTH, "height": scene.height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    start = time.perf_counter()
    browser.get(address + scene.path)
    ready(browser)
    opened = time.perf_counter() - start
    for name, attribute, value in scene.settings:
        browser.execute_script(
            "Bokeh.documents[0].get_model_by_name(arguments[0])[arguments[1]] = arguments[2]", name, attribute, value
        )
        time.sleep(0.3)
        ready(browser)
    time.sleep(scene.seconds)
    folder.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(folder / f"{scene.picture}.png"))
    browser.get(address + scene.path)
    ready(browser)
    if scene.shown == "units":  # more than one layer to choose from
        browser.execute_script("Bokeh.documents[0].get_model_by_name('hidden').value = '16, 16'")
        time.sleep(0.3)
        ready(browser)
    name, attribute, values = scene.control
    taken = [
        browser.execute_async_script(_ANSWERED, name, attribute, values[i % len(values)], scene.shown)
        for i in range(rounds + 1)
    ][1:]
    return {
        "page": scene.path,
        "opened s": opened,
        "set": name,
        "answered ms (median)": float(np.median(taken)),
        "slowest ms": max(taken),
        "rounds": rounds,
    }


def main() -> None:
    options = experiments.arguments(__doc__, "results/demonstrations", rounds=20)
    with tempfile.TemporaryDirectory() as profile, served() as address:
        browser = chromium(Path(profile))
        if browser is None:
            sys.exit("needs Chromium and its chromedriver (Debian: apt install chromium chromium-driver)")
        try:
            rows = [measure(browser, address, scene, options.rounds, options.out) for scene in SCENES]
        finally:
            browser.quit()
    experiments.write(options.out, rows, notes="target: an interaction is answered in less than 200 ms")


if __name__ == "__main__":
    main()
