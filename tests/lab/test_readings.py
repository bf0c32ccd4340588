"""Other CSV files are read like the first one: by name, in any order and dialect, with any further columns."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lab.test_datasets import in_one_folder, pack, write
from lab.test_tables import SORTED, UNIT, joined

from functional_nn.lab import runs
from functional_nn.lab.datasets import Reading, load, load_as, load_inputs


@pytest.fixture
def known(tmp_path):
    """A table with everything, and its reading after a journey through JSON."""
    rows = [(i, "" if i % 7 == 0 else UNIT[i][0], "uvw"[i % 3], UNIT[i][1], f"note {i}") for i in range(30)]
    path = write(tmp_path / "known.csv", joined(("", "x", "c", "y", "note", "kind"), rows, SORTED))
    with pytest.warns(UserWarning, match="left out"):
        dataset = load(path, missing="indicator", drop=["note"])
    reading = runs.reading_from(json.loads(json.dumps(runs.plain_reading(dataset.reading))))
    assert reading == dataset.reading
    return path, dataset, reading, rows


def test_a_file_is_read_again_as_it_was(known):
    path, dataset, reading, _ = known
    again = load_as(path, reading)
    assert again._replace(inputs=0, targets=0, labels=0) == dataset._replace(inputs=0, targets=0, labels=0)
    for name in ("inputs", "targets", "labels"):
        assert np.array_equal(getattr(again, name), getattr(dataset, name), equal_nan=True)
    assert np.array_equal(load_inputs(path, reading), dataset.inputs, equal_nan=True)


@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize("chosen", [slice(None), slice(1, 2), slice(15, None)], ids=["all", "one", "one class"])
def test_other_files_have_columns_by_name(known, tmp_path, chosen, mark):
    """In any order and dialect, among others; with one row, or one class, or without the target."""
    _, dataset, reading, rows = known
    point = "." if mark == "," else ","
    lines = [
        (kind, y.replace(".", point), "ignored", c, x.replace(".", point))
        for (_, x, c, y, _), kind in zip(rows, SORTED, strict=True)
    ]
    for header, at in ((("kind", "y", "more", "c", "x"), 0), (("y", "more", "c", "x"), 1)):
        text = "".join(mark.join(line[at:]) + "\n" for line in [("",) * at + header, *lines[chosen]])
        path = write(tmp_path / "other.csv", text.removeprefix(mark))
        if at:
            found = load_inputs(path, reading)
            with pytest.raises(ValueError, match="unknown target column 'kind'"):
                load_as(path, reading)
        else:
            other = load_as(path, reading)
            assert other.classes == ("a", "b") and np.array_equal(other.labels, dataset.labels[chosen])
            assert np.array_equal(other.targets, dataset.targets[chosen])
            found = other.inputs
        assert np.array_equal(found, dataset.inputs[chosen], equal_nan=True)


def test_other_files_without_a_header(known, tmp_path):
    """All columns of the first file in their places; or, for the inputs, these alone."""
    _, dataset, reading, rows = known
    whole = write(tmp_path / "whole.csv", joined(None, rows, SORTED))
    assert np.array_equal(load_as(whole, reading).inputs, dataset.inputs, equal_nan=True)
    assert np.array_equal(load_inputs(whole, reading), dataset.inputs, equal_nan=True)
    alone = write(tmp_path / "alone.csv", "".join(f"{x},{c},{y}\n" for _, x, c, y, _ in rows))
    assert np.array_equal(load_inputs(alone, reading), dataset.inputs, equal_nan=True)
    with pytest.raises(ValueError, match="expected columns x, c, y; missing x, c, y"):
        load_as(alone, reading)
    with pytest.raises(ValueError, match="expected columns x, c, y; missing x, c, y"):
        load_inputs(write(tmp_path / "more.csv", "1,u,2,3\n"), reading)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,c,y,kind\n1,u,2,a\n1,t,2,a\n", r"line 3, column 'c': unknown level 't' \(accepted: u, v, w\)"),
        ("x,c,y,kind\n1,u,2,a\n1,v,2,c\n", r"line 3, column 'kind': unknown class 'c' \(accepted: a, b\)"),
        ("x,c,y,kind\n1,u,2,a\n1,v,2,?\n", r"line 3, column 'kind': missing value, got '\?'"),
        ("x,c,y,kind\n1,u,2,a\nred,v,2,a\n", "line 3, column 'x': expected a number, got 'red'"),
        ("X,c,y,kind\n1,u,2,a\n", "expected columns x, c, y; missing x"),
        ("colour,x,y,kind\nu,1,2,a\n", "expected columns x, c, y; missing c"),
        ("x,c,y,c,x,kind\n1,u,2,v,3,a\n", "line 1: column 'x' is named twice"),
        ("x,c,y,kinds\n1,u,2,a\n", "unknown target column 'kind'; did you mean 'kinds'"),
        ("x,c,y,kind\n", "no examples"),
    ],
)
def test_files_that_do_not_fit_are_refused(known, tmp_path, text, message):
    path = write(tmp_path / "other.csv", text)
    with pytest.raises(ValueError, match=message) as refusal:
        load_as(path, known[2])
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)
    if "kind" not in message and "class" not in message:
        with pytest.raises(ValueError, match=message):
            load_inputs(path, known[2])


def test_the_target_may_have_another_name(known, tmp_path):
    path = write(tmp_path / "other.csv", "x,c,y,species\n1,u,2,b\n")
    assert load_as(path, known[2], target="species").labels.tolist() == [1]
    with pytest.raises(ValueError, match="the target column 'y' is one of the inputs; give the target with --target"):
        load_as(path, known[2], target="y")


def test_gaps_are_refused_in_prediction_unless_trained_on(tmp_path):
    """Dropped rows would be missing among the predictions."""
    dataset = load(write(tmp_path / "t.csv", joined(("x", "y", "kind"), UNIT, SORTED)), missing="drop")
    path = write(tmp_path / "u.csv", "x,y,kind\n1,2,a\n1,,a\n")
    with pytest.raises(ValueError, match="line 3, column 'y': missing value, got '' .*--missing mean or indicator"):
        load_inputs(path, dataset.reading)
    with pytest.warns(UserWarning, match="rows left out because of a missing value: 1"):
        assert load_as(path, dataset.reading).inputs.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="no examples: each of 1 rows has a missing value"):
        load_as(write(tmp_path / "u.csv", "x,y,kind\n1,,a\n"), dataset.reading)


def test_a_header_of_numbers_is_not_an_example(tmp_path):
    """Nor is an example that holds them a header."""
    reading = load(write(tmp_path / "t.csv", joined(("0", "1", "kind"), UNIT, SORTED))).reading
    other = write(tmp_path / "u.csv", "0,1,kind\n0.5,0.25,a\n")
    assert load_inputs(other, reading).tolist() == load_as(other, reading).inputs.tolist() == [[0.5, 0.25]]
    assert load_inputs(write(tmp_path / "u.csv", "1,0\n0.5,0.25\n0,1\n"), reading).tolist()[0] == [1, 0]
    with pytest.raises(ValueError, match="expected columns 0, 1; missing 0, 1"):
        load_inputs(write(tmp_path / "u.csv", "2020,2021,kind\n0.5,0.25,a\n"), reading)


def test_codes_stay_codes(tmp_path):
    cells = ("01", "1", "2")
    dataset = load(write(tmp_path / "t.csv", joined(("a", "b", "kind"), UNIT, [cells[i % 3] for i in range(30)])))
    found = load_as(write(tmp_path / "u.csv", "b,a,kind\n1,2,2.0\n1,2,01\n1,2,1\n"), dataset.reading)
    assert [found.classes[label] for label in found.labels] == ["2", "01", "1"]
    with pytest.raises(ValueError, match="line 2, column 'kind': unknown class '02'"):
        load_as(write(tmp_path / "u.csv", "b,a,kind\n1,2,02\n"), dataset.reading)


# Inputs alone ---------------------------------------------------------------------------------------------------------


@in_one_folder
@given(data=st.data())
def test_load_inputs_finds_columns_by_name(tmp_path, data):
    """With any other columns and in any order; without a header, only if there are no others."""
    numbers = data.draw(arrays.arrays("f8", (3, 3), elements=st.floats(-1e300, 1e300)))
    order = data.draw(st.permutations(["a", "b", "c", "word", "blank"]))
    columns = dict(zip("abc", numbers.T, strict=True)) | {"word": ["x", "nan", "?"], "blank": ["", "", ""]}
    rows = [[str(columns[name][q]) for name in order] for q in range(3)]
    text = "\n".join(",".join(row) for row in [order, *rows])
    assert np.array_equal(load_inputs(write(tmp_path / "named.csv", text), Reading(("a", "b", "c"))), numbers)
    bare = "\n".join(",".join(map(str, row)) for row in numbers)
    for form in (bytes, pack):
        path = write(tmp_path / "bare.csv", form(bare.encode()))
        assert np.array_equal(load_inputs(path, Reading(("a", "b", "c"))), numbers)


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_load_inputs_of_bundled(name):
    dataset = load(name)
    assert np.array_equal(load_inputs(name, dataset.reading), dataset.inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("a,c\n1,2\n", "expected columns a, b; missing b"),
        ("1,5,3\n4,5,6\n", "expected columns a, b; missing a, b"),
        ("a,b\n", "no examples"),
        ("a,b\n1,\n", "line 2, column 'b': missing value, got ''"),
        ("b,a\nx,1\n", "line 2, column 'b': expected a number, got 'x'"),
        ("a,b\n1,inf\n", "line 2, column 'b': expected a finite number, got 'inf'"),
        ("a,b\n1,2,3\n", "line 2: expected 2 cells as in the first row, got 3"),
        ("1,nan\n", "line 1, column 'b': missing value, got 'nan'"),
    ],
)
def test_load_inputs_refused(tmp_path, text, message):
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(ValueError) as refusal:
        load_inputs(path, Reading(("a", "b")))
    assert str(refusal.value).startswith(f"{path}: ") and message in str(refusal.value)


def test_columns_with_the_same_name_are_refused(tmp_path):
    path = write(tmp_path / "x.csv", "a,a,y\n1,2,3.5\n4,5,6.5\n7,8,9.5\n")
    with pytest.raises(ValueError, match="line 1: column 'a' is named twice"):
        load(path)
