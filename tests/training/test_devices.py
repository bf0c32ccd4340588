"""Two devices, and two processes, train the same as one, to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("distributed.py")


def start(*words: str, devices: int = 1) -> subprocess.Popen:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.Popen(command, env=os.environ | flags, stderr=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def assert_same_results(a, b) -> None:
    assert (a["status"] == b["status"]).all() and (a["epochs"] == b["epochs"]).all()
    for name in ("losses", "params", "alone"):
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out.npz"
    wait(start(out))
    return np.load(out)


@pytest.mark.slow
def test_two_devices_return_the_same_results_as_one(one_device, tmp_path):
    wait(start(tmp_path / "out.npz", devices=2))
    two = np.load(tmp_path / "out.npz")
    assert (one_device["devices"], two["devices"]) == (1, 2) and "halved" in two["status"]
    assert_same_results(one_device, two)


@pytest.mark.slow
def test_two_processes_return_the_same_results_as_one(one_device, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    out = [tmp_path / f"{number}.npz" for number in range(2)]
    processes = [start(out[number], address, 2, number) for number in range(2)]
    for process in processes:
        wait(process)
    tables = [np.load(path) for path in out]
    assert [int(table["processes"]) for table in tables] == [2, 2]
    for table in tables:
        assert_same_results(one_device, table)
