"""How XLA compiles what runs here, and where it keeps what it has compiled."""

import functools
import os
from pathlib import Path

import jax


def compiler_options(platform: str) -> dict[str, str]:
    """What a compilation for "cpu", "cuda" and so on is told.

    XLA orders the work for a CPU such that much of it could go on at once, and computes early what depends on weights
    alone, as filtered kernels do. Where every product takes all cores that gains nothing: a full-size forward step held
    1 GiB to work in instead of 0.1, and took longer.
    """
    option = ("xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED")
    return dict([option]) if platform == "cpu" and _knows(*option) else {}


@functools.cache
def _knows(option: str, value: str) -> bool:
    """XLA's options come and go with its versions."""
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def cache_compilations() -> None:
    """Keeps compiled stages on disk between runs, unless the program or JAX_COMPILATION_CACHE_DIR says otherwise."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "drender" / "xla"))
