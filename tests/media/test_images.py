"""Images against Pillow and OpenEXR, and damaged files."""

import struct
import tracemalloc
import warnings
import zlib
from functools import partial

import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.refusals import broken
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from drender.media.color import linear_to_srgb
from drender.media.images import image_size, load_image, read_hdr, read_image, to_integers, write_exr, write_png
from drender.media.video import find_clips, write_video

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 31, 4)).astype(np.uint8)
RGB, RGBA = COLOUR[..., :3], COLOUR
ramp = np.linspace(0, 1, 48)
SCENE = np.stack(np.broadcast_arrays(ramp[:32, None], ramp[None, :], 0.5), axis=-1).astype(np.float32)  # 32×48, smooth


def radiance_header(height, width):
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width)


def read_all(path):
    return [frame for clip in find_clips(path) for frame in clip.frames()]


# --- Reading ---


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_lossless_formats(tmp_path, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    for image in (RGB, RGBA):
        Image.fromarray(image).save(tmp_path / f"a.{suffix}", **options)
        found = read_image(tmp_path / f"a.{suffix}")
        alpha = image[..., 3:] / 255 if image.shape[2] == 4 else 1
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, image[..., :3] / 255 * alpha, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16"])
def test_gray_palette_and_one_bit_images(tmp_path, mode):
    if mode == "I;16":
        values = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
        image, expected = Image.fromarray(values), np.repeat(values[..., None] / 65535, 3, axis=-1)
    else:
        image = Image.fromarray(RGBA).convert("RGB" if mode == "P" else "RGBA").convert(mode)
        rgba = np.asarray(image.convert("RGBA")) / 255
        expected = rgba[..., :3] * rgba[..., 3:]
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), expected, atol=1e-6)


def test_palette_with_transparent_entry(tmp_path):
    Image.fromarray(RGB).quantize(8).save(tmp_path / "a.png", transparency=2)
    rgba = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA")) / 255
    assert (rgba[..., 3] == 0).any()
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), rgba[..., :3] * rgba[..., 3:], atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray((SCENE * 255).astype(np.uint8)).save(tmp_path / f"a.{suffix}", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}"))) / 255
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2 / 255)  # two JPEG decoders
    assert find_clips(tmp_path / f"a.{suffix}")[0].num_frames == 1


def test_content_overrides_suffix(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), RGB / 255, atol=1e-6)


@pytest.mark.parametrize(("channels", "kind"), [("RGB", "f4"), ("RGB", "f2"), ("RGBA", "f4"), ("Y", "f2"), ("Z", "f4")])
def test_exr(tmp_path, channels, kind):
    OpenEXR = pytest.importorskip("OpenEXR")
    values = RNG.normal(0, 100, (8, 12, len(channels))).astype(kind)
    values[0, 0], values[1, 1] = np.inf, np.nan
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    pixels = values if len(channels) > 1 else values[..., 0].copy()
    OpenEXR.File(header, {channels: pixels}).write(str(tmp_path / "a.exr"))
    expected = values[..., :3].astype(np.float32) * np.ones(3, np.float32)  # alpha is multiplied in already
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.exr"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.exr"), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_radiance(tmp_path, compressed):
    mantissas, exponents = RNG.integers(128, 256, (5, 16, 3)), RNG.integers(110, 150, (5, 16, 1))
    rgbe = np.concatenate([mantissas, exponents], axis=-1).astype(np.uint8)
    data = rgbe.tobytes()
    if compressed:  # every channel of a row as one literal run of 16
        data = b"".join(b"\x02\x02\x00\x10" + b"".join(b"\x10" + bytes(row[:, c]) for c in range(4)) for row in rgbe)
    (tmp_path / "a.hdr").write_bytes(radiance_header(5, 16) + data)
    np.testing.assert_allclose(read_hdr(tmp_path / "a.hdr"), mantissas * 2.0 ** (exponents - 136.0), rtol=0.005)


