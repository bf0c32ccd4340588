"""Compiled programs that the command line keeps from run to run, so that the same shapes start at once.

They are JAX's own persistent cache, in a folder of the user's: FUNCTIONAL_NN_CACHE names another, or is `off`. Where
JAX_COMPILATION_CACHE_DIR is set, or JAX_ENABLE_COMPILATION_CACHE is off, JAX is left as it was told to be. Programs are
made for one kind of processor, so that each kind, and each version of JAX, has a folder of its own in that one.
"""

import contextlib
import glob
import hashlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path

import jax

VARIABLE, OFF = "FUNCTIONAL_NN_CACHE", ("off", "false", "no", "0", "")
MOST = 512 * 2**20  # bytes in all; beyond, the oldest are dropped until half is left
_SUFFIX = "-cache"  # of JAX's files, after the program's name and a hash
_JAX_SAYS = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(?P<program>[^']*)'")

_kept: Path | None = None


def keep() -> Path | None:
    """Switches the cache on for this process; its folder, or None where it stays off: it was told to, JAX has one, or
    the folder cannot be made.
    """
    global _kept
    root = _root()
    if root is None or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    folder = root / _made_for()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _drop_oldest(root)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":  # as JAX sets it: nobody asked for more
        _quieten()
    _kept = folder
    return folder


def heard(warning: str) -> bool:
    """True for JAX's words about an entry of our cache that it cannot read, or write, which nobody need know: it
    compiles the program. What could not be read, as what a process left that was killed, is dropped, since JAX never
    writes over an entry.
    """
    found = _JAX_SAYS.match(warning)
    if _kept is None or found is None:
        return False
    if warning.startswith("Error reading"):
        for path in _kept.glob(f"{glob.escape(found['program'])}-*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                path.unlink()
    return True


def _root() -> Path | None:
    told, own = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        if told is not None:
            return None if told.lower() in OFF else Path(told).expanduser()
        return Path(own if own and Path(own).is_absolute() else Path.home() / ".cache") / "functional-nn"
    except RuntimeError:  # nobody's home
        return None


def _made_for() -> str:
    """What programs depend on that is in no name of JAX's: a folder may be shared by several machines."""
    described = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:  # of Linux: the first processor's
            lines = file.read().split("\n\n")[0].splitlines()
        described += [line for line in lines if line.split("\t")[0].strip() in ("model name", "flags", "Features")]
    processor = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
    return f"jaxlib-{metadata.version('jaxlib')}-{processor}"


def _drop_oldest(root: Path) -> None:
    """Of all versions and machines together."""
    entries = []
    for path in root.glob(f"*/*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process has dropped it
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    size = sum(size for _, size, _ in entries)
    if size <= MOST:
        return
    for _, own, path in sorted(entries):
        if size <= MOST // 2:
            break
        path.unlink(missing_ok=True)
        size -= own


def _quieten() -> None:
    """XLA's own words on standard error: of each program read it says, as an error, that this machine lacks two hints
    that the same machine gave to the compiler (jax issue 38445). Only its level stays; JAX's loggers are as they were.
    """
    before = jax.config.jax_logging_level
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_logging_level", before)
