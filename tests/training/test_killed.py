"""kill -9 at random moments of a saving run: what is there always loads, and the run ends bitwise as if unharmed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT, EPOCHS = Path(__file__).with_name("killed.py"), 400
KILLS = int(os.environ.get("FUNCTIONAL_NN_KILLS", "5"))


def started(folder: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(folder), str(EPOCHS), str(out)]
    errors = out.with_suffix(".txt").open("w")  # a file: XLA has more to say of its cache than a pipe holds
    with errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bitwise_the_same(tmp_path):
    moments, reached, kills = random.Random(0), 0, 0
    whole, often = tmp_path / "whole.npz", tmp_path / "often.npz"
    unharmed = started(tmp_path / "whole", whole)
    unharmed.communicate(timeout=300)
    assert unharmed.returncode == 0, whole.with_suffix(".txt").read_text()[-2000:]
    os.rename(tmp_path / "whole-compiled", tmp_path / "often-compiled")
    while True:
        process = started(tmp_path / "often", often)
        first = process.stdout.readline()
        if kills < KILLS and first:
            time.sleep(moments.uniform(0, min(0.3, 0.01 * EPOCHS / max(1, KILLS))))
            process.kill()
            kills += 1
        lines, _ = process.communicate(timeout=300)
        epochs = [int(line) for line in (first + lines).split() if line.strip()]
        assert not epochs or epochs[0] >= reached, "an older checkpoint than the newest was resumed"
        reached = max([reached, *epochs[:1]])
        if process.returncode == 0:
            break
        assert process.returncode == -9, often.with_suffix(".txt").read_text()[-2000:]
    a, b = np.load(whole), np.load(often)
    for name in ("losses", "params"):
        np.testing.assert_array_equal(a[name], b[name])
