"""Bad input and options: one line that names the file or option and the remedy, before models are loaded."""

import functools
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.runs import (
    check_one_line,
    contents,
    damaged,
    png,
    start,
    text,
    video,
    write_frames,
    write_gbuffers,
)
from helpers.stand_ins import InverseStandIn

from drender.config import CONDITIONS
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.jobs import InverseJob


def two_sizes(folder: Path) -> Path:
    png(folder / "0.png"), png(folder / "1.png", height=32)
    return folder


# One case of each kind; tests/media and tests/lighting have the others.
BAD_INPUTS = {
    "missing": (lambda p: p / "none", "does not exist"),
    "empty path": (lambda p: "", "expected a path, got an empty one"),
    "empty folder": (lambda p: p, "no images or videos"),
    "folder without images": (lambda p: text(p / "in/a.txt").parent, "no images or videos"),
    "text file": (lambda p: text(p / "a.txt"), "no images or videos"),
    "text named png": (lambda p: text(p / "a.png"), "a.png: not a readable image"),
    "truncated png": (lambda p: damaged(png(p / "a.png")), "a.png: truncated or damaged"),
    "truncated video": (lambda p: damaged(video(p / "a.mp4")), "a.mp4: truncated or damaged video"),
    "text named mp4": (lambda p: text(p / "a.mp4"), "a.mp4: not a video"),
    "two sizes": (lambda p: two_sizes(p / "in"), "the frames of a clip need one size"),
    "device file": (lambda p: "/dev/null", "/dev/null is not a file"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_reported_before_loading(inverse, monkeypatch, tmp_path, name):
    monkeypatch.setattr(InverseRenderer, "load", None)
    make, message = BAD_INPUTS[name]
    check_one_line(inverse("--input", make(tmp_path), "--output", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


# One case of each check; the tests of the dataclasses and functions have the others.
BAD_OPTIONS = [
    ("inverse", ("--passes", "normals"), "unknown pass 'normals'; did you mean 'normal'?"),
    ("inverse", ("--steps", 0), "num_steps: expected at least 1, got 0"),
    ("inverse", ("--steps", "many"), "--steps: invalid int value: 'many'"),
    ("inverse", ("--frames", 0), "frames: expected at least 1, got 0"),
    ("inverse", ("--overlap", 2), "overlap: expected less than frames (2), got 2"),
    ("inverse", ("--size", 0, 64), "size is 0 64; both sides must be 1 or more"),
    ("inverse", ("--format", "exr", "--bits", 16), "--bits 16 is for PNG"),
    ("inverse", ("--quality", 11), "quality: expected at least 0 and at most 10, got 11.0"),
    ("inverse", ("--quality", "nan"), "quality: expected at least 0 and at most 10, got nan"),
    ("inverse", ("--fit", "crop"), "unknown --fit 'crop'"),
    ("forward", ("--normals", "directx"), "unknown option '--normals'"),
    ("inverse", ("--seed", -1), "seed: expected at least 0 and below 9223372036854775808, got -1"),
    ("inverse", ("--fps", "nan"), "fps: expected a finite number, got nan"),
    ("inverse", ("--guidance", 1, "nan"), "guidance: expected a finite number, got (1.0, nan)"),
    ("inverse", ("--devices", 0), "--devices 0: must be 1 to "),
    ("inverse", ("--devices", 99), "--devices 99: must be 1 to "),
    ("inverse", ("--process", 2, 2), "process: expected an index from 0 and a larger count, got 2 2"),
    ("inverse", ("--dtype", "float8"), "unknown --dtype 'float8'"),
    ("inverse", ("--chunks", "drop_last"), "unknown --chunks 'drop_last'; did you mean 'drop-last'?"),
    ("inverse", ("--chekpoint", "c"), "unknown option '--chekpoint'; did you mean '--checkpoint'?"),
    ("inverse", ("--see", 3), "unknown option '--see'; did you mean '--seed'?"),
    ("inverse", ("--environment", "a.hdr"), "unknown option '--environment'"),
    ("inverse", ("--checkpoint", "/nowhere"), "/nowhere: no such folder"),
    ("inverse", ("--checkpoint", "~nobody.here/c"), "~nobody.here/c: no such home directory"),
    ("forward", ("--drop", "rough"), "unknown condition to drop 'rough'; did you mean 'roughness'?"),
    ("forward", ("--environment-size", 0, 64), "environment size 0x64 is not positive"),
    ("forward", ("--strength", -1), "environment strength -1.0"),
    ("forward", ("--elevation", "nan"), "elevation nan"),
    ("forward", ("--poses", "/nowhere.json"), "/nowhere.json: unreadable"),
    ("forward", ("--environment", "/nowhere.hdr"), "/nowhere.hdr does not exist"),
    ("forward", ("--environment", "/dev"), "/dev: no environment maps found"),
    ("forward", ("--exposure", "bright"), "environment exposure 'bright' is neither a number of stops nor 'auto'"),
    ("forward", ("--blur", -5), "environment blur -5.0"),
    ("inverse", ("--input-layers", "depth=Z"), "unknown label in --input-layers 'depth'; known: rgb"),
    ("forward", ("--elevation-sign", "dow"), "unknown --elevation-sign 'dow'"),
    ("relight", ("--passes", "normal", "depth"), "--passes lacks basecolor, roughness, metallic"),
]


def test_devices_that_are_not_there_are_named(inverse, monkeypatch, walk, tmp_path):
    def missing():
        raise AssertionError  # as JAX does without its plugin for GPUs

    monkeypatch.setattr(jax, "local_devices", missing)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    message = "JAX_PLATFORMS=cuda: no such devices (AssertionError); unset it"
    check_one_line(inverse("--input", walk, "--output", tmp_path / "out"), message)


@pytest.mark.parametrize(("command", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_reported_before_loading(request, monkeypatch, tmp_path, command, options, message):
    monkeypatch.setattr(InverseRenderer, "load", None)
    monkeypatch.setattr(ForwardRenderer, "load", None)
    source = request.getfixturevalue("gbuffers" if command == "forward" else "walk")
    run = request.getfixturevalue(command)
    check_one_line(run("--input", source, "--output", tmp_path / "out", *options), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a command; known: relight, inverse, forward"),
        (("invers",), "unknown command 'invers'; did you mean 'inverse'?"),
        (("--hlep",), "unknown option '--hlep'; did you mean '--help'?"),
        (("inverse", "--input", "i", "--output", "o", "x"), "unrecognized arguments: x"),
    ],
)
def test_mistyped_words_name_the_nearest(run, words, message):
    check_one_line(run(*words), message, "--help")


@pytest.mark.parametrize("command", ["inverse", "forward", "relight"])
def test_help_lists_defaults(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert "None" not in out and "==" not in out
    assert "(the model's)" in out and "(8)" in out


def test_sizes_are_rounded_up_with_a_message(inverse, forward, tmp_path):
    code, out, err = inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / "out", "--size", 50, 40)
    assert (code, err) == (0, "") and "--size 50 40: rounded up to 64 64, multiples of 64" in out
    source = write_gbuffers(tmp_path / "in")
    code, out, err = forward("--input", source, "--output", tmp_path / "relit", "--environment-size", 8, 60)
    assert (code, err) == (0, "") and "--environment-size 8 60: rounded up to 64 64, multiples of 64" in out


def test_a_checkpoint_of_the_other_kind_is_refused(inverse, forward, relight, models, tmp_path):
    source, other = write_gbuffers(tmp_path / "in"), tmp_path / "out"
    message = "holds a 'forward' model, but the inverse renderer needs 'inverse'"
    check_one_line(inverse("--input", source, "--output", other, "--checkpoint", models["forward"]), message)
    check_one_line(relight("--input", source, "--output", other, "--inverse", models["forward"]), message)
    message = "holds a 'inverse' model, but the forward renderer needs 'forward'"
    check_one_line(forward("--input", source, "--output", other, "--checkpoint", models["inverse"]), message)
    assert not other.exists()


def test_missing_gbuffers_are_named(forward, monkeypatch, tmp_path):
    monkeypatch.setattr(ForwardRenderer, "load", None)
    write_gbuffers(tmp_path / "in", labels=CONDITIONS[:-1])
    check_one_line(forward("--input", tmp_path / "in", "--output", tmp_path / "out"), "clip 'in' has no 'metallic'")
    write_gbuffers(tmp_path / "in")
    (tmp_path / "in/0000.0001.depth.png").unlink()
    check_one_line(forward("--input", tmp_path / "in", "--output", tmp_path / "out"), "'depth' (frame 0000.0001)")
    check_one_line(forward("--input", tmp_path / "x", "--output", tmp_path / "out"), "does not exist")
    write_gbuffers(tmp_path / "short", chunks=(2, 1))
    check_one_line(forward("--input", tmp_path / "short", "--output", tmp_path / "out"), "give the --overlap")


def test_poses_must_fit_the_clip(forward, relight, monkeypatch, tmp_path):
    monkeypatch.setattr(InverseRenderer, "load", None)
    monkeypatch.setattr(ForwardRenderer, "load", None)
    path = text(tmp_path / "poses.json", json.dumps({"frames": [{"transform_matrix": np.eye(4).tolist()}]}))
    source = write_gbuffers(tmp_path / "in")
    for run in (forward, functools.partial(relight, "--passes", *CONDITIONS)):
        options = ("--input", source if run is forward else write_frames(tmp_path / "a"), "--output", tmp_path / "out")
        check_one_line(run(*options, "--poses", path), "has 2 frames, but --poses only 1")
        check_one_line(run(*options, "--poses", path, "--elevation", 3), "exclude each other")


def test_damaged_environments_are_named(forward, sky, tmp_path):
    options = ("--input", write_gbuffers(tmp_path / "in"), "--output", tmp_path / "out", "--environment")
    broken = damaged(Path(shutil.copy(sky, tmp_path / "half.hdr")))
    check_one_line(forward(*options, sky, broken), "half.hdr")
    check_one_line(forward(*options, text(tmp_path / "a.hdr")), "a.hdr: not a readable image")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out.mp4", "out.PNG"])
def test_an_output_named_as_a_file_is_refused(inverse, tmp_path, name):
    source = png(tmp_path / "a.png")
    check_one_line(inverse("--input", source, "--output", tmp_path / name), name, "give a folder")
    (tmp_path / name).mkdir()  # as of an earlier version, or so called on purpose
    assert inverse("--input", source, "--output", tmp_path / name)[0] == 0


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/drender"])
def test_an_unwritable_output_is_named(inverse, monkeypatch, tmp_path, place):
    monkeypatch.setattr(InverseRenderer, "load", None)
    text(tmp_path / "file")
    result = inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / place)
    check_one_line(result, str(Path(place)), "cannot be written", "give another folder")
    assert (tmp_path / "file").read_text() == "no picture"


@pytest.mark.parametrize(("source", "place"), [("in", "in"), ("in", "in/out"), ("in/a", "in"), ("in/v.mp4", ".")])
def test_results_among_the_input_are_refused(inverse, tmp_path, source, place):
    write_frames(tmp_path / "in/a"), video(tmp_path / "in/v.mp4")
    if place == ".":
        shutil.move(tmp_path / "in/v.mp4", tmp_path / "in/in.mp4")
        source = "in/in.mp4"
    before = contents(tmp_path)
    check_one_line(inverse("--input", tmp_path / source, "--output", tmp_path / place), "among the input's files")
    assert contents(tmp_path) == before


def test_a_full_disk_is_an_error_and_leaves_no_partial_files(inverse, monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = png(tmp_path / "a.png")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        result = inverse("--input", source, "--output", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_one_line(result, "cannot write", "basecolor")
    assert list(contents(tmp_path / "out")) == ["a/inverse.json"]
    assert inverse("--input", source, "--output", tmp_path / "out")[0] == 0


def test_out_of_device_memory_is_an_error_with_remedy(inverse, monkeypatch, tmp_path):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.\nmore of it"

    def estimate(*_, **control):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(InverseStandIn, "estimate", estimate)
    result = inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / "out")
    check_one_line(result, "out of device memory", "allocate 9 GiB", "--frames")
    message = "RESOURCE_EXHAUSTED"
    check_one_line(inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out"), "out of device memory")
    message = "INTERNAL: no such thing"
    with pytest.raises(jax.errors.JaxRuntimeError):
        inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")


def test_a_clip_that_fails_does_not_stop_the_others(inverse, tmp_path):
    text(tmp_path / "in/a.png"), damaged(png(tmp_path / "in/b/0.png"), 0.9), video(tmp_path / "in/c.mp4", 2)
    text(tmp_path / "in/d.mp4")
    (
        write_frames(tmp_path / "in/e"),
        (tmp_path / "in/e/001.png").write_bytes((tmp_path / "in/e/000.png").read_bytes()[:-30]),
    )
    code, out, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 2 and "c: done" in out
    *failed, last = err.splitlines()
    assert last == "error: 4 of 5 clips failed (see above)"
    assert len(failed) == 4 and all(line.startswith("failed: ") for line in failed)
    assert (tmp_path / "out/c.viz.mp4").is_file() and not (tmp_path / "out/e").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux's way")
def test_no_file_stays_open(inverse, monkeypatch, tmp_path):
    for i in range(6):
        write_frames(tmp_path / f"in/{i}", 1)
    damaged(tmp_path / "in/3/000.png")
    counts, run_clip = [], InverseJob.run_clip

    def counting(*args, **control):
        written = run_clip(*args, **control)
        counts.append(len(os.listdir("/proc/self/fd")))
        return written

    monkeypatch.setattr(InverseJob, "run_clip", counting)
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    assert code == 2 and "1 of 6 clips failed" in err
    assert len(counts) == 5 and len(set(counts[1:])) == 1


def test_gbuffers_that_fail_do_not_stop_the_others(forward, tmp_path):
    write_gbuffers(tmp_path / "in/a")
    write_gbuffers(tmp_path / "in/b", labels=CONDITIONS[:2])
    write_gbuffers(tmp_path / "in/c"), damaged(tmp_path / "in/c/0000.0001.depth.png")
    code, out, err = forward("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 2 and "a: done" in out and err.count("failed: ") == 2 and "2 of 3 clips failed" in err


def test_a_process_reports_bad_input_in_one_line(models, tmp_path):
    arguments = ("--checkpoint", models["inverse"], "--input", text(tmp_path / "a.png"), "--output", tmp_path / "out")
    process = start("inverse", *arguments)
    _, err = process.communicate()
    check_one_line((process.returncode, "", err), "a.png: not a readable image")
