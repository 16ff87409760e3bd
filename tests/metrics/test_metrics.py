"""The metrics against scikit-image, numpy and numbers by hand; the comparison of folders as users meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from drender import cli
from drender.errors import InputError
from drender.media.encodings import encode_normal
from drender.media.gbuffers import frame_path
from drender.media.images import write_png
from drender.metrics import __main__
from drender.metrics.compare import summarize, table
from drender.metrics.image import angular_error, correlation, evaluate, least_squares_scale, psnr, rmse, ssim

ROOT = Path(__file__).parents[2]


def images(seed, *shape, near=None, dtype=np.float32):
    """Random images, or ones that are near others."""
    random = np.random.default_rng(seed)
    if near is None:
        return random.random((*shape, 3)).astype(dtype)
    return np.clip(near + 0.1 * random.standard_normal(near.shape), 0, 1).astype(dtype)


def ellipse(h, w):
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    return (x + 0.4) ** 2 + y**2 < 0.8


# ---- Metrics of images ----


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
        # Over a mask: the similarity around its pixels, once the rest is the truth's.
        around = structural_similarity(np.where(mask[i, ..., None], x, y), y, **published, full=True)[1]
        np.testing.assert_allclose(ssim(predicted, truth, mask)[i], around[mask[i]].mean(), atol=1e-9)
    np.testing.assert_allclose(ssim(truth, truth), 1)


def test_ssim_needs_a_window():
    with pytest.raises(InputError, match="images of 30x10 pixels are too small for SSIM: 11"):
        ssim(images(0, 10, 30), images(1, 10, 30))


def test_angles_by_hand():
    normals = np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [1, 0, 1], [1e-4, 0, 1], [0, 0, 0]], np.float32)
    predicted = encode_normal(normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1))[None]
    truth = np.broadcast_to(encode_normal(normals[0]), predicted.shape)
    expected = [0, 90, 180, 45, np.degrees(1e-4), 90]
    np.testing.assert_allclose(angular_error(predicted, truth)[0], expected, rtol=1e-3)
    assert angular_error(truth, truth).max() == 0


@given(st.floats(0, 180), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_a_turned_normal_is_off_by_its_turn(degrees, seed):
    normal, across = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 2)))[0].T
    turned = np.cos(np.radians(degrees)) * normal + np.sin(np.radians(degrees)) * across
    stored = [encode_normal(n)[None, None] for n in (turned, normal)]
    np.testing.assert_allclose(angular_error(*stored), degrees, atol=1e-6)


# ---- Metrics of clips ----


def test_the_scale_is_the_least_squares_one():
    truth = images(0, 2, 5, 7)
    predicted, mask = images(1, near=truth * [0.5, 1.0, 0.9]), images(2, 2, 5, 7)[..., 0] < 0.4
    for chosen in (None, mask):
        p, t = ((x if chosen is None else x[mask]).reshape(-1, 3) for x in (predicted, truth))
        expected = [np.linalg.lstsq(p[:, c : c + 1], t[:, c], rcond=None)[0][0] for c in range(3)]
        np.testing.assert_allclose(least_squares_scale(predicted, truth, chosen), expected, rtol=1e-5)
    np.testing.assert_allclose(least_squares_scale(truth * np.float32(0.25), truth), 4, rtol=1e-6)
    np.testing.assert_array_equal(least_squares_scale(np.zeros_like(truth), truth), 1)


def test_correlation_is_pearsons():
    truth = images(0, 2, 5, 7)
    predicted, mask = images(1, near=truth), images(2, 2, 5, 7)[..., 0] < 0.4
    expected = np.corrcoef(predicted.mean(-1).ravel(), truth.mean(-1).ravel())[0, 1]
    np.testing.assert_allclose(correlation(predicted, truth), expected, rtol=1e-5)
    np.testing.assert_allclose(correlation(predicted * 0.5 + 0.25, truth), expected, rtol=1e-5)
    expected = np.corrcoef(predicted.mean(-1)[mask], truth.mean(-1)[mask])[0, 1]
    np.testing.assert_allclose(correlation(predicted, truth, mask), expected, rtol=1e-5)
    for dtype in (np.float32, np.float64):
        assert correlation(np.full_like(truth, 0.1, dtype), truth) == 0


# ---- What is published for each kind of image ----


def test_pictures_are_measured_after_the_scale():
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
def test_albedo(label):
    truth = images(0, 2, 16, 20)
    predicted = images(1, near=truth)
    scores = evaluate(label, predicted, truth)
    scaled = psnr(predicted * least_squares_scale(predicted, truth), truth)
    expected = {"psnr": psnr(predicted, truth), "ssim": ssim(predicted, truth), "scaled_psnr": scaled}
    assert scores == pytest.approx({name: values.mean() for name, values in expected.items()}, rel=1e-6)


def test_normals():
    angles = np.radians([0, 5, 11, 12, 50])
    normals = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=-1)[None, None]
    truth = np.broadcast_to(encode_normal(np.array([0.0, 0, 1])), normals.shape)
    scores = evaluate("normal", encode_normal(normals), truth)
    assert scores == pytest.approx({"angular_mean": 15.6, "angular_median": 11, "under_11.25": 0.6})
    mask = np.array([True, True, False, False, True])[None, None]
    scores = evaluate("normal", encode_normal(normals), truth, mask)
    assert scores == pytest.approx({"angular_mean": 55 / 3, "angular_median": 5, "under_11.25": 2 / 3})


def test_grey_buffers():
    truth = np.linspace(0, 0.5, 24, dtype=np.float32).reshape(2, 3, 4, 1).repeat(3, axis=-1)
    for label in ("roughness", "metallic"):
        assert evaluate(label, truth + np.float32(0.25), truth) == pytest.approx({"rmse": 0.25})
    assert evaluate("depth", truth + np.float32(0.25), truth) == pytest.approx({"rmse": 0.25, "correlation": 1})
    assert evaluate("depth", 1 - truth, truth)["correlation"] == pytest.approx(-1)


@pytest.mark.parametrize("label", ["rgb", "basecolor", "normal", "roughness", "depth"])
def test_what_is_outside_the_mask_does_not_matter(label):
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
def test_a_prediction_that_is_no_number_has_no_score(label):
    truth = images(0, 2, 16, 20)
    predicted = images(1, near=truth)
    predicted[1, 3, 4] = np.nan
    assert all(np.isnan(score) for name, score in evaluate(label, predicted, truth).items() if name != "under_11.25")


def test_means_and_the_table():
    clips = {
        "a": {"depth": {"frames": 2, "rmse": 0.25, "correlation": 1.0}, "normal": {"frames": 2, "angular_mean": 10.0}},
        "b": {"depth": {"frames": 6, "rmse": 0.125, "correlation": 0.5}},
    }
    means = summarize(clips)
    assert means == {
        "depth": {"clips": 2, "frames": 8, "rmse": 0.1875, "correlation": 0.75},
        "normal": {"clips": 1, "frames": 2, "angular_mean": 10.0},
    }
    assert table(means).splitlines() == [
        "depth   clips 2  frames 8  rmse 0.1875      correlation 0.75",
        "normal  clips 1  frames 2  angular_mean 10",
    ]
    assert table({}) == ""


# ---- Folders of clips ----


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of the command."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metrics", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(__main__.main)
        return (stopped.value.code, *capsys.readouterr())

    return call


def write_clip(folder, labels=("basecolor", "depth"), chunks=(2,), value=0.4, size=(12, 16), layout=None):
    """Frames of one colour, which is exact in 8 bits."""
    for chunk, frames in enumerate(chunks):
        for frame in range(frames):
            for label in labels:
                path = frame_path(folder, chunk, frame, label)
                path = path if layout is None else folder / layout.format(frame=frame, label=label)
                write_png(path, np.full((*size, 3), value, np.float32))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two clips, predicted 0.2 too bright."""
    for name in ("walk", "run"):
        write_clip(tmp_path / "P" / name, chunks=(2, 1), value=0.6)
        write_clip(tmp_path / "T" / name, chunks=(2, 1), value=0.4)
    return tmp_path / "P", tmp_path / "T"


