"""Small renderers with random weights, shared by the tests of this package, and a clip for them."""

import numpy as np
import pytest
from helpers import small

from drender import ForwardRenderer, InverseRenderer
from drender.config import CONDITIONS, ENVIRONMENT_LABELS


@pytest.fixture(scope="session")
def inverse():
    return small.renderer(InverseRenderer, small.inverse_config())


@pytest.fixture(scope="session")
def forward():
    return small.renderer(ForwardRenderer, small.forward_config())


@pytest.fixture(scope="session")
def clip():
    """Random rgb, G-buffers and environment of two frames."""
    random = np.random.default_rng(0)
    image = lambda: random.random((1, 2, 16, 16, 3), np.float32)
    return image(), {name: image() for name in CONDITIONS}, {label: image() for label in ENVIRONMENT_LABELS}
