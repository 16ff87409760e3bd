"""Depth and normals as other programs write them: decoded as their values tell, or as the options say."""

import numpy as np
import OpenImageIO as oiio
import pytest
from PIL import Image

from drender.errors import InputError
from drender.media.encodings import DEFAULT, ImageFormat, InputEncoding, encode_normal, read_labeled
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import write_exr, write_png

RNG = np.random.default_rng(0)
DISTANCES = RNG.uniform(2, 10, (3, 4, 6)).astype(np.float32)  # of three frames
RELATIVE = (DISTANCES - DISTANCES.min()) / np.ptp(DISTANCES)
NORMALS = RNG.normal(size=(4, 6, 3)).astype(np.float32)
NORMALS /= np.linalg.norm(NORMALS, axis=-1, keepdims=True)
ORM = np.tile(np.float32([1, 0.5, 0]), (2, 2, 1))


def rgb(image):
    return dict(zip("RGB", np.moveaxis(image, -1, 0), strict=True))


def read(folder, label, **assumed):
    (clip,) = find_gbuffer_clips(folder, [label], assumed=InputEncoding(**assumed))
    return np.stack([*clip.frames(label)])


def write_depth(folder, frames, name="Z"):
    for i, frame in enumerate(frames):
        write_exr(folder / f"{i}.depth.exr", {name: frame})
    return folder


@pytest.mark.parametrize("background", [None, np.inf, 1e10, np.nan, 0, 65504])
@pytest.mark.parametrize("sign", [1, -1])
def test_distances_are_normalized_over_the_clip(tmp_path, background, sign):
    frames, expected = sign * DISTANCES, RELATIVE.copy()
    if background is not None:
        frames[:, 0, 0], expected[:, 0, 0] = background, 1
        known = np.delete(DISTANCES.reshape(3, -1), 0, axis=1)
        expected[:, 0, 1:] = (DISTANCES[:, 0, 1:] - known.min()) / np.ptp(known)
        expected[:, 1:] = (DISTANCES[:, 1:] - known.min()) / np.ptp(known)
    write_depth(tmp_path, frames)
    with pytest.warns(UserWarning, match="depth is out of 0 to 1, so it is read as distances, 2.* to .* over the clip"):
        found = read(tmp_path, "depth")
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, axis=-1), atol=2e-3)  # half floats
    np.testing.assert_array_equal(read(tmp_path, "depth", depth="metric"), found)  # silently


def write_with_header(path, pixels, **header):
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], "float")
    spec.channelnames = ("Z", "A")[: pixels.shape[2]]
    spec.alpha_channel = 1 if pixels.shape[2] == 2 else -1
    for name, value in header.items():
        setattr(spec, name, value) if hasattr(spec, name) else spec.attribute(name, value)
    path.parent.mkdir(exist_ok=True)
    output = oiio.ImageOutput.create(str(path))
    assert output.open(str(path), spec) and output.write_image(pixels) and output.close()


@pytest.mark.parametrize("depth", ["relative", "metric", "inverse"])
def test_depth_outside_of_the_data_window_is_background(tmp_path, depth):
    pixels = {"relative": RELATIVE, "metric": DISTANCES, "inverse": 1 / DISTANCES}[depth][0].astype(np.float32)
    height, width = pixels.shape
    window = {"x": 1, "y": 2, "full_width": width + 3, "full_height": height + 3}
    write_with_header(tmp_path / "0.depth.exr", pixels[..., None], **window)
    found = read(tmp_path, "depth", depth=depth)[0, ..., 0]
    inside = np.zeros(found.shape, bool)
    inside[2 : 2 + height, 1 : 1 + width] = True
    assert (found[~inside] == 1).all() and found[inside].min() < 0.5
    if depth == "relative":
        np.testing.assert_array_equal(found[inside], pixels.ravel())


