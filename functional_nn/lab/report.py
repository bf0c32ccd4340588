"""One self-contained page about a run: no network, no scripts; figures are inline SVG with alternative text."""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.figure import Figure


class Panel(NamedTuple):
    """A figure with what it shows, in words, and a caption below it."""

    title: str
    figure: Figure
    alternative: str
    caption: str


class Table(NamedTuple):
    """Rows under a header; a cell is text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def render(
    title: str, summary: str, facts: Sequence[tuple[str, str]], parts: Sequence[Panel | Table], config: dict
) -> str:
    """The page's HTML. facts: (value, what it is), shown large; parts in order; config: shown at the end."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["svg"] = _svg
    environment.tests["panel"] = lambda part: isinstance(part, Panel)
    return environment.from_string(_PAGE).render(
        title=title, summary=summary, facts=facts, parts=parts, settings=list(_flat(config))
    )


def _svg(panel: Panel) -> Markup:
    text = io.StringIO()
    panel.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(panel.figure)
    body = text.getvalue()
    body = body[body.index("<svg") :]
    # Identifiers of several figures on one page must not meet.
    tag = re.sub(r"\W+", "-", panel.title.lower())
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{tag}-", body)
    label = Markup.escape(panel.alternative)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _flat(value: Any, path: str = ""):
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        text = str(value)
        yield path, text if len(text) <= 160 else text[:157] + "..."


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5a6577; --page: #f6f7f9; --card: #ffffff; --line: #dfe3ea;
  --good: #19703c; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #a3adbd; --page: #12161d; --card: #1b212b;
  --line: #303947; --good: #6fd39a; --bad: #ff8a94; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.2rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
p { margin: 0 0 .8rem; } .soft, figcaption, caption { color: var(--soft); font-size: .92rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; }
.facts strong { display: block; font-size: 1.55rem; font-variant-numeric: tabular-nums; }
section { margin: 1.2rem 0; } figure { margin: 0; }
.picture { background: #fff; border-radius: 8px; padding: .5rem; overflow-x: auto; text-align: center; }
.picture svg { max-width: 100%; height: auto; min-width: min(100%, 20rem); }
@media (max-width: 700px) { .picture svg { max-width: none; width: 44rem; } }
figcaption, .scroll + p { margin-top: .7rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.ok { color: var(--good); }
td.DIFFERS, td.undefined { color: var(--bad); }
details td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; } summary { cursor: pointer; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="soft">{{ summary }}</p>
<div class="facts">
{% for value, what in facts %}
<div class="card"><strong>{{ value }}</strong><span class="soft">{{ what }}</span></div>
{% endfor %}
</div>
{% for part in parts %}
<section class="card">
<h2>{{ part.title }}</h2>
{% if part is panel %}
<figure><div class="picture">{{ part | svg }}</div><figcaption>{{ part.caption }}</figcaption></figure>
{% else %}
<div class="scroll"><table>
<thead><tr>{% for cell in part.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}
<tr>
{% for cell in row %}
<td{% if cell in ("ok", "DIFFERS", "undefined") %} class="{{ cell }}"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">{{ part.caption }}</p>
{% endif %}
</section>
{% endfor %}
<details class="card"><summary>What was run, and on what</summary>
<table><tbody>
{% for name, value in settings %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></details>
</body>
</html>
"""
