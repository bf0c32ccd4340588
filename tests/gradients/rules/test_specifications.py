"""How rules are written and read, and what is refused."""

import numpy as np
import pytest
from rule_cases import (
    LOSS,
    MLP,
    backpropagated,
    initialized,
    numbers,
)

import functional_nn as fnn
from functional_nn import rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("feedback_alignmnet", r"unknown rule 'feedback_alignmnet'; did you mean 'feedback_alignment'\?"),
        ("feedback_alignment(-1)", "feedback_alignment: seed must be an integer >= 0, got -1"),
        ("feedback_alignment(0, 0)", "feedback_alignment: scale must be a finite number > 0, got 0"),
        ("direct_feedback(0.5)", "direct_feedback: seed must be an integer >= 0, got 0.5"),
        ("sign_symmetric(even)", "sign_symmetric: magnitude must be 'uniform' or 'random' or 'fixed', got 'even'"),
        ("kolen_pollack(-1)", "kolen_pollack: decay must be a finite number >= 0, got -1"),
        ("weight_mirror(0)", "weight_mirror: rate must be a finite number > 0, got 0"),
        ("weight_mirror(1, 0)", "weight_mirror: samples must be an integer >= 1, got 0"),
        ("noisy(-0.1)", "noisy: sigma must be a finite number >= 0, got -0.1"),
        ("noisy", r"rule 'noisy': missing a required argument: 'sigma' \(accepted: noisy\(sigma\)\)"),
        ("rounded(0)", "rounded: bits must be an integer >= 1, got 0"),
        ("rounded(2.5)", "rounded: bits must be an integer >= 1, got 2.5"),
        ("rounded(25)", "rounded: bits must be at most 24, got 25"),
        ("rounded(4, 3)", "rounded: stochastic must be True or False, got 3"),
        ("dropped_back(1)", r"dropped_back: rate must be in \[0, 1\), got 1"),
        ("clipped_back(0)", "clipped_back: norm must be a finite number > 0, got 0"),
        ("surrogate(-2)", "surrogate: slope must be a finite number > 0, got -2"),
        ({"layer7": "noisy(0.1)"}, r"rule: unknown layer 'layer7'.*accepted: layer1, layer2, layer3, others"),
        ({"layer1": "spsa"}, "rule: spsa makes the gradient of all layers at once; it cannot be one layer's"),
        ({}, "rule: expected one rule, or rules by layer such as"),
        ({1: "exact"}, "rule: expected one rule, or rules by layer such as"),
    ],
)
def test_bad_specifications_are_refused_in_one_line(rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(MLP, LOSS, rule=rule)
    assert "\n" not in str(refusal.value)


def test_missing_keys_and_feedback_are_asked_for():
    params, inputs, targets = numbers(MLP)
    for rule in ("noisy(0.1)", "rounded(2)", "dropped_back(0.1)", "sign_symmetric(random)", {"layer1": "noisy(0.1)"}):
        with pytest.raises(ValueError, match="rule: .* draws at every update; give key=jax.random.key") as refusal:
            fnn.value_and_grad(MLP, LOSS, rule=rule)(params, inputs, targets)
        assert "\n" not in str(refusal.value)
    for rule in ("kolen_pollack", "weight_mirror"):
        with pytest.raises(
            ValueError, match=rf"params: the rule {rule}.* learns layer2/feedback, .* rules.begin"
        ) as refusal:
            backpropagated(rule, MLP, params, inputs, targets)
        assert "\n" not in str(refusal.value)
        wrong = initialized(rule, MLP)[0]
        wrong["layer2"]["feedback"]["layer1"] = np.zeros((2, 2))
        with pytest.raises(ValueError, match=r"learns layer2/feedback, expected shapes .*\(4, 5\).* got .*\(2, 2\)"):
            backpropagated(rule, MLP, wrong, inputs, targets)
    with pytest.raises(ValueError, match="rule: exact has no feedback weights"):
        rules.feedback_weights(MLP, "exact", params)
    with pytest.raises(ValueError, match="rule: sign_symmetric.* draws at every update; give key"):
        rules.feedback_weights(MLP, "sign_symmetric(random)", params)
    with pytest.raises(TypeError, match="rule: expected a name or a Rule, got int"):
        fnn.value_and_grad(MLP, LOSS, rule=3)


@pytest.mark.parametrize("name", rules.names())
def test_a_rules_name_reads_back(name):
    """As it is written it is read; what differs in a constant is written otherwise."""
    needs = {"noisy": "0.1", "rounded": "4", "dropped_back": "0.5", "clipped_back": "1"}
    rule = rules.get(f"{name}({needs[name]})" if name in needs else name)
    assert rules.get(rule.name).name == rule.name


@pytest.mark.parametrize(
    "written",
    [
        "feedback_alignment(1234567)",
        "direct_feedback(3, 0.33333333)",
        "sign_symmetric(fixed, 12345678)",
        "noisy(0.123456789)",
        "spsa(directions=1000001)",
        "evolution_strategy(population=1000002)",
        "predictive_coding(1234567, 0.1, 1)",
        "forward_forward(1, tag)",
        "hebb(decay=0.12345678)",
        "target_propagation(0.12345678, 0.1)",
    ],
)
def test_a_rule_is_written_with_all_its_digits(written):
    assert rules.get(written).name == written
