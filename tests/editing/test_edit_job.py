"""`sample.py edit`: files in, files out."""

import functools
import json
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.runs import contents, labels

import sample
from drender.config import CONDITIONS
from drender.editing.materials import feather
from drender.media.color import linear_to_srgb
from drender.media.gbuffers import frame_path
from drender.media.images import read_image, write_exr, write_png

LABELS = ("rgb", *CONDITIONS)


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, sample.main, "sample.py")


def stored(path: Path) -> np.ndarray:
    """The file's integers."""
    image = oiio.ImageInput.open(str(path))
    return image.read_image("uint16" if str(image.spec().format) == "uint16" else "uint8")


def write_gbuffers(folder: Path, chunks=(3,), labels=LABELS, bits=8, size=(8, 8), seed=0, record=None) -> Path:
    random = np.random.default_rng(seed)
    for chunk, count in enumerate(chunks):
        for i in range(count):
            for label in labels:
                write_png(frame_path(folder, chunk, i, label), random.random((*size, 3), np.float32), bits)
    if record is not None:
        whole = {"settings": record, "labels": list(labels), "chunks": list(range(len(chunks))), "finished": True}
        (folder / "inverse.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("bits", [8, 16])
def test_edit_keeps_files_bits_outside_mask(run, tmp_path, bits):
    clip = write_gbuffers(tmp_path / "in" / "walk", bits=bits, size=(16, 16))
    mask = np.zeros((16, 16, 3), np.float32)
    mask[4:9, 5:11] = 1
    write_png(tmp_path / "mask.png", mask)
    changes = ("--set", "basecolor", "#ff0000", "--scale", "roughness", 0.5, "--mask", tmp_path / "mask.png")
    assert run("edit", "--input", clip, "--output", tmp_path / "out", *changes, "--feather", 1)[0] == 0
    outside = feather(mask[..., :1], 1)[..., 0] == 0
    assert 0 < outside.sum() < 16 * 16
    files = sorted(clip.glob("*.png"))
    assert [path.name for path in sorted((tmp_path / "out" / "walk").glob("*.png"))] == [path.name for path in files]
    for path in files:
        before, after = stored(path), stored(tmp_path / "out" / "walk" / path.name)
        assert before.dtype == after.dtype == (np.uint8 if bits == 8 else np.uint16)
        np.testing.assert_array_equal(before[outside], after[outside])
        changed = path.name.split(".")[2] in ("basecolor", "roughness")
        assert (before != after).any() == changed
    top = 2**bits - 1
    assert (stored(tmp_path / "out/walk/0000.0001.basecolor.png")[5:8, 6:10] == [top, 0, 0]).all()


def test_edits_run_in_order_with_masks_of_the_input(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", labels=CONDITIONS)
    for i in range(3):
        left_red = np.zeros((8, 8, 3), np.float32)
        left_red[:, :4, 0], left_red[:, 4:, 2] = 1, 1  # and right blue
        write_png(frame_path(clip, 0, i, "basecolor"), left_red)
    swap = ("--set", "basecolor", "#0000ff", "--color-range", "#ff0000", 0.2)
    swap += ("--then", "--set", "basecolor", 1, 0, 0, "--set", "metallic", 1, "--color-range", "0", "0", "1", 0.2)
    swap += ("--then", "--set", "roughness", 0, "--color-range", "#ff0000", 0.2, "--invert")
    assert run("edit", "--input", clip, "--output", tmp_path / "out", *swap)[0] == 0
    for i in range(3):
        after = {x: read_image(frame_path(tmp_path / "out/walk", 0, i, x)) for x in CONDITIONS}
        before = {x: read_image(frame_path(clip, 0, i, x)) for x in CONDITIONS}
        assert (after["basecolor"][:, :4] == [0, 0, 1]).all() and (after["basecolor"][:, 4:] == [1, 0, 0]).all()
        assert (after["metallic"][:, 4:] == 1).all() and (after["roughness"][:, 4:] == 0).all()
        for label in ("metallic", "roughness"):
            assert (after[label][:, :4] == before[label][:, :4]).all()
        assert (after["depth"] == before["depth"]).all()


def test_replace_within_depth_range(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk")
    other = write_gbuffers(tmp_path / "other", seed=3)
    changes = ("--replace", "basecolor", other, "--depth-range", 0.3, 0.6)
    assert run("edit", "--input", clip, "--output", tmp_path / "out", *changes)[0] == 0
    for i in range(3):
        depth = read_image(frame_path(clip, 0, i, "depth"))[..., :1]
        of = lambda folder, i=i: read_image(frame_path(folder, 0, i, "basecolor"))
        expected = np.where((depth >= 0.3) & (depth <= 0.6), of(other), of(clip))
        np.testing.assert_array_equal(of(tmp_path / "out/walk"), expected)


def test_mask_frames_follow_overlapping_chunks(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", chunks=(4, 3), record={"overlap": 2})
    for i in range(5):  # 0 1 2 3 and 2 3 4
        mask = np.zeros((8, 8, 3), np.float32)
        mask[i] = 1
        write_png(tmp_path / "mask" / f"{i}.png", mask)
    changes = ("--set", "roughness", 1, "--mask", tmp_path / "mask")
    assert run("edit", "--input", clip, "--output", tmp_path / "out", *changes)[0] == 0
    for chunk, i, row in ((0, 0, 0), (0, 3, 3), (1, 0, 2), (1, 2, 4)):
        assert (read_image(frame_path(tmp_path / "out/walk", chunk, i, "roughness"))[row] == 1).all()
    record = json.loads((tmp_path / "out/walk/inverse.json").read_text())
    assert record["finished"] and record["settings"]["overlap"] == 2  # as `forward` asks for it


def test_edits_resume_reject_mixing_and_overwrite(run, tmp_path):
    write_gbuffers(tmp_path / "in" / "a", chunks=(3, 3), record={"overlap": 1})
    write_gbuffers(tmp_path / "in" / "b", chunks=(2,))
    call = functools.partial(run, "edit", "--input", tmp_path / "in", "--output", tmp_path / "out")
    code, out, err = call("--set", "roughness", 1)
    assert (code, err) == (0, "") and "a: frames 0 to 2 written" in out and "b: done" in out
    whole = contents(tmp_path / "out")
    assert "a.viz.mp4" in whole and "b.contact.png" in whole
    assert "a: finished before, skipped" in call("--set", "roughness", 1)[1]
    # Stopped in the second chunk:
    record = json.loads(whole["a/inverse.json"]) | {"chunks": [0], "finished": False}
    (tmp_path / "out/a/inverse.json").write_text(json.dumps(record))
    frame_path(tmp_path / "out/a", 1, 2, "depth").unlink()
    code, out, _ = call("--set", "roughness", 1)
    assert code == 0 and "frames 0 to 2" not in out and "a: frames 2 to 4 written" in out
    again = contents(tmp_path / "out")
    assert {name: data for name, data in again.items() if not name.endswith(".json")} == {
        name: data for name, data in whole.items() if not name.endswith(".json")
    }
    code, _, err = call("--set", "roughness", 0)
    assert code == 2 and "holds results made with another edits" in err and contents(tmp_path / "out") == again
    assert call("--set", "roughness", 0, "--overwrite", "--no-video")[0] == 0
    assert read_image(frame_path(tmp_path / "out/b", 0, 0, "roughness")).max() == 0


def test_a_changed_mask_is_not_taken_for_finished(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk")
    write_png(tmp_path / "mask.png", np.ones((8, 8, 3), np.float32))
    where = ("--input", clip, "--output", tmp_path / "out", "--set", "roughness", 1, "--mask", tmp_path / "mask.png")
    assert run("edit", *where)[0] == 0
    write_png(tmp_path / "mask.png", np.eye(8, dtype=np.float32)[..., None].repeat(3, -1))
    code, _, err = run("edit", *where)
    assert code == 2 and "other contents of the same input files" in err
    assert run("edit", *where, "--overwrite")[0] == 0
    roughness = read_image(frame_path(tmp_path / "out/walk", 0, 0, "roughness"))
    assert (roughness.diagonal() == 1).all() and (roughness < 1).any()


def test_gbuffers_of_other_programs_are_written_as_those_of_drender(run, tmp_path):
    """World normals, distances, linear PNG colors and an ORM channel come out in drender's axes and ranges."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    (tmp_path / "poses.json").write_text(json.dumps({"frames": [{"transform_matrix": pose.tolist()}]}))
    frame = functools.partial(frame_path, tmp_path / "in/walk", 0, 0)
    flat = lambda *values: np.full((8, 8, len(values)), values, np.float32)
    write_png(frame("basecolor"), flat(0.25, 0.5, 0.75), 16)
    write_png(frame("normal"), flat(0.5, 1, 0.5), 16)  # +y of the world
    write_png(frame("roughness"), flat(1, 0.25, 0.5), 16)
    depth = flat(2.0)[..., 0]
    depth[0], depth[1], depth[2] = 4, np.inf, 6
    write_exr(frame("depth", "exr"), {"Z": depth})
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--set", "basecolor", "#808080"]
    words += ["--depth-range", "0.4", "0.6", "--input-normals", "world", "--input-depth", "metric", "--no-video"]
    code, _, err = run("edit", *words)
    assert code == 2 and "give --poses" in err
    words += ["--input-transfer", "linear", "--input-layers", "roughness=G", "--poses", tmp_path / "poses.json"]
    assert run("edit", *words)[0] == 0
    written = {
        label: read_image(tmp_path / f"out/walk/0000.0000.{label}.png") for label in CONDITIONS if label != "metallic"
    }
    step = 1 / 65535
    np.testing.assert_allclose(written["basecolor"][1:], linear_to_srgb(flat(0.25, 0.5, 0.75))[1:], atol=step)
    np.testing.assert_allclose(written["basecolor"][0], 128 / 255, atol=step)
    np.testing.assert_allclose(written["normal"], flat(1, 0.5, 0.5), atol=2 * step)  # x of the camera is y of the world
    np.testing.assert_allclose(written["roughness"], flat(0.25, 0.25, 0.25), atol=step)
    np.testing.assert_allclose(written["depth"][[0, 1, 2, 3], 0, 0], [0.5, 1, 1, 0], atol=step)


def test_a_line_break_in_a_name_makes_no_line_of_its_own(run, tmp_path):
    write_gbuffers(tmp_path / "in" / "walk\nerror: faked")
    words = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--set", "roughness", 0.5)
    for _ in range(2):
        code, out, _ = run("edit", *words, "--html")
        assert code == 0 and not [line for line in out.splitlines() if line.startswith("error")]
        assert r"walk\nerror: faked: " in out


def test_unknown_buffers_are_passed_through(run, tmp_path):
    """Copy buffers that no record names, as beside released results, but neither maps of the light nor previews."""
    clip = write_gbuffers(tmp_path / "walk", labels=("basecolor", "glossiness"))
    write_gbuffers(clip, labels=("env_ldr", "env0000", "guide", "valid"), size=(4, 4))
    assert run("edit", "--input", clip, "--output", tmp_path / "out", "--set", "basecolor", 0)[0] == 0
    assert labels(tmp_path / "out/walk") == {"basecolor", "glossiness"}
    for i in range(3):
        before, after = (stored(frame_path(x, 0, i, "glossiness")) for x in (clip, tmp_path / "out/walk"))
        np.testing.assert_array_equal(before, after)


def test_output_inside_input_is_rejected(run, tmp_path):
    clip = write_gbuffers(tmp_path / "in" / "walk")
    before = contents(tmp_path / "in")
    for source, output in ((clip, clip.parent), (clip.parent, clip.parent), (clip.parent, clip.parent / "out")):
        code, _, err = run("edit", "--set", "roughness", 1, "--input", source, "--output", output, "--overwrite")
        assert code == 2 and "would put results among the input's files" in err
    assert contents(tmp_path / "in") == before


def test_too_few_poses_and_long_names_are_found_before_anything_is_written(run, tmp_path):
    clip, long = write_gbuffers(tmp_path / "walk"), write_gbuffers(tmp_path / ("é" * 120), chunks=(1,))
    (tmp_path / "poses.json").write_text(json.dumps({"frames": [{"transform_matrix": np.eye(4).tolist()}] * 2}))
    where = ("--output", tmp_path / "out", "--set", "roughness", 1)
    world = ("--input-normals", "world", "--poses", tmp_path / "poses.json")
    code, _, err = run("edit", "--input", clip, *where, *world)
    assert code == 2 and "clip 'walk' has 3 frames, but --poses only 2; give one for each" in err
    code, _, err = run("edit", "--input", long, *where)
    assert code == 2 and "its name has 240 bytes, too many for the names of its results (230); rename it" in err
    assert not (tmp_path / "out").exists()


def test_a_quoted_color_range_is_read(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", chunks=(1,))
    where = ("--input", clip, "--output", tmp_path / "out", "--set", "roughness", 1)
    assert run("edit", *where, "--color-range", "#808080 2")[0] == 0
    assert (read_image(frame_path(tmp_path / "out/walk", 0, 0, "roughness")) == 1).all()


@pytest.mark.filterwarnings("default")
def test_empty_mask_warns(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk")
    where = ("--input", clip, "--output", tmp_path / "out")
    changes = ("--set", "roughness", 1, "--then", "--set", "roughness", 0, "--color-range", "#00ff00", 0)
    code, _, err = run("edit", *where, *changes)
    assert code == 0 and "warning: clip 'walk': the masks of edits 2 are empty in every frame" in err


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "an edit changes nothing; give it --set, --scale or --replace"),
        (("--set", "roughness", "1", "--then"), "an edit changes nothing"),
        (("--set", "roughness"), "--set roughness: a value is missing"),
        (("--set", "diffuse_albedo", "1"), "clip 'walk' has no 'diffuse_albedo'"),
        (("--set", "roughness", "1", "--invert"), "--invert: there is no mask to invert"),
        (("--set", "roughness", "1", "--feather", "-1"), "--feather -1: must be 0 to 1000"),
        (
            ("--set", "roughness", "1", "--color-range", "#ffffff"),
            "--color-range #ffffff: give a color and a distance",
        ),
        (
            ("--set", "roughness", "1", "--color-range", "red", "1"),
            "--color-range red 1: color: expected #rrggbb, or one or three numbers from 0 to 1, got red",
        ),
        (
            ("--set", "roughness", "1", "--depth-range", "1", "0"),
            "depth range: expected NEAR FAR with 0 ≤ NEAR ≤ FAR ≤ 1, got 1 0",
        ),
        (("--set", "roughness", "1", "--mask", "nowhere.png"), "--mask: nowhere.png does not exist"),
        (("--replace", "roughness", "a.png", "b.png"), "--replace: a.png b.png does not exist"),
    ],
)
def test_invalid_options_are_one_line_and_write_nothing(run, tmp_path, words, message):
    clip = write_gbuffers(tmp_path / "in" / "walk", chunks=(1,))
    code, _, err = run("edit", "--input", clip, "--output", tmp_path / "out", *words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_size_and_aspect_mismatches_are_named(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", chunks=(1,), size=(8, 8))
    write_png(tmp_path / "mask.png", np.zeros((8, 16, 3), np.float32))
    where = ("--input", clip, "--output", tmp_path / "out")
    code, _, err = run("edit", *where, "--set", "roughness", 1, "--mask", tmp_path / "mask.png")
    assert code == 2 and "expected the aspect ratio of the 8x8 G-buffers, got 16x8 pixels" in err
    assert not (tmp_path / "out").exists()
    write_png(frame_path(clip, 0, 0, "depth"), np.zeros((8, 9, 3), np.float32))
    code, _, err = run("edit", *where, "--set", "roughness", 1)
    assert code == 2 and "depth has 9x8 pixels" in err
