"""Material edits of arrays: what changes, by how much, and that nothing else does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drender.config import CONDITIONS
from drender.editing.materials import EDITABLE, color, color_range, depth_range, edit, feather
from drender.errors import InputError

LABELS = ("rgb", *CONDITIONS)
IMAGES = hnp.arrays(np.float32, (1, 2, 3, 4, 3), elements=st.floats(0, 1, width=32))
MASKS = hnp.arrays(np.float32, (1, 2, 3, 4, 1), elements=st.sampled_from([0, 0.25, 0.7, 1]))


def to_srgb(x):
    """In float64, as IEC 61966-2-1 writes it."""
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


def to_linear(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def test_bytes_of_images_are_refused():
    bytes_, floats = np.full((2, 2, 3), 128, np.uint8), np.full((2, 2, 3), 0.5)
    calls = {
        "basecolor": lambda: edit({"basecolor": bytes_}, scale={"basecolor": 0.5}),
        "replacement of basecolor": lambda: edit({"basecolor": floats}, replace={"basecolor": bytes_}),
        "mask": lambda: edit({"basecolor": floats}, bytes_[..., :1], set={"basecolor": 1}),
        "basecolor ": lambda: color_range(bytes_, 0.5, 0.1),
        "depth": lambda: depth_range(bytes_, 0.2, 0.8),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"^{name.strip()}: expected .* got uint8.*; divide bytes by 255$"):
            call()
    for mask in (np.ones((2, 2, 1), bool), np.ones((2, 2, 1), int)):
        assert (edit({"basecolor": floats}, mask, set={"basecolor": 1})["basecolor"] == 1).all()


@given(IMAGES, MASKS)
@settings(max_examples=30)
def test_edit_is_exact_outside_and_inside_mask(image, mask):
    buffers = dict.fromkeys(LABELS, image)
    wanted = {"basecolor": "#ff8000", "roughness": 0.25}
    edited = edit(buffers, mask, set=wanted, scale={"metallic": 0.5})
    untouched, whole = (np.broadcast_to(mask == value, image.shape) for value in (0, 1))
    for label in LABELS:
        if label not in (*wanted, "metallic"):
            assert edited[label].tobytes() == image.tobytes()
        assert edited[label][untouched].tobytes() == image[untouched].tobytes()
    inside = edited["basecolor"][whole].reshape(-1, 3)
    assert (inside == np.float32([1, 128 / 255, 0])).all()
    assert (edited["roughness"][whole] == 0.25).all()
    assert (edited["metallic"][whole] == image[whole] * np.float32(0.5)).all()


@given(IMAGES, MASKS, st.floats(0, 3))
@settings(max_examples=30)
def test_colors_scale_and_mix_in_linear_light(image, mask, factor):
    edited = edit({"basecolor": image}, mask, scale={"basecolor": factor})["basecolor"]
    light = to_linear(image.astype(np.float64))
    expected = to_srgb(light * (1 - mask) + (light * factor).clip(0, 1) * mask)
    np.testing.assert_allclose(edited, expected, atol=2e-5)


def test_replace_uses_picture_or_its_channel_mean():
    random = np.random.default_rng(0)
    image, texture = random.random((2, 1, 2, 3, 4, 3), np.float32)
    edited = edit({"basecolor": image, "roughness": image}, replace={"basecolor": texture, "roughness": texture})
    assert (edited["basecolor"] == texture).all()
    np.testing.assert_allclose(edited["roughness"], texture.mean(axis=-1, keepdims=True).repeat(3, -1), atol=1e-7)


def test_colors_are_hex_or_numbers():
    for value in ("#336699", (0.2, 0.4, 0.6), "0.2 0.4 0.6"):
        np.testing.assert_allclose(color(value), [0.2, 0.4, 0.6], atol=1e-7)
    assert (color(0.5) == 0.5).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"set": {"basecolour": 1}}, "unknown buffer to edit 'basecolour'; did you mean 'basecolor'"),
        ({"set": {"normal": 1}}, "unknown buffer to edit 'normal'"),
        ({"set": {"metallic": 1}}, "buffer metallic not found among basecolor, roughness"),
        ({"set": {"basecolor": "#12345"}}, "color: expected #rrggbb, or one or three numbers from 0 to 1, got #12345"),
        ({"set": {"basecolor": (1, 0)}}, "numbers from 0 to 1, got 1 0"),
        ({"set": {"basecolor": 1.5}}, "numbers from 0 to 1, got 1.5"),
        ({"set": {"roughness": (0.1, 0.2, 0.3)}}, "roughness: expected one number from 0 to 1, got 0.1 0.2 0.3"),
        ({"set": {"roughness": float("nan")}}, "roughness: expected one number from 0 to 1, got nan"),
        ({"set": {"roughness": -0.1}}, "roughness: expected one number from 0 to 1, got -0.1"),
        ({"scale": {"roughness": -1}}, "roughness factor: expected one number of 0 or more, got -1"),
        ({"set": {"roughness": 1}, "scale": {"roughness": 1}}, "roughness: one edit changes it twice"),
    ],
)
def test_invalid_edits_are_explained(change, message):
    buffers = {label: np.zeros((1, 1, 2, 2, 3), np.float32) for label in ("basecolor", "roughness")}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        edit(buffers, **change)


def test_ranges_include_exactly_their_bounds():
    ramp = np.linspace(0, 1, 11, dtype=np.float32)[None, :, None].repeat(3, -1)
    np.testing.assert_array_equal(np.flatnonzero(depth_range(ramp, 0.2, 0.5)), [2, 3, 4, 5])
    # The distance is Euclidean: 0.3·√3 for three steps of grey.
    np.testing.assert_array_equal(np.flatnonzero(color_range(ramp, (0.5, 0.5, 0.5), 0.2 * 3**0.5)), [3, 4, 5, 6, 7])
    for near, far in ((0.5, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1)):
        with pytest.raises(InputError, match="expected NEAR FAR with 0 ≤ NEAR ≤ FAR ≤ 1"):
            depth_range(ramp, near, far)
    with pytest.raises(InputError, match="expected a distance of 0 or more, got -1"):
        color_range(ramp, "#ffffff", -1)


@pytest.mark.parametrize("pixels", [0, 0.5, 1, 3, 4.5])
def test_feather_reaches_exactly_its_width(pixels):
    mask = np.zeros((32, 32, 1), np.float32)
    mask[:, 16:] = 1
    soft = feather(mask, pixels)[..., 0]
    reach = int(np.ceil(pixels))
    assert (soft[:, : 16 - reach] == 0).all() and (soft[:, 16 + reach :] == 1).all()
    assert (np.diff(soft, axis=1) >= 0).all() and (soft == soft[:1]).all()
    np.testing.assert_allclose(soft + soft[:, ::-1], 1, atol=1e-5)  # the edge stays where it is
    assert ((soft > 0) & (soft < 1)).any() == (pixels > 0)
    assert (feather(np.ones((9, 9, 1), np.float32), pixels) == 1).all()


def test_editable_buffers():
    assert EDITABLE == ("basecolor", "diffuse_albedo", "roughness", "metallic")
