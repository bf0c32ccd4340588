"""The measured numbers of README and the site's pages come from the committed tables, every one of them."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import readme_numbers

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "readme_numbers.py"

# What looks like a measured number: a decimal (no version, no P3.3), a power of ten, a percentage, a time, a size, so
# many times, so many of so many, so many solved, a fraction in digits or words.
NUMBER = r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?"
COUNT = r"\b(?:two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|a hundred|a thousand)"
UNIT = (
    r"(?:[nmu]?s|seconds?|minutes?|hours?|days?|[KMGT]i?B|[KMGT]FLOPs?(?:/s)?|times|fold|percent|per cent)\b(?!-order)"
)
MEASURED = re.compile(
    rf"""(?<![\w.])\d+\.\d+(?!\.?\d)
    | {NUMBER}e[+-]?\d+\b
    | {NUMBER}\ ?%
    | (?:{NUMBER}|{COUNT})[ -]?{UNIT}
    | {NUMBER}\ of\ (?:the\ )?\d+
    | {NUMBER}x\b
    | \b(?:solves?|finds?|catch(?:es)?|miss(?:es)?|reach(?:es)?)\ {NUMBER}
    | \b1\ ?/\ ?\d+
    | \b\d+(?:st|nd|rd|th)\b
    | \b(?:an?|one|{COUNT})\ (?:third|quarter|fifth|sixth|seventh|eighth|ninth|tenth)s?\b
    | \b(?:a\ )?half(?:\ of)?\ (?:the|its|our|their|as|that)\b
    | \b(?:twice|thrice)\ (?:as|the|its|our|their)\b""",
    re.VERBOSE,
)

# What looks like a measured number and is not, word for word, with the reason.
ALLOWED = {
    "Python 3.11 or newer": "a version",
    "**no**: 0.1": "our version",
    "bounds are near 1e-14": "how fine 64 bits are",
    "License: Apache-2.0": "a version",
    "multiplied by 1e-12, or one parameter by 1e12": "what a test multiplies by",
    "tolerances of 1e-15": "a setting",
    "those at 1e-8": "a setting",
    "to 1e-4 in": "a goal",
    "is 5 % above its lowest": "a setting",
    "autodiff definition to 1e-10": "a test's tolerance",
    "Hagan Eq. 3.28": "an equation",
    "arXiv 1510.01799": "a paper",
    "finds 6 digits or more": "the script's bar",
    "A bound above a tenth": "where the verdict becomes inconclusive",
    "wrong by a tenth": "the same",
    "NumPy arrays of 64 MiB": "a setting",
    "three quarters of a GPU": "JAX's default",
    "at most 512 MiB of them": "a setting",
    "2 to 3 us each": "of CUDA (jax issue 2491), not measured here",
    "False at the half of the weights that are": "what the example's 0.5 means",
}


def measured(page: str) -> list[str]:
    """What looks like a measured number in a page's words: not in code, not in the targets of links, not allowed."""
    page = re.sub(r"<!-- tested -->.*?<!-- end of tested -->", "", page, flags=re.DOTALL)  # versions
    words = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", " ` ", page, flags=re.DOTALL)
    words = " ".join(words.split())
    for phrase in ALLOWED:
        words = words.replace(phrase, "allowed")
    return [f"{words[max(0, m.start() - 40) : m.end() + 20]!r}" for m in MEASURED.finditer(words)]


@pytest.fixture
def hidden(monkeypatch):
    """Numbers that come from a table are written "#"."""
    monkeypatch.setattr(readme_numbers.Measured, "__format__", lambda number, spec: "#")


def pages() -> dict[str, str]:
    """README, and what the site is made of, written again from the committed tables."""
    tables = readme_numbers.Tables(ROOT / "results")
    site = (str(path.relative_to(ROOT)) for path in (ROOT / "scripts" / "pages").rglob("*.md"))
    return {
        name: readme_numbers.written((ROOT / name).read_text(), str(Path(name).parent), tables)
        for name in {*readme_numbers.PAGES, *site}
    }


def test_the_pages_are_what_the_tables_give():
    # -S: no installed package is needed
    done = subprocess.run([sys.executable, "-S", SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_measured_number_is_typed_on_a_page_or_in_the_script(hidden):
    found = {name: measured(page) for name, page in pages().items()}
    assert not any(found.values()), f"from no table (scripts/readme_numbers.py): {found}"


def test_nothing_is_allowed_that_no_page_says(hidden):
    words = " ".join(re.sub("`[^`]*`", "", "\n".join(pages().values())).split())
    assert [phrase for phrase in ALLOWED if phrase not in words] == []


@pytest.mark.parametrize(
    "words",
    [
        "takes 0.57 of the time",
        "in 62 s on two cores",
        "90.8 % of the pictures",
        "after 3 minutes",
        "in 127 ms",
        "norms take 1 / 152 of it",
        "a 16th of a step",
        "an 80th",
        "a third to a half",
        "two thirds",
        "twice as fast",
        "half the time",
        "55 times as long",
        "three times faster",
        "10x",
        "with 1.6 MiB",
        "512 KiB",
        "solves 98 of 107",
        "down to 2e-3",
        "takes half as long",
        "(0.40)",
        "1,200 s",
        "three seconds",
        "catches 30",
    ],
)
def test_a_typed_number_is_seen(words):
    assert measured(f"It {words} here.")


@pytest.mark.parametrize(
    "words",
    [
        "jaxlib 0.10.2 to 0.12.0.1",
        "0.1.0",
        "784-256-128-10",
        "P3.3",
        "2 / lambda_max",
        "28 x 28",
        "`0.5`",
        "(1978)",
        "[a](b_0.5)",
        "60,000 pictures",
        "one half",
        "```\n0.5 s\n```",
        "a 1-2-1 network",
        "ten second-order methods",
        "one network twice",
    ],
)
def test_other_numbers_are_ignored(words):
    assert not measured(f"It {words} here.")


def test_a_number_typed_in_a_text_of_the_script_is_seen(hidden, monkeypatch):
    def nist(t):
        return f"{t.cell('transformer', 'minutes', model='transformer, 100 updates')} minutes, 0.57 of the time"

    monkeypatch.setattr(readme_numbers, "TEXTS", (*readme_numbers.TEXTS, nist))
    assert any("# minutes, 0.57 of" in said for page in pages().values() for said in measured(page))


# A table that changes -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The pages and tables, elsewhere."""
    (tmp_path / "results").mkdir()
    for path in [*(ROOT / "results").glob("*.csv"), *(ROOT / "results").glob("*.txt")]:
        shutil.copy(path, tmp_path / "results")
    for page in readme_numbers.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def run(monkeypatch, copy, *given):
    """How it ended: None, or what it said at the end."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(copy), *given])
    try:
        readme_numbers.main()
    except SystemExit as left:
        return left.code


def on_pages(copy):
    return "\n".join((copy / page).read_text() for page in readme_numbers.PAGES)


def change_pages(copy, change):
    for page in readme_numbers.PAGES:
        (copy / page).write_text(change((copy / page).read_text()))


def cell_changed(table, column, cell, **keys):
    """A change of a folder's tables: of the cell of the first row with these cells."""

    def change(results):
        rows = readme_numbers.Tables(results).rows(table)
        row = next(row for row in rows if all(row[name.replace("_", " ")] == other for name, other in keys.items()))
        row[column] = cell
        rewrite(results / f"{table}.csv", rows)

    return change


def note_changed(table, pattern, words):
    def change(results):
        path = results / f"{table}.txt"
        text, count = re.subn(pattern, words, path.read_text())
        assert count == 1
        path.write_text(text)

    return change


def rewrite(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            cell_changed("benchmark_training", "/ jitted step", "7.7654321", sizes="64-32-10", trained_by="fit, again"),
            "take 7.8 and ",
        ),
        (
            cell_changed(
                "benchmark_populations", "/ fit_population", "1.234", sizes="64-32-10", trained_by="plain vmap"
            ),
            "costs 1.23 times as",
        ),
        (cell_changed("planted_faults", "compare", "agree", fault="sign"), r"It catches and places \d+ of \d"),
        (cell_changed("planted_faults", "where", "", fault="sign"), r"It catches and places \d+ of \d"),
        (note_changed("population_minibatch", r"in [\d.]+ s,", "in 1162.2 s,"), "each in 1160 s on"),
        (
            note_changed("nist_strd", r"ours: 6 digits or more in \d+ of", "ours: 6 digits or more in 2 of"),
            r"digits or more in 2 of \d+ runs",
        ),
    ],
    ids=["training", "populations", "caught", "placed", "minibatch", "nist"],
)
def test_a_changed_table_makes_a_page_stale_until_it_is_written(change, said, copy, monkeypatch, capsys):
    assert run(monkeypatch, copy) is None
    before = on_pages(copy)
    change(copy / "results")
    assert "stale: " in run(monkeypatch, copy, "--check")
    assert re.search(said, " ".join(capsys.readouterr().out.replace("\n+", " ").split()))
    assert on_pages(copy) == before
    assert run(monkeypatch, copy) is None and re.search(said, " ".join(on_pages(copy).split()))
    assert run(monkeypatch, copy, "--check") is None


