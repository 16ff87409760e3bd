"""The comparison of folders of clips, through the command line."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import check_one_line

from drender.media.gbuffers import frame_path
from drender.media.images import write_png
from drender.metrics import __main__
from drender.metrics.compare import summarize, table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, __main__.main, "metrics")


def write_clip(folder, labels=("basecolor", "depth"), chunks=(2,), value=0.4, size=(12, 16), layout=None):
    """Write frames of one color, which 8 bits hold exactly, and return the folder."""
    for chunk, frames in enumerate(chunks):
        for frame in range(frames):
            for label in labels:
                path = frame_path(folder, chunk, frame, label)
                path = path if layout is None else folder / layout.format(frame=frame, label=label)
                write_png(path, np.full((*size, 3), value, np.float32))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two clips, predicted and true; the predicted ones are 0.2 too bright."""
    for name in ("walk", "run"):
        write_clip(tmp_path / "P" / name, chunks=(2, 1), value=0.6)
        write_clip(tmp_path / "T" / name, chunks=(2, 1), value=0.4)
    return tmp_path / "P", tmp_path / "T"


def test_clips_of_one_name_are_refused(run, folders):
    for part in ("fast", "slow"):
        write_clip(folders[0] / "jump", layout=part + ".{frame:04d}.{label}.png")
    write_clip(folders[0] / "jump_fast")
    code, _, err = run(*folders)
    assert (code, err) == (2, f"error: {folders[0]}: two clips are named 'jump_fast'; rename one\n")


def test_scores_are_printed_and_written(run, folders, tmp_path):
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


def test_equal_images_have_infinite_psnr_and_null_in_json(run, tmp_path):
    write_clip(tmp_path / "P/a", ("rgb",)), write_clip(tmp_path / "T/a", ("rgb",))
    code, out, _ = run(tmp_path / "P", tmp_path / "T", "--json", tmp_path / "scores.json")
    assert code == 0 and "psnr inf" in out and "scaled_ssim 1" in out
    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert scores["labels"]["rgb"]["psnr"] is None


def test_pairs_compare_labels_of_different_names(run, tmp_path):
    write_clip(tmp_path / "P/a", ("env0000", "env0001", "basecolor"), value=0.6)
    write_clip(tmp_path / "T/a", ("rgb", "day", "albedo"))
    pairs = ("--pair", "env0000=rgb", "--pair", "env0001=day", "--pair=basecolor=albedo")
    code, out, _ = run(tmp_path / "P", tmp_path / "T", *pairs)
    rows = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and rows == ["env0000=rgb", "env0001=day", "basecolor=albedo"]
    assert ["scaled_ssim" in line for line in out.splitlines()] == [True, True, False]
    code, out, _ = run(tmp_path / "P", tmp_path / "P", "--pair", "env0000=env0000")  # once, although both have it
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["basecolor", "env0000", "env0001"]


RELIT_LAYOUTS = [None, "{frame}.{label}.png", "{label}/{frame}.png"]


@pytest.mark.parametrize("layout", RELIT_LAYOUTS)
def test_relit_frames_that_both_sides_have_are_compared(run, tmp_path, layout):
    write_clip(tmp_path / "P/a", ("env0000", "env0002", "env0010"), layout=layout)
    write_clip(tmp_path / "T/a", ("env0010", "env0000", "env0001"), layout=layout)
    code, out, _ = run(tmp_path / "P", tmp_path / "T")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["env0000", "env0010"]


def test_other_labels_that_both_sides_have_are_compared(run, tmp_path):
    write_clip(tmp_path / "P/a", ("irradiance", "mask", "glossiness"))
    write_clip(tmp_path / "T/a", ("irradiance", "mask"))
    code, out, _ = run(tmp_path / "P", tmp_path / "T", "--mask", "mask")
    assert code == 2  # black masks
    write_clip(tmp_path / "T/a", ("mask",), value=1.0)
    code, out, _ = run(tmp_path / "P", tmp_path / "T", "--mask", "mask")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["irradiance"]


def test_single_clips_match_by_any_name(run, tmp_path):
    write_clip(tmp_path / "predicted"), write_clip(tmp_path / "truth")
    assert run(tmp_path / "predicted", tmp_path / "truth")[0] == 0


@pytest.mark.parametrize("layout", ["walk-{frame}.{label}.png", "{label}/{frame}.png"])
def test_other_layouts_are_matched_by_order(run, tmp_path, layout):
    write_clip(tmp_path / "P/a", chunks=(12,)), write_clip(tmp_path / "T/a", chunks=(12,), layout=layout)
    code, out, _ = run(tmp_path / "P", tmp_path / "T")
    assert code == 0 and "frames 12" in out
    assert run(tmp_path / "T", tmp_path / "T")[0] == 0


