"""Material edits: what changes, by how much, and that nothing else does."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sample
from drender import cli
from drender.config import CONDITIONS
from drender.editing.masks import Companion, same_view
from drender.editing.materials import EDITABLE, color_range, colour, depth_range, edit, feather
from drender.errors import InputError
from drender.media.gbuffers import frame_path
from drender.media.images import read_image, write_png
from drender.media.resize import resize
from drender.media.video import write_video

LABELS = ("rgb", *CONDITIONS)
IMAGES = hnp.arrays(np.float32, (1, 2, 3, 4, 3), elements=st.floats(0, 1, width=32))
MASKS = hnp.arrays(np.float32, (1, 2, 3, 4, 1), elements=st.sampled_from([0, 0.25, 0.7, 1]))


def to_srgb(x):
    """In float64, as IEC 61966-2-1 writes it."""
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)


def to_linear(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


# ---- Arrays ----


@given(IMAGES, MASKS)
@settings(max_examples=30)
def test_an_edit_keeps_the_bits_outside_the_mask_and_gives_the_value_inside(image, mask):
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
def test_colours_are_scaled_and_mixed_in_linear_light(image, mask, factor):
    edited = edit({"basecolor": image}, mask, scale={"basecolor": factor})["basecolor"]
    light = to_linear(image.astype(np.float64))
    expected = to_srgb(light * (1 - mask) + (light * factor).clip(0, 1) * mask)
    np.testing.assert_allclose(edited, expected, atol=2e-5)


def test_a_buffer_is_replaced_by_a_picture_and_one_channel_by_its_mean():
    random = np.random.default_rng(0)
    image, texture = random.random((2, 1, 2, 3, 4, 3), np.float32)
    edited = edit({"basecolor": image, "roughness": image}, replace={"basecolor": texture, "roughness": texture})
    assert (edited["basecolor"] == texture).all()
    np.testing.assert_allclose(edited["roughness"], texture.mean(axis=-1, keepdims=True).repeat(3, -1), atol=1e-7)


def test_colours_are_words_or_numbers():
    for value in ("#336699", (0.2, 0.4, 0.6), "0.2 0.4 0.6"):
        np.testing.assert_allclose(colour(value), [0.2, 0.4, 0.6], atol=1e-7)
    assert (colour(0.5) == 0.5).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"set": {"basecolour": 1}}, "unknown buffer to edit 'basecolour'; did you mean 'basecolor'"),
        ({"set": {"normal": 1}}, "unknown buffer to edit 'normal'"),
        ({"set": {"metallic": 1}}, "no metallic among the buffers to edit; there are basecolor, roughness"),
        ({"set": {"basecolor": "#12345"}}, "colour #12345 is not"),
        ({"set": {"basecolor": (1, 0)}}, "colour 1 0 is not"),
        ({"set": {"basecolor": 1.5}}, "its numbers must be 0 to 1"),
        ({"set": {"roughness": (0.1, 0.2, 0.3)}}, "roughness value 0.1 0.2 0.3 is not one number"),
        ({"set": {"roughness": float("nan")}}, "roughness value nan is not one number"),
        ({"set": {"roughness": -0.1}}, "roughness cannot be set to -0.1; values are 0 to 1"),
        ({"scale": {"roughness": -1}}, "roughness cannot be scaled by -1; a factor is 0 or more"),
        ({"set": {"roughness": 1}, "scale": {"roughness": 1}}, "roughness is changed twice by one edit"),
    ],
)
def test_an_edit_that_makes_no_sense_says_why(change, message):
    buffers = {label: np.zeros((1, 1, 2, 2, 3), np.float32) for label in ("basecolor", "roughness")}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        edit(buffers, **change)


# ---- Masks ----


def test_ranges_hold_their_bounds_and_nothing_beyond():
    ramp = np.linspace(0, 1, 11, dtype=np.float32)[None, :, None].repeat(3, -1)
    np.testing.assert_array_equal(np.flatnonzero(depth_range(ramp, 0.2, 0.5)), [2, 3, 4, 5])
    # The distance is Euclidean: 0.3·√3 for three steps of grey.
    np.testing.assert_array_equal(np.flatnonzero(color_range(ramp, (0.5, 0.5, 0.5), 0.2 * 3**0.5)), [3, 4, 5, 6, 7])
    for near, far in ((0.5, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1)):
        with pytest.raises(InputError, match="must be NEAR FAR with 0 ≤ NEAR ≤ FAR ≤ 1"):
            depth_range(ramp, near, far)
    with pytest.raises(InputError, match="the distance is -1"):
        color_range(ramp, "#ffffff", -1)


@pytest.mark.parametrize("pixels", [0, 0.5, 1, 3, 4.5])
def test_soft_edges_reach_as_far_as_said_and_no_further(pixels):
    mask = np.zeros((32, 32, 1), np.float32)
    mask[:, 16:] = 1
    soft = feather(mask, pixels)[..., 0]
    reach = int(np.ceil(pixels))
    assert (soft[:, : 16 - reach] == 0).all() and (soft[:, 16 + reach :] == 1).all()
    assert (np.diff(soft, axis=1) >= 0).all() and (soft == soft[:1]).all()
    np.testing.assert_allclose(soft + soft[:, ::-1], 1, atol=1e-5)  # the edge stays where it is
    assert ((soft > 0) & (soft < 1)).any() == (pixels > 0)
    assert (feather(np.ones((9, 9, 1), np.float32), pixels) == 1).all()


def test_masks_of_the_source_fit_buffers_that_were_rounded_up():
    assert same_view((1080, 1920), (512, 960)) and same_view((540, 960), (512, 960)) and same_view((48, 64), (96, 128))
    assert not same_view((1920, 1080), (512, 960)) and not same_view((100, 100), (512, 960))
    assert same_view((1080, 1920), (101, 180)) and not same_view((100, 100), (101, 180))


def test_frames_are_read_in_any_order_from_stills_videos_and_gbuffers(tmp_path):
    frames = [np.full((16, 16, 3), value, np.float32) for value in (0.2, 0.4, 0.6, 0.8)]
    write_video(tmp_path / "mask.mp4", frames, 8.0)
    for i, frame in enumerate(frames):
        write_png(tmp_path / "frames" / f"{i}.png", frame)
        write_png(frame_path(tmp_path / "clips" / "walk", 0, i, "mask"), frame)
        write_png(frame_path(tmp_path / "clips" / "walk", 0, i, "depth"), 1 - frame)
        write_png(frame_path(tmp_path / "clips" / "run", 0, i, "mask"), 1 - frame)
    for path in ("mask.mp4", "frames", "clips", "clips/walk"):
        found = Companion("--mask", tmp_path / path, "mask").of("walk", 4)
        seen = [float(found.at(index, (8, 8)).mean()) for index in (0, 1, 3, 2, 2, 0)]
        np.testing.assert_allclose(seen, [0.2, 0.4, 0.8, 0.6, 0.6, 0.2], atol=0.01)
    still = Companion("--mask", tmp_path / "frames/2.png", "mask").of("walk", 9)
    assert still.at(7, (16, 16)).mean() == pytest.approx(0.6, abs=0.01)
    with pytest.raises(InputError, match="has 4 frames, but clip 'walk' 9; give one image, or as many"):
        Companion("--mask", tmp_path / "frames", "mask").of("walk", 9)
    with pytest.raises(InputError, match="has 2 clips, but none named 'jump'"):
        Companion("--mask", tmp_path / "clips", "mask").of("jump", 4)
    with pytest.raises(InputError, match="16x16 pixels have another shape than the G-buffers' 90x30"):
        still.at(0, (30, 90))
    assert still.at(0, (30, 90), crop=True).shape == (30, 90, 3)
    with pytest.raises(InputError, match=r"--mask: .*nothere\.png does not exist"):
        Companion("--mask", tmp_path / "nothere.png", "mask")


# ---- On the command line ----


@pytest.fixture
def run(monkeypatch, capsys):
    """run("edit", …) -> (exit code, stdout, stderr), in this process."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(sample.main)
        return (stopped.value.code, *capsys.readouterr())

    return call


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("bits", [8, 16])
def test_outside_the_mask_files_hold_the_same_bits(run, tmp_path, bits):
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