def test_a_changed_page_is_stale(copy, monkeypatch):
    assert run(monkeypatch, copy) is None
    before = on_pages(copy)
    change_pages(copy, lambda page: re.sub(r"(examples' gradients take )[\d.]+", r"\1 0.001", page))
    assert on_pages(copy) != before and "stale: " in run(monkeypatch, copy, "--check")
    assert run(monkeypatch, copy) is None and on_pages(copy) == before


def test_further_rows_and_columns_change_nothing(copy, monkeypatch):
    assert run(monkeypatch, copy) is None
    rows = readme_numbers.Tables(copy / "results").rows("benchmark_training")
    rows = [{"further": "2.5"} | row for row in (*rows, rows[0] | {"sizes": "7-6-5", "/ jitted step": "0.9"})]
    rewrite(copy / "results" / "benchmark_training.csv", rows[::-1])
    assert run(monkeypatch, copy, "--check") is None


@pytest.mark.parametrize("text", readme_numbers.TEXTS, ids=lambda text: text.__name__)
def test_every_text_follows_its_tables(text):
    class Moved(readme_numbers.Tables):
        """The n-th cell that is looked up is 2 + n times what it was; one whose row is asked for is as it is."""

        asked = 0

        def column(self, *args, **keys):
            return [self.moved(number) for number in super().column(*args, **keys)]

        def cell(self, *args, **keys):
            return self.moved(super().cell(*args, **keys))

        def note(self, table, pattern):
            found = super().note(table, pattern)
            return found if "# bits" in pattern or "cores" in pattern else [self.moved(number) for number in found]

        def moved(self, number):
            self.asked += 1
            return readme_numbers.Measured(number * (2 + self.asked))

    tables = Moved(ROOT / "results")
    said = text(tables)
    assert said != text(readme_numbers.Tables(ROOT / "results")) or not tables.asked
    assert tables.asked or text is readme_numbers.proved  # which counts rows


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0.395, "0.40"),
        (1.034, "1.03"),
        (1, "1.00"),
        (393.6, "390"),
        (2530, "2500"),
        (62.2, "62"),
        (127, "127"),
        (0.0499, "0.050"),
        (9.96, "10"),
        (0.1996, "0.200"),
        (1.996, "2.00"),
        (0, "0.0"),
        (-1.24, "-1.24"),
        (0.00123, "0.00123"),
        (152.3, "152"),
        (1555, "1560"),
    ],
)
def test_numbers_are_rounded_in_one_way(number, said):
    assert f"{readme_numbers.Measured(number)}" == said
    assert number == 0 or abs(float(said) - number) <= 0.025 * abs(number)


