"""The plane of two inputs: a network's output and the examples, for the pages that show it."""

import contourpy
import numpy as np
from bokeh.models import LinearColorMapper, Range1d

from functional_nn.lab.demonstrations import classifier, page
from functional_nn.lab.demonstrations.classifier import WINDOW

_BLUES_AND_ORANGES = (
    "#2b6cb0",
    "#5a8fc4",
    "#8ab1d8",
    "#b9d3ea",
    "#e3eef7",
    "#fdf0e3",
    "#f9d4ac",
    "#f3b575",
    "#e8954a",
    "#d97a2b",
)


class Plane:
    """A figure: coloured by the output, with a thick boundary, thin lines of hidden neurons, and examples of two
    classes.

    number: the plane's number, if a page has several; its columns are then found as "field-0".
    """

    def __init__(self, alternative: str, height: int, number: int | None = None):
        name = "{}" if number is None else f"{{}}-{number}"
        self.image = page.source(name.format("field"), "image")
        self.edge, self.units = (page.source(name.format(each), "xs", "ys") for each in ("boundary", "units"))
        self.points = page.source(name.format("points"), "x", "y", "color", "marker")
        low, high = WINDOW
        self.figure = page.plot(alternative, height=height, x_range=Range1d(low, high), y_range=Range1d(low, high))
        colors = LinearColorMapper(palette=_BLUES_AND_ORANGES, low=0, high=1)
        self.figure.image("image", x=low, y=low, dw=high - low, dh=high - low, source=self.image, color_mapper=colors)
        self.figure.multi_line("xs", "ys", source=self.units, color=page.INK, line_alpha=0.45, line_width=1)
        self.figure.multi_line("xs", "ys", source=self.edge, color=page.INK, line_width=3)
        self.figure.scatter(
            "x", "y", source=self.points, fill_color="color", marker="marker", size=7, line_color="white"
        )
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = "p₁", "p₂"

    def show(self, x: np.ndarray, t: np.ndarray, outputs: np.ndarray, net_inputs: np.ndarray = ()) -> None:
        """Examples x (Q, 2) of classes t (Q,), outputs (N, N) over the grid, net inputs of hidden neurons (S, N, N)."""
        self.points.data = {
            "x": x[:, 0],
            "y": x[:, 1],
            "color": np.where(t > 0.5, "#b4540a", "#0b4f8a"),
            "marker": np.where(t > 0.5, "triangle", "circle"),
        }
        self.image.data = {"image": [outputs]}
        self.edge.data, self.units.data = lines([outputs - 0.5]), lines(net_inputs)

    def empty(self) -> None:
        """Removes everything that is shown."""
        for source in (self.image, self.edge, self.units, self.points):
            page.empty(source)


def lines(fields) -> dict[str, list[np.ndarray]]:
    """Where each field (N, N) is zero."""
    grid = classifier.axis()
    found = [line for one in fields for line in contourpy.contour_generator(grid, grid, one).lines(0.0)]
    return {"xs": [line[:, 0] for line in found], "ys": [line[:, 1] for line in found]}
