"""Files of every format, against OpenEXR, Pillow and imageio, and as round trips."""

import itertools

import imageio.v3 as iio
import numpy as np
import OpenEXR
import OpenImageIO as oiio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drender.errors import InputError
from drender.media.color import linear_to_srgb, srgb_to_linear
from drender.media.encodings import ImageFormat, InputEncoding, decode_normal, encode_normal, is_color, read_labeled
from drender.media.gbuffers import find_gbuffer_clips, frame_path
from drender.media.images import write_exr, write_hdr, write_png
from drender.media.video import find_clips

RNG = np.random.default_rng(0)
LABELS = ("rgb", "basecolor", "env0000", "normal", "depth", "roughness", "metallic")
FORMATS = [
    ImageFormat(kind, bits, transfer, normals)
    for kind, bits, transfer, normals in itertools.product(
        ("png", "exr"), (8, 16), (None, "linear", "srgb"), ("opengl", "directx")
    )
    if (kind, bits) != ("exr", 8)
]


def picture(label, size=(9, 14), seed=0):
    """An image of this label as it is in memory."""
    random = np.random.default_rng(seed)
    if label == "normal":
        normal = random.normal(size=(*size, 3)).astype(np.float32)
        return encode_normal(normal / np.linalg.norm(normal, axis=-1, keepdims=True))
    image = random.random((*size, 3), np.float32)
    return image if is_color(label) else image[..., :1].repeat(3, axis=-1)


def channels(path):
    return {name: x.pixels for name, x in OpenEXR.File(str(path), separate_channels=True).channels().items()}


def png_info(path):
    with Image.open(path) as image:
        return image.info


def rgb_of(found):
    return np.stack([found[name] for name in "RGB"], axis=-1).astype(np.float32)


# --- Normals and curves ---


