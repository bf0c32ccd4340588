"""`compare` calls every planted fault different and names its place; it calls the right gradient equal."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "planted_faults.py"
spec = importlib.util.spec_from_file_location("planted_faults", SCRIPT)
planted = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted)


def test_every_kind_of_network_has_several_faults():
    for bench, count in ((planted.vectors, 10), (planted.signals, 5), (planted.sentences, 6)):
        assert len({fault.name for fault in planted.FAULTS if fault.bench is bench}) >= count


@pytest.mark.sampled(every=16)
@pytest.mark.parametrize("fault", planted.FAULTS, ids=lambda fault: fault.name)
def test_compare_calls_a_fault_different_and_names_its_place(fault):
    agreement = planted.examine(fault, jit=fault.bench is planted.signals)
    assert agreement.verdict == "differ"
    assert agreement.where.startswith(fault.where)
    assert agreement.third_opinion.says == "the manual gradient is wrong"
    assert agreement.taylor.says == "wrong"


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("bench", planted.BENCHES, ids=lambda bench: bench.__name__)
def test_the_same_pieces_without_a_fault_agree(bench):
    right = planted.Fault("none", planted.assembled, "", "", bench)
    assert planted.examine(right, jit=bench is planted.signals).verdict == "agree"
