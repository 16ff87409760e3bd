"""Held-out clips of an evaluation, without networks."""

import pytest
from helpers import small, smallest
from helpers.tiny_clips import write_clip

from drender import InputError
from drender.training.evaluation import Evaluation
from drender.training.losses import LossSetup
from drender.training.run_dir import RunFolder


def test_a_held_out_clip_without_any_pass_is_refused(tmp_path):
    for name, labels in (("a", ("rgb", "depth")), ("b", ("rgb", "normal"))):
        write_clip(tmp_path / "held-out" / name, labels=labels)
    options = {"evaluation.path": str(tmp_path / "held-out"), "data.passes": ["depth"]}
    config = smallest.config("inverse", "", tmp_path / "run", **options)
    setup = LossSetup(small.inverse_config(), config.loss)
    with pytest.raises(InputError, match=r"held-out: clip 'b' has none of data\.passes; add its files, or give other"):
        Evaluation(config, setup, RunFolder(config, setup.config))
    (tmp_path / "held-out" / "set.json").touch()
    with pytest.raises(InputError, match="held-out: holds cached latents; give their clips"):
        Evaluation(config, setup, RunFolder(config, setup.config))
