"""`drender info` states what a path holds."""

import json
import types

import numpy as np
import pytest
from helpers import small
from helpers.runs import write_frames, write_gbuffers

from drender.checkpoints import orbax
from drender.commands import info
from drender.errors import InputError
from drender.media.images import write_exr
from drender.media.video import write_video
from drender.training import run_dir, run_record


def described(path) -> dict[str, str]:
    return {name: str(value) for name, value in info.describe(str(path))}


def test_checkpoint(tmp_path):
    array = lambda *shape: np.zeros(shape, np.float16)
    unet, lora = {"conv": {"kernel": array(400, 3), "bias": array(3)}}, {"to_q": {"lora_A": array(8, 4)}}
    orbax.save(tmp_path / "forward", small.forward_config(), {"unet": unet, "lora": lora})
    values = described(tmp_path / "forward")
    assert values["kind"] == "forward, several steps"
    assert values["conditions"] == "basecolor, normal, depth, roughness, metallic; environment of 16x16"
    assert values["unet"] == "1,203 parameters in 2 arrays, float16"
    assert values["lora"] == "32 parameters in 1 arrays, float16, rank 4"


def test_video_and_frames(tmp_path):
    write_video(tmp_path / "walk.mp4", [np.full((8, 16, 3), 0.5, np.float32)] * 5, 25.0)
    values = described(tmp_path / "walk.mp4")
    assert values["frames"] == "5, 0.2 s at 25 a second"
    assert values["as read"].startswith("16x8, upright, square pixels, sRGB from")
    assert "codec h264, format yuv420p, size 16x8, transfer BT709, primaries BT709" in values["file says"]
    values = described(write_frames(tmp_path / "stills", 3))
    assert (values["clip"], values["frames"].split(",")[0]) == ("stills (3 .png)", "3")
    assert "profile none" in values["file says"]


def test_files_that_cannot_be_read_are_described_first(tmp_path):
    write_exr(tmp_path / "sky.exr", {f"sun.{name}": np.full((2, 4), np.inf, np.float32) for name in "RGB"})
    values = {}
    with pytest.raises(InputError, match="infinite"):
        values.update(info.describe(str(tmp_path / "sky.exr")))
    assert "channels sun.R sun.G sun.B" in values["file says"]


def test_gbuffers_and_results(tmp_path):
    folder = write_gbuffers(tmp_path / "gbuffers", labels=("basecolor", "emission"))
    assert described(folder)["G-buffers"] == "gbuffers: basecolor, emission"
    settings = {"seed": 3, "poses": None, "flip": False}
    record = {"settings": settings, "labels": ["normal"], "chunks": [0], "finished": True}
    (folder / "inverse.json").write_text(json.dumps(record))
    values = described(folder)
    assert values["inverse results"] == f"{folder}: finished"
    assert values["settings"] == "seed 3"


def test_training_run(tmp_path, monkeypatch):
    model = small.inverse_config()
    config = types.SimpleNamespace(objective="inverse", optimizer=types.SimpleNamespace(steps=10))
    monkeypatch.setattr(run_record, "is_run", lambda path: True)
    monkeypatch.setattr(run_record, "read_run", lambda path: (config, model))
    monkeypatch.setattr(run_dir, "resolve_step", lambda path: 5)
    (tmp_path / run_record.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 5, "loss": 1.5}\n')
    values = described(tmp_path)
    assert (values["steps"], values["last metrics"]) == ("5 saved, of 10", "step 5, loss 1.5")
    assert values["passes"].startswith("basecolor, metallic")


def test_nothing_known_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no images or videos found"):
        list(info.describe(str(tmp_path)))
