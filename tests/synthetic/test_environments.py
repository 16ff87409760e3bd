"""Bundled, copied and procedural environments."""

import importlib.util

import numpy as np
import pytest

from drender import assets
from drender.errors import InputError
from drender.media.images import read_hdr, write_hdr
from drender.synthetic import environments


def test_bundled_environments_are_finite_and_not_black():
    found = environments.find_environments()
    assert len(found) == 18 and set(environments.HELD_OUT) < set(found)
    for path in found.values():
        image = read_hdr(path)
        assert image.shape == (64, 128, 3) and np.isfinite(image).all() and image.min() >= 0 and image.mean() > 0.01
    assert "CC0" in (assets.ENVIRONMENTS / "README.md").read_text()


def test_procedural_environments_are_bright_above_and_vary():
    images = [environments.procedural(seed) for seed in range(30)]
    for image in images:
        assert image.shape == (64, 128, 3) and np.isfinite(image).all() and image.min() >= 0
        assert image.mean() == pytest.approx(1, rel=0.02)
    assert (environments.procedural(3) == images[3]).all()
    assert np.mean([image[:32].mean() > image[32:].mean() for image in images]) > 0.8
    assert np.mean([image.max() > 20 for image in images]) > 0.4  # suns and lamps


def test_copied_environments_are_reproducible_box_averages(tmp_path):
    image = np.random.default_rng(0).random((512, 1024, 3)).astype(np.float32) * 10
    image[:2, :2], image[100, 100] = [[-50.0]], np.nan
    for name in ("a", "b"):
        write_hdr(tmp_path / f"{name}.exr", image)
        environments.copy_environment(tmp_path / f"{name}.exr", tmp_path / "copies" / f"{name}.exr")
    assert len({path.read_bytes() for path in (tmp_path / "copies").iterdir()}) == 1
    clean = np.nan_to_num(image.astype(np.float16).astype(np.float32)).clip(0)
    expected = clean.reshape(256, 2, 512, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(read_hdr(tmp_path / "copies" / "a.exr"), expected, rtol=1e-3, atol=1e-3)


def test_unusable_environments_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no environments found; expected files \.hdr \.exr"):
        environments.find_environments(tmp_path)
    write_hdr(tmp_path / "night.exr", np.zeros((4, 8, 3), np.float32))
    with pytest.raises(InputError, match=r"night\.exr: the environment is black"):
        environments.copy_environment(tmp_path / "night.exr", tmp_path / "copy.exr")
    (tmp_path / "night.hdr").write_bytes(b"")
    with pytest.raises(InputError, match=r"night\.exr and night\.hdr have the same stem"):
        environments.find_environments(tmp_path)
    (tmp_path / "night.hdr").rename(tmp_path / "sunsky.hdr")
    with pytest.raises(InputError, match=r"sunsky\.hdr: generated environments have the name 'sunsky'; rename"):
        environments.find_environments(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="Mitsuba is not installed")
def test_skies_are_bright_above_reproducible_and_of_mean_one():
    for seed in range(3):
        image = environments.sunsky(seed)
        assert image.shape == (64, 128, 3) and np.isfinite(image).all() and image.min() >= 0
        assert image.mean() == pytest.approx(1, rel=0.02) and image[:32].mean() > image[32:].mean()
        assert (environments.sunsky(seed) == image).all()
    above = image[20:30].mean(axis=(0, 1))
    assert above[2] > 0.5 * above[0]  # a sky, not a lamp


def test_full_size_copies_of_bundled_maps_keep_their_split():
    assert environments.is_held_out("sunset") and not environments.is_held_out("park")
    assert 2 < sum(environments.is_held_out(f"map{i}") for i in range(100)) < 25