@pytest.mark.parametrize("depth", ["metric", None])
@pytest.mark.filterwarnings("ignore:.*depth is out of 0 to 1")
def test_transparent_distances_are_background(tmp_path, depth):
    """Not a distance of 1, and the range of the clip is that of the opaque pixels."""
    distance = np.float32([[10, 20, 30, 40], [15, 15, 15, 15]])
    alpha = np.float32([[1, 1, 1, 0], [0.5, 1, 1, 0]])
    pixels = np.stack([distance, alpha], axis=-1)
    write_with_header(tmp_path / "0.depth.tif", pixels, **{"oiio:UnassociatedAlpha": 1})
    expected = [[0, 0.5, 1, 1], [0.25, 0.25, 0.25, 1]]
    np.testing.assert_allclose(read(tmp_path, "depth", depth=depth)[0, ..., 0], expected, atol=1e-6)


def test_inverse_depth_is_the_reciprocal_of_distance(tmp_path):
    inverse = 1 / DISTANCES
    inverse[:, 0, 0] = 0  # background
    found = read(write_depth(tmp_path, inverse), "depth", depth="inverse")
    known = np.delete(DISTANCES.reshape(3, -1), 0, axis=1)
    expected = (DISTANCES - known.min()) / np.ptp(known)
    expected[:, 0, 0] = 1
    np.testing.assert_allclose(found[..., 0], expected.clip(0, 1), atol=2e-2)  # half floats


def test_millimetres_in_16_bits(tmp_path):
    stored = np.repeat((DISTANCES[0] * 1000 / 65535)[..., None], 3, axis=-1)
    stored[0, 0] = 1  # the largest integer is background
    write_png(tmp_path / "0.depth.png", stored, 16)
    found = read(tmp_path, "depth", depth="metric")[0, ..., 0]
    known = DISTANCES[0].ravel()[1:]
    expected = (DISTANCES[0] - known.min()) / np.ptp(known)
    expected[0, 0] = 1
    np.testing.assert_allclose(found, expected, atol=2e-4)
    stored[0, 0] = 0
    write_png(tmp_path / "0.depth.png", stored, 16)
    with pytest.warns(UserWarning, match="depth is only 0 to 0.14.*; give --input-depth metric"):
        read(tmp_path, "depth")
    assert read(tmp_path, "depth", depth="metric")[0, 0, 0, 0] == 1


def test_relative_depth_stays_as_it_is(tmp_path):
    found = read(write_depth(tmp_path / "a", RELATIVE / 2), "depth")
    np.testing.assert_allclose(found[..., 0], RELATIVE / 2, atol=2**-12)
    (tmp_path / "own").mkdir()
    ImageFormat("exr").write(tmp_path / "own" / "0.depth.exr", found[0], "depth")
    np.testing.assert_allclose(read(tmp_path / "own", "depth", depth="metric"), found[:1], atol=1e-6)  # states itself
    write_depth(tmp_path / "late", [RELATIVE[0], DISTANCES[1]])
    with pytest.raises(InputError, match=r"1\.depth\.exr: depth is .* to 9.*, expected 0 to 1; give --input-depth met"):
        read(tmp_path / "late", "depth")


def test_packed_normals_in_floats_are_decoded_once(tmp_path):
    write_exr(tmp_path / "packed" / "0.normal.exr", rgb(encode_normal(NORMALS)))
    with pytest.warns(UserWarning, match="normals are read as n/2"):
        found = read(tmp_path / "packed", "normal")[0]
    np.testing.assert_allclose(found, encode_normal(NORMALS), atol=2**-11)
    for name, normals in (("vectors", NORMALS), ("positive", np.abs(NORMALS)), ("empty", np.zeros_like(NORMALS))):
        write_exr(tmp_path / name / "0.normal.exr", rgb(normals))
        np.testing.assert_allclose(read(tmp_path / name, "normal")[0], encode_normal(normals), atol=2**-11)


def test_world_normals_are_turned_into_camera_space(tmp_path):
    # A camera that looks along +x, with z up: its right is −y, its up z, its back −x.
    camera = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], np.float32)
    world = np.array([[[-1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]]], np.float32)
    expected = encode_normal(np.float32([[[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]]))
    write_exr(tmp_path / "0.normal.exr", rgb(world))
    found = read_labeled(tmp_path / "0.normal.exr", "normal", InputEncoding(normals="world"), camera=camera)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match=r"0\.normal\.exr: normals in world space need .*; give --poses"):
        read_labeled(tmp_path / "0.normal.exr", "normal", InputEncoding(normals="world"))