def test_radiance_exposure_is_undone(tmp_path):
    data = bytes(RNG.integers(128, 256, 5 * 16 * 4).tolist())
    header = radiance_header(5, 16)
    (tmp_path / "a.hdr").write_bytes(header + data)
    (tmp_path / "b.hdr").write_bytes(
        header.replace(b"FORMAT", b"EXPOSURE=2.5\nEXPOSURE= 4e-1\nEXPOSURE=3\nFORMAT") + data
    )
    np.testing.assert_allclose(read_hdr(tmp_path / "b.hdr"), read_hdr(tmp_path / "a.hdr") / 3, rtol=1e-6)


def test_read_hdr_linearizes_ldr_with_warning(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[0, 0.04, 0.5], [1, 0.2, 0.8]]], np.float32), bits=16)
    with pytest.warns(UserWarning, match=r"a\.png is not an HDR image"):
        found = read_hdr(tmp_path / "a.png")
    np.testing.assert_allclose(found[0], [[0, 0.0030960, 0.2140411], [1, 0.0331048, 0.6038274]], atol=2e-5)


# --- Writing ---


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([8, 16]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_png_round_trip_is_exact(tmp_path_factory, height, width, bits, seed):
    path = tmp_path_factory.getbasetemp() / "round.png"
    stored = np.random.default_rng(seed).integers(0, 2**bits, (height, width, 3))
    image = (stored / (2**bits - 1)).astype(np.float32)
    write_png(path, image, bits)
    found = read_image(path)
    np.testing.assert_array_equal(np.rint(found * (2**bits - 1)), stored)
    write_png(path, found, bits)
    np.testing.assert_array_equal(read_image(path), found)


def test_png_is_read_alike_by_pillow(tmp_path):
    write_png(tmp_path / "sub" / "a.png", RGB)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sub" / "a.png")), RGB)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


def test_png_rounds_to_nearest_and_clips(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[-1, 0.49 / 255, 0.51 / 255], [254.6 / 255, 1.5, np.inf]]], np.float32))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[0, 0, 1], [255, 255, 255]]]


def test_integers_of_unknown_range_are_refused():
    for dtype in (np.uint16, np.int64):
        assert broken(to_integers, np.zeros((2, 2, 3), dtype)).startswith("pixels: expected floats in [0, 1] or uint8")


