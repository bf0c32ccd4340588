"""The settings of a training: one list of them, checked once."""

import inspect

import pytest

from functional_nn import training
from functional_nn.training import settings


@pytest.mark.parametrize("function", [training.fit, training.pure_fit])
def test_fit_and_pure_fit_take_every_setting_as_it_is_checked(function):
    """With the same name, default and type."""
    taken = inspect.signature(function).parameters
    for name, parameter in inspect.signature(settings.check_settings).parameters.items():
        assert (taken[name].default, taken[name].annotation) == (parameter.default, parameter.annotation), name
