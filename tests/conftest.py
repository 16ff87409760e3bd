"""Fixtures of all tests: signatures are checked, and the tiny checkpoints are converted once."""

import atexit
import functools
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# Compiling is most of what the tests do. LLVM optimizing less halves it, and so do the older emitters, which jaxlib
# 0.10 still has; with these, one module of all kernels takes a sixth less than 32. Two devices show that placement
# works.
flags = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", flags)
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Devices that wait for each other hold a thread each of a pool that has one per core unless it is told otherwise. With
# two, a third task at the wrong moment could stop both for good, and XLA abort the process.
os.environ.setdefault("NPROC", "8")
# One cache for all processes of this run, and not the user's, unless a folder is named to keep it between runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="drender-tests-xla-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
# Loading is quicker than compiling for a program of any size. What another process is still writing is compiled.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("PYTHONWARNINGS", "ignore:Error reading persistent compilation cache")

# OpenImageIO's binding prints pages of "leaked" objects when the interpreter ends while pytest holds its types.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
# A shell that starts the tests in the background, or nohup, has signals ignored, by us and by what we start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything of drender is imported: from here on every annotated shape and type is checked at each call.
jaxtyping.install_import_hook("drender", "beartype.beartype")

# The first call of a test compiles, however long that takes; and every run tries the same examples.
hypothesis.settings.register_profile("drender", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("drender")

import jax  # noqa: E402
from helpers import tiny  # noqa: E402

from drender import cli  # noqa: E402
from drender.checkpoints import convert  # noqa: E402
from drender.lighting import projection  # noqa: E402
from drender.locks import lock  # noqa: E402


@pytest.fixture
def run_main(monkeypatch, capsys):
    """run_main(main, *words) -> (exit code, stdout, stderr) of a script with this command line, in this process."""

    def call(main: Callable[[], None], *words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
        return (stopped.value.code, *capsys.readouterr())

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip comparisons with diffusers and torch where they are not installed."""
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    skip = pytest.mark.skip(reason=f"{' and '.join(missing)} not installed: pip install -e '.[oracle]'")
    for item in items if missing else ():
        if item.get_closest_marker("oracle"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave out of later garbage collections what has been imported, which would take each some tenths of a second."""
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forget the programs compiled for a file when it ends.

    On a CPU each takes some hundred mappings of memory, and Linux ends a process that asks for more than 65,530.
    """
    if nextitem is not None and nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> dict[str, Path]:
    """Tiny checkpoints in the released layout, by kind; not to be changed."""
    return {
        kind: _made_once(tmp_path_factory, f"released-{kind}", functools.partial(tiny.write_released, kind=kind))
        for kind in tiny.CONFIGS
    }


@pytest.fixture(scope="session")
def inverse_checkpoint(originals, tmp_path_factory) -> Path:
    """The tiny inverse renderer, converted; not to be changed."""
    return _converted(tmp_path_factory, originals["inverse"])


@pytest.fixture(scope="session")
def forward_checkpoint(originals, tmp_path_factory) -> Path:
    """The tiny forward renderer with its LoRA, converted; not to be changed."""
    return _converted(tmp_path_factory, originals["forward"])


@pytest.fixture(scope="module")
def small_cubes():
    """Cube maps of 64×64 texels, which are quicker."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(projection, "CUBE_SIZE", 64)
        projection.latlong_to_cube.clear_cache()
        yield
    projection.latlong_to_cube.clear_cache()


@pytest.fixture
def inverse(originals, tmp_path) -> Path:
    """A released tiny inverse renderer that a test may spoil."""
    return tiny.linked(originals["inverse"], tmp_path / "released")


@pytest.fixture
def forward(originals, tmp_path) -> Path:
    """A released tiny forward renderer that a test may spoil."""
    return tiny.linked(originals["forward"], tmp_path / "released")


def _converted(tmp_path_factory, released: Path) -> Path:
    convert_to = lambda folder: convert.from_released(str(released), folder, log=lambda _: None)
    return _made_once(tmp_path_factory, released.name.replace("released", "converted"), convert_to)


def _made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` writes, once for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with lock(base / f"{name}.lock", name, waiting=lambda: None):
        if not (base / name).exists():
            make(base / f"{name}.unfinished")
            (base / f"{name}.unfinished").rename(base / name)
    return base / name
