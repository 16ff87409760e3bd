"""Files that come with the package: a small pair of renderers, a clip to try them on, and environments.

This project trained the pair on its own synthetic clips (see the README). It is the default of `InverseRenderer.load`,
`ForwardRenderer.load` and the command line.
"""

from importlib import resources
from pathlib import Path

from drender.errors import InputError, unknown_name_error

ASSETS = Path(str(resources.files("drender") / "assets"))
# A held-out clip, as frames, and its true G-buffers as the forward renderer reads them.
CLIPS = ASSETS / "clips"
GBUFFERS = ASSETS / "gbuffers"
# Lat-long maps, named after their files.
ENVIRONMENTS = ASSETS / "environments"
# The default environments for relighting; all are held out from training.
LIGHTS = ("forest", "lobby", "warehouse")


def checkpoint(kind: str) -> Path:
    """Return the folder of the built-in "inverse" or "forward" renderer.

    Raises:
      InputError: the installation lacks it.
    """
    folder = ASSETS / kind
    if not folder.is_dir():
        raise InputError(f"built-in {kind} renderer not found in {ASSETS}; reinstall drender or give a checkpoint")
    return folder


def environments() -> list[str]:
    """Return the names of the built-in environments, sorted."""
    return sorted(path.stem for path in ENVIRONMENTS.glob("*.exr"))


def environment(name: str) -> str:
    """Return the path of a built-in environment; a `name` with a suffix, or that exists, is a path already.

    Raises:
      InputError: the name is unknown.
    """
    if Path(name).suffix or Path(name).exists():
        return name
    if name not in environments():
        raise unknown_name_error("environment", name, environments())
    return str(ENVIRONMENTS / f"{name}.exr")
