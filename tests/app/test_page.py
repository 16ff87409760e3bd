"""What the page does without a browser: it estimates the G-buffers that relighting needs."""

from dataclasses import replace

import pytest
from helpers.stand_ins import ForwardStandIn, InverseStandIn

from drender.config import DEFAULT_PASSES, DOMAINS
from drender.errors import InputError

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[app]'")


def test_the_page_estimates_what_its_forward_model_needs(tmp_path):
    from drender.app.page import App

    inverse, forward = InverseStandIn(), ForwardStandIn()
    forward.config = replace(forward.config, conditions=(*forward.config.conditions, "emission"))
    with pytest.raises(InputError, match="unknown pass 'emission'"):
        App(inverse, forward, tmp_path, (64, 64), 2)
    inverse.config = replace(inverse.config, domains=DOMAINS | {"emission": 6})
    assert App(inverse, forward, tmp_path, (64, 64), 2).passes == [*DEFAULT_PASSES, "emission"]
