"""Every planted fault is called different by `compare`, and its place is named; the right gradient is not."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "planted_faults.py"
spec = importlib.util.spec_from_file_location("planted_faults", SCRIPT)
planted = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted)


def test_there_are_at_least_ten():
    assert len({fault.name for fault in planted.FAULTS}) >= 10


@pytest.mark.sampled(every=5)
@pytest.mark.parametrize("fault", planted.FAULTS, ids=lambda fault: fault.name)
def test_fault_is_caught_and_placed(fault):
    agreement = planted.examine(fault)
    assert agreement.verdict == "differ"
    assert agreement.where.startswith(fault.where)
    assert agreement.third_opinion.says == "the manual gradient is wrong"
    assert agreement.taylor.says == "wrong"


def test_the_pieces_put_together_rightly_agree():
    right = planted.Fault("none", planted.pieces, "", "")
    assert planted.examine(right).verdict == "agree"
