"""Multi-layer and multi-part EXR files: the layer that fits the label is read."""

import numpy as np
import OpenEXR
import pytest

from drender.errors import InputError
from drender.media.encodings import read_labeled
from drender.media.images import load_image, read_hdr, write_exr

RNG = np.random.default_rng(0)
LAYERS = {"rgb": "Combined", "basecolor": "DiffCol", "normal": "Normal", "depth": "Depth", "roughness": "Roughness"}
IMAGES = {label: RNG.random((4, 6, 3)).astype(np.float32) for label in LAYERS}
for label in ("depth", "roughness"):
    IMAGES[label][:] = IMAGES[label][..., :1]


def components(label):
    return {"normal": "XYZ", "depth": "Z", "roughness": "X"}.get(label, "RGB")


def layered(view="ViewLayer.", names=LAYERS):
    """Return the channels of all layers with Blender's names."""
    return {
        f"{view}{name}.{component}": np.ascontiguousarray(IMAGES[label][..., index])
        for label, name in names.items()
        for index, component in enumerate(components(label))
    }


@pytest.mark.parametrize("label", LAYERS)
@pytest.mark.parametrize("view", ["ViewLayer.", ""])
def test_layer_fits_the_label(tmp_path, label, view):
    channels = layered(view) | {f"{view}AO.{c}": np.ones((4, 6), np.float32) for c in "RGB"}
    write_exr(tmp_path / "a.exr", channels | {f"{view}Combined.A": np.ones((4, 6), np.float32)})
    np.testing.assert_allclose(load_image(tmp_path / "a.exr", label).image, IMAGES[label], rtol=1e-3)


def test_environment_is_lit_by_the_combined_layer(tmp_path):
    write_exr(tmp_path / "a.exr", {f"AO.{c}": np.ones((4, 6), np.float32) for c in "RGB"} | layered("View."))
    np.testing.assert_allclose(read_hdr(tmp_path / "a.exr"), IMAGES["rgb"], rtol=1e-3)


@pytest.mark.parametrize("label", LAYERS)
def test_parts_of_a_multi_part_file_are_layers(tmp_path, label):
    parts = []
    for other, name in LAYERS.items():
        channels = {c: np.ascontiguousarray(IMAGES[other][..., i]) for i, c in enumerate(components(other))}
        header = {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}
        parts.append(OpenEXR.Part(header, channels, f"View.{name}"))
    OpenEXR.File(parts).write(str(tmp_path / "a.exr"))
    np.testing.assert_array_equal(load_image(tmp_path / "a.exr", label).image, IMAGES[label])


def test_unnamed_channels_are_the_fallback(tmp_path):
    bare = dict(zip("RGB", np.moveaxis(IMAGES["basecolor"], -1, 0), strict=True)) | {"Z": IMAGES["depth"][..., 0]}
    write_exr(tmp_path / "a.exr", bare | {f"spec.{c}": np.ones((4, 6), np.float32) for c in "RGB"})
    np.testing.assert_allclose(load_image(tmp_path / "a.exr", "basecolor").image, IMAGES["basecolor"], rtol=1e-3)
    np.testing.assert_allclose(load_image(tmp_path / "a.exr", "depth").image, IMAGES["depth"], rtol=1e-3)


def test_layers_and_channels_by_name(tmp_path):
    write_exr(tmp_path / "a.exr", layered("A.") | layered("B.", {"basecolor": "DiffCol"}))
    found = load_image(tmp_path / "a.exr", "basecolor", layer_name="A.DiffCol")
    np.testing.assert_allclose(found.image, IMAGES["basecolor"], rtol=1e-3)
    found = load_image(tmp_path / "a.exr", "roughness", layer_name="A.DiffCol.G").image
    np.testing.assert_allclose(found, IMAGES["basecolor"][..., [1, 1, 1]], rtol=1e-3)
    for name, message in (
        ("diffcol", r"several layers fit the name 'diffcol': A\.DiffCol, B\.DiffCol; give its whole name: --input-l"),
        ("Albedo", r"no layer fits the name 'Albedo': A\.Combined, "),
    ):
        with pytest.raises(InputError, match=message):
            load_image(tmp_path / "a.exr", "basecolor", layer_name=name)


def test_ambiguous_or_missing_layers_are_input_errors(tmp_path):
    write_exr(tmp_path / "a.exr", layered("A.") | layered("B."))
    with pytest.raises(InputError, match=r"a\.exr: several layers fit the label 'basecolor': A\.DiffCol, B\.DiffCol;"):
        read_labeled(tmp_path / "a.exr", "basecolor")
    with pytest.raises(InputError, match=r"a\.exr: no layer fits the label 'metallic': A\.Combined, "):
        read_labeled(tmp_path / "a.exr", "metallic")


def test_components_may_be_words(tmp_path):
    words = dict(zip(("red", "green", "blue"), np.moveaxis(IMAGES["rgb"], -1, 0), strict=True))
    other = {f"spec.{word}": np.ones((4, 6), np.float32) for word in words}
    write_exr(tmp_path / "a.exr", {f"beauty.{word}": values for word, values in words.items()} | other)
    np.testing.assert_allclose(load_image(tmp_path / "a.exr").image, IMAGES["rgb"], rtol=1e-3)


def test_luminance_and_chroma_are_not_taken_for_gray(tmp_path):
    write_exr(tmp_path / "a.exr", dict.fromkeys(("Y", "RY", "BY"), np.ones((4, 6), np.float32)))
    with pytest.raises(InputError, match=r"a\.exr: luminance and chroma .* are not read; save it with R, G and B"):
        load_image(tmp_path / "a.exr")
