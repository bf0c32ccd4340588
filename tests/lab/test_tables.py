"""What `load` makes of a CSV file: header, marks, gaps, words and numbers."""

import csv
import math
import random
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lab.test_datasets import check_invariants, in_one_folder, pack, write

from functional_nn.lab import files
from functional_nn.lab.datasets import fit_preparation, load, load_as, split_rows

_MEASURES = [[0.5, 1.25], [-2.0, 3.0], [1e-3, 4.0], [7.0, -1.0]]


def table(targets, header=None, at=None):
    rows = [[str(x) for x in row] for row in _MEASURES]
    for row, target in zip(rows, targets, strict=True):
        row.insert(len(row) if at is None else at, target)
    return "\n".join(",".join(row) for row in ([header] if header else []) + rows) + "\n"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("header", [None, ["a", "b", "kind"]])
@pytest.mark.parametrize(
    ("targets", "task", "expected", "classes"),
    [
        (["x", "y", "x", "y"], "auto", [0, 1, 0, 1], ("x", "y")),
        (["y", "x", "x", "x"], "classification", [1, 0, 0, 0], ("x", "y")),
        (["3", "1", "3", "1"], "auto", [1, 0, 1, 0], ("1", "3")),
        (["10", "9", "10", "9"], "auto", [1, 0, 1, 0], ("9", "10")),
        (["1.0", "-1", "-1", "1"], "auto", [1, 0, 0, 1], ("-1", "1")),
        (["1", "2", "3", "4"], "classification", [0, 1, 2, 3], ("1", "2", "3", "4")),
        (["1", "b", "1", "b"], "classification", [0, 1, 0, 1], ("1", "b")),
        (["1", "2", "3", "1"], "auto", None, ()),  # more than Q/2 distinct
        (["1", "2", "1", "2"], "regression", None, ()),
        (["1.5", "2", "1.5", "2"], "auto", None, ()),
    ],
)
def test_csv(tmp_path, packed, header, targets, task, expected, classes):
    text = table(targets, header).encode()
    path = write(tmp_path / ("t.csv.gz" if packed else "t.csv"), pack(text) if packed else text)
    dataset = load(path, task=task)
    check_invariants(dataset)
    assert dataset.inputs.tolist() == _MEASURES and dataset.classes == classes
    assert dataset.features == (("a", "b") if header else ("column_0", "column_1"))
    if expected is None:
        assert dataset.targets[:, 0].tolist() == [float(x) for x in targets]
    else:
        assert dataset.labels.tolist() == expected


@pytest.mark.parametrize("distinct", [20, 21])
def test_csv_counts_classes(tmp_path, distinct):
    path = write(tmp_path / "t.csv", "".join(f"{i}.5,{i % distinct}\n" for i in range(100)))
    assert load(path).task == ("classification" if distinct == 20 else "regression")


@pytest.mark.parametrize(("at", "target"), [(0, "kind"), (0, "0"), (0, 0), (0, "-3"), (1, "1"), (1, -2), (2, None)])
def test_csv_target_column(tmp_path, at, target):
    header = ["a", "b"]
    header.insert(at, "kind")
    dataset = load(write(tmp_path / "t.csv", table(["u", "v", "u", "v"], header, at)), target=target)
    assert dataset.inputs.tolist() == _MEASURES and dataset.features == ("a", "b") and dataset.classes == ("u", "v")


def test_csv_named_target_makes_a_header_of_numbers(tmp_path):
    dataset = load(write(tmp_path / "t.csv", table(["1.5", "2", "3", "4"], ["0", "1", "y"])), target="y")
    assert dataset.features == ("0", "1") and dataset.inputs.tolist() == _MEASURES