def test_counts_are_whole():
    assert f"{readme_numbers.Measured(420832):,d} {readme_numbers.Measured(1536):d}" == "420,832 1536"
    assert readme_numbers.share(24, 24) == "all 24" and readme_numbers.share(23, 24) == "23 of 24"


def test_what_a_table_lacks_is_named(tmp_path):
    (tmp_path / "speed.csv").write_text("sizes,trained by,ms\n4-2,fit,1.5\n4-2,loop,inf\n8-2,fit,3\n8-2,fit,\n")
    (tmp_path / "speed.txt").write_text("3 networks in 2.5 s\n3 of 4, 3 of 4\n")
    tables = readme_numbers.Tables(tmp_path)
    assert tables.cell("speed", "ms", sizes="4-2", trained_by="fit") == 1.5
    assert tables.note("speed", "# networks in # s") == [3, 2.5]
    for asked, said in {
        ("slow", "ms"): r"there is no table .*slow\.csv",
        ("speed", "us"): r"speed\.csv has no column 'us', only 'sizes', 'trained by', 'ms'",
    }.items():
        with pytest.raises(LookupError, match=said):
            tables.column(*asked)
    for keys, said in {
        ("4-2", "epoch"): r"speed\.csv, column 'ms': there is no row with {'sizes': '4-2', 'trained_by': 'epoch'}",
        ("8-2", "fit"): r"speed\.csv, column 'ms': 2 rows have {'sizes': '8-2', 'trained_by': 'fit'}; name one",
        ("4-2", "loop"): r"speed\.csv, column 'ms', .*'loop'}: 'inf' is not a number",
    }.items():
        with pytest.raises(LookupError, match=said):
            tables.cell("speed", "ms", sizes=keys[0], trained_by=keys[1])
    with pytest.raises(LookupError, match=r"has no column 'batch', only"):
        tables.cell("speed", "ms", batch="32")
    for pattern, count in {"# of #": 2, "# networks on # cores": 0}.items():
        with pytest.raises(LookupError, match=rf"speed\.txt says {count} times '{pattern}', where # is a number"):
            tables.note("speed", pattern)