def test_several_edits_in_order_with_masks_of_the_input(run, tmp_path):
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


def test_textures_and_depth_ranges(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk")
    other = write_gbuffers(tmp_path / "other", seed=3)
    changes = ("--replace", "basecolor", other, "--depth-range", 0.3, 0.6)
    assert run("edit", "--input", clip, "--output", tmp_path / "out", *changes)[0] == 0
    for i in range(3):
        depth = read_image(frame_path(clip, 0, i, "depth"))[..., :1]
        of = lambda folder, i=i: read_image(frame_path(folder, 0, i, "basecolor"))
        expected = np.where((depth >= 0.3) & (depth <= 0.6), of(other), of(clip))
        np.testing.assert_array_equal(of(tmp_path / "out/walk"), expected)


def test_frames_of_masks_are_counted_through_overlapping_chunks(run, tmp_path):
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


def test_results_are_resumed_kept_apart_and_replaced_as_by_other_commands(run, tmp_path):
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


def test_buffers_of_other_models_are_passed_on(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", labels=("basecolor", "glossiness"), record={"overlap": 6})
    record = json.loads((clip / "inverse.json").read_text())
    (clip / "inverse.json").write_text(json.dumps(record | {"labels": ["basecolor", "glossiness"]}))
    assert run("edit", "--input", clip, "--output", tmp_path / "out", "--set", "basecolor", 0)[0] == 0
    for i in range(3):
        before, after = (stored(frame_path(x, 0, i, "glossiness")) for x in (clip, tmp_path / "out/walk"))
        np.testing.assert_array_equal(before, after)


def test_the_input_is_safe(run, tmp_path):
    clip = write_gbuffers(tmp_path / "in" / "walk")
    before = contents(tmp_path / "in")
    for source, output in ((clip, clip.parent), (clip.parent, clip.parent), (clip.parent, clip.parent / "out")):
        code, _, err = run("edit", "--set", "roughness", 1, "--input", source, "--output", output, "--overwrite")
        assert code == 2 and "would put results among the input's files" in err
    assert contents(tmp_path / "in") == before


@pytest.mark.filterwarnings("default")
def test_an_empty_mask_is_a_warning(run, tmp_path):
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
            "--color-range #ffffff: give a colour and a distance",
        ),
        (("--set", "roughness", "1", "--color-range", "red", "1"), "--color-range red 1: colour red is not"),
        (("--set", "roughness", "1", "--depth-range", "1", "0"), "depth range 1 0: must be NEAR FAR"),
        (("--set", "roughness", "1", "--mask", "nowhere.png"), "--mask: nowhere.png does not exist"),
        (("--replace", "roughness", "a.png", "b.png"), "--replace: a.png b.png does not exist"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(run, tmp_path, words, message):
    clip = write_gbuffers(tmp_path / "in" / "walk", chunks=(1,))
    code, _, err = run("edit", "--input", clip, "--output", tmp_path / "out", *words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_buffers_of_different_sizes_and_masks_of_another_shape_are_named(run, tmp_path):
    clip = write_gbuffers(tmp_path / "walk", chunks=(1,), size=(8, 8))
    write_png(tmp_path / "mask.png", np.zeros((8, 16, 3), np.float32))
    where = ("--input", clip, "--output", tmp_path / "out")
    code, _, err = run("edit", *where, "--set", "roughness", 1, "--mask", tmp_path / "mask.png")
    assert code == 2 and "16x8 pixels have another shape than the G-buffers' 8x8" in err
    assert not any((tmp_path / "out").iterdir())
    write_png(frame_path(clip, 0, 0, "depth"), np.zeros((8, 9, 3), np.float32))
    code, _, err = run("edit", *where, "--set", "roughness", 1)
    assert code == 2 and "depth has 9x8 pixels" in err


def test_stretching_keeps_the_ends_of_a_ramp():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(4, 0).repeat(3, -1)
    assert resize(ramp, (4, 64)) is ramp
    shrunk = resize(ramp, (8, 16))
    assert shrunk.shape == (8, 16, 3) and (np.diff(shrunk[0, :, 0]) > 0).all()


def test_all_that_can_be_edited_is_known():
    assert EDITABLE == ("basecolor", "diffuse_albedo", "roughness", "metallic")
