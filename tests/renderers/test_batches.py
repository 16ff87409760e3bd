"""Runs of frames that do not fit the device: halved until they do; the stages here compute trivial results."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from recorder import abstract

from drender.errors import InputError, oom_guard
from drender.renderers.batches import halve_to_fit, map_in_batches
from drender.renderers.windows import concat_frames


class Device:
    """A device that holds a limited number of frames; its VAE takes every other pixel, and repeats latents."""

    def __init__(self, capacity: int):
        self.capacity, self.tried = capacity, []

    def __call__(self, stage, params, rows, split=None):
        frames = rows.shape[0] * rows.shape[1]
        self.tried.append(frames)
        if frames > self.capacity:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        if stage.name == "encode":
            return jnp.asarray(rows)[:, :, ::2, ::2]
        return jnp.repeat(jnp.repeat(rows, 2, 2), 2, 3)


@pytest.fixture
def renderer():
    return abstract(small.inverse_config(), "float32")


def with_capacity(renderer, capacity: int) -> Device:
    renderer.run_stage = Device(capacity)
    return renderer.run_stage


def test_smaller_batches_encode_the_same_and_are_remembered(renderer):
    images = np.random.default_rng(0).random((10, 8, 8, 3), np.float32)
    roomy, scarce = with_capacity(renderer, 8), Device(3)
    expected = renderer.encode_images(images)
    assert roomy.tried == [8, 8]
    renderer.run_stage = scarce
    np.testing.assert_array_equal(renderer.encode_images(images), expected)
    np.testing.assert_array_equal(renderer.encode_images(images), expected)
    assert scarce.tried == [8, 4, *[2] * 5, *[2] * 5]
    scarce.tried.clear()
    renderer.encode_images(images[:, :4, :4])  # another size may fit
    assert scarce.tried[0] == 8


@pytest.mark.parametrize(
    ("count", "devices", "batches"),
    [(1, 1, [1]), (3, 1, [8]), (24, 1, [8] * 3), (3, 4, [4]), (8, 4, [8]), (24, 2, [12] * 2), (8, 3, [9])],
)
def test_one_device_gets_equal_batches_and_several_share_them(count, devices, batches):
    items, sizes = np.arange(count, dtype=np.float32), []
    result = map_in_batches(lambda batch: sizes.append(len(batch)) or batch, items, devices)
    np.testing.assert_array_equal(result, items)
    assert sizes == batches


def test_smaller_chunks_decode_all_frames_with_one_warning_each(renderer):
    z = np.random.default_rng(0).random((1, 7, 4, 4, 3), np.float32) / 10
    expected = np.clip(np.repeat(np.repeat(z / renderer.config.vae.scaling_factor, 2, 2), 2, 3) / 2 + 0.5, 0, 1)
    device = with_capacity(renderer, 2)
    for tried in ([7, 3, 1, 1, 1, 1, 1, 1, 1], [1] * 7):
        with pytest.warns(UserWarning, match="too little memory to decode 7 frames together; decoding 1"):
            decoded = concat_frames(renderer.decode_latents(z, 8))
        np.testing.assert_allclose(decoded, expected, atol=1e-6)
        assert device.tried == tried
        device.tried.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        concat_frames(renderer.decode_latents(z[:, :1], 8))


def test_overlap_is_kept_below_smaller_chunks(renderer):
    z = np.random.default_rng(0).random((1, 8, 4, 4, 3), np.float32) / 10
    expected = concat_frames(renderer_with(renderer, 8).decode_latents(z, 4, 3))
    with pytest.warns(UserWarning, match="decoding 2"):
        decoded = concat_frames(renderer_with(renderer, 2).decode_latents(z, 4, 3))
    np.testing.assert_allclose(decoded, expected, atol=1e-6)


def renderer_with(renderer, capacity: int):
    with_capacity(renderer, capacity)
    return renderer


def test_one_frame_too_large_is_one_line_with_the_remedy(renderer):
    with_capacity(renderer, 0)
    for run in (
        lambda: renderer.encode_images(np.zeros((3, 8, 8, 3), np.float32)),
        lambda: concat_frames(renderer.decode_latents(np.zeros((1, 3, 4, 4, 3), np.float32), 2)),
    ):
        line = r"^out of device memory \(Out of memory .*\); give a smaller size$"
        with pytest.raises(InputError, match=line), oom_guard("give a smaller size"):
            run()


def test_other_errors_are_not_retried():
    def fail(size: int):
        calls.append(size)
        raise RuntimeError("INTERNAL: cuDNN failed")

    calls: list[int] = []
    with pytest.raises(RuntimeError, match="INTERNAL"):
        halve_to_fit(fail, 8)
    assert calls == [8]
