"""Invalid arguments of the renderers are errors that name the argument, its value and the remedy."""

import jax.numpy as jnp
import numpy as np
import pytest

from drender import ForwardRenderer, InputError, InverseRenderer
from drender.config import CONDITIONS, ENVIRONMENT_LABELS
from drender.renderers.inverse import chosen_passes

RGB = np.zeros((1, 2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": ["normals"]}, "unknown pass 'normals'; did you mean 'normal'"),
        ({"passes": ()}, "passes: expected at least one of basecolor, .*, got none"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"frames": 2, "overlap": 2}, r"overlap: expected less than frames \(2\), got 2"),
        ({"decode_overlap": 8}, r"decode_overlap: expected less than decode_chunk_size \(8\), got 8"),
        ({"sigma_min": 800.0}, r"sigma_min: expected less than sigma_max \(700.0\), got 800.0"),
        ({"rho": 0.0}, "rho: expected above 0, got 0.0"),
        ({"sampler": "dpm"}, r"sampler: expected one of 'euler', 'heun', 'dpm\+\+', got 'dpm'"),
        ({"num_steps": "20"}, "num_steps: expected int, got '20'"),
        ({"nun_steps": 20}, "did you mean 'num_steps'"),
        ({"guidance": (1.0, 2.0, 3.0)}, "expected two numbers"),
        ({"rgb": RGB[:, :0]}, "rgb: expected shape"),
        ({"rgb": RGB[:, :, :7]}, "rgb: expected sides that are multiples of 2, got 7×16"),
        ({"noise": RGB}, r"noise: expected shape \(1, 2, 8, 8, 4\)"),
    ],
)
def test_bad_arguments_of_inverse_are_errors(inverse, arguments, message):
    with pytest.raises(InputError, match=message):
        inverse(**{"rgb": RGB} | arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (RGB[0], r"rgb: expected shape \[batch.* got \(2, 16, 16, 3\)"),
        ((RGB * 255).astype(np.uint8), "divide bytes by 255"),
        ([["text"]], "rgb: expected shape"),
        (RGB + 255, r"rgb: expected finite values in \[0, 1\], got 255 to 255; rescale them"),
        (RGB - 1, "got -1 to -1"),
        (RGB * np.nan, "got nan to nan"),
    ],
)
def test_bad_images_are_errors(inverse, images, message):
    """Call the check itself, as the tests' type checking would reject these arrays first."""
    with pytest.raises(InputError, match=message):
        inverse.check_images("rgb", images)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_images_of_any_float_are_taken(inverse, dtype):
    assert inverse.check_images("rgb", jnp.asarray(RGB + 1, dtype)).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["albedo"]}, "unknown condition to drop 'albedo'"),
        ({"buffers": {"normal": RGB}}, "not found: basecolor, depth, roughness, metallic"),
        ({"buffers": {name: RGB[:, : 1 + (name == "depth")] for name in CONDITIONS}}, "depth: expected shape"),
        ({"buffers": {}, "drop": CONDITIONS}, "expected at least one G-buffer"),
        ({"environment": {"env_ldr": RGB[0], "env_nrm": RGB[0]}}, "expected a map 'env_log'"),
        (
            {"environment": {label: np.zeros((5, 16, 16, 3), np.float32) for label in ENVIRONMENT_LABELS}},
            "1 clips of 2 frames",
        ),
    ],
)
def test_bad_arguments_of_forward_are_errors(forward, change, message):
    environment = {label: np.random.default_rng(0).random((5, 16, 16, 3), np.float32) for label in ENVIRONMENT_LABELS}
    arguments = {"buffers": dict.fromkeys(CONDITIONS, RGB), "environment": {k: v[:2] for k, v in environment.items()}}
    if "1 clips" in message:
        change = {"environment": environment}
    with pytest.raises(InputError, match=message):
        forward(**arguments | change)


@pytest.mark.parametrize("environment", [None, "sky.hdr"])
def test_an_environment_that_holds_no_maps_is_an_error(forward, environment):
    """Call the check itself, without the tests' type checking."""
    check = ForwardRenderer._check_environment.__wrapped__
    with pytest.raises(InputError, match="environment: expected the maps of `environment_maps`"):
        check(forward, environment, RGB.shape)


@pytest.mark.slow
def test_a_checkpoint_of_the_other_kind_is_an_error(inverse_checkpoint, forward_checkpoint):
    with pytest.raises(InputError, match="holds a 'forward' model, but the inverse renderer needs 'inverse'"):
        InverseRenderer.load(forward_checkpoint)
    with pytest.raises(InputError, match="holds a 'inverse' model"):
        ForwardRenderer.load(inverse_checkpoint)


def test_a_mistyped_dtype_is_an_error_with_a_hint(inverse_checkpoint):
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        InverseRenderer.load(inverse_checkpoint, dtype="bfloat")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_lora_scale_that_is_no_finite_number_is_an_error(inverse_checkpoint, scale):
    with pytest.raises(InputError, match="lora_scale: expected a finite number"):
        InverseRenderer.load(inverse_checkpoint, lora_scale=scale)


def test_an_empty_path_is_not_the_built_in_model():
    with pytest.raises(InputError, match="checkpoint"):
        InverseRenderer.load("")


def test_passes_may_come_from_a_generator(inverse):
    assert chosen_passes(inverse.config, (name for name in ("depth", "normal", "depth"))) == ["depth", "normal"]
