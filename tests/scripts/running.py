"""Loads a script, runs it as a user would, and reads its table."""

import csv
import importlib.util
import sys
from pathlib import Path

import jax

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name):
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, out, monkeypatch, *given):
    """Returns the rows that a script writes. It runs as users run it: without strict promotion."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # else a script sets it, for all later tests too
    monkeypatch.setattr(sys, "argv", [module.__file__, *given, "--out", str(out)])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module.main()
    return read(out.with_suffix(".csv"))


def read(path):
    """Returns the rows of a table."""
    with path.open() as file:
        return list(csv.DictReader(file))