def test_unwritable_paths_are_input_errors(tmp_path):
    (tmp_path / "file").write_text("")
    z = {"Z": SCENE[..., 0]}
    for name, write, pixels in (
        ("a.png", write_png, SCENE),
        ("a.exr", write_exr, z),
        ("a.mp4", partial(write_video, fps=7.0), [SCENE]),
    ):
        assert str(tmp_path / "file" / name) in broken(write, tmp_path / "file" / name, pixels)
        (tmp_path / name).mkdir()
        assert "cannot write" in broken(write, tmp_path / name, pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.exr", "a.mp4", "a.png", "file"]


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_full_disk_leaves_nothing_behind(tmp_path, limit):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = RNG.random((64, 64, 3)).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        messages = [
            broken(write_png, tmp_path / "a.png", noise),
            broken(write_exr, tmp_path / "a.exr", {"Z": noise[..., 0]}),
            broken(write_video, tmp_path / "a.mp4", [noise] * 9, 7.0),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all("cannot write" in message for message in messages)
    assert not list(tmp_path.iterdir())


# --- Damaged files ---


def png(width, height, data=b"", extra=()):
    chunk = lambda kind, x: struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    stated = b"".join(chunk(*kind_and_content) for kind_and_content in extra)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + stated
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "hdr", "exr"])
def test_broken_images_are_input_errors_without_noise(tmp_path, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    if suffix == "hdr":
        whole = radiance_header(20, 30) + bytes(RNG.integers(3, 256, 20 * 30 * 4).tolist())
    elif suffix == "exr":
        OpenEXR = pytest.importorskip("OpenEXR")
        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": RNG.random((20, 30, 3), np.float32)}).write(str(path))
        whole = path.read_bytes()
    else:
        Image.fromarray(RGB).save(path)
        whole = path.read_bytes()
    contents = [b"", b"x", b"this is a text\n" * 20, *(whole[: len(whole) * k // 8] for k in range(1, 8)), whole[:-20]]
    for content in contents:
        path.write_bytes(content)
        assert str(path) in broken(read_image, path)
        if suffix not in ("hdr", "exr"):
            broken(read_all, path)
    path.write_bytes(whole)
    assert read_image(path).shape[2] == 3
    assert capfd.readouterr() == ("", "")


def test_png_checksum_is_verified(tmp_path, capfd):
    write_png(tmp_path / "a.png", RGB)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[-200] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert "damaged" in broken(read_image, tmp_path / "a.png")
    assert capfd.readouterr() == ("", "")


def test_huge_declared_sizes_are_rejected(tmp_path, capfd):
    for width, height in ((0, 5), (5, 0), (100_000, 100_000), (16_000, 16_000), (2**31 - 1, 2**31 - 1)):
        (tmp_path / "a.png").write_bytes(png(width, height))
        (tmp_path / "a.hdr").write_bytes(radiance_header(height, width) + b" " * 99)
        assert "a.png" in broken(read_image, tmp_path / "a.png")
        assert "a.hdr" in broken(read_hdr, tmp_path / "a.hdr")
    assert capfd.readouterr() == ("", "")


def test_paths_that_are_not_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.txt").write_text("")
    assert "is not a file" in broken(read_image, tmp_path / "folder.png")
    assert "does not exist" in broken(read_image, tmp_path / "none.png")
    assert "known: .png" in broken(read_image, tmp_path / "a.txt")


# --- metadata ---

QUADRANTS = (
    np.array([[(200, 40, 40), (40, 200, 40)], [(40, 40, 200), (200, 200, 200)]], np.uint8).repeat(8, 0).repeat(8, 1)
)
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])  # from Rec. 709


def numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + numbers(*values)


def display_p3() -> bytes:
    """Return an ICC profile with the primaries of Display P3 and sRGB's curve."""
    curve = b"para\0\0\0\0\0\3\0\0" + numbers(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    primaries = {
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105), b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
    }  # fmt: skip
    return icc_profile(b"RGB ", primaries | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def linear_gray() -> bytes:
    return icc_profile(b"GRAY", {b"kTRC": b"para\0\0\0\0\0\0\0\0" + numbers(1)})


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = "test".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">2I2s2s2I", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": xyz(0.9642, 1.0, 0.8249)} | tags
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s12x4s", 0, b"none", 0x04000000, b"mntr", space, b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + xyz(0.9642, 1.0, 0.8249)[8:]
    profile = head.ljust(128, b"\0") + table + data
    return struct.pack(">I", len(profile)) + profile[4:]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_icc_profile_is_converted_to_srgb(tmp_path, suffix):
    stored = np.rint(255 * linear_to_srgb(to_linear(QUADRANTS / 255) @ TO_P3.T)).astype(np.uint8)
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", icc_profile=display_p3(), **options)
    for found in (read_image(tmp_path / f"a.{suffix}"), *read_all(tmp_path / f"a.{suffix}")):
        np.testing.assert_allclose(255 * found, QUADRANTS, atol=4)
    # G-buffers are data: no profile applies.
    np.testing.assert_allclose(255 * load_image(tmp_path / f"a.{suffix}").image, stored, atol=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_icc_profile_of_gray_is_converted_to_srgb(tmp_path, suffix):
    gray = QUADRANTS[..., 0]
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}", icc_profile=linear_gray(), quality=100, lossless=True)
    expected = linear_to_srgb(gray[..., None].repeat(3, -1) / 255)
    np.testing.assert_allclose(255 * read_image(tmp_path / f"a.{suffix}"), 255 * expected, atol=2)


@pytest.mark.parametrize(
    ("name", "expected"), [("sRGB built-in", 0.5), ("sRGB (linear)", 0.735), ("a wide gamut!", 0.735)]
)
def test_floats_are_linear_unless_their_profile_says_srgb(tmp_path, name, expected, recwarn):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB built-in".encode("utf-16-be"), name.encode("utf-16-be"))
    spec, output = oiio.ImageSpec(3, 2, 3, "float"), oiio.ImageOutput.create("a.tif")
    spec.attribute("ICCProfile", f"uint8[{len(profile)}]", np.frombuffer(profile, np.uint8))
    assert output.open(str(tmp_path / "a.tif"), spec) and output.write_image(np.full((2, 3, 3), 0.5, np.float32))
    output.close()
    np.testing.assert_allclose(read_all(tmp_path / "a.tif"), np.full((1, 2, 3, 3), expected), atol=1e-3)
    message = "its ICC profile 'a wide gamut!' is ignored, as floats are linear Rec. 709"
    assert [message in str(warning.message) for warning in recwarn] == [True] * name.startswith("a wide")


def test_icc_profile_of_an_animation_is_converted(tmp_path):
    stored = np.rint(255 * linear_to_srgb(to_linear(QUADRANTS / 255) @ TO_P3.T)).astype(np.uint8)
    frames = [Image.fromarray(np.roll(stored, 8 * i, axis=0)) for i in range(2)]
    frames[0].save(
        tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True, icc_profile=display_p3()
    )
    first, second = read_all(tmp_path / "a.webp")
    np.testing.assert_allclose(255 * first, QUADRANTS, atol=4)
    np.testing.assert_allclose(255 * second, np.roll(QUADRANTS, 8, axis=0), atol=4)


def to_linear(image):
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def write_quadrants(path, stored, *extra):
    rows = b"".join(b"\0" + row.tobytes() for row in np.rint(255 * stored.clip(0, 1)).astype(np.uint8))
    path.write_bytes(png(16, 16, rows, extra))
    return path


@pytest.mark.parametrize(
    ("kind", "content", "encode"),
    [
        (b"gAMA", struct.pack(">I", 100000), lambda light: light),
        (b"gAMA", struct.pack(">I", 55556), lambda light: light ** (1 / 1.8)),
        (b"gAMA", struct.pack(">I", 45455), linear_to_srgb),  # shown as sRGB
        (b"cICP", bytes((1, 13, 0, 1)), linear_to_srgb),
        (b"cICP", bytes((12, 13, 0, 1)), lambda light: linear_to_srgb(light @ TO_P3.T)),
    ],
)
def test_color_chunks_of_png_are_honored(tmp_path, kind, content, encode):
    path = write_quadrants(tmp_path / "a.png", encode(to_linear(QUADRANTS / 255)), (kind, content))
    for found in (read_image(path), *read_all(path)):
        np.testing.assert_allclose(255 * found, QUADRANTS, atol=5)
    assert np.abs(load_image(path).image - encode(to_linear(QUADRANTS / 255))).max() < 0.01  # data have no curve


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        ((9, 14, 0, 1), "(primaries 9, transfer 14, full range)"),
        ((11, 17, 0, 1), "(primaries 11, transfer 17, full range)"),
        ((1, 13, 0, 0), "(primaries 1, transfer 13, narrow range)"),
    ],
)
def test_color_chunks_that_are_not_honored_are_named(tmp_path, content, stated, recwarn):
    path = write_quadrants(tmp_path / "a.png", QUADRANTS / 255, (b"cICP", bytes(content)))
    np.testing.assert_allclose(255 * read_image(path), QUADRANTS, atol=1)
    assert [str(w.message) for w in recwarn] == [f"{path}: its cICP chunk {stated} is ignored; convert it to sRGB"]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_adobe_rgb_of_cameras_without_a_profile_is_named(tmp_path, suffix, recwarn):
    for name, number in (("plain", 1), ("adobe", 65535)):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA001] = number
        Image.fromarray(QUADRANTS).save(tmp_path / f"{name}.{suffix}", exif=exif)
        read_image(tmp_path / f"{name}.{suffix}")
    problem = "its EXIF color space, which is not sRGB (Adobe RGB in cameras), is ignored; convert it to sRGB"
    assert [str(w.message) for w in recwarn] == [f"{tmp_path}/adobe.{suffix}: {problem}"]