def test_csv_as_spreadsheets_write_it(tmp_path):
    text = '\ufeff"length, cm",width,kind\r\n\r\n 1.5 ,2,"a, b"\r\n3,4, c \r\n'
    dataset = load(write(tmp_path / "t.csv", text))
    assert dataset.features == ("length, cm", "width") and dataset.classes == ("a, b", "c")
    assert dataset.inputs.tolist() == [[1.5, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty file"),
        ("\n\n", {}, "empty file"),
        ("a,b,y\n", {}, "a header row and no examples"),
        ("1\n2\n", {}, "only one column"),
        ("1:2\n3:4\n", {}, "only one column; expected .* commas, semicolons, tabs"),
        ("1,2,3\n\n1,2\n", {}, "line 3: expected 3 cells as in the first row, got 2"),
        ("1,2\n1,2,3\n", {}, "line 2: expected 2 cells as in the first row, got 3"),
        ("a,b,y\n1,2,0\n1,zwei,1\n", {}, "line 3, column 'b': expected a number, got 'zwei'"),
        ("1,2,0\n1_0,2,1\n", {}, "line 2, column 'column_0': expected a number, got '1_0'"),
        ("5.l,2.5,0\n1,2,1\n", {}, "line 1, column 'column_0': expected a number, got '5.l'"),  # no header: no lost row
        ("5.l,2,0\n1,2,1\n", {}, "line 1: cannot tell whether '5.l,2,0' is a header or an example; .* --header no"),
        ("5.l,2,0\n1,2,1\n", {"header": "no"}, "line 1, column 'column_0': expected a number, got '5.l'"),
        ("?,2,0\n1,2,1\n", {}, r"line 1, column 'column_0': missing value, got '\?'"),
        ("?,0\n1,1\n", {}, r"line 1, column 'column_0': missing value, got '\?'"),
        ("a,b,y\n1,,0\n", {}, "line 2, column 'b': missing value, got ''"),
        ("a,b,y\n1,NA,0\n", {}, "line 2, column 'b': missing value, got 'NA'"),
        ("a,b,y\n1,2,0\n1,nan,0\n", {}, "line 3, column 'b': missing value, got 'nan'"),
        ("a,b,y\n-inf,2,0\n", {}, "line 2, column 'a': expected a finite number, got '-inf'"),
        ("a,b,y\n1,1e999,0\n", {}, "line 2, column 'b': expected a finite number, got '1e999'"),
        ("a,b,y\n1,2,0\n1,2,\n", {}, "line 3, column 'y': missing value, got ''"),
        ("a,b,y\n1,2,u\n1,2,\n1,2,v\n", {}, "line 3, column 'y': missing value, got ''"),
        ("a,b,y\n1,2,0\n1,2,inf\n", {}, "line 3, column 'y': expected a finite number, got 'inf'"),
        ("a,b,y\n1,2,x\n1,2,nan\n", {"task": "classification"}, "line 3, column 'y': missing value, got 'nan'"),
        ("a,b,y\n1,2,0.5\n1,2,NA\n", {}, "line 3, column 'y': missing value, got 'NA'"),
        ("a,b,y\n1,2,0.5\n1,2,low\n", {}, "line 3, column 'y': expected a number, got 'low'"),
        ("a,b,y\n1,2,u\n1,2,v\n", {"task": "regression"}, "line 2, column 'y': expected a number, got 'u'"),
        ("a,b,y\n1,2,0.5\n1,2,1\n", {"task": "classification"}, "expects integers or words, got 0.5"),
        ("0.5,1.5,y\n1,2,5\n3,4,6\n", {}, "line 1, column 'column_2': expected a number, got 'y'"),
        ("a,b,kind\n1,2,0\n", {"target": "knd"}, "unknown target column 'knd'; did you mean 'kind'"),
        ("1,2,0\n", {"target": "kind"}, r"unknown target column 'kind' \(accepted: .* index from -3 to 2"),
        ("a,b,a\n1,2,0\n", {"target": "a"}, "ambiguous target column 'a'"),
        ("a,b,y\n1,2,0\n", {"target": "3"}, "unknown target column 3; expected an index from -3 to 2"),
        ("a,b,y\n1,2,0\n", {"target": -4}, "unknown target column -4"),
        ("a,b,y\n1,2,u\n3,4,u\n", {}, "expected at least two classes, got only 'u'"),
        ("a,b,y\n1,2,7\n3,4,7\n", {"task": "classification"}, "expected at least two classes, got only '7'"),
        ('a,b,y\n1,2,"u\n3,4,v\n', {}, "line 3: unexpected end of data"),
        (b"a,b,y\n1,2,\xff\n", {}, "expected UTF-8 text, got invalid start byte"),
        (pack(b"1,2,0\n1,2,1\n" * 9)[:-9], {}, "damaged gzip file"),
    ],
)
def test_csv_refused(tmp_path, text, options, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=message) as refusal:
        load(path, **options)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