def test_a_comparison(run, folders, tmp_path):
    code, out, err = run(*folders, "--json", tmp_path / "deep/scores.json")
    assert (code, err) == (0, "")
    basecolor, depth = out.splitlines()
    assert basecolor.startswith("basecolor  clips 2  frames 6  psnr 13.98") and "scaled_psnr" in basecolor
    assert depth == "depth      clips 2  frames 6  rmse 0.2    correlation 0"
    written = json.loads((tmp_path / "deep/scores.json").read_text())
    assert written["predicted"] == str(folders[0]) and written["mask"] is None
    assert written["labels"]["depth"] == pytest.approx({"clips": 2, "frames": 6, "rmse": 0.2, "correlation": 0})
    assert list(written["clips"]) == ["run", "walk"]
    assert written["clips"]["walk"]["depth"] == pytest.approx({"frames": 3, "rmse": 0.2, "correlation": 0})


def test_frames_are_matched_by_chunk_and_number(run, tmp_path):
    for folder in ("P", "T"):
        for chunk, frame in ((0, 2), (0, 10), (1, 0)):
            value = (chunk * 100 + frame * 10) / 255 + 0.2 * (folder == "P")
            write_png(frame_path(tmp_path / folder / "a", chunk, frame, "depth"), np.full((4, 4, 3), value, np.float32))
    code, out, _ = run(tmp_path / "P", tmp_path / "T")
    assert code == 0 and out == "depth  clips 1  frames 3  rmse 0.2  correlation 1\n"