def test_pq_png_is_tone_mapped_like_video(tmp_path):
    # 203 nits, diffuse white, is 0.58 in PQ (ITU-R BT.2408); a quarter of it 0.443.
    stored = np.full((16, 16, 3), 0.58)
    stored[8:] = 0.443
    found = read_image(write_quadrants(tmp_path / "a.png", stored, (b"cICP", bytes((9, 16, 0, 1)))))
    np.testing.assert_allclose(255 * found[[0, -1], 0], [[247] * 3, [137] * 3], atol=4)


@pytest.mark.parametrize("white", [(0.3127, 0.3290), (0.32168, 0.33767), (1 / 3, 1 / 3)])
def test_chromaticities_of_exr_become_rec709(tmp_path, white):
    spec = oiio.ImageSpec(3, 1, 3, "float")
    spec.attribute("chromaticities", oiio.TypeDesc("float[8]"), (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *white))
    pixels = np.float32([[[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5]]])
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(tmp_path / "a.exr"), spec) and output.write_image(pixels) and output.close()
    found = read_hdr(tmp_path / "a.exr")
    np.testing.assert_allclose(found[0, 2], 0.5, atol=1e-3)  # white stays white
    if white[1] == 0.3290:  # ITU-R BT.2087
        np.testing.assert_allclose(found[0, :2], [[1.6605, -0.1246, -0.0182], [-0.5876, 1.1329, -0.1006]], atol=1e-3)
    np.testing.assert_array_equal(load_image(tmp_path / "a.exr", "normal").image, pixels)