def test_csv_has_a_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000 are accepted"):
        load(write(tmp_path / "t.csv", "1,2,3.5\n" * 60))


def test_classes_have_a_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 8000)
    with pytest.raises(ValueError, match="targets: 100 x 100 numbers need"):
        load(write(tmp_path / "t.csv", "".join(f"1,{i}\n" for i in range(100))), task="classification")


@in_one_folder
@given(
    inputs=arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    ),
    named=st.booleans(),
    data=st.data(),
)
def test_csv_round_trip(tmp_path, inputs, named, data):
    count, width = inputs.shape
    targets = data.draw(arrays.arrays(np.float64, count, elements=st.floats(allow_nan=False, allow_infinity=False)))
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        if named:
            writer.writerow([*(f'in "{i}", cm' for i in range(width)), "out"])
        writer.writerows([*map(repr, row.tolist()), repr(y)] for row, y in zip(inputs, targets.tolist(), strict=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*numbers the rows")
        dataset = load(path, task="regression", header="yes" if named else "no")
    check_invariants(dataset)
    assert np.array_equal(dataset.inputs, inputs) and np.array_equal(dataset.targets[:, 0], targets)


# Headers --------------------------------------------------------------------------------------------------------------

DRAW = random.Random(7)
UNIT = [(f"{DRAW.random():.3f}", f"{DRAW.random():.3f}") for _ in range(30)]
SMALL = [(str(DRAW.randrange(10)), str(DRAW.randrange(10))) for _ in range(30)]


def joined(header, rows, targets, mark=","):
    lines = [*([header] if header else []), *((*row, t) for row, t in zip(rows, targets, strict=True))]
    return "".join(mark.join(map(str, line)) + "\n" for line in lines)


SORTED = "".join("ab"[i // 15] for i in range(30))
MEASURED = [f"{i / 7:.2f}" for i in range(30)]
LABELLED = [str(i % 3) for i in range(30)]
HEADERS = {
    "pandas' default": (("0", "1", "2"), UNIT, MEASURED, True),
    "pandas' default, words": (("0", "1", "2"), UNIT, SORTED, True),
    "pandas' default, labels": (("0", "1", "2"), UNIT, LABELLED, True),
    "pandas' default, integers": (("0", "1", "2"), SMALL, LABELLED, None),
    "years": (("2019", "2020", "2021"), UNIT, MEASURED, True),
    "years and a word": (("2019", "2020", "kind"), UNIT, SORTED, True),
    "years and a word, integers": (("2019", "2020", "kind"), SMALL, SORTED, True),
    "every fifth year": (("2010", "2015", "2020"), UNIT, MEASURED, None),
    "years here and there": (("1999", "2010", "2013"), UNIT, MEASURED, None),
    "years here and there, integers, a word": (("1999", "2010", "kind"), SMALL, SORTED, None),
    "only the target is a word": (("0", "1", "y"), SMALL, MEASURED, True),
    "one name is a number": (("age", "2020", "kind"), UNIT, SORTED, True),
    "wavelengths": (("900.5", "901.0", "901.5", "octane"), [(*row, "0.5") for row in UNIT], MEASURED, True),
    "words": (("a", "b", "kind"), UNIT, SORTED, True),
    "words over words": (("a", "b", "kind"), [("uv"[i % 2], "xyz"[i % 3]) for i in range(30)], SORTED, True),
    "a blank and numbers": (("", "0", "1"), [(str(i), u) for i, (u, _) in enumerate(UNIT)], SORTED, True),
    "an example": (None, UNIT, SORTED, False),
    "an example of numbers": (None, UNIT, MEASURED, False),
    "an example of integers": (None, SMALL, LABELLED, False),
    "an example of words": (None, [("uv"[i % 2], "xyz"[i % 3]) for i in range(30)], SORTED, False),
    "an example of a rare class": (None, UNIT, "c" + SORTED[1:], False),
    "an example of words, a rare one": (None, [("w", "x"), *[("uv"[i % 2], "x") for i in range(29)]], SORTED, False),
    "integers, and a class that is met once": (None, [("7", "3"), *SMALL[1:]], "c" + SORTED[1:], None),
    "a counting example": (None, [(str(3 * i), str(3 * i + 1)) for i in range(30)], map(str, range(2, 92, 3)), None),
    "a curve from (0, 1)": (None, [("0",), *((f"{i / 10}",) for i in range(1, 30))], ["1", *MEASURED[1:]], None),
}


@pytest.mark.filterwarnings("ignore:.*numbers the rows")
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_recognized_from_the_rows_below_or_requested(tmp_path, name):
    """None is ever an example, and no example ever one: what cannot be told is refused, and then said."""
    header, rows, targets, told = HEADERS[name]
    path = write(tmp_path / "t.csv", joined(header, rows, targets))
    if told is None:
        with pytest.raises(ValueError, match=r"line 1: cannot tell whether .* --header yes or --header no"):
            load(path)
    else:
        assert len(load(path).inputs) == len(rows)
    said = load(path, header="yes" if header else "no")
    assert len(said.inputs) == len(rows)
    names = [name for name in header[:-1] if name] if header else [f"column_{i}" for i in range(len(rows[0]))]
    assert list(dict.fromkeys(feature.split("=")[0] for feature in said.features)) == names
    if told is not None:
        assert said.features == load(path).features


@pytest.mark.parametrize("target", ["2", "2021", 2, -1])
def test_a_target_is_a_name_or_else_an_index(tmp_path, target):
    header = ("2019", "2020", "2021") if target == "2021" else ("0", "1", "2")
    dataset = load(write(tmp_path / "t.csv", joined(header, UNIT, MEASURED)), target=target)
    assert dataset.features == header[:2] and len(dataset.inputs) == 30


def test_without_a_header_columns_have_no_names(tmp_path):
    path = write(tmp_path / "t.csv", joined(None, UNIT, SORTED))
    for options in ({"target": "kind"}, {"columns": ("a",)}, {"drop": ("a",)}):
        with pytest.raises(ValueError, match="without a header columns have no names; give an index from -3 to 2, got"):
            load(path, header="no", **options)


# Columns --------------------------------------------------------------------------------------------------------------


def numbered(names, form=str):
    rows = [(form(i), *row) for i, row in enumerate(UNIT)]
    return joined((*names, "a", "b", "kind"), rows, SORTED)


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
@pytest.mark.parametrize("first", [0, 1, 100])
def test_an_unnamed_index_is_left_out_with_a_warning(tmp_path, name, first):
    path = write(tmp_path / "t.csv", numbered([name], lambda i: str(i + first)))
    with pytest.warns(
        UserWarning, match="t.csv: the column at index 0 has no name and numbers the rows; it is left out"
    ):
        assert load(path).features == ("a", "b")
    header, *lines = path.read_text().splitlines()
    path = write(tmp_path / "t.csv", "\n".join([header, *DRAW.sample(lines, 30)]))
    with pytest.warns(UserWarning, match="left out"):
        assert load(path).features == ("a", "b")


def test_a_column_without_a_name_is_refused_as_input(tmp_path):
    path = write(tmp_path / "t.csv", numbered([""], lambda i: f"car {i}"))
    with pytest.raises(ValueError, match="line 1: the column at index 0 has no name; name it, or --drop 0"):
        load(path)
    assert load(path, drop=["0"]).features == ("a", "b")


def test_a_column_that_counts_the_rows_is_named(tmp_path):
    path = write(tmp_path / "t.csv", numbered(["id"]))
    with pytest.warns(UserWarning, match="column 'id' numbers the rows; .* leave it out with --drop id"):
        assert load(path).features == ("id", "a", "b")
    assert load(path, drop=["id"]).features == load(path, columns=["a", "b"]).features == ("a", "b")


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({"columns": ["y"]}, ("y",)),
        ({"columns": ["y", "x"]}, ("x", "y")),
        ({"columns": ["0", "kind"], "target": "kind"}, ("x",)),
        ({"columns": [0, -2]}, ("x", "z")),
        ({"drop": ["x", -2]}, ("y",)),
        ({"drop": ["kind"]}, ("x", "y")),  # and z is the last
        ({"target": "x", "drop": ["kind"]}, ("y", "z")),
    ],
)
def test_columns_are_chosen_by_name_or_index(tmp_path, options, features):
    rows = [(*row, f"{i * i / 7:.3f}") for i, row in enumerate(UNIT)]
    dataset = load(write(tmp_path / "t.csv", joined(("x", "y", "z", "kind"), rows, SORTED)), **options)
    assert dataset.features == features
    columns = dict(zip("xyz", np.array(rows, float).T, strict=True))
    assert np.array_equal(dataset.inputs, np.stack([columns[name] for name in features], axis=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["xx"]}, "unknown column 'xx'; did you mean 'x'"),
        ({"columns": ["7"]}, "unknown column 7; expected an index from -3 to 2"),
        ({"drop": ["y", "yy"]}, "unknown column 'yy'"),
        ({"columns": ["x"], "drop": ["y"]}, "the columns to use or those to drop, not both"),
        ({"drop": ["x", "y"]}, "no input is left"),
        ({"columns": ["kind"]}, "no input is left"),
        ({"target": "kind", "drop": ["kind"]}, "the target column 'kind' cannot be dropped"),
        ({"header": "maybe"}, "header must be .*, got 'maybe'"),
        ({"missing": "keep"}, "missing must be .*, got 'keep'"),
        ({"delimiter": "x"}, "delimiter must be auto, comma, semicolon, tab or pipe .* got 'x'"),
        ({"decimal": ";"}, "decimal must be auto, point or comma .* got ';'"),
    ],
)
def test_columns_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "t.csv", joined(("x", "y", "kind"), UNIT, SORTED)), **options)