def test_equal_images(run, tmp_path):
    write_clip(tmp_path / "P/a", ("rgb",)), write_clip(tmp_path / "T/a", ("rgb",))
    code, out, _ = run(tmp_path / "P", tmp_path / "T", "--json", tmp_path / "scores.json")
    assert code == 0 and "psnr inf" in out and "scaled_ssim 1" in out
    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert scores["labels"]["rgb"]["psnr"] is None


def test_labels_of_different_names(run, tmp_path):
    write_clip(tmp_path / "P/a", ("env0000", "env0001", "basecolor"), value=0.6)
    write_clip(tmp_path / "T/a", ("rgb", "day", "albedo"))
    pairs = ("--pair", "env0000=rgb", "--pair", "env0001=day", "--pair=basecolor=albedo")
    code, out, _ = run(tmp_path / "P", tmp_path / "T", *pairs)
    rows = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and rows == ["env0000=rgb", "env0001=day", "basecolor=albedo"]
    assert ["scaled_ssim" in line for line in out.splitlines()] == [True, True, False]
    # Two runs of the same renderer.
    code, out, _ = run(tmp_path / "P", tmp_path / "P", "--pair", "env0000=env0000")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["basecolor", "env0000"]


def test_single_clips_need_no_name(run, tmp_path):
    write_clip(tmp_path / "mine"), write_clip(tmp_path / "theirs")
    assert run(tmp_path / "mine", tmp_path / "theirs")[0] == 0


@pytest.mark.parametrize("layout", ["walk-{frame}.{label}.png", "{label}/{frame}.png"])
def test_other_layouts_count_their_frames(run, tmp_path, layout):
    write_clip(tmp_path / "P/a", chunks=(12,)), write_clip(tmp_path / "T/a", chunks=(12,), layout=layout)
    code, out, _ = run(tmp_path / "P", tmp_path / "T")
    assert code == 0 and "frames 12" in out
    assert run(tmp_path / "T", tmp_path / "T")[0] == 0


def test_masks(run, folders):
    for name in ("walk", "run"):
        write_clip(folders[1] / name, ("mask",), chunks=(2, 1), value=1.0)
    black, half = np.zeros((12, 16, 3), np.float32), np.ones((12, 16, 3), np.float32)
    half[:, 8:] = 0
    write_png(frame_path(folders[1] / "run", 0, 0, "mask"), half)
    exact = np.full((12, 16, 3), 0.6, np.float32)
    exact[:, 8:] = 0.9  # where it does not count
    write_png(frame_path(folders[0] / "run", 0, 0, "depth"), exact)
    code, out, _ = run(*folders, "--mask", "mask")
    assert code == 0 and "rmse 0.2 " in out
    for chunk, frame in ((0, 0), (0, 1), (1, 0)):
        write_png(frame_path(folders[1] / "run", chunk, frame, "mask"), black)
    check_one_line(run(*folders, "--mask", "mask"), "clip 'run': basecolor: the mask is empty")