def test_named_color_space_of_exr(tmp_path):
    pixels = np.float32([[[0.25, 0.5, 1.0]]])
    for name in ("lin_ap1_scene", "lin_nonsense_scene"):
        spec = oiio.ImageSpec(1, 1, 3, "float")
        spec.attribute("colorInteropID", name)
        output = oiio.ImageOutput.create("exr")
        assert output.open(str(tmp_path / f"{name}.exr"), spec) and output.write_image(pixels) and output.close()
    to_709 = np.array([[1.70505, -0.62179, -0.08326], [-0.13026, 1.14080, -0.01055], [-0.02400, -0.12897, 1.15297]])
    np.testing.assert_allclose(read_hdr(tmp_path / "lin_ap1_scene.exr"), pixels @ to_709.T, atol=2e-3)
    with pytest.warns(UserWarning, match=r"lin_nonsense_scene\.exr: its color space is ignored .*; convert it to sRGB"):
        np.testing.assert_array_equal(read_hdr(tmp_path / "lin_nonsense_scene.exr"), pixels)


def test_a_problem_of_all_frames_is_reported_once(tmp_path):
    for frame in range(3):
        spec = oiio.ImageSpec(2, 2, 3, "float")
        spec.attribute("PixelAspectRatio", 20.0)
        output = oiio.ImageOutput.create("exr")
        assert output.open(str(tmp_path / f"{frame}.exr"), spec) and output.write_image(np.ones((2, 2, 3), np.float32))
        output.close()
    with pytest.warns(UserWarning, match=r"0\.exr: its pixel aspect ratio of 20 is ignored; resize it") as caught:
        assert len(read_all(tmp_path)) == 3
    assert len(caught) == 1


@pytest.mark.parametrize(("profile", "reason"), [(b"damaged" * 20, "cannot open"), (linear_gray(), "is for gray")])
def test_invalid_icc_profile_is_ignored_with_a_warning(tmp_path, profile, reason):
    Image.fromarray(QUADRANTS).save(tmp_path / "a.tif", icc_profile=profile)
    with pytest.warns(
        UserWarning, match=rf"a\.tif: its ICC profile is ignored \(.*{reason}.*\); convert it to sRGB, or"
    ):
        np.testing.assert_allclose(255 * read_image(tmp_path / "a.tif"), QUADRANTS, atol=0.01)


@pytest.mark.parametrize("window", [(2, 3, 4, 5), (-2, -1, 4, 5), (6, 9, 5, 6), (-3, -4, 30, 40), (20, 30, 2, 2)])
def test_exr_data_window_is_placed_in_display_window(tmp_path, window):
    top, left, height, width = window
    pixels = RNG.random((height, width, 3)).astype(np.float32)
    spec = oiio.ImageSpec(width, height, 3, "float")
    spec.x, spec.y, spec.full_x, spec.full_y, spec.full_width, spec.full_height = left + 7, top + 5, 7, 5, 12, 8
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(tmp_path / "a.exr"), spec) and output.write_image(pixels) and output.close()
    expected = np.zeros((8, 12, 3), np.float32)
    for i, j in np.ndindex(height, width):
        if 0 <= i + top < 8 and 0 <= j + left < 12:
            expected[i + top, j + left] = pixels[i, j]
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.exr"), expected)
    assert image_size(tmp_path / "a.exr") == (8, 12)


