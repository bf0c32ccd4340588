"""Demonstrations in a browser: gradient descent, Adam's race, backpropagation, decision boundaries, populations.

`functional-nn demo` opens them; `serve` is the same from Python. The pages only show: what is computed, the library's
own compiled functions compute, in this process. The extra `demo` has what is needed (a Bokeh server).
"""

import importlib.util

if importlib.util.find_spec("bokeh") is None:
    raise ImportError('the demonstrations need Bokeh; pip install "functional-nn[demo]"')

from functional_nn.lab.demonstrations.server import DEMONSTRATIONS, Served, serve, start

__all__ = ["DEMONSTRATIONS", "Served", "serve", "start"]
