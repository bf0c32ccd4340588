"""The examples in the docstrings of rows that are instances, which doctest does not collect, are right."""

import doctest

import pytest

import functional_nn as fnn

ROWS = {
    f"{module.__name__}.{name}": row
    for module in (fnn.activations, fnn.connections)
    for name, row in vars(module).items()
    if name in module.__all__ and isinstance(row, fnn.Activation | fnn.Connection)
}


@pytest.mark.parametrize("name", ROWS)
def test_examples_of_rows_are_right(name):
    text = ROWS[name].__doc__
    assert text != type(ROWS[name]).__doc__, "it has no docstring but its class's"
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