def write_exr_with_aspect(path, pixels, aspect):
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], 3, "float")
    spec.attribute("PixelAspectRatio", aspect)
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(path), spec) and output.write_image(pixels) and output.close()


@pytest.mark.parametrize(("aspect", "size"), [(2.0, (6, 10)), (0.5, (12, 5)), (1.0, (6, 5)), (1.34, (6, 7))])
def test_oblong_pixels_of_exr_become_square(tmp_path, aspect, size):
    height, width = size
    pixels = RNG.random((6, 5, 3)).astype(np.float32)
    write_exr_with_aspect(tmp_path / "a.exr", pixels, aspect)
    # The center of pixel i of n lies at (i + 0.5) / n of the side. Between centers, values are interpolated.
    expected = np.empty((*size, 3), np.float64)
    for i, j in np.ndindex(height, width):
        y = np.clip((i + 0.5) * 6 / height - 0.5, 0, 5)
        x = np.clip((j + 0.5) * 5 / width - 0.5, 0, 4)
        top, left = int(y), int(x)
        rows, columns = pixels[[top, min(top + 1, 5)]], [left, min(left + 1, 4)]
        expected[i, j] = np.array([top + 1 - y, y - top]) @ (rows[:, columns] * [[left + 1 - x], [x - left]]).sum(1)
    np.testing.assert_allclose(read_hdr(tmp_path / "a.exr"), expected, atol=1e-6)
    assert image_size(tmp_path / "a.exr") == size


def test_depth_of_oblong_pixels_is_not_mixed_with_the_background(tmp_path):
    depth = np.repeat(np.array([[1, 1e10, 3]], np.float32)[..., None], 3, axis=-1)
    write_exr_with_aspect(tmp_path / "0000.depth.exr", depth, 2.0)
    found = load_image(tmp_path / "0000.depth.exr", "depth").image[..., 0]
    np.testing.assert_array_equal(found, np.repeat(depth[..., 0], 2, axis=1))


def test_absurd_pixel_aspect_is_ignored_with_a_warning(tmp_path):
    write_exr_with_aspect(tmp_path / "a.exr", np.zeros((2, 3, 3), np.float32), 1000.0)
    with pytest.warns(UserWarning, match=r"a\.exr: its pixel aspect ratio of 1000 is ignored; resize it"):
        assert read_hdr(tmp_path / "a.exr").shape == (2, 3, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_unequal_resolutions_are_ignored_as_in_viewers_with_a_warning(tmp_path, suffix):
    Image.fromarray(QUADRANTS).save(tmp_path / f"a.{suffix}", dpi=(300, 150))
    with pytest.warns(UserWarning, match="its unequal resolutions are ignored"):
        assert read_image(tmp_path / f"a.{suffix}").shape == QUADRANTS.shape
    Image.fromarray(QUADRANTS).save(tmp_path / f"b.{suffix}", dpi=(300, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "tif"), ("CMYK", "jpg"), ("LAB", "tif")])
def test_color_models_that_are_converted_inexactly_are_named(tmp_path, mode, suffix):
    Image.new(mode, (4, 4)).save(tmp_path / f"a.{suffix}")
    with pytest.warns(UserWarning, match="colors become RGB without a profile"):
        read_image(tmp_path / f"a.{suffix}")


def test_images_with_alpha_take_one_float_copy(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (300, 400, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    load_image(tmp_path / "a.png")
    tracemalloc.start()
    image = load_image(tmp_path / "a.png").image
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = rgba[..., :3].astype(np.float32) / 255 * (rgba[..., 3:] / np.float32(255))
    np.testing.assert_allclose(image, expected, atol=1e-6)
    assert peak < 1.5 * image.nbytes  # the four channels, of which the result is a part


def test_depth_channel_is_full_float(tmp_path):
    values = RNG.random((3, 4)).astype(np.float32)
    write_exr(tmp_path / "a.exr", dict.fromkeys("RGBZ", values))
    np.testing.assert_array_equal(load_image(tmp_path / "a.exr", "depth").image[..., 0], values)
    np.testing.assert_array_equal(load_image(tmp_path / "a.exr").image[..., 0], values.astype(np.float16))