def test_normals_at_known_values():
    np.testing.assert_allclose(encode_normal(np.array([0.0, 0.0, 1.0])), [0.5, 0.5, 1])
    np.testing.assert_allclose(decode_normal(np.array([1.0, 0.5, 0.5])), [1, 0, 0])
    np.testing.assert_allclose(decode_normal(np.array([0.75, 0.75, 0.5])), np.array([1, 1, 0]) / np.sqrt(2))
    np.testing.assert_array_equal(decode_normal(np.full((2, 2, 3), 0.5, np.float32)), np.zeros((2, 2, 3)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_normals_survive_16_bits(seed):
    normal = np.random.default_rng(seed).normal(size=(4, 5, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    stored = np.rint(encode_normal(normal) * 65535) / 65535
    np.testing.assert_allclose(decode_normal(stored), normal, atol=5e-5)
    assert decode_normal(encode_normal(normal)).dtype == np.float32


def test_srgb_curve_inverts():
    values = np.linspace(0, 1, 10001, dtype=np.float32)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=2e-6)
    np.testing.assert_allclose(linear_to_srgb(np.float32([-1, 0.0030960, 0.2140411, 7])), [0, 0.04, 0.5, 1], atol=1e-6)


# --- Round trips ---


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f"{f.kind}{f.bits}-{f.transfer}-{f.normals}")
def test_round_trip_of_every_label_and_format(tmp_path, format):
    for label in LABELS:
        path = frame_path(tmp_path, 0, 0, label, format.kind)
        image = picture(label)
        format.write(path, image, label)
        found = read_labeled(path, label)
        assert found.dtype == np.float32
        steps = 2**-11 if format.kind == "exr" else 0.5 / (2**format.bits - 1)
        if format.kind == "png" and format.transfer == "linear" and is_color(label):
            found, image = srgb_to_linear(found), srgb_to_linear(image)  # even steps there, wide ones after the curve
        np.testing.assert_allclose(found, image, atol=1.01 * steps)
        if label == "depth" and format.kind == "exr":
            np.testing.assert_array_equal(found, image)


@given(st.sampled_from(LABELS), st.sampled_from(FORMATS), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=60)
def test_second_round_trip_changes_nothing(tmp_path_factory, label, format, size):
    path = frame_path(tmp_path_factory.getbasetemp(), 0, 0, label, format.kind)
    format.write(path, picture(label, size), label)
    once = read_labeled(path, label)
    format.write(path, once, label)
    np.testing.assert_allclose(read_labeled(path, label), once, atol=2**-11 if format.kind == "exr" else 1e-6)


def test_equal_images_give_equal_bytes(tmp_path, monkeypatch):
    for kind in ("png", "exr"):
        files = [tmp_path / f"{i}.rgb.{kind}" for i in range(2)]
        for path, hour in zip(files, (1e9, 1.5e9), strict=True):
            monkeypatch.setattr("time.time", lambda hour=hour: hour)
            ImageFormat(kind).write(path, picture("rgb"), "rgb")
        assert files[0].read_bytes() == files[1].read_bytes()
    assert "capDate" not in OpenEXR.File(str(files[0])).header()  # the hour that OpenImageIO would write


# --- Read by other programs ---


def test_exr_colors_are_linear_half_floats(tmp_path):
    image = picture("basecolor")
    for transfer, expected in ((None, srgb_to_linear(image)), ("srgb", image)):
        ImageFormat("exr", transfer=transfer).write(tmp_path / "a.exr", image, "basecolor")
        found, header = channels(tmp_path / "a.exr"), OpenEXR.File(str(tmp_path / "a.exr")).header()
        assert found.keys() == set("RGB") and all(x.dtype == np.float16 for x in found.values())
        np.testing.assert_array_equal(rgb_of(found), expected.astype(np.float16).astype(np.float32))
        assert header["drender:transfer"] == (transfer or "linear")
        assert (
            header["comments"]
            == {
                None: "basecolor: linear light, Rec. 709 primaries",
                "srgb": "basecolor: sRGB-encoded",
            }[transfer]
        )
        assert header["compression"] == OpenEXR.ZIP_COMPRESSION


def test_exr_data_is_not_transformed(tmp_path):
    image = picture("roughness")
    for transfer in (None, "linear", "srgb"):
        ImageFormat("exr", transfer=transfer).write(tmp_path / "a.exr", image, "roughness")
        np.testing.assert_array_equal(rgb_of(channels(tmp_path / "a.exr")), image.astype(np.float16).astype(np.float32))
        assert "drender:transfer" not in OpenEXR.File(str(tmp_path / "a.exr")).header()


def test_exr_scalar_labels_hold_their_mean(tmp_path):
    image = np.random.default_rng(1).random((9, 14, 3), np.float32)  # as a network gives it
    for label in ("depth", "roughness", "metallic"):
        ImageFormat("exr").write(tmp_path / "a.exr", image, label)
        found = read_labeled(tmp_path / "a.exr", label)
        np.testing.assert_array_equal(found[..., 0], found[..., 2])
        np.testing.assert_allclose(found, image.mean(axis=-1, keepdims=True) * np.ones(3), atol=2**-11)


def test_exr_depth_has_rgb_and_full_precision_z(tmp_path):
    image = picture("depth")
    ImageFormat("exr").write(tmp_path / "a.exr", image, "depth")
    found = channels(tmp_path / "a.exr")
    assert found.keys() == set("RGBZ") and found["Z"].dtype == np.float32
    np.testing.assert_array_equal(found["Z"], image[..., 0])
    np.testing.assert_array_equal(found["G"], image[..., 0].astype(np.float16))


@pytest.mark.parametrize(("normals", "sign", "down"), [("opengl", 1, "y up"), ("directx", -1, "y down")])
def test_exr_normals_are_unit_vectors(tmp_path, normals, sign, down):
    image = picture("normal")
    ImageFormat("exr", normals=normals).write(tmp_path / "a.exr", image, "normal")
    found, header = rgb_of(channels(tmp_path / "a.exr")), OpenEXR.File(str(tmp_path / "a.exr")).header()
    np.testing.assert_allclose(found, (image * 2 - 1) * [1, sign, 1], atol=2**-11)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-3)
    assert header["drender:normals"] == normals
    assert header["comments"] == f"normal: unit vectors in camera space, x right, {down}, z toward the camera"


@pytest.mark.parametrize("bits", [8, 16])
def test_png_matches_release_and_names_its_encoding(tmp_path, bits):
    image = picture("normal")
    ImageFormat(bits=bits).write(tmp_path / "gl.png", image, "normal")
    ImageFormat(bits=bits, normals="directx").write(tmp_path / "dx.png", image, "normal")
    write_png(tmp_path / "plain.png", image, bits)
    gl, dx, plain = (read_labeled(tmp_path / f"{name}.png", "data") for name in ("gl", "dx", "plain"))
    np.testing.assert_array_equal(gl, plain)
    np.testing.assert_allclose(dx, plain * [1, -1, 1] + [0, 1, 0], atol=1.01 / (2**bits - 1))
    assert png_info(tmp_path / "dx.png")["drender:normals"] == "directx"
    for transfer in ("linear", "srgb"):
        ImageFormat(transfer=transfer).write(tmp_path / "a.png", picture("rgb"), "rgb")
        info = png_info(tmp_path / "a.png")
        assert info["drender:transfer"] == transfer and ("srgb" in info) == (transfer == "srgb")
        assert info["gamma"] == (1 if transfer == "linear" else 0.45455)
    np.testing.assert_allclose(iio.imread(tmp_path / "a.png") / 255, picture("rgb"), atol=0.51 / 255)
    ImageFormat().write(tmp_path / "a.png", picture("depth"), "depth")
    assert not {"srgb", "gamma"} & png_info(tmp_path / "a.png").keys()


# --- Written by other programs ---


def test_directx_normals_convert_to_opengl(tmp_path):
    image = picture("normal")
    for kind in ("png", "exr"):
        path = tmp_path / f"a.normal.{kind}"
        ImageFormat(kind, 16, normals="directx").write(path, image, "normal")
        labeled = read_labeled(path, "normal", InputEncoding(normals="opengl"))  # the file knows better
        # The same numbers in a file that says nothing:
        bare = tmp_path / f"bare.normal.{kind}"
        if kind == "png":
            write_png(bare, read_labeled(path, "data"), 16)
        else:
            write_exr(bare, channels(path))
        np.testing.assert_array_equal(read_labeled(bare, "normal", InputEncoding(normals="directx")), labeled)
        np.testing.assert_allclose(read_labeled(bare, "normal")[..., 1], 1 - image[..., 1], atol=2**-11)
        np.testing.assert_allclose(labeled, image, atol=2**-11)


def test_transfer_of_files_without_metadata(tmp_path):
    image = picture("basecolor")
    write_png(tmp_path / "a.png", image, 16)
    write_exr(tmp_path / "a.exr", dict(zip("RGB", np.moveaxis(image, -1, 0), strict=True)))
    for path, usual in ((tmp_path / "a.png", "srgb"), (tmp_path / "a.exr", "linear")):
        stored = read_labeled(path, "data")
        for transfer in (None, "srgb", "linear"):
            expected = linear_to_srgb(stored) if (transfer or usual) == "linear" else stored
            np.testing.assert_array_equal(read_labeled(path, "basecolor", InputEncoding(transfer)), expected)
    (tmp_path / "walk").mkdir()
    (tmp_path / "a.exr").rename(tmp_path / "walk" / "1.basecolor.exr")
    for transfer in ("srgb", "linear"):
        (clip,) = find_gbuffer_clips(tmp_path / "walk", ["basecolor"], assumed=InputEncoding(transfer))
        expected = image if transfer == "srgb" else linear_to_srgb(image)
        np.testing.assert_allclose(np.stack([*clip.frames("basecolor")])[0], expected, atol=2e-3)


def test_exr_normals_from_xyz_channels(tmp_path):
    normal = picture("normal") * 2 - 1
    write_exr(tmp_path / "a.exr", dict(zip("XYZ", np.moveaxis(normal, -1, 0), strict=True)))
    np.testing.assert_allclose(read_labeled(tmp_path / "a.exr", "normal"), picture("normal"), atol=2**-11)


def test_values_that_are_not_finite_are_input_errors(tmp_path):
    write_exr(tmp_path / "a.exr", {"Z": np.array([[0.5, np.inf]], np.float32)})
    with pytest.raises(InputError, match=r"a\.exr: some pixels are infinite"):
        read_labeled(tmp_path / "a.exr", "depth")


# --- sequences of RGB in every encoding ---


@pytest.mark.parametrize("kind", ["exr", "hdr", "png", "tif"])
def test_linear_frames_are_clips_of_srgb(tmp_path, kind):
    image = picture("rgb")
    linear = srgb_to_linear(image)
    for frame in range(3):
        path = tmp_path / "walk" / f"p.{1001 + frame}.{kind}"
        if kind == "png":  # as drender writes it, with `drender:transfer` in its header
            ImageFormat(bits=16, transfer="linear").write(path, image, "rgb")
        elif kind == "exr":
            ImageFormat("exr").write(path, image, "rgb")
        else:
            path.parent.mkdir(exist_ok=True)
            output = oiio.ImageOutput.create(str(path))
            assert output.open(str(path), oiio.ImageSpec(14, 9, 3, "float")) and output.write_image(linear)
            output.close()
    (clip,) = find_clips(tmp_path)
    assert (clip.name, clip.num_frames, clip.size) == ("walk", 3, (9, 14))
    np.testing.assert_allclose(
        next(clip.frames()), image, atol=0.06 if kind == "hdr" else 2e-3
    )  # RGBE is coarse in the dark


def test_pictures_beyond_white_are_named(tmp_path, recwarn):
    bright = np.full((8, 8, 3), 3, np.float32)
    for frame in range(2):
        write_hdr(tmp_path / "clip" / f"{frame}.exr", bright * (frame + 1))
        write_hdr(tmp_path / "sun" / f"{frame}.exr", np.where(np.arange(8)[:, None] < 2, bright, np.float32(0.5)))
    for folder in ("clip", "sun"):
        (clip,) = find_clips(tmp_path / folder)
        assert len(list(clip.frames())) == 2
    expected = "more than 25% of its pixels exceed 1 and are clipped; expected linear light in 0 to 1"
    assert [str(w.message) for w in recwarn] == [f"{tmp_path}/clip/0.exr: {expected}, so lower its exposure"]


def test_assumed_transfer_of_a_clip(tmp_path):
    write_png(tmp_path / "a.png", picture("rgb"), 16)
    (clip,) = find_clips(tmp_path / "a.png", assumed=InputEncoding("linear"))
    np.testing.assert_allclose(next(clip.frames()), linear_to_srgb(picture("rgb")), atol=1e-3)


def test_hdr_maps_beside_other_frames_are_not_frames(tmp_path):
    for name in ("walk/0.png", "walk/1.png", "still.png"):
        write_png(tmp_path / name, picture("rgb"))
    write_exr(tmp_path / "sky.exr", dict(zip("RGB", np.moveaxis(picture("rgb"), -1, 0), strict=True)))
    write_exr(tmp_path / "walk" / "sky.exr", dict(zip("RGB", np.moveaxis(picture("rgb"), -1, 0), strict=True)))
    assert {clip.name: clip.num_frames for clip in find_clips(tmp_path)} == {"walk": 2, "still": 1}
