#!/usr/bin/env python
"""What the tests were run on: a table of environments, versions and results, from pytest's own reports.

    scripts/test --junitxml=/tmp/all.xml
    scripts/test --newest --junitxml=/tmp/sample.xml
    python scripts/tested.py .venv=/tmp/all.xml .venv-newest=/tmp/sample.xml --write

`.ci/run` prints the table. With --write it is kept as results/tested.csv and in README.md, between its marks.
"""

import argparse
import csv
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
TABLE, README = ROOT / "results" / "tested.csv", ROOT / "README.md"
PACKAGES = ("jax", "jaxlib", "numpy")
ASK = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"Python": platform.python_version(), **{{name: version(name) for name in {PACKAGES}}}}}))
"""


def row(folder: Path, report: Path) -> dict[str, str]:
    """The versions in a virtual environment, and how a run of its tests ended."""
    asked = subprocess.run([folder / "bin" / "python", "-c", ASK], capture_output=True, text=True, check=True)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    total, skipped, failures, errors = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))
    return json.loads(asked.stdout) | {
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "passed": str(total - skipped - failures - errors),
        "skipped": str(skipped),
        "failed": str(failures + errors),
        "seconds": f"{float(suite.get('time')):.0f}",
    }


def as_text(rows: list[dict[str, str]]) -> str:
    """The rows in columns, each as wide as its widest cell."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def in_readme(text: str, rows: list[dict[str, str]]) -> str:
    """README's text with its table of what was tested, as these rows have it."""
    lines = ["| Python | JAX | NumPy | on | passed | skipped | failed |", "|---|---|---|---|---|---|---|"]
    names = ("Python", "jax", "numpy", "machine", "passed", "skipped", "failed")
    lines += [f"| {' | '.join(row[name] for name in names)} |" for row in rows]
    table = "\n".join(["<!-- tested -->", *lines, "<!-- end of tested -->"])
    return re.sub(r"<!-- tested -->.*?<!-- end of tested -->", lambda _: table, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Prints the table, and with --write keeps it; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="ENVIRONMENT=REPORT", help="a virtual environment and its report")
    parser.add_argument("--write", action="store_true", help="write results/tested.csv and README.md")
    options = parser.parse_args(argv)
    pairs = [run.partition("=") for run in options.runs]
    missing = [path for folder, _, report in pairs for path in (folder, report) if not (path and Path(path).exists())]
    if missing:
        parser.error(f"expected ENVIRONMENT=REPORT, both paths that exist; not found: {', '.join(map(repr, missing))}")
    rows = [row(Path(folder), Path(report)) for folder, _, report in pairs]
    print(as_text(rows))
    if options.write:
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        README.write_text(in_readme(README.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return int(any(row["failed"] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
