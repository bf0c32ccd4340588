"""How a performance surface is drawn, and a path over it, for the pages of gradient descent and of the race."""

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure

from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.page import said
from functional_nn.lab.demonstrations.surfaces import Surface

_FAR = 50.0  # windows away from the surface, from where on a path is not drawn
_MARKERS = {"minimum": "star", "local minimum": "star_dot", "saddle": "x"}


def surface_plot(alternative: str, height: int) -> figure:
    """An empty figure for contours."""
    plotted = page.plot(alternative, tools="pan,wheel_zoom,tap,reset,save", height=height, x_range=Range1d(0, 1),
                        y_range=Range1d(0, 1))  # fmt: skip
    plotted.toolbar.active_tap = None
    return plotted


def draw_surface(plotted: figure, surface: Surface) -> None:
    """F on a figure, whatever was there before, and the stationary points that are known of it."""
    plotted.renderers = []
    plotted.contour(*surface.grid, levels=surface.levels, line_color=page.GREY, line_width=1)
    for shown, (low, high) in zip((plotted.x_range, plotted.y_range), surface.window, strict=True):
        shown.update(start=low, end=high, reset_start=low, reset_end=high)
    plotted.xaxis.axis_label, plotted.yaxis.axis_label = surface.labels
    known = ColumnDataSource({
        "x": [point.x[0] for point in surface.stationary],
        "y": [point.x[1] for point in surface.stationary],
        "marker": [_MARKERS[point.kind] for point in surface.stationary],
        "text": [f"{point.kind}, F = {said(point.value)}" for point in surface.stationary],
        "align": ["left" if point.x[0] < np.mean(surface.window[0]) else "right" for point in surface.stationary],
    })  # fmt: skip
    plotted.scatter("x", "y", marker="marker", source=known, size=13, line_color=page.INK, fill_color="white",
                    line_width=1.5)  # fmt: skip
    plotted.text(
        "x", "y", "text", source=known, text_align="align", y_offset=-9, text_font_size="11px", text_color=page.INK
    )


def draw_path(plotted: figure, path: ColumnDataSource, ends: ColumnDataSource, number: int = 0) -> None:
    """Glyphs of a path (columns x, y) and its ends (x, y, marker, fill), in the `number`-th colour and dash."""
    color, dash = page.COLORS[number], page.DASHES[number]
    plotted.line("x", "y", source=path, color=color, line_width=1.5, line_dash=dash)
    plotted.scatter("x", "y", source=path, color=color, size=3)
    plotted.scatter("x", "y", source=ends, marker="marker", size=11, fill_color="fill", line_color=color, line_width=2)


def show_path(path: ColumnDataSource, ends: ColumnDataSource, points: np.ndarray, window, number: int = 0) -> bool:
    """Fills the two sources; True where the path has left the drawing, whose points from there on are not drawn."""
    size, middle = np.ptp(window, axis=1), np.mean(window, axis=1)
    away = ~(np.abs(points - middle) <= _FAR * size).all(axis=1)
    shown = points[: max(1, int(away.argmax()))] if away.any() else points
    path.data = {"x": shown[:, 0], "y": shown[:, 1]}
    ends.data = {"x": shown[[0, -1], 0], "y": shown[[0, -1], 1], "marker": ["square", "circle"],
                 "fill": ["white", page.COLORS[number]]}  # fmt: skip
    return bool(away.any())


def error_plot(height: int) -> figure:
    """An empty figure for F against the updates."""
    return page.log_plot("F against the updates", "update", "F (all examples)", height=height)
