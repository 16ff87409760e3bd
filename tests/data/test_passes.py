"""Sources that lack G-buffers, and pixels that are not valid."""

import itertools
import warnings

import jax
import numpy as np
import pytest
from helpers.encoded import encode_clips
from helpers.rows import INVERSE, config, origin
from helpers.tiny_clips import LABELS, write_clip, write_noise

from drender.config import ENVIRONMENT_LABELS
from drender.data.augment import Augmentation
from drender.data.clips import latent_mask, open_clips
from drender.data.latent_cache import LatentDataset
from drender.data.loader import TrainingData
from drender.errors import InputError
from drender.media.gbuffers import frame_path
from drender.media.images import write_exr, write_png

SOME = ("rgb", "normal", "depth")


def write_mask(folder, frame: int, mask) -> None:
    """Write a mask of 0 and 1."""
    write_png(frame_path(folder, 0, frame, "valid"), np.repeat(np.float32(mask)[..., None], 3, axis=-1))


@pytest.fixture
def mixed(tmp_path):
    """A folder of a clip with all labels and two with `SOME`."""
    write_clip(tmp_path / "mixed" / "clip0", clip=0, chunks=(2,))
    for i in (1, 2):
        write_clip(tmp_path / "mixed" / f"clip{i}", clip=i, chunks=(2,), labels=SOME)
    return tmp_path / "mixed"


# --- G-buffers --------------------------------------------------------------------------------------------------------


def test_rows_are_of_the_buffers_that_a_clip_has(mixed):
    lacks = r"2 of 3 clips lack G-buffers \('clip1' has no basecolor, metallic, roughness\); their rows are of the"
    with pytest.warns(UserWarning, match=lacks):
        data = TrainingData(config(mixed, frames=1, image_fraction=0.3), "inverse", INVERSE, rows=60, seed=0)
    drawn = {0: set(), 1: set(), 2: set()}
    for batch in itertools.islice(data.batches(), 3):
        for rgb, buffer, domain in zip(batch["rgb"], batch["buffer"], batch["domain"], strict=True):
            label, clip, frame = origin(buffer[0])
            assert origin(rgb[0]) == ("rgb", clip, frame) and INVERSE.domains[label] == domain
            drawn[clip].add(label)
    assert drawn[0] == set(LABELS[1:]) and drawn[1] == drawn[2] == {"normal", "depth"}


def test_unrelated_images_all_have_the_buffer(mixed):
    with pytest.warns(UserWarning):
        data = TrainingData(config(mixed, frames=3, image_fraction=1.0), "inverse", INVERSE, rows=60, seed=0)
    clips = {}
    for buffer in next(data.batches())["buffer"]:
        labels, found, _ = zip(*map(origin, buffer), strict=True)
        assert len(set(labels)) == 1
        clips.setdefault(labels[0], set()).update(found)
    assert clips["roughness"] == {0} and clips["normal"] == {0, 1, 2}


def test_complete_clips_are_no_warning(clips):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingData(config(clips, frames=1), "inverse", INVERSE, rows=1, seed=0)


def test_a_clip_without_any_pass_is_an_error(mixed):
    with pytest.raises(InputError, match=r"'clip1' has none of data\.passes; remove it, or add files"):
        TrainingData(config(mixed, frames=1, passes=("roughness",)), "inverse", INVERSE, rows=1, seed=0)


def test_a_buffer_of_some_frames_is_an_error(mixed):
    frame_path(mixed / "clip1", 0, 1, "depth").unlink()
    with pytest.raises(InputError, match="clip 'clip1' has 'depth' in some frames only; add the missing files, or"):
        TrainingData(config(mixed, frames=1), "inverse", INVERSE, rows=1, seed=0)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_invalid_pixels_are_filled_and_masked(tmp_path):
    folder = write_noise(tmp_path / "clips" / "a", labels=("rgb", "normal"), size=(2, 2), frames=1)
    write_mask(folder, 0, [[0, 1], [1, 1]])
    metallic = np.float32([[0.25, np.nan], [0.5, np.inf]])
    write_exr(frame_path(folder, 0, 0, "metallic", "exr"), dict.fromkeys("RGB", metallic))
    (clip,) = open_clips(tmp_path / "clips", ("rgb",), ("normal", "metallic"))
    assert set(clip.labels) == {"rgb", "normal", "metallic", "valid"} and clip.masked(("rgb",))
    read = clip.images(("rgb", "normal", "metallic", "valid"), slice(1), (2, 2), (16, 16))
    np.testing.assert_array_equal(read["valid"][0, ..., 0], [[0, 0], [1, 0]])
    np.testing.assert_array_equal(read["metallic"][0, ..., 0], [[0, 0], [0.5, 0]])
    np.testing.assert_array_equal(read["normal"][0, 0, 0], [0.5, 0.5, 1])  # outside the mask: toward the camera
    plain = clip.read("normal", [0], (2, 2))[0]
    np.testing.assert_array_equal(read["normal"][0, 1], plain[1])
    np.testing.assert_array_equal(read["rgb"][0], clip.read("rgb", [0], (2, 2))[0])  # the picture is as it is
    with pytest.raises(InputError, match="some pixels are infinite or NaN"):
        clip.images(("rgb", "metallic"), slice(1), (2, 2), (16, 16))


