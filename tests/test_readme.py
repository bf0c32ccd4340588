"""The README's Python runs as it stands, top to bottom."""

import re
from pathlib import Path

import functional_nn as fnn

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_readme_examples_run(capsys):
    names = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        fnn.activations._registry._factories.pop("softsign", None)
    printed = capsys.readouterr().out
    assert "agree None" in printed and "third opinion" in printed
    assert names["params"]["layer1"]["weights"]["input"].shape == (32, 64)
    assert names["graph"].output.name == "output"
    assert names["population"].history.training_loss.shape == (5, 12) and "member 7: " in printed
    assert names["result"].status in printed


def test_readme_names_what_exists():
    root = Path(__file__).parents[1]
    for path in re.findall(r"`((?:scripts|functional_nn)/[\w/.]+)`", README) + re.findall(
        r"\]\((results/[^)]+)\)", README
    ):
        assert (root / path).exists(), path
