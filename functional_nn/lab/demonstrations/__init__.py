"""Demonstrations in a browser: descent, Adam, backpropagation, convolution, boundaries, populations, text, rules.

`functional-nn demo` opens them; `serve` does the same from Python. The pages only display: everything is computed by
the library's own compiled functions, in this process. The extra `demo` installs what is needed (a Bokeh server).
"""

from functional_nn.lab import require

require("demo", "bokeh")

from functional_nn.lab.demonstrations.server import DEMONSTRATIONS, Served, serve, start  # noqa: E402

__all__ = ["DEMONSTRATIONS", "Served", "serve", "start"]