def test_as_a_process(folders):
    command = [sys.executable, "-m", "drender.metrics", *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "frames 6" in done.stdout


# ---- Errors ----


def check_one_line(result, *words):
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, result
    for word in words:
        assert word in err, err


def test_missing_clips_are_named(run, folders):
    write_clip(folders[0] / "jump")
    check_one_line(run(*folders), "T has no clip 'jump', which /", "P has; both")
    check_one_line(run(*folders[::-1]), "T has no clip 'jump', which /", "P has; both")


def test_missing_labels_are_named(run, folders):
    check_one_line(run(*folders, "--pair", "depth=deep"), "T: clip 'run' has no 'deep'; it has basecolor, depth")
    check_one_line(run(*folders, "--mask", "mask"), "T: clip 'run' has no 'mask'")
    write_clip(folders[0] / "walk", ("normal",)), write_clip(folders[1] / "run", ("normal",))
    check_one_line(run(*folders), "P: clip 'run' has no 'normal'")
    check_one_line(run(*folders[::-1]), "P: clip 'run' has no 'normal'")


def test_missing_frames_are_named(run, folders):
    frame_path(folders[0] / "walk", 0, 1, "depth").unlink()
    first = frame_path(folders[0] / "walk", 0, 0, "depth")
    lonely = frame_path(folders[1] / "walk", 0, 1, "depth")
    check_one_line(run(*folders), f"{lonely} has no counterpart beside {first}")
    check_one_line(run(*folders[::-1]), f"{lonely} has no counterpart beside {first}")


def test_nothing_to_compare(run, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    check_one_line(run(folders[0], tmp_path / "empty"), "empty: no images of basecolor,", "--pair")
    check_one_line(run(tmp_path / "none", folders[1]), "none does not exist")
    check_one_line(run(frame_path(folders[0] / "walk", 0, 0, "depth"), folders[1]), "is not a folder")
    write_clip(tmp_path / "N/walk", ("normal",)), write_clip(tmp_path / "N/run", ("normal",))
    check_one_line(run(tmp_path / "N", folders[1]), "no label in common", "--pair")


def test_sizes_that_differ(run, folders):
    write_clip(folders[0] / "walk", ("depth",), chunks=(2, 1), size=(12, 18))
    check_one_line(run(*folders), "walk/0000.0000.depth.png has 18x12 pixels", "T/walk/0000.0000.depth.png 16x12")
    write_clip(folders[0] / "walk", ("depth",), chunks=(2,))
    check_one_line(run(*folders), "0001.0000.depth.png has 18x12 pixels, 0000.0000.depth.png 16x12")


def test_damaged_images(run, folders):
    path = frame_path(folders[1] / "walk", 0, 1, "basecolor")
    path.write_bytes(path.read_bytes()[:60])
    check_one_line(run(*folders), f"{path}: truncated or damaged image")


def test_tiny_images(run, tmp_path):
    for folder in "PT":
        write_clip(tmp_path / folder / "a", size=(8, 8))
    check_one_line(run(tmp_path / "P", tmp_path / "T"), "clip 'a': images of 8x8 pixels are too small for SSIM")


def test_bad_options(run, folders, tmp_path):
    check_one_line(run(*folders, "--pair", "env0000"), "'env0000' is not PREDICTED=TRUTH")
    check_one_line(run(*folders, "--maks", "mask"), "unknown option '--maks'; did you mean '--mask'?")
    check_one_line(run(*folders, "--lpips", tmp_path), "no weights of LPIPS; expected alexnet-*.pth with alex.pth")
    check_one_line(run(*folders, "--json", tmp_path), f"cannot write {tmp_path}")
    check_one_line(run(folders[0]), "truth")
