"""Checks how a demonstration's page looks: nothing is cut off on any screen, and light and dark can be read."""

import io

import matplotlib.pyplot as plt
import numpy as np

WIDTHS = (320, 400, 768, 981, 1280)

# Elements that extend beyond the window or their container, where they are hidden or have to be scrolled to.
_CUT = """
const found = [], {clientWidth, scrollWidth} = document.documentElement;
if (scrollWidth > clientWidth) found.push(`the page is ${scrollWidth} wide`);
(function walk(root, clip) {
  for (const e of root.children) {
    const style = getComputedStyle(e);
    if (style.display === "none" || style.visibility === "hidden") continue;
    const box = e.getBoundingClientRect(), drawn = /CANVAS|INPUT|SELECT|BUTTON/.test(e.tagName) || e.textContent.trim();
    if (drawn && box.width && box.right > clip + 0.5) found.push(`${e.tagName}.${e.className} ${box.right} > ${clip}`);
    const inner = style.overflowX === "visible" || style.display === "contents" ? clip : Math.min(clip, box.right);
    if (e.tagName !== "svg") walk(e, inner);
    if (e.shadowRoot) walk(e.shadowRoot, inner);
  }
})(document.body, clientWidth);
return found
"""
# Texts and edges of controls with their contrast and the required one; and the places of figures.
_CONTRASTS = """
const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const numbers = color => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const texts = [], figures = [];
(function walk(root, behind) {
  for (const e of root.children) {
    const style = getComputedStyle(e);
    if (style.display === "none" || style.visibility === "hidden") continue;
    const own = numbers(style.backgroundColor), ground = own[3] === 0 ? behind : own;
    const words = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join(" ").trim();
    const box = e.getBoundingClientRect();
    if (e.role === "img") {
      figures.push([box.x, box.y, box.width, box.height]);
      continue;
    }
    if ((words || /INPUT|SELECT/.test(e.tagName)) && !e.matches(":disabled"))
      texts.push([words || e.value, ratio(numbers(style.color), ground), 4.5]);
    if (/INPUT|SELECT/.test(e.tagName) && e.type !== "checkbox")
      texts.push(["the edge of " + e.value, ratio(numbers(style.borderTopColor), behind), 3]);
    walk(e, ground);
    if (e.shadowRoot) walk(e.shadowRoot, ground);
  }
})(document.documentElement, [255, 255, 255]);
return [texts, figures]
"""


def _luminance(pixels):
    """The luminance of colours (..., 3) from 0 to 1, by WCAG 2."""
    linear = np.where(pixels <= 0.03928, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def _contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def check(page):
    """Asserts all of this for an open page, a `Visitor`, and restores its size."""
    for width in WIDTHS:
        _screen(page, width)
        page.until(lambda: not page.script(_CUT), 10, lambda: page.script(_CUT))
    for name in ("light", "dark"):
        _screen(page, 1280, name)
        page.script("scrollTo(0, 0)")
        texts, figures = page.script(_CONTRASTS)
        low = [text for text in texts if text[1] < text[2]]
        assert len(texts) > 10 and figures and not low, (name, low)
        pixels = plt.imread(io.BytesIO(page.browser.get_screenshot_as_png()))[:, :, :3]
        card = _luminance(pixels[100, 900])  # of the status line
        assert card > 0.9 if name == "light" else card < 0.05
        for x, y, width, height in figures:
            shown = _luminance(pixels[int(y) + 2 : int(y + height) - 2, int(x) + 2 : int(x + width) - 2]).ravel()
            assert _contrast(shown[0], card) < 1.05, "a figure has the card's background"
            assert _contrast(shown.max() if name == "dark" else shown.min(), card) > 7
    _screen(page, 1280)


def scheme(name):
    """The browser's setting for "light" or "dark"."""
    return {"features": [{"name": "prefers-color-scheme", "value": name}]}


def _screen(page, width, name="light"):
    screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme(name))
