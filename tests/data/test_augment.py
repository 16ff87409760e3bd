"""Augmentation changes a clip's images and its light as the mirrored or brighter world would."""

import numpy as np
import pytest
from helpers.tiny_clips import LABELS, light_with_poses, random_poses, write_clip, write_noise
from hypothesis import given
from hypothesis import strategies as st

from drender.data.augment import Augmentation, AugmentationConfig, expose
from drender.data.clips import ClipDataset, open_clips
from drender.errors import InputError
from drender.lighting.camera import camera_rotations
from drender.lighting.environment import load_environment
from drender.lighting.light_file import Light
from drender.lighting.projection import project

pytestmark = pytest.mark.usefixtures("small_cubes")

RNG = np.random.default_rng(0)
SIZE = (8, 16)  # of environment images; one size, so that the projection compiles once


@pytest.mark.parametrize("label", LABELS)
def test_a_mirrored_image(label):
    image = RNG.random((2, 3, 4, 3), np.float32)
    found = Augmentation(mirrored=True).image(label, image)
    expected = image[:, :, ::-1].copy()
    if label == "normal":
        expected[..., 0] = 1 - expected[..., 0]  # n·½ + ½ of −n
    np.testing.assert_array_equal(found, expected)


def test_mirrored_light_is_that_of_the_mirrored_world(tmp_path, sky):
    """The world mirrored in the camera's x: E'(d) = E(M d), R' = M R M, and the light turns the other way."""
    matrices, angles, mirror = random_poses(3, seed=1), np.float32([0.3, 1.0, 2.0]), np.diag([-1.0, 1.0, 1.0, 1.0])
    light = light_with_poses(matrices, rotation=112.5, angles=tuple(angles.tolist()), strength=3.0)
    (clip,) = open_clips(write_clip(tmp_path / "a", light=light), ("env_ldr",))
    found = clip.environment(SIZE, augmentation=Augmentation(mirrored=True))
    world = load_environment(sky, rotation=-112.5, flip=True, strength=3.0)
    expected = project(world, SIZE, camera_rotations(3, poses=mirror @ matrices @ mirror), -angles)
    for name in ("env_ldr", "env_log", "env_nrm"):
        np.testing.assert_allclose(found[name], expected[name], atol=5e-4)
    unmirrored = clip.environment(SIZE)
    assert np.abs(found["env_ldr"] - unmirrored["env_ldr"]).max() > 0.1
    np.testing.assert_array_equal(found["env_nrm"], unmirrored["env_nrm"])


def test_exposure_at_known_values():
    # sRGB ½ is ((0.5 + 0.055)/1.055)^2.4 = 0.21404 linear (IEC 61966-2-1).
    grey = np.full((1, 1, 1, 3), 0.5, np.float32)
    np.testing.assert_allclose(expose(grey, 2.0), 1.055 * 0.4280821 ** (1 / 2.4) - 0.055, atol=1e-5)
    np.testing.assert_allclose(expose(grey, 0.5), 1.055 * 0.1070205 ** (1 / 2.4) - 0.055, atol=1e-5)
    np.testing.assert_allclose(expose(np.full((1, 1, 1, 3), 0.9, np.float32), 3.0), 1, atol=1e-6)


def test_clipped_pixels_stay_clipped_when_darkened():
    rgb = np.float32([[[[1.0, 254 / 255, 0.5]]]])
    darker, brighter = expose(rgb, 0.5), expose(rgb, 2.0)
    assert darker[..., 0] == 1
    assert (darker[..., 1:] < rgb[..., 1:]).all()
    np.testing.assert_allclose(brighter[..., :2], 1, atol=1e-6)


def test_only_rgb_is_exposed():
    image = RNG.random((1, 2, 2, 3), np.float32)
    for label in LABELS[1:]:
        np.testing.assert_array_equal(Augmentation(exposure=0.5).image(label, image), image)
    assert (Augmentation(exposure=0.5).image("rgb", image) < image).all()


@given(st.integers(0, 2**32 - 1))
def test_drawn_augmentations_are_in_range(seed):
    drawn = AugmentationConfig(0.5, (0.7, 1.4), 20.0).draw(np.random.default_rng(seed))
    assert 0.7 <= drawn.exposure <= 1.4 and abs(drawn.light_turn) <= 20
    assert AugmentationConfig().draw(np.random.default_rng(seed)) == Augmentation()


