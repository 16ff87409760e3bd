"""The stream of training rows: resuming, sharing between processes, and errors."""

import dataclasses
import functools
import itertools
import json
import shutil

import numpy as np
import pytest
from helpers.rows import FORWARD, INVERSE, config
from helpers.tiny_clips import write_clip

from drender.data.config import Source
from drender.data.loader import TrainingData
from drender.errors import InputError

# --- resuming and sharing ---------------------------------------------------------------------------------------------


def same(batch, other) -> bool:
    return batch.keys() == other.keys() and all((batch[name] == other[name]).all() for name in batch)


@pytest.fixture
def stream(clips):
    """open(**shares) -> data whose rows are drawn in every way there is."""
    options = config(
        clips,
        Source(str(clips), weight=0.5, real=True),
        frames=3,
        image_fraction=0.3,
        flip=0.5,
        exposure_range=(0.7, 1.4),
    )
    return lambda rows=4, seed=0, **share: TrainingData(options, "inverse", INVERSE, rows, seed, **share)


def test_a_restored_iterator_yields_the_same_batches(stream):
    iterator = stream().batches()
    first = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(iterator.get_state()))
    following = [next(iterator) for _ in range(3)]
    assert not same(first[0], first[1])
    iterator.set_state(state)
    assert all(map(same, (next(iterator) for _ in range(3)), following))
    fresh = stream().batches(5)  # as a new process does
    fresh.set_state(state)
    assert all(map(same, (next(fresh) for _ in range(3)), following))


def test_batches_are_a_function_of_the_step(stream):
    batches = list(itertools.islice(stream().batches(), 6))
    for step in (0, 1, 5):
        iterator = stream().batches(step)
        assert same(next(iterator), batches[step])
    assert iterator.get_state() == stream().batches(6).get_state()
    far = stream().batches(10**9)
    assert same(next(far), next(stream().batches(10**9)))


def test_the_seed_decides(stream):
    assert same(next(stream(seed=1).batches()), next(stream(seed=1).batches()))
    assert not same(next(stream(seed=1).batches()), next(stream(seed=2).batches()))
    next(stream(seed=2**31 - 1).batches())


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_a_step(stream, processes):
    whole = stream().batches(3)
    parts = [stream(rows=4 // processes, process_index=i, process_count=processes).batches(3) for i in range(processes)]
    for _ in range(3):
        batch, shares = next(whole), [next(part) for part in parts]
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), rows)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "data.frames: expected at least 1, got 0"),
        ({"num_workers": 0}, "data.num_workers: expected at least 1, got 0"),
        ({"image_fraction": 1.5}, "data.image_fraction: expected at least 0 and at most 1, got 1.5"),
        ({"passes": ("normals",)}, "unknown pass in data.passes 'normals'; did you mean 'normal'"),
        ({"passes": ()}, "data.passes: empty"),
        ({"size": (2, 3)}, "data.size: expected sides that are multiples of 2, got 2 3"),
        ({"size": (0, 2)}, "data.size: expected at least 1, got (0, 2)"),
        ({"flip": 2.0}, "data.flip: expected at least 0 and at most 1, got 2.0"),
        ({"exposure_range": (0.0, 1.0)}, "data.exposure_range: expected above 0, got (0.0, 1.0)"),
        ({"frames": 6}, "clip 'clip0' has 5 frames, fewer than 6; lower data.frames"),
        ({"passes": ("diffuse_albedo",)}, "'clip0' has none of data.passes; remove it, or add files"),
        ({"sources": ()}, "data.sources: empty"),
        (
            {"sources": ({"path": "clips", "weight": 0.0},)},
            "data.sources: clips: weight: expected above 0, got 0.0",
        ),
        ({"sources": ({"path": "/nowhere"},)}, "/nowhere does not exist"),
    ],
)
def test_bad_configurations(clips, options, message):
    with pytest.raises(InputError) as error:
        if "sources" in options:
            options = {"sources": tuple(Source(**source) for source in options["sources"])}
        TrainingData(dataclasses.replace(config(clips, frames=2), **options), "inverse", INVERSE, rows=1, seed=0)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_size_is_that_of_the_model_by_default(clips):
    model = dataclasses.replace(INVERSE, size=(2, 2))
    batch = next(TrainingData(config(clips, frames=1, size=None), "inverse", model, rows=1, seed=0).batches())
    assert batch["rgb"].shape == (1, 1, 2, 2, 3)


def test_enlarging_clips_is_a_warning(clips):
    """A warning about the last clip appears too."""
    write_clip(clips / "clip7", clip=5, chunks=(5,), size=(4, 2))
    for number in range(6):
        shutil.rmtree(clips / f"clip{number}")
    data = TrainingData(config(clips, frames=1, size=(4, 4)), "inverse", INVERSE, rows=1, seed=0)
    with pytest.warns(UserWarning, match="clips: clips of 4x2 pixels are enlarged to 4x4; give their size as"):
        data.abstract_batch()


def test_bad_objectives(clips):
    opened = functools.partial(TrainingData, rows=1, seed=0)
    with pytest.raises(InputError, match="needs a model with an environment encoder"):
        opened(config(clips), "forward", INVERSE)
    with pytest.raises(InputError, match=r"data\.image_fraction: expected 0 or 1 for the vae objective, got 0\.5"):
        opened(config(clips, image_fraction=0.5), "vae", FORWARD)
    with pytest.raises(
        InputError, match=r"data\.image_fraction: the environment objective has no image rows, got 1\.0"
    ):
        opened(config(clips, image_fraction=1.0), "environment", FORWARD)
    with pytest.raises(InputError, match=r"clip 'clip0' has no light\.json"):
        opened(config(clips, frames=2), "forward", FORWARD)


def test_a_frame_damaged_during_training_is_named(clips):
    data = TrainingData(config(clips, frames=1), "vae", FORWARD, rows=30, seed=0)
    for file in clips.glob("clip3/*.png"):
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"clip3/0000\.000.*: truncated or damaged"):
        next(data.batches())