@pytest.mark.parametrize("name", ["iris", "a.npz"])
@pytest.mark.parametrize("option", [{"header": "yes"}, {"columns": ["a"]}, {"missing": "mean"}, {"decimal": "comma"}])
def test_options_of_tables_are_for_tables(tmp_path, name, option):
    source = name if name == "iris" else write(tmp_path / name, b"")
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* is only for a CSV file"):
        load(source, **option)


def test_delimiters_at_line_ends_make_no_column(tmp_path):
    for header in (("a", "b", "kind"), None):
        text = joined(header, UNIT, SORTED).replace("\n", ",\n")
        assert load(write(tmp_path / "t.csv", text)).inputs.tolist() == np.array(UNIT, float).tolist()
    for header in (("a", "b", "kind"), None):
        text = joined(header, UNIT * 10, SORTED * 10).replace("\n", ",\n") + "1,2,a,5\n"
        with pytest.raises(ValueError, match="line 30[12]: got '5' in a column that has no name and is empty before"):
            load(write(tmp_path / "t.csv", text))


# Dialects -------------------------------------------------------------------------------------------------------------

MARKS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("header", [("a", "b", "kind"), None])
@pytest.mark.parametrize("decimal", ["point", "comma"])
@pytest.mark.parametrize("name", MARKS)
def test_one_table_in_every_dialect(tmp_path, name, decimal, header, said):
    rows = [tuple(cell.replace(".", "," if decimal == "comma" else ".") for cell in row) for row in UNIT]
    if name == "comma":
        rows = [tuple(f'"{cell}"' for cell in row) for row in rows]
    path = write(tmp_path / "t.csv", joined(header, rows, SORTED, MARKS[name]))
    options = {"delimiter": name, "decimal": decimal} if said else {}
    if name == "comma" and decimal == "comma" and not said:
        with pytest.raises(ValueError, match="line 2, column 'a': expected a number .* --decimal comma"):
            load(write(tmp_path / "t.csv", joined(("a", "b", "kind"), rows, SORTED)))
        return
    dataset = load(path, **options)
    assert dataset.inputs.tolist() == np.array(UNIT, float).tolist() and dataset.classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a;b\n1,234;2\n5,678;3\n", {}, r"'1,234' could be 1.234 \(give --decimal comma\) or thousands"),
        ("a;b\n1.5;2\n2,5;3\n", {}, "line 3, column 'a': expected a number with a decimal point .* got '2,5'"),
        (
            "a;b\n1.5;2\n2,5;3\n",
            {"decimal": ","},
            "line 2, column 'a': expected a number with a decimal comma, got '1.5'",
        ),
        ("a;b\n1.234,5;2\n", {"decimal": ","}, "line 2, column 'a': expected a number, got '1.234,5'"),
        ("1|2;3\n4|5;6\n", {}, "its cells could be separated by semicolon or pipe; say which with --delimiter"),
        ("a,b,c\n1,2,3\n", {"delimiter": ";"}, "only one column"),
    ],
)
def test_dialects_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "t.csv", text), **options)


