"""The assets that the scenes of a split are drawn from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drender.synthetic import environments as skies
from drender.synthetic import shapes

SPLITS = ("all", "train", "test")


@dataclass(frozen=True)
class AssetSplit:
    """The assets of a split: names of shape families, paths of meshes, names of environments, paths of textures."""

    families: tuple[str, ...]
    meshes: tuple[str, ...]
    environments: tuple[str, ...]
    textures: tuple[str, ...]


def split_assets(
    split: str, meshes: Sequence[str], environments: Sequence[str], textures: Sequence[str] = ()
) -> AssetSplit:
    """Select the assets of a split by their names alone, so that other files do not move them.

    "test" has the shape families of `shapes.HELD_OUT`, the bundled environments of `environments.HELD_OUT` (at any
    resolution), and a tenth of all other files by a hash of their names; "train" has the rest. Procedural skies and
    materials are in both splits, with different seeds. `meshes` and `textures` are paths, `environments` names.
    """

    def keep(names: Iterable[str], is_held_out: Callable[[str], bool]) -> tuple[str, ...]:
        return tuple(name for name in names if split == "all" or is_held_out(name) == (split == "test"))

    families = keep(shapes.FAMILIES, lambda name: name in shapes.HELD_OUT)
    files = (keep(paths, lambda path: skies.is_held_out(Path(path).name)) for paths in (meshes, environments, textures))
    return AssetSplit(families, *files)
