"""Interrupted and repeated runs: resume to the same files, skip finished clips, never mix results."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import (
    PASSES,
    QUICK,
    Stop,
    check_one_line,
    contents,
    frames,
    labels,
    pictures,
    png,
    start,
    text,
    write_frames,
    write_gbuffers,
    write_hdr,
)
from helpers.stand_ins import InverseStandIn

from drender.media.images import read_image, write_png
from drender.sampling.outputs import ClipOutput


@pytest.mark.parametrize("after", [0, 4, 6, 9])
def test_an_interrupted_run_resumes_to_the_same_files(inverse, monkeypatch, tmp_path, after):
    write_frames(tmp_path / "in/a", 3)
    write_frames(tmp_path / "in/b", 2)
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--chunks", "all")
    assert inverse(*arguments)[0] == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(after, KeyboardInterrupt()))
        code, _, err = inverse(*arguments)
    assert code == 130 and err.count("\n") == 1 and "rerun the same command" in err
    assert not [name for name in contents(tmp_path / "out") if name.endswith("mp4")]
    calls = []
    monkeypatch.setattr("drender.media.encodings.write_png", lambda *a: calls.append(a) or write_png(*a))
    assert inverse(*arguments)[0] == 0
    assert contents(tmp_path / "out") == whole
    assert len(calls) == 18 - after // 6 * 6  # finished chunks are not made again


def test_a_missing_video_is_made_from_the_finished_frames(inverse, tmp_path):
    options = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    assert inverse(*options, "--no-video")[0] == 0
    before = contents(tmp_path / "out")
    code, out, _ = inverse(*options)
    assert code == 0 and "written" not in out
    assert contents(tmp_path / "out").keys() - before.keys() == {"a.contact.png", "a.viz.mp4"}


def test_finished_clips_are_skipped(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a"), "--output", tmp_path / "out")
    inverse(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, out, err = inverse(*arguments)
    assert (code, out, err) == (0, "a: finished before, skipped\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_images_that_were_deleted_are_made_again(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a"), "--output", tmp_path / "out")
    inverse(*arguments)
    before = contents(tmp_path / "out")
    next((tmp_path / "out/a").glob("*.rgb.png")).unlink()
    code, out, err = inverse(*arguments)
    assert (code, err) == (0, "") and "skipped" not in out
    assert contents(tmp_path / "out") == before


def test_results_of_other_options_are_kept_unless_overwritten(inverse, run, models, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    inverse(*arguments)
    before = contents(tmp_path / "out")
    code, _, err = inverse(*arguments, "--seed", 1)
    assert code == 2 and "another seed (None, now 1)" in err and "--overwrite" in err and err.count("\n") == 1
    # What cannot be replaced is not deleted either.
    assert inverse(*arguments, "--seed", 1, "--overwrite", "--checkpoint", models["forward"])[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(InverseStandIn, "estimate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert inverse(*arguments, "--seed", 1, "--overwrite")[0] == 130
    assert contents(tmp_path / "out") == before
    # Nothing of the old results is left, not even where the new ones have fewer frames.
    assert inverse(*arguments, "--chunks", "first", "--passes", "depth", "--overwrite")[0] == 0
    assert labels(tmp_path / "out/a") == {"rgb", "depth"}
    assert frames(tmp_path / "out/a", "rgb") == ["0000.0000", "0000.0001"]


def test_partial_results_of_other_options_are_not_mixed_in(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(5, KeyboardInterrupt()))
        assert inverse(*arguments)[0] == 130
    code, _, err = inverse(*arguments, "--chunks", "first", "--frames", 1, "--overlap", 0)
    assert code == 2 and "another" in err
    assert inverse(*arguments, "--chunks", "first", "--frames", 1, "--overlap", 0, "--overwrite")[0] == 0
    assert frames(tmp_path / "out/a", "rgb") == ["0000.0000"]


def test_latents_left_by_a_killed_run_are_removed(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(ClipOutput, "_remove_latents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert inverse(*arguments)[0] == 130
    assert inverse(*arguments)[0] == 0
    assert not [name for name in contents(tmp_path / "out") if Path(name).name.startswith(".")]


def test_results_half_removed_by_a_killed_run_are_not_finished(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    inverse(*arguments)
    before = contents(tmp_path / "out")
    unlink, removed = Path.unlink, []

    def remove(path, *_, **options):
        if path.suffix == ".png" and not path.name.startswith("."):
            removed.append(path)
            if len(removed) > 2:
                raise KeyboardInterrupt
        unlink(path, *_, **options)

    (tmp_path / "out/a/.0000.0000.depth.0123abcd.part.png").touch()  # what a killed run of other passes may leave
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", remove)
        assert inverse(*arguments, "--seed", 1, "--overwrite")[0] == 130
    code, out, _ = inverse(*arguments)
    assert code == 0 and "skipped" not in out
    assert contents(tmp_path / "out") == before
    (tmp_path / "out/a/.0000.0000.depth.0123abcd.part.png").touch()
    assert inverse(*arguments, "--passes", "depth", "--overwrite")[0] == 0
    assert labels(tmp_path / "out/a") == {"rgb", "depth"}
    assert not [name for name in contents(tmp_path / "out") if Path(name).name.startswith(".")]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"settings": 3}', '{"finished": true}'])
def test_files_without_a_valid_record_are_kept(inverse, tmp_path, record):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    write_png(tmp_path / "out/a/0000.0007.normal.png", pictures(1)[0])
    (tmp_path / "out/a/inverse.json").write_text(record)
    before = contents(tmp_path / "out")
    code, _, err = inverse(*arguments)
    assert code == 2 and "0000.0007.normal.png and no record" in err and contents(tmp_path / "out") == before
    assert inverse(*arguments, "--overwrite")[0] == 0
    assert frames(tmp_path / "out/a", "normal") == ["0000.0000", "0000.0001"]


def test_unfinished_gbuffers_are_refused_as_input(run, forward, models, monkeypatch, tmp_path):
    arguments = ("inverse", "--checkpoint", models["inverse"], *QUICK, "--output", tmp_path / "out")
    arguments += ("--input", write_frames(tmp_path / "a", 3))
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(12, KeyboardInterrupt()))
        assert run(*arguments)[0] == 130
    code, _, err = forward("--input", tmp_path / "out", "--output", tmp_path / "relit")
    assert code == 2 and "is not finished" in err


def test_ctrl_c_stops_two_devices_after_their_chunks(inverse, monkeypatch, tmp_path):
    for i in range(6):
        write_frames(tmp_path / f"in/clip{i}", 2)
    write, seen = write_png, []

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else (
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            )
            time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr("drender.media.encodings.write_png", interrupted)
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--devices", 2)
    assert code == 130 and "interrupted" in err
    assert len(seen) <= 12  # one clip on each device


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_files(networks, inverse, models, tmp_path):
    write_frames(tmp_path / "a", 8)
    arguments = ("--input", tmp_path / "a", "--output", tmp_path / "out", "--dtype", "float32")
    assert inverse(*arguments)[0] == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    command = ("inverse", "--checkpoint", models["inverse"], "--passes", *PASSES, *QUICK, *arguments)
    process = start(*command)
    assert process.stdout.readline() == "a: rgb, frames 0 to 7, written\n"
    process.kill()
    process.communicate()
    assert not (tmp_path / "out/a.viz.mp4").exists()
    assert inverse(*arguments)[0] == 0
    assert contents(tmp_path / "out") == whole


# --- changed inputs ---


def test_changed_frames_are_sampled_again(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    os.utime(tmp_path / "a/001.png", (1, 1))
    assert inverse(*arguments)[1] == "a: finished before, skipped\n"
    png(tmp_path / "a/001.png", seed=7)
    before = contents(tmp_path / "out")
    check_one_line(inverse(*arguments), "other contents of the same input files", "--overwrite")
    assert contents(tmp_path / "out") == before
    code, out, _ = inverse(*arguments, "--overwrite")
    assert code == 0 and "skipped" not in out
    np.testing.assert_array_equal(read_image(tmp_path / "out/a/0000.0001.rgb.png"), read_image(tmp_path / "a/001.png"))


def test_overwrite_samples_finished_clips_again(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    before = contents(tmp_path / "out")
    frame = tmp_path / "out/a/0000.0001.normal.png"
    png(frame, seed=9)
    code, out, _ = inverse(*arguments, "--overwrite", "--html")
    assert code == 0 and "skipped" not in out and "index.html" in out
    after = contents(tmp_path / "out")
    assert after.keys() == before.keys() | {p for p in after if str(p).endswith("index.html")}
    assert all(after[path] == before[path] for path in before)


def test_an_interrupted_run_never_mixes_old_and_new_frames(inverse, monkeypatch, tmp_path):
    source = write_frames(tmp_path / "a", 5)
    arguments = ("--input", source, "--chunks", "all")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(8, KeyboardInterrupt()))
        assert inverse(*arguments, "--output", tmp_path / "out")[0] == 130
    png(source / "000.png", seed=7)
    assert inverse(*arguments, "--output", tmp_path / "out")[0] == 2
    assert inverse(*arguments, "--output", tmp_path / "out", "--overwrite")[0] == 0
    assert inverse(*arguments, "--output", tmp_path / "new")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


@pytest.mark.parametrize("changed", ["environment", "checkpoint", "poses", "condition"])
def test_changed_dependencies_are_sampled_again(forward, models, sky, tmp_path, changed):
    write_gbuffers(tmp_path / "in")
    shutil.copytree(models["forward"], tmp_path / "checkpoint")
    shutil.copy(sky, tmp_path / "sky.hdr")
    poses = {"frames": [{"transform_matrix": np.eye(4).tolist()}] * 2}
    text(tmp_path / "poses.json", json.dumps(poses))
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--checkpoint", tmp_path / "checkpoint")
    arguments += ("--environment", tmp_path / "sky.hdr", "--poses", tmp_path / "poses.json", "--no-video")
    assert forward(*arguments)[0] == 0
    if changed == "environment":
        write_hdr(tmp_path / "sky.hdr", read_image(sky)[:, ::-1])
    elif changed == "checkpoint":
        text(tmp_path / "checkpoint/notes", "retrained")
    elif changed == "poses":
        text(tmp_path / "poses.json", json.dumps(poses | {"fl_x": 1.0}))
    else:
        png(tmp_path / "in/0000.0001.depth.png", seed=99)
    assert forward(*arguments)[0] == 2
    code, out, _ = forward(*arguments, "--overwrite")
    assert code == 0 and "in: done" in out


def test_overwriting_without_video_removes_the_old_video(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    assert inverse(*arguments, "--seed", 1, "--overwrite", "--no-video")[0] == 0
    assert not (tmp_path / "out/a.viz.mp4").exists() and not (tmp_path / "out/a.contact.png").exists()


# --- one output of several commands ---


def test_inverse_and_forward_in_one_output_keep_both_videos(run, forward, models, tmp_path):
    inverse = ("inverse", "--checkpoint", models["inverse"], *QUICK, "--output", tmp_path / "out")
    inverse += ("--input", write_frames(tmp_path / "a", 2))
    assert run(*inverse)[0] == 0
    before = contents(tmp_path / "out")
    assert forward("--input", tmp_path / "out", "--output", tmp_path / "out")[0] == 0
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert {"a.forward.viz.mp4", "a.forward.contact.png"} <= after.keys() - before.keys()
    assert run(*inverse)[1] == "a: finished before, skipped\n"
    assert forward("--input", tmp_path / "out", "--output", tmp_path / "out")[1] == "a: finished before, skipped\n"
    assert run(*inverse, "--seed", 1, "--overwrite")[0] == 0
    assert (tmp_path / "out/a.viz.mp4").exists() and not (tmp_path / "out/a.inverse.viz.mp4").exists()
