"""What comes with the package: a small pair of renderers, a clip to try them on, and environments.

The pair is trained by this project on its own synthetic clips (see the README); `InverseRenderer.load()` and
`ForwardRenderer.load()` without a path, and sample.py without arguments, take it.
"""

from importlib import resources
from pathlib import Path

from drender.errors import InputError, unknown_name_error

ASSETS = Path(str(resources.files("drender") / "assets"))
# A clip that the pair has never seen, as frames, and its true G-buffers as the forward renderer reads them.
CLIPS = ASSETS / "clips"
GBUFFERS = ASSETS / "gbuffers"
# Lat-long maps, named after their files.
ENVIRONMENTS = ASSETS / "environments"
# Of those, what a clip is relit under unless others are given; none of them is trained on.
LIGHTS = ("forest", "lobby", "warehouse")


def checkpoint(kind: str) -> Path:
    """The folder of the built-in renderer, "inverse" or "forward"; InputError if this installation has none."""
    folder = ASSETS / kind
    if not folder.is_dir():
        raise InputError(f"no built-in {kind} renderer in {ASSETS}; install drender anew, or give a checkpoint")
    return folder


def environments() -> list[str]:
    """The names of the built-in environments."""
    return sorted(path.stem for path in ENVIRONMENTS.glob("*.exr"))


def environment(name: str) -> str:
    """The path of the built-in environment of that name; any other word is a path itself.

    InputError for a word that can be neither.
    """
    if Path(name).suffix or Path(name).exists():
        return name
    if name not in environments():
        raise unknown_name_error("environment", name, environments())
    return str(ENVIRONMENTS / f"{name}.exr")
