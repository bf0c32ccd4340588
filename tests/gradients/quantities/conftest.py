"""The data of the network that has all kinds of layers, and its quantities by definition: computed once."""

import pytest
from cases import problem
from quantity_cases import LOSS, NETWORK, definitions


@pytest.fixture(scope="session")
def data():
    return problem(NETWORK, LOSS, 3, 5)


@pytest.fixture(scope="session")
def expected(data):
    return definitions(NETWORK, LOSS, *data)
