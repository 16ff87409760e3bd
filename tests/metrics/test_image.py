"""Metrics of images and clips against scikit-image, numpy and numbers by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from drender.errors import InputError
from drender.media.encodings import encode_normal
from drender.metrics.image import angular_error, correlation, evaluate, least_squares_scale, psnr, rmse, ssim


def images(seed, *shape, near=None, dtype=np.float32):
    """Return random images, or `near` with a little noise."""
    random = np.random.default_rng(seed)
    if near is None:
        return random.random((*shape, 3)).astype(dtype)
    return np.clip(near + 0.1 * random.standard_normal(near.shape), 0, 1).astype(dtype)


def ellipse(h, w):
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    return (x + 0.4) ** 2 + y**2 < 0.8


# --- metrics of images ------------------------------------------------------------------------------------------------


def test_psnr_and_rmse_by_hand():
    truth = np.full((2, 3, 4, 3), 0.5)
    predicted = truth.copy()
    predicted[0] += 0.1
    np.testing.assert_allclose(psnr(predicted, truth), [20, np.inf])
    np.testing.assert_allclose(rmse(predicted, truth), [0.1, 0])
    predicted[1, 0, 0] = (0.8, 0.5, 0.1)  # one of twelve pixels: squares .09 + 0 + .16
    np.testing.assert_allclose(rmse(predicted, truth)[1], np.sqrt(0.25 / 36))
    mask = np.zeros((2, 3, 4), bool)
    mask[:, 0, :2] = True
    np.testing.assert_allclose(rmse(predicted, truth, mask), [0.1, np.sqrt(0.25 / 6)])
    assert psnr(predicted[0], truth[0]).shape == () and psnr(predicted[None], truth[None]).shape == (1, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(11, 11), (17, 40), (64, 33)])
def test_psnr_and_ssim_agree_with_scikit_image(shape, dtype):
    truth = images(0, 2, *shape, dtype=dtype)
    predicted = images(1, near=truth, dtype=dtype)
    mask = np.stack([ellipse(*shape), ellipse(*shape)[:, ::-1]])
    published = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    published |= {"data_range": 1, "channel_axis": -1}
    for i in range(2):
        x, y = predicted[i].astype(np.float64), truth[i].astype(np.float64)
        np.testing.assert_allclose(psnr(predicted, truth)[i], peak_signal_noise_ratio(y, x, data_range=1), atol=1e-4)
        np.testing.assert_allclose(ssim(predicted, truth)[i], structural_similarity(x, y, **published), atol=1e-9)
        # With a mask: the similarity around its pixels, with the truth outside.
        around = structural_similarity(np.where(mask[i, ..., None], x, y), y, **published, full=True)[1]
        np.testing.assert_allclose(ssim(predicted, truth, mask)[i], around[mask[i]].mean(), atol=1e-9)
    np.testing.assert_allclose(ssim(truth, truth), 1)


def test_images_smaller_than_ssim_window_are_refused():
    with pytest.raises(InputError, match="images of 30x10 pixels are too small for SSIM: 11"):
        ssim(images(0, 10, 30), images(1, 10, 30))


def test_angular_error_by_hand():
    normals = np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [1, 0, 1], [1e-4, 0, 1], [0, 0, 0]], np.float32)
    predicted = encode_normal(normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1))[None]
    truth = np.broadcast_to(encode_normal(normals[0]), predicted.shape)
    expected = [0, 90, 180, 45, np.degrees(1e-4), 90]
    np.testing.assert_allclose(angular_error(predicted, truth)[0], expected, rtol=1e-3)
    assert angular_error(truth, truth).max() == 0


@given(st.floats(0, 180), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_angular_error_is_the_angle_of_rotation(degrees, seed):
    normal, across = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 2)))[0].T
    rotated = np.cos(np.radians(degrees)) * normal + np.sin(np.radians(degrees)) * across
    stored = [encode_normal(n)[None, None] for n in (rotated, normal)]
    np.testing.assert_allclose(angular_error(*stored), degrees, atol=1e-6)


# --- metrics of clips -------------------------------------------------------------------------------------------------


def test_scale_is_the_least_squares_one():
    truth = images(0, 2, 5, 7)
    predicted, mask = images(1, near=truth * [0.5, 1.0, 0.9]), images(2, 2, 5, 7)[..., 0] < 0.4
    for chosen in (None, mask):
        p, t = ((x if chosen is None else x[mask]).reshape(-1, 3) for x in (predicted, truth))
        expected = [np.linalg.lstsq(p[:, c : c + 1], t[:, c], rcond=None)[0][0] for c in range(3)]
        np.testing.assert_allclose(least_squares_scale(predicted, truth, chosen), expected, rtol=1e-5)
    np.testing.assert_allclose(least_squares_scale(truth * np.float32(0.25), truth), 4, rtol=1e-6)
    np.testing.assert_array_equal(least_squares_scale(np.zeros_like(truth), truth), 1)


def test_correlation_agrees_with_numpy():
    truth = images(0, 2, 5, 7)
    predicted, mask = images(1, near=truth), images(2, 2, 5, 7)[..., 0] < 0.4
    expected = np.corrcoef(predicted.mean(-1).ravel(), truth.mean(-1).ravel())[0, 1]
    np.testing.assert_allclose(correlation(predicted, truth), expected, rtol=1e-5)
    np.testing.assert_allclose(correlation(predicted * 0.5 + 0.25, truth), expected, rtol=1e-5)
    expected = np.corrcoef(predicted.mean(-1)[mask], truth.mean(-1)[mask])[0, 1]
    np.testing.assert_allclose(correlation(predicted, truth, mask), expected, rtol=1e-5)
    for dtype in (np.float32, np.float64):
        assert correlation(np.full_like(truth, 0.1, dtype), truth) == 0


# --- the published metrics of each kind of image ----------------------------------------------------------------------


def test_pictures_are_scaled_before_comparison():
    truth = images(0, 2, 16, 20) * np.float32(0.8)
    predicted = images(1, near=truth)
    scores = evaluate("rgb", predicted, truth)
    assert set(scores) == {"psnr", "scaled_psnr", "scaled_ssim"}
    scaled = predicted * least_squares_scale(predicted, truth)
    np.testing.assert_allclose(scores["psnr"], psnr(predicted, truth).mean())
    np.testing.assert_allclose(scores["scaled_psnr"], psnr(scaled, truth).mean(), rtol=1e-6)
    np.testing.assert_allclose(scores["scaled_ssim"], ssim(scaled, truth).mean(), rtol=1e-6)
    dimmed = evaluate("env0000", predicted * np.array([0.5, 0.25, 0.75], np.float32), truth)
    assert dimmed["psnr"] < scores["psnr"]
    np.testing.assert_allclose(dimmed["scaled_psnr"], scores["scaled_psnr"], rtol=1e-6)


@pytest.mark.parametrize("label", ["basecolor", "diffuse_albedo"])
def test_scores_of_albedo(label):
    truth = images(0, 2, 16, 20)
    predicted = images(1, near=truth)
    scores = evaluate(label, predicted, truth)
    scaled = psnr(predicted * least_squares_scale(predicted, truth), truth)
    expected = {"psnr": psnr(predicted, truth), "ssim": ssim(predicted, truth), "scaled_psnr": scaled}
    assert scores == pytest.approx({name: values.mean() for name, values in expected.items()}, rel=1e-6)


def test_scores_of_normals():
    angles = np.radians([0, 5, 11, 12, 50])
    normals = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=-1)[None, None]
    truth = np.broadcast_to(encode_normal(np.array([0.0, 0, 1])), normals.shape)
    scores = evaluate("normal", encode_normal(normals), truth)
    assert scores == pytest.approx({"angular_mean": 15.6, "angular_median": 11, "under_11.25": 0.6})
    mask = np.array([True, True, False, False, True])[None, None]
    scores = evaluate("normal", encode_normal(normals), truth, mask)
    assert scores == pytest.approx({"angular_mean": 55 / 3, "angular_median": 5, "under_11.25": 2 / 3})


def test_scores_of_gray_buffers():
    truth = np.linspace(0, 0.5, 24, dtype=np.float32).reshape(2, 3, 4, 1).repeat(3, axis=-1)
    for label in ("roughness", "metallic"):
        assert evaluate(label, truth + np.float32(0.25), truth) == pytest.approx({"rmse": 0.25})
    assert evaluate("depth", truth + np.float32(0.25), truth) == pytest.approx({"rmse": 0.25, "correlation": 1})
    assert evaluate("depth", 1 - truth, truth)["correlation"] == pytest.approx(-1)


@pytest.mark.parametrize("label", ["rgb", "basecolor", "normal", "roughness", "depth"])
def test_pixels_outside_mask_do_not_matter(label):
    truth = images(0, 3, 24, 30)
    predicted, mask = images(1, near=truth), np.stack([ellipse(24, 30)] * 3)
    expected = evaluate(label, predicted, truth, mask)
    assert evaluate(label, np.where(mask[..., None], predicted, 0).astype(np.float32), truth, mask) == expected
    assert expected != evaluate(label, predicted, truth)
    mask[1] = False  # a frame without foreground does not count
    kept = [0, 2]
    assert evaluate(label, predicted, truth, mask) == evaluate(label, predicted[kept], truth[kept], mask[kept])
    with pytest.raises(InputError, match=f"{label}: the mask is empty"):
        evaluate(label, predicted, truth, np.zeros_like(mask))


@pytest.mark.parametrize("label", ["rgb", "basecolor", "normal", "metallic", "depth"])
def test_nan_in_prediction_makes_scores_nan(label):
    truth = images(0, 2, 16, 20)
    predicted = images(1, near=truth)
    predicted[1, 3, 4] = np.nan
    assert all(np.isnan(score) for name, score in evaluate(label, predicted, truth).items() if name != "under_11.25")
