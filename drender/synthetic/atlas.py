"""Pack the textures of a scene into one atlas of fixed size, so that Mitsuba compiles its kernels once.

The atlas has COLUMNS × ROWS tiles. A texture fills a tile and repeats over uv; the first tile is a palette of the
materials without texture. Texture coordinates carry the tile: `encode_uv` adds it to them, the texture plugin of
`register_atlas` takes it off again. A border of one pixel around each tile makes bilinear lookups repeat without seams.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from drender.synthetic.meshes import Mesh

TILE = 256  # side of a texture in pixels
BORDERED = TILE + 2
COLUMNS, ROWS = 6, 4
TILES = COLUMNS * ROWS - 1  # textures beside the palette
CELLS = 8  # of the palette per axis
SPAN = 64  # texture coordinates per tile: a triangle may repeat a texture SPAN − 2 times
# basecolor (linear), roughness and metallic: of a texture of TILE pixels, or of a whole part
Surface = Float32[np.ndarray, "n n 5"] | Float32[np.ndarray, "5"]


def pack(surfaces: Sequence[Surface]) -> tuple[Float32[np.ndarray, "H W 5"], Float[np.ndarray, "k 4"]]:
    """Return the atlas of surfaces, and the place of each: column and row of its tile, and uv of its palette cell.

    A texture fills a tile, so its last two are NaN. Textures after the first TILES are replaced by their means;
    materials beyond the palette share its cells.
    """
    atlas = np.zeros((ROWS * BORDERED, COLUMNS * BORDERED, 5), np.float32)
    palette = np.zeros((CELLS, CELLS, 5), np.float32)
    places, num_tiles, num_cells = np.full((len(surfaces), 4), np.nan), 0, 0
    for surface, place in zip(surfaces, places, strict=True):
        if surface.ndim == 3 and num_tiles < TILES:
            num_tiles += 1
            _tile(atlas, num_tiles)[:] = np.pad(surface, ((1, 1), (1, 1), (0, 0)), mode="wrap")
            place[:2] = num_tiles % COLUMNS, num_tiles // COLUMNS
        else:
            row, column = divmod(num_cells % CELLS**2, CELLS)
            palette[row, column] = surface.reshape(-1, 5).mean(axis=0, dtype=np.float64)
            place[:] = 0, 0, (column + 0.5) / CELLS, (row + 0.5) / CELLS
            num_cells += 1
    nearest = (np.arange(BORDERED) * CELLS) // BORDERED
    _tile(atlas, 0)[:] = palette[nearest[:, None], nearest]
    return atlas, places


def _tile(atlas: np.ndarray, index: int) -> np.ndarray:
    row, column = divmod(index, COLUMNS)
    return atlas[row * BORDERED : (row + 1) * BORDERED, column * BORDERED : (column + 1) * BORDERED]


def encode_uv(mesh: Mesh, places: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "n 2"]:
    """Return texture coordinates that carry the tile of each face's part."""
    uv = mesh.uv.reshape(-1, 3, 2).astype(np.float64)
    uv = uv - np.floor(uv.min(axis=1, keepdims=True))  # whole repetitions do not matter
    uv = uv * np.minimum(1, (SPAN - 2.5) / np.maximum(uv.max(axis=(1, 2), keepdims=True), 1e-9))
    tile, cell = np.split(places[mesh.part][:, None], 2, axis=-1)
    # One repetition of margin keeps interpolated coordinates inside the tile's range in spite of rounding.
    return (np.where(np.isnan(cell), uv, cell) + 1 + SPAN * tile).reshape(-1, 2)


def register_atlas(mitsuba, drjit) -> None:
    """Register the Mitsuba texture "atlas", which looks up its nested bitmap at the coordinates of `encode_uv`."""

    class Atlas(mitsuba.Texture):
        def __init__(self, properties):
            mitsuba.Texture.__init__(self, properties)
            self.bitmap = properties["bitmap"]

        def decoded(self, interaction):
            uv = interaction.uv
            tile, repeated = drjit.floor(uv / SPAN), uv - drjit.floor(uv)
            result = mitsuba.SurfaceInteraction3f(interaction)
            result.uv = (tile + (1 + repeated * TILE) / BORDERED) / mitsuba.Point2f(COLUMNS, ROWS)
            return result

        def eval(self, interaction, active=True):
            return self.bitmap.eval(self.decoded(interaction), active)

        def eval_1(self, interaction, active=True):
            return self.bitmap.eval_1(self.decoded(interaction), active)

        def eval_3(self, interaction, active=True):
            return self.bitmap.eval_3(self.decoded(interaction), active)

        def mean(self):
            return self.bitmap.mean()

        def is_spatially_varying(self):
            return True

        def traverse(self, callback):
            callback.put("bitmap", self.bitmap, mitsuba.ParamFlags.Differentiable)

        def to_string(self):
            return f"Atlas[{self.bitmap}]"

    mitsuba.register_texture("atlas", Atlas)