# Words and what looks like numbers ------------------------------------------------------------------------------------


def test_words_are_levels(tmp_path):
    colours, flags = (["red", "green", "blue"] * 10, ["true", "false"] * 15)
    rows = [(colour, cell, flag) for colour, flag, (cell, _) in zip(colours, flags, UNIT, strict=True)]
    dataset = load(write(tmp_path / "t.csv", joined(("c", "x", "ok", "kind"), rows, SORTED)))
    assert dataset.features == ("c=blue", "c=green", "c=red", "x", "ok=false", "ok=true")
    expected = [[c == "blue", c == "green", c == "red", float(x), f == "false", f == "true"] for c, x, f in rows]
    assert dataset.inputs.tolist() == np.array(expected, float).tolist()
    scale = fit_preparation(dataset)
    others = [0, 1, 2, 4, 5]  # 0 and 1 stay, the numbers are standardized
    assert scale.mean[others].tolist() == [0] * 5 and scale.scale[others].tolist() == [1] * 5
    assert scale.apply(dataset.inputs)[:, 3].std() == pytest.approx(1)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,234", "12,345"], "line 2, column 'x': expected a number .* no mark of thousands"),
        (["1 234", "2 345"], "line 2, column 'x': expected a number, got '1 234'"),
        (["5%", "6%"], "expected a number, got '5%'"),
        (["$5", "$6"], r"expected a number, got '\$5'"),
        (["0x1F", "0x20"], "expected a number, got '0x1F'"),
        (["1_000", "2_000"], "expected a number, got '1_000'"),
        (["\u22125", "\u22126"], "expected a number, got '\u22125'"),
        (["inf", "1"], "expected a finite number, got 'inf'"),
        (["1e999", "1"], "expected a finite number, got '1e999'"),
        (["red", "3"], "line 2, column 'x': expected a number, got 'red'"),
        (["3", "red"], "line 3, column 'x': expected a number, got 'red'"),
        (["2024-01-05", "2024-01-06"], "column 'x': dates such as '2024-01-05' .* --drop x"),
        (["2024-01-05 12:00:00", "2024-01-06T12:00"], "column 'x': dates"),
        (["1/5/2024", "1/6/2024"], "column 'x': dates"),
        (["5.1.2024", "6.1.2024"], "expected a number|dates"),
        (["12:30", "12:31"], "column 'x': dates"),
        (["5-Jan-2024", "6-Jan-2024"], "column 'x': dates"),
        (["January 5, 2024", "January 6, 2024"], "column 'x': dates"),
        ([f"name {i}" for i in range(30)], "column 'x': 30 different words in 30 rows, such as 'name 0', .* --drop x"),
        ([f"name {i % 16}" for i in range(30)], "column 'x': 16 different words in 30 rows"),
    ],
)
def test_words_that_cannot_be_levels_are_refused(tmp_path, cells, message):
    rows = [(f'"{cells[i % len(cells)]}"', row[0]) for i, row in enumerate(UNIT)]
    path = write(tmp_path / "t.csv", joined(("x", "y", "kind"), rows, SORTED))
    with pytest.raises(ValueError, match=message):
        load(path)
    assert load(path, drop=["x"]).features == ("y",)