def test_each_side_may_state_its_encoding(run, tmp_path):
    write_clip(tmp_path / "P" / "a", ("basecolor",), value=0.2)
    write_clip(tmp_path / "T" / "a", ("basecolor",), value=0.4845)  # the sRGB of 0.2
    (tmp_path / "P" / "encoding.json").write_text('{"transfer": "linear"}')
    code, out, err = run(tmp_path / "P", tmp_path / "T")
    assert (code, err) == (0, "") and float(re.search(r"psnr ([\d.]+)", out)[1]) > 50


def test_mask_restricts_scores(run, folders):
    for name in ("walk", "run"):
        write_clip(folders[1] / name, ("mask",), chunks=(2, 1), value=1.0)
    black, half = np.zeros((12, 16, 3), np.float32), np.ones((12, 16, 3), np.float32)
    half[:, 8:] = 0
    write_png(frame_path(folders[1] / "run", 0, 0, "mask"), half)
    exact = np.full((12, 16, 3), 0.6, np.float32)
    exact[:, 8:] = 0.9  # outside the mask
    write_png(frame_path(folders[0] / "run", 0, 0, "depth"), exact)
    code, out, _ = run(*folders, "--mask", "mask")
    assert code == 0 and "rmse 0.2 " in out
    for chunk, frame in ((0, 0), (0, 1), (1, 0)):
        write_png(frame_path(folders[1] / "run", chunk, frame, "mask"), black)
    check_one_line(run(*folders, "--mask", "mask"), "clip 'run': basecolor: the mask is empty")


def test_module_runs_as_a_process(folders):
    command = [sys.executable, "-m", "drender.metrics", *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (finished.returncode, finished.stderr) == (0, "") and "frames 6" in finished.stdout


# --- errors -----------------------------------------------------------------------------------------------------------


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
    unmatched = frame_path(folders[1] / "walk", 0, 1, "depth")
    check_one_line(run(*folders), f"{unmatched} has no counterpart beside {first}")
    check_one_line(run(*folders[::-1]), f"{unmatched} has no counterpart beside {first}")


def test_folders_without_common_labels_are_refused(run, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    check_one_line(run(folders[0], tmp_path / "empty"), "empty: no images of basecolor,", "--pair")
    check_one_line(run(tmp_path / "none", folders[1]), "none does not exist")
    check_one_line(run(frame_path(folders[0] / "walk", 0, 0, "depth"), folders[1]), "is not a folder")
    write_clip(tmp_path / "N/walk", ("normal",)), write_clip(tmp_path / "N/run", ("normal",))
    check_one_line(run(tmp_path / "N", folders[1]), "no label in common", "--pair")


def test_different_sizes_are_named(run, folders):
    write_clip(folders[0] / "walk", ("depth",), chunks=(2, 1), size=(12, 18))
    check_one_line(run(*folders), "walk/0000.0000.depth.png has 18x12 pixels", "T/walk/0000.0000.depth.png 16x12")
    write_clip(folders[0] / "walk", ("depth",), chunks=(2,))
    check_one_line(run(*folders), "0001.0000.depth.png has 18x12 pixels, 0000.0000.depth.png 16x12")


def test_damaged_images_are_named(run, folders):
    path = frame_path(folders[1] / "walk", 0, 1, "basecolor")
    path.write_bytes(path.read_bytes()[:60])
    check_one_line(run(*folders), f"{path}: truncated or damaged image")


def test_images_smaller_than_ssim_window_name_the_clip(run, tmp_path):
    for folder in "PT":
        write_clip(tmp_path / folder / "a", size=(8, 8))
    check_one_line(run(tmp_path / "P", tmp_path / "T"), "clip 'a': images of 8x8 pixels are too small for SSIM")


def test_wrong_options_are_one_line(run, folders, tmp_path):
    check_one_line(run(*folders, "--pair", "env0000"), "'env0000' is not PREDICTED=TRUTH")
    check_one_line(run(*folders, "--maks", "mask"), "unknown option '--maks'; did you mean '--mask'?")
    check_one_line(run(*folders, "--lpips", "alexnet"), "unknown --lpips 'alexnet'; did you mean 'alex'?")
    check_one_line(run(*folders, "--json", tmp_path), f"cannot write {tmp_path}")
    check_one_line(run(folders[0]), "truth")


# --- summaries --------------------------------------------------------------------------------------------------------


def test_summary_averages_clips_and_table_aligns_columns():
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