def test_transparent_gbuffers_are_background(tmp_path):
    rgba = np.uint8([[(0, 0, 0, 0), (128, 128, 255, 255)], [(0, 0, 0, 0), (255, 128, 128, 255)]])
    Image.fromarray(rgba).save(tmp_path / "0.normal.png")
    found = read(tmp_path, "normal")[0]
    np.testing.assert_array_equal(found[:, 0], [[0.5, 0.5, 1]] * 2)
    np.testing.assert_allclose(found[:, 1], rgba[:, 1, :3] / 255, atol=1e-6)
    rgba = np.uint8([[(0, 0, 0, 0), (100, 100, 100, 255)], [(0, 0, 0, 0), (200, 200, 200, 255)]])
    Image.fromarray(rgba).save(tmp_path / "0.depth.png")
    for kind, expected in {"relative": (100 / 255, 200 / 255), "metric": (0, 1), "inverse": (1, 0)}.items():
        np.testing.assert_allclose(read(tmp_path, "depth", depth=kind)[0, ..., 0].T, [(1, 1), expected], atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_normals_that_face_away_are_named(tmp_path, packed):
    down = np.tile(np.float32([0.0, 0.6, -0.8]), (4, 6, 1))
    write = lambda name, image: (write_png if packed else lambda p, i: write_exr(p, rgb(i)))(tmp_path / name, image)
    write("0.normal.png" if packed else "0.normal.exr", encode_normal(down) if packed else down)
    with pytest.warns(UserWarning, match="0.normal.*: 100% of its normals point away from the camera.*world"):
        read(tmp_path, "normal")


@pytest.mark.parametrize(
    ("label", "image", "message"),
    [
        ("roughness", np.full((2, 2, 3), 128.0), "roughness is 128 to 128, expected 0 to 1; rescale it"),
        ("metallic", np.full((2, 2, 3), -1.0), "metallic is -1 to -1, expected 0 to 1"),
        ("normal", np.full((2, 2, 3), 255.0), "normals reach 255, expected unit vectors"),
        ("roughness", ORM, "expected equal channels of roughness, got means 1.00 apart.*roughness=G"),
        ("depth", ORM, "expected equal channels of depth, got means 1.00 apart.*depth=R"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_input_errors(tmp_path, label, image, message):
    write_exr(tmp_path / "a.exr", rgb(image))
    with pytest.raises(InputError, match=r"a\.exr: " + message):
        read_labeled(tmp_path / "a.exr", label)


def test_bright_basecolor_is_reported_on_the_first_frame(tmp_path):
    for frame in range(2):
        write_exr(tmp_path / f"{frame}.basecolor.exr", rgb(np.full((2, 2, 3), 4.0)))
    with pytest.warns(UserWarning, match=r"0\.basecolor\.exr: basecolor reaches 4 and is clipped") as caught:
        np.testing.assert_allclose(read(tmp_path, "basecolor"), 1, atol=1e-6)
    assert len(caught) == 1


def test_channels_of_orm_textures(tmp_path):
    orm = np.tile(np.float32([1, 0.4, 0.8]), (2, 2, 1))
    for label in ("roughness", "metallic"):
        write_png(tmp_path / "named" / f"0.{label}.png", orm, 16)
    layers = (("roughness", "G"), ("metallic", "b"))
    write_png(tmp_path / "packed" / "0.orm.png", orm, 16)
    write_png(tmp_path / "folders" / "arm" / "0.png", orm, 16)
    for name, assumed in (("named", InputEncoding(layers=layers)), ("packed", DEFAULT), ("folders", DEFAULT)):
        (clip,) = find_gbuffer_clips(tmp_path / name, ("roughness", "metallic"), assumed=assumed)
        assert clip.name == name and clip.folder == tmp_path / name
        np.testing.assert_allclose(np.stack([*clip.frames("roughness")]), 0.4, atol=1e-5)
        np.testing.assert_allclose(np.stack([*clip.frames("metallic")]), 0.8, atol=1e-5)