# Targets --------------------------------------------------------------------------------------------------------------

GAPS = ("", " ", "?", "-", ".", "NA", "n/a", "N/A", "#N/A", "nan", "NaN", "-nan", "null", "NULL", "None", "nil", "<NA>")


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("labels", [("a", "b"), ("1", "2"), ("0.5", "0.7"), ("01", "1")])
@pytest.mark.parametrize("place", [2, 3, 31])
def test_a_missing_target_is_no_class(tmp_path, labels, gap, place):
    """Line, column and cell are named, whatever stands before; dropped, the others are as they were."""
    targets = [labels[i % 2] for i in range(30)]
    targets[place - 2] = gap
    path = write(tmp_path / "t.csv", joined(("a", "b", "kind"), UNIT, targets))
    for missing in ("refuse", "mean", "indicator"):
        with pytest.raises(ValueError) as refusal:
            load(path, missing=missing)
        assert f"line {place}, column 'kind': missing value, got {gap.strip()!r}" in str(refusal.value)
    del targets[place - 2]
    rows = [row for i, row in enumerate(UNIT) if i != place - 2]
    with pytest.warns(UserWarning, match="rows left out because of a missing value: 1"):
        dropped = load(path, missing="drop")
    whole = load(write(tmp_path / "u.csv", joined(("a", "b", "kind"), rows, targets)))
    assert np.array_equal(dropped.targets, whole.targets) and dropped.classes == whole.classes
    assert np.array_equal(dropped.inputs, whole.inputs)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (("1", "1.0", "1e0", "+1", "2"), ("1", "2")),
        (("01", "1", "2"), ("01", "1", "2")),
        (("001", "01", "10", "9"), ("001", "01", "9", "10")),
        (("01", "02", "1.0"), ("01", "1", "02")),
        (("-1", "+1"), ("-1", "1")),
        (("+", "-"), ("+", "-")),
        (("9007199254740993", "9007199254740992"), ("9007199254740992", "9007199254740993")),
        (("true", "false"), ("false", "true")),
        (("1.0", "b", "1"), None),
        (("yes", "no", "Yes"), ("Yes", "no", "yes")),
    ],
)
def test_classes_are_the_distinct_values_of_cells(tmp_path, cells, classes):
    targets = [cells[i % len(cells)] for i in range(30)]
    path = write(tmp_path / "t.csv", joined(("a", "b", "kind"), UNIT, targets))
    if classes is None:
        with pytest.raises(ValueError, match="line 3, column 'kind': expected a number, got 'b'"):
            load(path)
        assert load(path, task="classification").classes == ("1", "1.0", "b")
        return
    dataset = load(path)
    assert dataset.classes == classes
    for cell, label in zip(targets, dataset.labels, strict=True):
        name = dataset.classes[label]
        assert name == cell or (not cell.lstrip("+-").startswith("0") and float(name) == float(cell))


