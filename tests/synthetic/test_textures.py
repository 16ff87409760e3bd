"""Picture materials: maps from files, and guesses for missing ones."""

import numpy as np
import pytest
from PIL import Image

from drender.errors import InputError
from drender.media.images import write_hdr, write_png
from drender.synthetic.materials import named_material, phong_roughness
from drender.synthetic.textures import PictureMaterial, find_textures


def test_pictures_are_linearized_and_missing_maps_guessed(tmp_path):
    gray = np.full((8, 8, 3), 0.5, np.float32)
    for name in ("oak.png", "steel_basecolor.png", "steel_metallic.png", "steel_roughness.png", "steel_normal.png"):
        write_png(tmp_path / name, gray)
    oak, steel = find_textures(tmp_path)
    maps = PictureMaterial(oak, 3).maps(16)
    np.testing.assert_allclose(maps[..., :3], ((128 / 255 + 0.055) / 1.055) ** 2.4, rtol=1e-4)
    assert np.ptp(maps[..., 3]) == 0 and 0.35 <= maps[0, 0, 3] <= 0.75 and maps[0, 0, 4] == 0
    np.testing.assert_allclose(PictureMaterial(steel, 3).maps(16)[..., 3:], 128 / 255, rtol=1e-4)
    assert (PictureMaterial(oak, 3).maps(16) == maps).all()


def test_sets_may_mix_formats_and_cases(tmp_path):
    for name, value in (("Iron_BaseColor.png", 0.5), ("Iron_Roughness.TIF", 0.25), ("Iron_Metallic.jpg", 1)):
        Image.fromarray(np.full((8, 8, 3), value * 255, np.uint8)).save(tmp_path / name)
    (iron,) = find_textures(tmp_path)
    np.testing.assert_allclose(PictureMaterial(iron, 3).maps(4)[..., 3:], [63 / 255, 1] * np.ones((4, 4, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("rock_wall_diff_1k.png", "rock_wall_rough_1k.exr", "rock_wall_metal_1k.png", "rock_wall_nor_gl_1k.png"),
        ("Rock_1K-PNG_Color.png", "Rock_1K-PNG_Roughness.png", "Rock_1K-PNG_Metalness.png", "Rock_1K-PNG_NormalGL.png"),
        ("rock_Base_Color.png", "rock_Roughness.png", "rock_Metallic.png", "rock_Normal_OpenGL.png"),
    ],
)
def test_sets_of_texture_libraries_are_one_material(tmp_path, names):
    for name, value in zip(names, (0.5, 0.25, 0.75, 1), strict=True):
        write = write_png if name.endswith("png") else write_hdr
        write(tmp_path / name, np.full((8, 8, 3), value, np.float32))
    write_png(tmp_path / "brushed metal.png", np.ones((8, 8, 3), np.float32))
    brushed, rock = sorted(find_textures(tmp_path), key=str.lower)
    assert (brushed, rock) == (str(tmp_path / "brushed metal.png"), str(tmp_path / names[0]))
    np.testing.assert_allclose(PictureMaterial(rock, 0).maps(4)[..., 3:], [0.25, 0.75] * np.ones((4, 4, 1)), atol=4e-3)


def test_unusable_texture_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no textures found"):
        find_textures(tmp_path)
    with pytest.raises(InputError, match="nowhere: folder not found"):
        find_textures(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, metallic, low, high",
    [
        ("Chrome_01", 1, 0.04, 0.15),
        ("blackPlastic", 0, 0.2, 0.55),
        ("white ceramic", 0, 0.05, 0.25),
        ("RUBBER_generic", 0, 0.6, 0.95),
        ("fabric.002", 0, 0.75, 1),
        ("oak wood", 0, 0.35, 0.75),
        ("brass", 1, 0.1, 0.4),
    ],
)
def test_names_give_metallic_and_a_range_of_roughness(name, metallic, low, high):
    drawn = [named_material(name, np.random.default_rng(seed)) for seed in range(30)]
    assert {value for value, _ in drawn} == {metallic}
    assert low <= min(roughness for _, roughness in drawn) < max(roughness for _, roughness in drawn) <= high


def test_unknown_names_give_nothing_and_phong_exponents_a_roughness():
    assert named_material("Material.001", np.random.default_rng(0)) is None
    assert phong_roughness(0.0) == 1 and phong_roughness(30.0) == pytest.approx(0.5)
