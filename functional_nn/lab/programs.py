"""Compiled programs that the command line keeps between runs, so that the same shapes start immediately.

They are in JAX's own persistent cache, in a folder of the user's. FUNCTIONAL_NN_CACHE names another folder, or is
`off`. If JAX_COMPILATION_CACHE_DIR is set, or JAX_ENABLE_COMPILATION_CACHE is off, JAX's settings are left unchanged.
Programs are compiled for one kind of processor, so each kind, and each version of JAX, has its own subfolder.
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
MOST = 512 * 2**20  # bytes in all; above, the oldest are deleted until half is left
_SUFFIX = "-cache"  # of JAX's files, after the program's name and a hash
_JAX_SAYS = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(?P<program>[^']*)'")

_kept: Path | None = None


def keep() -> Path | None:
    """Switches the cache on for this process and returns its folder; None if it stays off: by the user's setting,
    because JAX already has one, or because the folder cannot be made.
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
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":  # JAX's default: the user has not asked for more
        _quieten()
    _kept = folder
    return folder


def heard(warning: str) -> bool:
    """Returns True for JAX's warning about an entry of our cache that it cannot read or write: users need not see
    it, because JAX compiles the program. An entry that cannot be read, such as one of a killed process, is deleted,
    since JAX never overwrites entries.
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
    setting, own = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        if setting is not None:
            return None if setting.lower() in OFF else Path(setting).expanduser()
        return Path(own if own and Path(own).is_absolute() else Path.home() / ".cache") / "functional-nn"
    except RuntimeError:  # there is no home directory
        return None


def _made_for() -> str:
    """What programs depend on and JAX's names do not include: a folder may be shared by several machines."""
    described = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:  # Linux: the first processor
            lines = file.read().split("\n\n")[0].splitlines()
        described += [line for line in lines if line.split("\t")[0].strip() in ("model name", "flags", "Features")]
    processor = hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]
    return f"jaxlib-{metadata.version('jaxlib')}-{processor}"


def _drop_oldest(root: Path) -> None:
    """Deletes the oldest entries of all versions and machines."""
    entries = []
    for path in root.glob(f"*/*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process has deleted it
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
    """Silences XLA's messages on standard error: for each program read it logs, as an error, that this machine lacks
    two hints that the same machine gave to the compiler (jax issue 38445). Only XLA's level is changed; JAX's loggers
    are not.
    """
    before = jax.config.jax_logging_level
    jax.config.update("jax_logging_level", "CRITICAL")
    jax.config.update("jax_logging_level", before)
