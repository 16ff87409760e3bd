"""Lat-long maps: exposure, blur against its formula, range warnings, folders of maps."""

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from drender import assets
from drender.errors import InputError
from drender.lighting import latlong
from drender.lighting.environment import load_environment
from drender.lighting.latlong import (
    automatic_exposure,
    blur_sphere,
    list_map_files,
    load_latlong,
    mean_luminance,
    range_warning,
)
from drender.media import color
from drender.media.images import write_png

SHAPES = st.sampled_from([(1, 2), (4, 8), (5, 7), (16, 32)])
LIGHT = SHAPES.flatmap(
    lambda shape: npst.arrays(np.float32, (*shape, 3), elements=st.floats(0, 65504, width=32, allow_subnormal=False))
)


def directions(height, width):
    polar = ((np.arange(height) + 0.5) / height * np.pi)[:, None]
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi
    return np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth], axis=-1
    )


def mean(image):
    """Over the sphere, by the solid angle of every pixel."""
    edges = np.linspace(0, np.pi, image.shape[0] + 1)
    return np.average(image.mean(axis=1), axis=0, weights=np.cos(edges[:-1]) - np.cos(edges[1:]))


# --- Exposure ---


@pytest.mark.parametrize("stops", [-3.0, 0.5, 2.0])
def test_one_stop_doubles_radiance(stops):
    image = np.random.default_rng(0).random((4, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(load_latlong(image, exposure=stops), load_latlong(image, strength=2.0**stops))
    np.testing.assert_allclose(load_latlong(image, exposure=stops), load_latlong(image) * 2.0**stops, rtol=1e-6)


def test_automatic_exposure_reaches_mean_luminance():
    night = load_latlong(assets.environment("night"))
    exposure = automatic_exposure([assets.environment("night")])
    assert mean(night * 2.0**exposure) @ color.LUMINANCE == pytest.approx(latlong.MEAN_LUMINANCE, rel=1e-6)
    assert automatic_exposure([night], strength=4.0) == pytest.approx(exposure - 2, abs=1e-6)
    assert automatic_exposure([night, 3 * night]) == pytest.approx(exposure - 1, abs=1e-6)  # their mean is twice one
    assert automatic_exposure([0 * night]) == 0


def test_mean_luminance_constant_matches_built_in_maps():
    means = [mean_luminance(load_latlong(assets.environment(name))) for name in assets.environments()]
    assert np.exp(np.mean(np.log(means))) == pytest.approx(latlong.MEAN_LUMINANCE, rel=0.1)


# --- Blur ---


@pytest.mark.parametrize("place", [(0, 3), (20, 0), (32, 100), (63, 64)])
@pytest.mark.parametrize("degrees", [6.0, 25.0])
def test_blurred_point_is_round_everywhere(place, degrees):
    image = np.zeros((64, 128, 3), np.float32)
    image[place] = 1000
    cosine = directions(64, 128) @ directions(64, 128)[place]
    kernel = np.exp((cosine - 1) / np.deg2rad(degrees) ** 2)[..., None]
    expected = kernel * mean(image) / mean(kernel)
    np.testing.assert_allclose(blur_sphere(image, degrees), expected, rtol=6e-3, atol=1e-6 * expected.max())


@settings(deadline=None, max_examples=40)
@given(LIGHT, st.floats(0, 180))
def test_blur_keeps_mean_and_constants(image, degrees):
    found = blur_sphere(image, degrees)
    np.testing.assert_allclose(mean(found), mean(image), rtol=1e-4, atol=1e-6)
    assert found.min() >= 0 and found.dtype == np.float32
    np.testing.assert_allclose(blur_sphere(np.full_like(image, 0.7), degrees), 0.7, rtol=1e-5)


def test_large_image_is_downsampled_before_blur():
    rng = np.random.default_rng(0)
    coarse = np.exp(rng.normal(0, 1, (16, 32, 3)))
    image = np.kron(coarse, np.ones((32, 32, 1))).astype(np.float32)
    small, whole = blur_sphere(image, 8.0), blur_sphere(np.kron(coarse, np.ones((8, 8, 1))).astype(np.float32), 8.0)
    assert small.shape == whole.shape == (128, 256, 3)
    np.testing.assert_allclose(small, whole, rtol=2e-3)
    assert blur_sphere(image, 0.0) is image


def test_blur_and_rotation_commute():
    image = np.random.default_rng(0).random((256, 512, 3)).astype(np.float32)
    np.testing.assert_allclose(
        load_latlong(image, rotation=90.0, blur=9.0), np.roll(load_latlong(image, 0.0, blur=9.0), 64, axis=1), rtol=1e-5
    )


# --- Range warnings ---


def test_range_warning_names_what_the_curves_cannot_show():
    usual = load_latlong(assets.environment("forest"))
    assert range_warning(usual) is None
    assert range_warning(np.zeros((4, 8, 3), np.float32)) is None  # `load_latlong` warns of black
    dark = range_warning(usual * 2.0**-8)
    assert "mean luminance 0.0019" in dark and "adds 8.3 stops" in dark and "--exposure" in dark
    half = np.ones((4, 8, 3), np.float32)
    half[:2] = 20
    assert "radiance 16, where env_ldr ends, on 50% of the sphere" in range_warning(half)
    half[:2] = 30000
    assert "radiance 10000, where env_log ends, with 67% of its energy" in range_warning(half)
    assert range_warning(half / 2048) is None


# --- Inputs ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure": float("nan")}, "exposure nan"),
        ({"exposure": 5000.0}, "exposure 5000.0 must be from -64 to 64 stops"),
        ({"blur": -1.0}, "blur -1.0"),
        ({"blur": float("inf")}, "blur inf"),
    ],
)
def test_invalid_options_are_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        load_latlong(np.ones((4, 8, 3), np.float32), **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_bytes_are_no_radiance(dtype):
    with pytest.raises(InputError, match="expected linear radiance; decode it from sRGB"):
        load_latlong(np.full((4, 8, 3), 200, dtype))


def test_map_files_in_natural_order_without_previews(tmp_path):
    for name in ("sky10.png", "sky2.png", ".hidden.png"):
        write_png(tmp_path / name, np.ones((2, 4, 3), np.float32))
    (tmp_path / "notes.txt").write_text("no map")
    assert [path.name for path in list_map_files(tmp_path)] == ["sky2.png", "sky10.png"]
    for name in ("b.EXR", "a.hdr"):
        (tmp_path / name).write_text("")
    assert [path.name for path in list_map_files(tmp_path)] == ["a.hdr", "b.EXR"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no environment maps found; expected files \.hdr"):
        list_map_files(tmp_path / "empty")


def test_ldr_map_warns_only_if_asked(tmp_path):
    write_png(tmp_path / "sky.png", np.ones((2, 4, 3), np.float32))
    np.testing.assert_array_equal(load_latlong(tmp_path / "sky.png", warn=False), np.ones((2, 4, 3)))
    with pytest.warns(UserWarning, match="not an HDR image"):
        load_environment(tmp_path / "sky.png")