def test_a_missing_row_is_what_the_command_says(copy, monkeypatch):
    cell_changed("benchmark_training", "trained by", "fit, later", trained_by="fit, again")(copy / "results")
    said = run(monkeypatch, copy, "--check")
    assert "benchmark_training.csv" in said and "'/ jitted step'" in said and "'trained_by': 'fit, again'" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<!-- numbers: nist -->", "", "'nist' stands 0 times"),
        ("<!-- numbers: nist -->", "<!-- numbers: cutest -->", "'cutest' stands 2 times"),
        ("<!-- numbers: nist -->", "<!-- numbers: nits -->", "no text 'nits'"),
        ("<!-- numbers: nist -->\n", "<!-- numbers: nist --> ", "has no end"),
    ],
)
def test_marks_that_are_wrong_are_refused(old, new, said, copy, monkeypatch):
    change_pages(copy, lambda page: page.replace(old, new))
    before = on_pages(copy)
    assert said in run(monkeypatch, copy) and on_pages(copy) == before


def test_a_text_may_stand_on_a_page_in_another_folder():
    tables = readme_numbers.Tables(ROOT / "results")
    page = "- Of it: <!-- numbers: nist -->\n  <!-- end of numbers -->\n"
    here, there = readme_numbers.written(page, "", tables), readme_numbers.written(page, "results", tables)
    assert "](results/nist_strd.txt)" in here and "](./nist_strd.txt)" in there
    assert all(line.startswith("  ") and len(line) <= 120 for line in here.splitlines()[1:])
    assert readme_numbers.written(here, "", tables) == here


def test_notes_are_of_the_same_run_as_the_table():
    """A script writes both at once: the rows of the CSV file stand above the notes, to four digits."""

    class Asked(readme_numbers.Tables):
        noted = set()

        def note(self, table, pattern):
            self.noted.add(table)
            return super().note(table, pattern)

    tables = Asked(ROOT / "results")
    for text in readme_numbers.TEXTS:
        text(tables)
    assert len(tables.noted) >= 7
    for table in tables.noted:
        rows = tables.rows(table)
        shown = (ROOT / "results" / f"{table}.txt").read_text().splitlines()[3 : 3 + len(rows)]
        for line, row in zip(shown, rows, strict=True):
            for cell, other in zip(filter(None, row.values()), re.split("  +", line.strip()), strict=True):
                assert cell == other or f"{float(cell):.4g}" == other, (table, cell, line)
