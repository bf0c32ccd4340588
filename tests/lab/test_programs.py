"""Compiled programs that the command line keeps: read again by the next process, dropped where they are damaged."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from functional_nn.lab import programs

COMMAND = """
import json, sys, jax
from functional_nn.lab import cli

counts = {}
def count(name, **more):
    counts[name.rpartition("/")[2]] = counts.get(name.rpartition("/")[2], 0) + 1
jax.monitoring.register_event_listener(count)
sys.argv = ["functional-nn", "info"]
cli.script()
print(json.dumps(counts))
"""


def info(**environment):
    """What `functional-nn info` says in a process of its own: lines, standard error, programs read and written."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "TF_", "XDG_", programs.VARIABLE))
    }
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, env=kept | environment)
    assert done.returncode == 0, done.stderr
    *lines, counts = done.stdout.splitlines()
    counts = json.loads(counts)
    return lines, done.stderr, counts.get("cache_hits", 0), counts.get("cache_misses", 0)


def test_the_next_process_reads_what_one_compiled(tmp_path):
    where = {"XDG_CACHE_HOME": str(tmp_path)}
    first, said, hits, misses = info(**where)
    assert hits < misses and "WRONG" not in "".join(first)  # a program may be compiled twice, under other names
    (folder,) = (tmp_path / "functional-nn").iterdir()
    assert f"compiled programs    {folder}" in first and folder.stat().st_mode & 0o077 == 0
    written = sorted(folder.iterdir())
    assert len(written) == misses
    assert info(**where) == (first, said, hits + misses, 0)

    for number, path in enumerate(written):  # as a process leaves them that is killed, and worse
        path.write_bytes([path.read_bytes()[:-40], b"", b"nonsense"][number % 3])
    assert info(**where) == (first, said, hits, misses)
    assert sorted(folder.iterdir()) == written
    assert info(**where) == (first, said, hits + misses, 0)


class Config(SimpleNamespace):
    """JAX's, of which nothing is kept beyond a test."""

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def config(monkeypatch, tmp_path):
    made = Config(jax_compilation_cache_dir=None, jax_enable_compilation_cache=True, jax_logging_level=None)
    monkeypatch.setattr(programs, "jax", SimpleNamespace(config=made))
    monkeypatch.setattr(programs, "_kept", None)
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_everything_is_kept_however_short_it_compiled(config, tmp_path):
    folder = programs.keep()
    assert folder.parent == tmp_path / "cache/functional-nn" and config.jax_compilation_cache_dir == str(folder)
    assert config.jax_persistent_cache_min_compile_time_secs == 0
    assert config.jax_persistent_cache_min_entry_size_bytes == -1
    assert config.jax_logging_level is None  # as it was


@pytest.mark.parametrize("word", programs.OFF)
def test_it_can_be_switched_off(word, config, monkeypatch, tmp_path):
    monkeypatch.setenv(programs.VARIABLE, word)
    before = dict(vars(config))
    assert programs.keep() is None and vars(config) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("jax_compilation_cache_dir", "elsewhere"), ("jax_enable_compilation_cache", False)]
)
def test_jaxs_own_settings_take_precedence(name, value, config, tmp_path):
    config.update(name, value)
    before = dict(vars(config))
    assert programs.keep() is None and vars(config) == before and not list(tmp_path.iterdir())
    assert not programs.heard("Error reading persistent compilation cache entry for 'jit_f': OSError: no")


def test_the_user_can_choose_the_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv(programs.VARIABLE, str(tmp_path / "mine"))
    assert programs.keep().parent == tmp_path / "mine"


def test_without_xdg_it_is_in_the_home(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):  # which the specification has ignored
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        config.update("jax_compilation_cache_dir", None)
        assert programs.keep().parent == tmp_path / ".cache/functional-nn"


def test_without_a_writable_folder_the_cache_stays_off(config, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(programs.VARIABLE, str(tmp_path / "file"))
    assert programs.keep() is None and config.jax_compilation_cache_dir is None
    monkeypatch.setenv(programs.VARIABLE, "~nobody-of-this-name/programs")
    assert programs.keep() is None and config.jax_compilation_cache_dir is None


def test_other_machines_have_other_folders(config, monkeypatch):
    folders = {programs.keep().name}
    for name in ("machine", "processor"):
        monkeypatch.setattr(programs.platform, name, lambda name=name: f"another {name}")
        config.update("jax_compilation_cache_dir", None)
        folders.add(programs.keep().name)
    assert len(folders) == 3


def test_the_oldest_programs_make_room_whatever_made_them(config, monkeypatch, tmp_path):
    root = tmp_path / "cache/functional-nn"
    for number in range(10):
        path = root / f"version{number % 2}" / f"jit_f-{number}-cache"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    (root / "notes.txt").write_text("mine")
    monkeypatch.setattr(programs, "MOST", 1000)
    programs.keep()
    assert len(list(root.glob("*/*-cache"))) == 10
    monkeypatch.setattr(programs, "MOST", 999)
    config.update("jax_compilation_cache_dir", None)
    programs.keep()
    assert sorted(int(path.name.split("-")[1]) for path in root.glob("*/*-cache")) == [6, 7, 8, 9]
    assert (root / "notes.txt").exists()


def test_jaxs_warnings_about_entries_are_hidden(config):
    folder = programs.keep()
    for name in ("jit_f-1-cache", "jit_f-2-cache", "jit_f2-1-cache"):
        (folder / name).write_bytes(b"")
    assert programs.heard("Error writing persistent compilation cache entry for 'jit_f': OSError: full")
    assert len(list(folder.iterdir())) == 3
    assert programs.heard("Error reading persistent compilation cache entry for 'jit_f': ZstdError: truncated")
    assert [path.name for path in folder.iterdir()] == ["jit_f2-1-cache"]
    assert not programs.heard("the compiler computes wrongly")
