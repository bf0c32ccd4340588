"""Two devices, and two processes, train what one does: the same tables to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("distributed.py")


def started(*words: str, devices: int = 1) -> subprocess.Popen:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.Popen(command, env=os.environ | flags, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def same_table(a, b) -> None:
    assert (a["status"] == b["status"]).all() and (a["epochs"] == b["epochs"]).all()
    for name in ("losses", "params", "alone"):
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out.npz"
    ended(started(out))
    return np.load(out)


@pytest.mark.slow
def test_two_devices_give_the_same_table(one, tmp_path):
    ended(started(tmp_path / "out.npz", devices=2))
    two = np.load(tmp_path / "out.npz")
    assert (one["devices"], two["devices"]) == (1, 2) and "halved" in two["status"]
    same_table(one, two)


@pytest.mark.slow
def test_two_processes_give_the_same_table(one, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    out = [tmp_path / f"{number}.npz" for number in range(2)]
    processes = [started(out[number], address, 2, number) for number in range(2)]
    for process in processes:
        ended(process)
    tables = [np.load(path) for path in out]
    assert [int(table["processes"]) for table in tables] == [2, 2]
    for table in tables:
        same_table(one, table)
