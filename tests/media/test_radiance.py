"""Radiance headers, orientations and run lengths against hand-made files and OpenImageIO."""

import itertools

import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.refusals import broken

from drender.media.color import REC709
from drender.media.images import image_size, read_hdr

RNG = np.random.default_rng(0)
MANTISSAS, EXPONENTS = RNG.integers(2, 256, (4, 9, 3)), RNG.integers(120, 140, (4, 9, 1))
RGBE = np.concatenate([MANTISSAS, EXPONENTS], axis=-1).astype(np.uint8)
FLAT = RGBE.tobytes()
IMAGE = (MANTISSAS * 2.0 ** (EXPONENTS - 136.0)).astype(np.float32)


def write(path, pixels=FLAT, lines=b"", resolution=b"-Y 4 +X 9", kind=b"rgbe"):
    path.write_bytes(b"#?RADIANCE\n" + lines + b"FORMAT=32-bit_rle_%s\n\n%s\n" % (kind, resolution) + pixels)
    return path


def coded_runs(rgbe):
    """Return every channel of a row as one literal run."""
    width = rgbe.shape[1]
    row_start = bytes((2, 2, width >> 8, width & 255, width))
    return b"".join(row_start + bytes([width]).join(row[:, c].tobytes() for c in range(4)) for row in rgbe)


@pytest.mark.parametrize("code", [bytes, coded_runs])
@pytest.mark.parametrize("axes", [*itertools.product("-+", "+-", ("YX", "XY"))])
def test_all_eight_orientations(tmp_path, axes, code):
    y, x, order = axes
    stored = RGBE[:: 1 if y == "-" else -1, :: 1 if x == "+" else -1]
    stored = stored if order == "YX" else stored.swapaxes(0, 1)
    words = {"Y": f"{y}Y 4", "X": f"{x}X 9"}
    pixels = np.ascontiguousarray(stored)
    pixels = pixels.tobytes() if code is bytes or stored.shape[1] < 8 else coded_runs(pixels)
    path = write(tmp_path / "a.hdr", pixels, resolution=" ".join(words[axis] for axis in order).encode())
    np.testing.assert_array_equal(read_hdr(path), IMAGE)
    assert image_size(path) == (4, 9)


def test_upright_files_are_read_as_by_openimageio(tmp_path):
    values = RNG.lognormal(size=(16, 40, 3)).astype(np.float32).repeat(2, axis=1)
    output = oiio.ImageOutput.create("hdr")
    assert output.open(str(tmp_path / "a.hdr"), oiio.ImageSpec(80, 16, 3, "float")) and output.write_image(values)
    output.close()
    np.testing.assert_array_equal(
        read_hdr(tmp_path / "a.hdr"), oiio.ImageInput.open(str(tmp_path / "a.hdr")).read_image("float")
    )


def test_exposure_and_color_correction_are_undone(tmp_path):
    lines = b"EXPOSURE=2.5\nCOLORCORR= 1 2 4\nEXPOSURE= 4e-1\nCOLORCORR=1 1 0.5\nEXPOSURE=3\n"
    found = read_hdr(write(tmp_path / "a.hdr", lines=lines))
    np.testing.assert_allclose(found, IMAGE / np.float32([3, 6, 6]), rtol=1e-6)


@pytest.mark.parametrize(("axes", "size"), [(b"-Y 4 +X 9", (8, 9)), (b"+X 9 -Y 4", (8, 9))])
def test_pixel_aspect_is_height_over_width(tmp_path, axes, size):
    write(tmp_path / "a.hdr", lines=b"PIXASPECT=2\n", resolution=axes)
    assert image_size(tmp_path / "a.hdr") == size
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.hdr").shape[:2], size)


def test_primaries_and_xyz_become_rec709(tmp_path):
    # Rec. 2020, D65 (ITU-R BT.2087), and XYZ to sRGB (IEC 61966-2-1).
    to_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    path = write(tmp_path / "a.hdr", lines=b"PRIMARIES= .708 .292 .170 .797 .131 .046 .3127 .3290\n")
    np.testing.assert_allclose(read_hdr(path), IMAGE @ to_709.T, atol=2e-4 * IMAGE.max())
    to_srgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    found = read_hdr(write(tmp_path / "b.hdr", kind=b"xyze"))
    np.testing.assert_allclose(found, IMAGE @ to_srgb.T, atol=5e-4 * IMAGE.max())
    same = write(tmp_path / "c.hdr", lines=b"PRIMARIES=" + " ".join(map(str, REC709)).encode() + b"\n")
    np.testing.assert_allclose(read_hdr(same), IMAGE, rtol=1e-4, atol=1e-5)


def test_old_run_lengths(tmp_path):
    first, second = bytes((10, 20, 30, 130)), bytes((200, 1, 1, 129))
    coded = first + bytes((1, 1, 1, 9)) + second + bytes((1, 1, 1, 2)) + bytes((1, 1, 1, 1))  # 2 + 256 repeats
    path = write(tmp_path / "a.hdr", coded, resolution=b"-Y 1 +X 269")
    found = read_hdr(path)[0]
    np.testing.assert_allclose(found[:10], np.tile([10 / 64, 20 / 64, 30 / 64], (10, 1)))
    np.testing.assert_allclose(found[10:], np.tile([200 / 128, 1 / 128, 1 / 128], (259, 1)))
    assert "damaged" in broken(read_hdr, write(tmp_path / "a.hdr", coded, resolution=b"-Y 1 +X 270"))
    assert "damaged" in broken(read_hdr, write(tmp_path / "a.hdr", coded[4:8] + coded, resolution=b"-Y 1 +X 20"))


@pytest.mark.parametrize(
    "line", [b"PIXASPECT=0", b"EXPOSURE=", b"EXPOSURE=0", b"EXPOSURE=x", b"COLORCORR=1 2", b"PRIMARIES=1 2 3"]
)
def test_invalid_header_lines_are_input_errors(tmp_path, line):
    message = broken(read_hdr, write(tmp_path / "a.hdr", lines=line + b"\n"))
    assert "a.hdr" in message and line.decode() in message


def test_primaries_without_a_gamut_are_an_input_error(tmp_path):
    assert "a.hdr" in broken(read_hdr, write(tmp_path / "a.hdr", lines=b"PRIMARIES=.3 .3 .3 .3 .3 .3 .3 .3\n"))


def test_primaries_of_zeros_as_photoshop_writes_them_are_those_of_rec709(tmp_path):
    path = write(tmp_path / "a.hdr", lines=b"PRIMARIES=0 0 0 0 0 0 0 0\n")
    np.testing.assert_array_equal(read_hdr(path), IMAGE)


def test_bytes_beyond_the_image_are_not_read(tmp_path):
    """A sparse file of a terabyte, which would not fit into memory."""
    path = write(tmp_path / "a.hdr")
    with path.open("r+b") as file:
        file.truncate(2**40)
    np.testing.assert_array_equal(read_hdr(path), IMAGE)