@pytest.mark.parametrize("missing", ["refuse", "drop"])
def test_a_minus_is_not_a_gap_among_pluses(tmp_path, missing):
    """Nor is a class that a run knows, when it is met alone."""
    path = write(tmp_path / "t.csv", joined(("a", "b", "kind"), UNIT, ["+-"[i % 2] for i in range(30)]))
    dataset = load(path, missing=missing)
    assert dataset.classes == ("+", "-") and len(dataset.inputs) == 30
    other = write(tmp_path / "u.csv", "a,b,kind\n1,2,-\n")
    assert load_as(other, dataset.reading).labels.tolist() == [1]


def test_a_number_among_words_is_named(tmp_path):
    path = write(tmp_path / "t.csv", joined(("a", "b", "kind"), UNIT, ["a", "b", "3"] + ["a"] * 27))
    with pytest.raises(ValueError, match="line 4, column 'kind': expected a word, like most cells, .* got '3'"):
        load(path)
    assert load(path, task="classification").classes == ("3", "a", "b")


# Missing inputs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gappy(tmp_path):
    """A table with gaps in a column of numbers, a column of words and none in a third; and what it holds."""
    x = [None if i % 7 == 0 else float(UNIT[i][0]) for i in range(30)]
    c = [None if i % 5 == 0 else "uv"[i % 2] for i in range(30)]
    rows = [("NA" if x[i] is None else x[i], "?" if c[i] is None else c[i], UNIT[i][1]) for i in range(30)]
    return write(tmp_path / "gaps.csv", joined(("x", "c", "y", "kind"), rows, SORTED)), x, c