def test_a_mask_of_the_bytes_0_and_1_is_an_error(tmp_path):
    folder = write_noise(tmp_path / "clips" / "a", labels=("rgb",), size=(2, 2), frames=1)
    write_mask(folder, 0, np.full((2, 2), 1 / 255))
    (clip,) = open_clips(tmp_path / "clips", ("rgb",))
    with pytest.raises(InputError, match=r"clip 'a': its 'valid' is 0 to 0\.00392; write valid pixels white"):
        clip.images(("rgb", "valid"), slice(1), (2, 2), (16, 16))


def test_a_mask_follows_flips_and_shrinks_to_entirely_valid_pixels(tmp_path):
    folder = write_noise(tmp_path / "clips" / "a", labels=("rgb",), size=(8, 8), frames=1)
    mask = np.ones((8, 8))
    mask[0, 0] = 0
    write_mask(folder, 0, mask)
    (clip,) = open_clips(tmp_path / "clips", ("rgb",))
    full = clip.images(("rgb", "valid"), slice(1), (8, 8), (16, 16), Augmentation(mirrored=True))["valid"]
    np.testing.assert_array_equal(full[0, ..., 0], mask[:, ::-1])
    small = clip.images(("rgb", "valid"), slice(1), (4, 4), (16, 16))["valid"][0, ..., 0]
    assert small[0, 0] == 0 and small[2:, 2:].all()


def test_a_latent_is_valid_if_all_its_pixels_are():
    mask = np.ones((1, 4, 6, 1), np.float32)
    mask[0, 1, 5] = 0
    np.testing.assert_array_equal(latent_mask(mask, 2)[0, ..., 0], [[1, 1, 0], [1, 1, 1]])


def test_rows_have_a_mask_where_a_source_has_one(clips, tmp_path):
    assert "valid" not in TrainingData(config(clips, frames=1), "inverse", INVERSE, rows=1, seed=0).abstract_batch()
    folder = write_clip(tmp_path / "masked" / "clip9", clip=9, chunks=(1,))
    write_mask(folder, 0, [[0, 1], [1, 1]])
    both = config(clips, tmp_path / "masked", frames=1)
    batch = next(TrainingData(both, "inverse", INVERSE, rows=8, seed=0).batches())
    assert batch["valid"].shape == (8, 1, 2, 2, 1) and batch["valid"].dtype == bool
    for rgb, valid in zip(batch["rgb"], batch["valid"], strict=True):
        expected = [[0, 1], [1, 1]] if origin(rgb[0])[1] == 9 else [[1, 1], [1, 1]]
        np.testing.assert_array_equal(valid[0, ..., 0], expected)


def test_cached_latents_keep_masks_and_shared_buffers(lit, vae, tmp_path):
    mask = np.ones((16, 16))
    mask[:4, 3] = 0
    for frame in range(2):
        write_mask(lit / "clip0", frame, mask)
    for file in (lit / "clip1").glob("*.metallic.png"):
        file.unlink()
    with pytest.warns(UserWarning, match="metallic is left out, because clip 'clip1' has none"):
        encode_clips(
            lit, tmp_path / "set", vae, (*LABELS, *ENVIRONMENT_LABELS), size=(16, 16), environment_size=(16, 16)
        )
    dataset = LatentDataset(str(tmp_path / "set"), ("rgb",))
    assert dataset.has(0, "valid") and not dataset.has(0, "metallic")
    stored = dataset.arrays["valid"].read().result()
    np.testing.assert_array_equal(stored[0, 0, ..., 0], mask.reshape(8, 2, 8, 2).min((1, 3)))
    assert stored[1].all()
    with pytest.warns(UserWarning, match="2 of 2 clips lack G-buffers"):
        data = TrainingData(config(tmp_path / "set", frames=1), "inverse", INVERSE, rows=4, seed=0)
    assert data.abstract_batch()["valid"] == jax.ShapeDtypeStruct((4, 1, 8, 8, 1), bool)
