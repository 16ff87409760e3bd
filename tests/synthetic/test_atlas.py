"""The atlas: what is packed is looked up again, repeated and without seams."""

import numpy as np

from drender.synthetic.atlas import BORDERED, COLUMNS, ROWS, SPAN, TILE, TILES, encode_uv, pack
from drender.synthetic.meshes import triangle_mesh


def look_up(atlas: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """Return the atlas at encoded coordinates, bilinearly, as Mitsuba's texture does."""
    tile, repeated = np.floor(encoded / SPAN), encoded - np.floor(encoded)
    place = (tile + (1 + repeated * TILE) / BORDERED) / [COLUMNS, ROWS] * atlas.shape[1::-1] - 0.5
    first, share = np.floor(place).astype(int), place - np.floor(place)
    total = 0
    for x in (0, 1):
        for y in (0, 1):
            weight = np.abs(1 - x - share[:, 0]) * np.abs(1 - y - share[:, 1])
            total = total + weight[:, None] * atlas[first[:, 1] + y, first[:, 0] + x]
    return total


def triangles(uv: np.ndarray, part: np.ndarray):
    corners = np.random.default_rng(0).normal(size=(len(uv), 3, 3))
    return triangle_mesh(corners, uv, part)


def test_textures_repeat_without_seams_and_constants_are_exact():
    ramp = np.arange(TILE) / TILE
    wave = np.stack([np.sin(2 * np.pi * (ramp[:, None] + 2 * ramp[None])) for _ in range(5)], axis=-1)
    color = np.float32([0.1, 0.2, 0.3, 0.4, 0.5])
    atlas, places = pack([color, wave.astype(np.float32), 1 - color])
    uv = np.random.default_rng(1).uniform(-3, 5, (300, 3, 2))
    mesh = triangles(uv, np.arange(300) % 3)
    values = look_up(atlas, encode_uv(mesh, places)).reshape(300, 3, 5)
    np.testing.assert_allclose(values[0::3], np.broadcast_to(color, (100, 3, 5)), atol=1e-6)
    np.testing.assert_allclose(values[2::3], np.broadcast_to(1 - color, (100, 3, 5)), atol=1e-6)
    u, v = uv[1::3, :, 0] - 0.5 / TILE, uv[1::3, :, 1] - 0.5 / TILE  # texel 0 has its center half a texel in
    np.testing.assert_allclose(values[1::3, :, 0], np.sin(2 * np.pi * (v + 2 * u)), atol=2e-3)


def test_textures_beyond_the_last_tile_become_their_means():
    surfaces = [np.full((TILE, TILE, 5), i / 100, np.float32) for i in range(TILES + 2)]
    atlas, places = pack(surfaces)
    assert np.isnan(places[:, 2]).tolist() == [True] * TILES + [False] * 2
    mesh = triangles(np.zeros((len(surfaces), 3, 2)), np.arange(len(surfaces)))
    values = look_up(atlas, encode_uv(mesh, places))[::3, 0]
    np.testing.assert_allclose(values, np.arange(len(surfaces)) / 100, atol=1e-6)


def test_encoded_triangles_stay_inside_their_tile():
    mesh = triangles(np.array([[[0, 0], [500, 0], [0, 90.0]], [[-7.25, 3], [-7, 3], [-7, 3.5]]]), np.array([0, 0]))
    encoded = encode_uv(mesh, pack([np.zeros((TILE, TILE, 5), np.float32)])[1])
    assert (np.floor(encoded / SPAN) == [1, 0]).all()