def test_missing_inputs_are_refused_with_the_options_that_accept_them(gappy):
    with pytest.raises(
        ValueError, match="line 2, column 'x': missing value, got 'NA' .*--missing drop, mean or indicator"
    ):
        load(gappy[0])


def test_rows_with_gaps_are_dropped(gappy):
    path, x, c = gappy
    kept = [i for i in range(30) if x[i] is not None and c[i] is not None]
    with pytest.warns(UserWarning, match=f"rows left out because of a missing value: {30 - len(kept)}"):
        dataset = load(path, missing="drop")
    assert dataset.inputs.tolist() == [[x[i], c[i] == "u", c[i] == "v", float(UNIT[i][1])] for i in kept]
    assert [dataset.classes[label] for label in dataset.labels] == [SORTED[i] for i in kept]


@pytest.mark.parametrize("missing", ["mean", "indicator"])
def test_gaps_are_filled_with_the_mean_of_the_training_part(gappy, missing):
    """The held-out part has no share in it, and what is told of gaps are inputs of 0 and 1."""
    path, x, c = gappy
    dataset = load(path, missing=missing)
    tells = missing == "indicator"
    names = ["x", *["x missing"] * tells, "c=u", "c=v", *["c missing"] * tells, "y"]
    assert list(dataset.features) == names
    training, held_out = split_rows(dataset, seed=3)
    scale = fit_preparation(dataset, training)
    assert np.isnan(dataset.inputs).sum() == x.count(None) + 2 * c.count(None)
    own = [x[i] for i in training if x[i] is not None]
    mean = sum(own) / len(own)
    filled = [mean if x[i] is None else x[i] for i in training]
    deviation = math.sqrt(sum((v - np.mean(filled)) ** 2 for v in filled) / len(filled))
    words = [c[i] for i in training if c[i] is not None]
    for rows in (training, held_out):
        found = dict(zip(names, scale.apply(dataset.inputs, rows=rows).T, strict=True))
        expected = [((mean if x[i] is None else x[i]) - np.mean(filled)) / deviation for i in rows]
        assert np.allclose(found["x"], expected, atol=1e-12)
        share = words.count("u") / len(words)
        assert np.allclose(found["c=u"], [share if c[i] is None else c[i] == "u" for i in rows])
        if tells:
            assert found["x missing"].tolist() == [x[i] is None for i in rows]
            assert found["c missing"].tolist() == [c[i] is None for i in rows]


def test_a_column_without_values_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", joined(("x", "y", "kind"), [("", row[1]) for row in UNIT], SORTED))
    with pytest.raises(ValueError, match="column 'x' has no values; leave it out with --drop x"):
        load(path, missing="mean")
    cells = [""] * 29 + ["1.5"]
    dataset = load(
        write(tmp_path / "t.csv", joined(("x", "y", "kind"), [(c, "1.5") for c in cells], SORTED)), missing="mean"
    )
    with pytest.raises(ValueError, match="t.csv: input 'x' has no value in the training part"):
        fit_preparation(dataset, np.arange(29))
