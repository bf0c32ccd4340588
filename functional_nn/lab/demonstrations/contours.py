"""Draws a performance surface and paths over it, for the pages on gradient descent and on Adam and its relatives."""

import numpy as np
from bokeh.models import ColumnDataSource, Range1d, Renderer
from bokeh.plotting import figure

from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.page import number_text
from functional_nn.lab.demonstrations.surfaces import Surface

_FAR = 50.0  # in windows: a path this far from the surface is not drawn
_MARKERS = {"minimum": "star", "local minimum": "star_dot", "saddle": "x"}


class Drawing:
    """A figure of F over two weights: its contours and stationary points, over which paths are drawn."""

    def __init__(self, alternative: str, height: int, surface: Surface):
        self.figure = page.plot(
            alternative,
            tools="pan,wheel_zoom,tap,reset,save",
            height=height,
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
        )
        self.figure.toolbar.active_tap = None
        self.known = page.source("known", "x", "y", "marker", "text", "align")
        self.figure.scatter(
            "x",
            "y",
            marker="marker",
            source=self.known,
            size=13,
            line_color=page.INK,
            fill_color="white",
            line_width=1.5,
        )
        self.figure.text(
            "x",
            "y",
            "text",
            source=self.known,
            text_align="align",
            y_offset=-9,
            text_font_size="11px",
            text_color=page.INK,
        )
        self.lines: list[Renderer] = []
        self.frame(surface)

    def frame(self, surface: Surface) -> None:
        """Sets the axes for a surface, which is drawn when an answer has computed its grid."""
        self.drawn = False
        self.figure.renderers = [each for each in self.figure.renderers if each not in self.lines]
        page.empty(self.known)
        for shown, (low, high) in zip((self.figure.x_range, self.figure.y_range), surface.window, strict=True):
            shown.update(reset_start=low, reset_end=high)
        self.look(surface.window)
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = surface.labels

    def look(self, window: tuple[tuple[float, float], tuple[float, float]]) -> None:
        """Shows this part of the plane; the figure's reset still shows the whole surface."""
        for shown, (low, high) in zip((self.figure.x_range, self.figure.y_range), window, strict=True):
            shown.update(start=low, end=high)

    def draw(self, surface: Surface) -> None:
        """Draws the contours and the stationary points, unless they are drawn already."""
        if self.drawn:
            return
        self.drawn = True
        lines = self.figure.contour(*surface.grid, levels=surface.levels, line_color=page.GREY, line_width=1)
        lines.level = "image"  # below all else
        self.lines = [lines]
        self.known.data = {
            "x": [point.x[0] for point in surface.stationary],
            "y": [point.x[1] for point in surface.stationary],
            "marker": [_MARKERS[point.kind] for point in surface.stationary],
            "text": [f"{point.kind}, F = {number_text(point.value)}" for point in surface.stationary],
            "align": ["left" if point.x[0] < np.mean(surface.window[0]) else "right" for point in surface.stationary],
        }


def draw_path(plotted: figure, path: ColumnDataSource, ends: ColumnDataSource, number: int = 0) -> None:
    """Draws a path (columns x, y) and its ends (x, y, marker, fill), in the `number`-th colour and dash."""
    color, dash = page.COLORS[number], page.DASHES[number]
    plotted.line("x", "y", source=path, color=color, line_width=1.5, line_dash=dash)
    plotted.scatter("x", "y", source=path, color=color, size=3)
    plotted.scatter("x", "y", source=ends, marker="marker", size=11, fill_color="fill", line_color=color, line_width=2)


def show_path(path: ColumnDataSource, ends: ColumnDataSource, points: np.ndarray, window, number: int = 0) -> bool:
    """Fills the two sources. Returns whether the path has left the drawing; its points from there on are not drawn."""
    size, middle = np.ptp(window, axis=1), np.mean(window, axis=1)
    away = ~(np.abs(points - middle) <= _FAR * size).all(axis=1)
    shown = points[: max(1, int(away.argmax()))] if away.any() else points
    path.data = {"x": shown[:, 0], "y": shown[:, 1]}
    ends.data = {
        "x": shown[[0, -1], 0],
        "y": shown[[0, -1], 1],
        "marker": ["square", "circle"],
        "fill": ["white", page.COLORS[number]],
    }
    return bool(away.any())


def error_plot(height: int) -> figure:
    """An empty figure for F against the updates."""
    return page.log_plot("F against the updates", "update", "F (all examples)", height=height)