def test_drawn_augmentations_are_spread():
    rng = np.random.default_rng(0)
    drawn = [AugmentationConfig(0.25, (0.5, 2.0), 10.0).draw(rng) for _ in range(2000)]
    assert abs(np.mean([x.mirrored for x in drawn]) - 0.25) < 0.03
    assert abs(np.mean([np.log(x.exposure) for x in drawn])) < 0.03
    assert abs(np.mean([x.light_turn for x in drawn])) < 0.5


def test_all_labels_of_a_row_are_augmented_alike(tmp_path, sky):
    write_noise(tmp_path / "set" / "a", size=(4, 4), light=Light("../../sky.hdr"))
    labels = (*LABELS, "env_ldr", "env_nrm")
    clips = open_clips(tmp_path / "set", labels)
    found = ClipDataset("", clips, (4, 4), SIZE, AugmentationConfig(flip=1.0)).draw(
        0, 2, labels, np.random.default_rng(0)
    )
    plain = ClipDataset("", clips, (4, 4), SIZE).draw(0, 2, labels, np.random.default_rng(0))
    for label in labels:
        mirrored = plain[label][:, :, ::-1] if label != "env_nrm" else plain[label]
        channels = slice(1, 3) if label == "normal" else slice(None)
        np.testing.assert_array_equal(found[label][..., channels], mirrored[..., channels])
    np.testing.assert_array_equal(found["normal"][..., 0], 1 - plain["normal"][:, :, ::-1, 0])


def test_a_crop_cuts_all_labels_alike_and_normalizes_depth(tmp_path, sky):
    write_noise(tmp_path / "set" / "a", size=(8, 12), light=Light("../../sky.hdr"))
    (clip,) = open_clips(tmp_path / "set", LABELS)
    crop = Augmentation(side=0.5, place=(1.0, 0.25))
    found = clip.images(LABELS, slice(2), (4, 6), SIZE, crop)
    for label, images in clip.images(LABELS, slice(2), (8, 12), SIZE).items():
        expected = images[:, 4:, 2:8]  # a quarter of the 6 columns that are cut off, rounded
        if label == "depth":
            expected = (expected - expected.min()) / (expected.max() - expected.min())
        np.testing.assert_allclose(found[label], expected, atol=1e-6)
    assert clip.images(("env_ldr",), slice(2), (4, 6), SIZE, crop)["env_ldr"].shape == (2, *SIZE, 3)


@given(side=st.floats(0.01, 1), place=st.tuples(st.floats(0, 1), st.floats(0, 1)), smallest=st.integers(1, 12))
def test_a_crop_keeps_the_size_of_training(side, place, smallest):
    rows = np.arange(9, dtype=np.float32)[:, None, None].repeat(7, 1).repeat(3, 2)
    found = Augmentation(side=side, place=place).crop(rows, (smallest, smallest))
    assert found.shape[0] == min(9, max(smallest, round(9 * side)))
    assert found.shape[1] == min(7, max(smallest, round(7 * side)))
    np.testing.assert_array_equal(np.diff(found[:, 0, 0]), 1)


def test_crops_are_drawn_from_the_side_up_and_nothing_else_changes():
    drawn = [AugmentationConfig(flip=0.5, crop=0.4).draw(np.random.default_rng(i)) for i in range(50)]
    assert min(x.side for x in drawn) < 0.45 and max(x.side for x in drawn) > 0.95
    assert all(0.4 <= x.side <= 1 and len({*x.place}) == 2 for x in drawn)
    plain = [AugmentationConfig(flip=0.5).draw(np.random.default_rng(i)) for i in range(50)]
    assert [x.mirrored for x in drawn] == [x.mirrored for x in plain] and {x.side for x in plain} == {1.0}


def test_clips_too_small_to_crop_are_named(tmp_path):
    write_noise(tmp_path / "set" / "a", size=(4, 4), light=Light("../../sky.hdr"))
    (clip,) = open_clips(tmp_path / "set", ("rgb",))
    with pytest.warns(UserWarning, match=r"set: clips of 4x4 pixels are too small to crop to 4x4; give larger clips"):
        clip.images(("rgb",), slice(1), (4, 4), SIZE, Augmentation(side=0.5))


@pytest.mark.parametrize(
    "bad",
    [{"flip": 1.5}, {"exposure_range": (0.0, 1.0)}, {"exposure_range": (2.0, 1.0)}, {"rotation": -1.0}, {"crop": 0.0}],
)
def test_bad_ranges(bad):
    with pytest.raises(InputError, match=f"^{next(iter(bad))}: expected "):
        AugmentationConfig(**bad)
