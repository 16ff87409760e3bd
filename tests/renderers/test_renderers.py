"""The renderers against golden results of the released pipeline, and the effect of their arguments."""

import dataclasses
import itertools
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from drender import ForwardRenderer, InputError, InverseRenderer
from drender.renderers import inverse as inverse_module
from drender.renderers import stages
from drender.sharding import DeviceGroup

GOLDEN = Path(__file__).parents[1] / "golden"
CONDITIONS = ("basecolor", "normal", "depth", "roughness", "metallic")
LABELS = ("env_ldr", "env_log", "env_nrm")


def load_golden(name: str) -> tuple[dict, dict]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        arrays = dict(data)
    return arrays, json.loads(str(arrays.pop("meta")))


@pytest.fixture(scope="module")
def inverse():
    return small.renderer(InverseRenderer, small.inverse_config())


@pytest.fixture(scope="module")
def forward():
    return small.renderer(ForwardRenderer, small.forward_config())


@pytest.fixture(scope="module")
def clip():
    """Random rgb, G-buffers and environment of two frames."""
    random = np.random.default_rng(0)
    image = lambda: random.random((1, 2, 16, 16, 3), np.float32)
    return image(), {name: image() for name in CONDITIONS}, {label: image() for label in LABELS}


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


# --- golden ----------------------------------------------------------------------------------------------------------


def test_inverse_matches_the_released_pipeline(inverse_checkpoint):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype="float32")
    buffers = renderer(golden["rgb"], meta["passes"], noise=golden["noise"], num_steps=meta["steps"])
    for name in meta["passes"]:
        assert np.abs(buffers[name] - golden[f"frames.{name}"]).max() < 2e-3, name


@pytest.mark.parametrize(("name", "scale"), [("forward_tiny_nolora", 0.0), ("forward_tiny_lora025", 0.25)])
def test_forward_matches_the_released_pipeline(forward_checkpoint, name, scale):
    golden, meta = load_golden(name)
    forward = ForwardRenderer.load(forward_checkpoint, dtype="float32", lora_scale=scale)
    frames = forward(
        {condition: golden[f"gbuffer.{condition}"] for condition in meta["conditions"]},
        {label: golden[label] for label in LABELS},
        noise=golden["noise"],
        num_steps=meta["steps"],
        guidance=meta["guidance"],
    )
    assert np.abs(frames - golden["frames"]).max() < 2e-3


# Measured: 42.8 dB and 62.0 dB.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "min_psnr"), [("bfloat16", 39.0), ("float16", 55.0)])
def test_half_precision_stays_close_to_the_released_pipeline(inverse_checkpoint, dtype, min_psnr):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype=dtype)
    frames = renderer(golden["rgb"], ["normal"], noise=golden["noise"], num_steps=meta["steps"])["normal"]
    assert frames.dtype == np.float32
    assert psnr(frames, golden["frames.normal"]) > min_psnr


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 16, 24), (2, 2, 10, 6)])
def test_any_frame_count_and_any_divisible_sides(inverse, shape):
    rgb = np.random.default_rng(1).random((*shape, 3), np.float32)
    buffers = inverse(rgb, ["depth"], num_steps=1)
    assert buffers["depth"].shape == rgb.shape
    assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1


def test_clips_of_a_batch_are_independent(inverse):
    """Two clips together equal each alone; nine frames make two decoder chunks per clip."""
    random = np.random.default_rng(2)
    rgb, noise = random.random((2, 9, 8, 8, 3), np.float32), random.standard_normal((2, 9, 4, 4, 4), np.float32)
    together = inverse(rgb, ["normal"], num_steps=2, noise=noise)["normal"]
    for i in range(2):
        alone = inverse(rgb[i : i + 1], ["normal"], num_steps=2, noise=noise[i : i + 1])["normal"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


def test_inverse_stages_compile_once(clip):
    stages._compiled.cache_clear()  # which other tests share
    renderer = small.renderer(InverseRenderer, small.inverse_config())
    for seed in range(2):
        renderer(clip[0], ["normal", "depth"], num_steps=3, seed=seed)
    sizes = {name: stage.fn._cache_size() for name, stage in renderer.compiled.items()}
    assert sizes == {"encode": 1, "decode": 1, "step": 1}


def test_forward_stages_compile_once(clip):
    stages._compiled.cache_clear()
    renderer = small.renderer(ForwardRenderer, small.forward_config())
    for dynamic in (False, True):
        renderer(clip[1], clip[2], num_steps=3, dynamic_guidance=dynamic)
    sizes = {name: stage.fn._cache_size() for name, stage in renderer.compiled.items()}
    assert [sizes[name] for name in ("environment", "step", "decode")] == [1, 1, 1]


def test_renderers_of_one_configuration_share_compiled_stages():
    first, second = (small.renderer(InverseRenderer, small.inverse_config()) for _ in range(2))
    assert all(first.compiled[name].fn is second.compiled[name].fn for name in first.compiled)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_blended_at_every_step(inverse):
    """Against the arithmetic written out: average the windows' x̂₀, then take an Euler step of all frames."""
    rgb = np.random.default_rng(3).random((1, 5, 8, 8, 3), np.float32)
    sampling = inverse.sampling({"frames": 3, "overlap": 1, "num_steps": 3})
    latents = inverse.encode(rgb, sampling)
    noise = inverse.initial_noise(None, 0, latents.shape)
    ((_, result),) = inverse.estimate(latents, ["normal"], sampling, noise, progress=False)
    assert result.windows == [slice(0, 3), slice(2, 5)]

    context = jnp.zeros((1, 1, 1, inverse.config.unet.cross_attention_dim[-1]))
    micro, domain = np.float32([[6, 127, 0]]), jnp.array([inverse.config.domains["normal"]])
    sigmas, step = inverse.sigmas(sampling), inverse.compiled["step"].fn
    x = noise * np.float32(np.sqrt(sigmas[0] ** 2 + 1))
    for sigma, following in itertools.pairwise(sigmas):
        clean = lambda part, x=x, sigma=sigma: np.asarray(
            step(inverse.params["unet"], latents[:, part], context, domain, micro, None, x[:, part], sigma)
        )
        first, second = clean(slice(0, 3)), clean(slice(2, 5))
        shared = (first[:, 2:] + second[:, :1]) / 2
        x0 = np.concatenate([first[:, :2], shared, second[:, 1:]], axis=1)
        x = x + (following - sigma) * (x - x0) / sigma
    np.testing.assert_allclose(result.blended(), x, atol=1e-4)


def test_a_long_clip_is_sampled_and_decoded_in_windows(inverse, forward):
    rgb = np.random.default_rng(4).random((2, 7, 8, 8, 3), np.float32)
    options = {"num_steps": 2, "frames": 3, "overlap": 1, "decode_chunk_size": 2}
    buffers = inverse(rgb, CONDITIONS, **options)
    assert {buffer.shape for buffer in buffers.values()} == {rgb.shape}
    assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1
    light = {label: np.random.default_rng(5).random((7, 8, 8, 3), np.float32) for label in LABELS}
    for environment in (light, {label: maps[:1] for label, maps in light.items()}):
        assert forward(buffers, environment, **options).shape == rgb.shape


def test_decoding_is_bit_exact_for_device_and_host_latents(inverse):
    """A resumed run decodes latents from a file; devices and numpy divide differently."""
    z = np.random.default_rng(6).standard_normal((1, 3, 8, 8, 4), np.float32)
    device, host = (list(inverse.decode_latents(latents, 2)) for latents in (jnp.asarray(z), z))
    np.testing.assert_array_equal(np.concatenate(device, axis=1), np.concatenate(host, axis=1))


def test_batched_passes_equal_single_passes(inverse, clip, monkeypatch):
    together = inverse(clip[0], CONDITIONS, num_steps=2)
    monkeypatch.setattr(inverse_module, "BATCH_LATENTS", 1)
    for name, alone in inverse(clip[0], CONDITIONS, num_steps=2).items():
        np.testing.assert_allclose(together[name], alone, atol=1e-4)


def test_a_stop_event_aborts_sampling(inverse, clip):
    stop = threading.Event()
    stop.set()
    sampling = inverse.sampling({"num_steps": 2})
    latents = inverse.encode(clip[0], sampling)
    noise = inverse.initial_noise(None, 0, latents.shape)
    with pytest.raises(KeyboardInterrupt):
        list(inverse.estimate(latents, ["normal"], sampling, noise, progress=False, stop=stop))


# --- options ---------------------------------------------------------------------------------------------------------


def test_results_depend_on_the_seed_alone(inverse, clip):
    first, again, other = (inverse(clip[0], ["normal"], num_steps=2, seed=seed)["normal"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    "option",
    [
        {"fps": 24},
        {"motion_bucket_id": 20},
        {"noise_aug_strength": 0.1},
        {"guidance": (1.0, 3.0)},
        {"guidance": (3.0, 3.0), "dynamic_guidance": True},
        {"deterministic": True},
        {"num_steps": 3},
        {"decode_chunk_size": 1},
        {"frames": 1, "overlap": 0},
        {"sampler": "heun"},
        {"num_steps": 3, "sampler": "dpm++"},
        {"num_steps": 3, "rho": 3.0},
        {"sigma_min": 0.1},
        {"sigma_max": 80.0},
    ],
)
def test_every_option_has_an_effect(inverse, clip, option):
    base = {"num_steps": 2} | ({"guidance": (3.0, 3.0)} if "dynamic_guidance" in option else {})
    plain = inverse(clip[0], ["normal"], **base)["normal"]
    assert np.abs(plain - inverse(clip[0], ["normal"], **base | option)["normal"]).max() > 1e-4


def test_guidance_of_one_is_no_guidance(forward, clip):
    plain = forward(clip[1], clip[2], num_steps=2, guidance=(1.0, 1.0))
    nearly = forward(clip[1], clip[2], num_steps=2, guidance=(1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(plain, nearly, atol=1e-4)


def test_a_single_environment_frame_equals_its_repetition(forward, clip):
    _, buffers, environment = clip
    still = {label: maps[0, :1] for label, maps in environment.items()}
    repeated = {label: np.repeat(maps, 2, axis=0) for label, maps in still.items()}
    np.testing.assert_array_equal(forward(buffers, still, num_steps=2), forward(buffers, repeated, num_steps=2))


def test_a_static_environment_is_encoded_exactly(forward, clip):
    """Tokens of one frame serve all: against an environment that changes by a negligible amount."""
    _, buffers, environment = clip
    still = {label: np.repeat(maps[0, :1], 2, axis=0) for label, maps in environment.items()}
    moving = {label: maps + np.float32([0, 1e-6])[:, None, None, None] for label, maps in still.items()}
    np.testing.assert_allclose(forward(buffers, still, num_steps=2), forward(buffers, moving, num_steps=2), atol=1e-4)


def test_dropping_a_condition_zeroes_its_latents(forward, clip):
    _, buffers, environment = clip
    kept = {name: buffer for name, buffer in buffers.items() if name != "depth"}
    dropped = forward(buffers, environment, num_steps=2, drop=["depth"])
    np.testing.assert_array_equal(dropped, forward(kept, environment, num_steps=2, drop=["depth"]))
    assert np.abs(dropped - forward(buffers, environment, num_steps=2)).max() > 1e-4


def test_dropping_everything_leaves_the_unconditional_branch(forward, clip):
    _, buffers, environment = clip
    everything = [*CONDITIONS, "environment"]
    free = [forward(buffers, environment, num_steps=2, drop=everything, guidance=g) for g in ((1, 1), (5, 5))]
    np.testing.assert_allclose(free[0], free[1], atol=1e-4)


def test_deterministic_forward_ignores_the_seed(forward, clip):
    frames = forward(clip[1], clip[2], deterministic=True)
    np.testing.assert_array_equal(frames, forward(clip[1], clip[2], deterministic=True, seed=3))


def test_one_step_models_have_no_guidance_by_default(forward):
    assert forward.sampling({}, guidance=(1.2, 1.2)).guidance == (1.2, 1.2)
    config = dataclasses.replace(forward.config, deterministic=True)
    one_step = ForwardRenderer(config, forward.params)
    assert one_step.sampling({}, guidance=(1.2, 1.2)).guidance == (1.0, 1.0)
    assert one_step.sampling({"guidance": (2.0, 2.0)}, guidance=(1.2, 1.2)).guidance == (2.0, 2.0)
    assert one_step.sampling({"deterministic": False}, guidance=(1.2, 1.2)).guidance == (1.2, 1.2)


def test_another_device_gives_the_same_bits(inverse, clip):
    second = jax.devices()[1]
    other = InverseRenderer(inverse.config, jax.device_put(inverse.params, second))
    np.testing.assert_array_equal(
        inverse(clip[0], ["normal"], num_steps=2)["normal"], other(clip[0], ["normal"], num_steps=2)["normal"]
    )
    assert jax.tree.leaves(other.params)[0].device == second


# --- several devices -------------------------------------------------------------------------------------------------


def on_all_devices(renderer):
    """Return the same renderer on all devices."""
    group = DeviceGroup(tuple(jax.devices()))
    return type(renderer)(renderer.config, jax.device_put(renderer.params, group.replicated), group)


@pytest.fixture(scope="module")
def inverse_group(inverse):
    return on_all_devices(inverse)


@pytest.fixture(scope="module")
def forward_group(forward):
    return on_all_devices(forward)


# Shared by frames, by windows of 4, or by passes, of which a last one is computed twice.
@pytest.mark.slow
@pytest.mark.parametrize(("frames", "options"), [(6, {}), (9, {"frames": 4, "overlap": 1}), (1, {})])
def test_inverse_on_two_devices_matches_one(inverse, inverse_group, frames, options):
    rgb = np.random.default_rng(5).random((1, frames, 16, 16, 3), np.float32)
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(rgb, CONDITIONS, **options) for renderer in (inverse, inverse_group))
    for name in CONDITIONS:
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)


# Shared by the halves of guidance, by frames, or by windows.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "lit", "options"),
    [
        (3, 3, {}),
        (4, 4, {"guidance": (1.0, 1.0)}),
        (9, 1, {"frames": 4, "overlap": 1, "dynamic_guidance": True}),
    ],
)
def test_forward_on_two_devices_matches_one(forward, forward_group, frames, lit, options):
    random = np.random.default_rng(6)
    buffers = {name: random.random((1, frames, 16, 16, 3), np.float32) for name in CONDITIONS}
    light = {label: random.random((lit, 16, 16, 3), np.float32) for label in LABELS}
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(buffers, light, **options) for renderer in (forward, forward_group))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "frames", "guided"), [(2, 3, False), (1, 4, False), (1, 3, True)])
def test_two_devices_halve_the_flops_of_a_step(inverse, inverse_group, rows, frames, guided):
    x = np.zeros((rows, frames, 8, 8, 4), np.float32)
    context, micro = np.zeros((rows, 1, 1, 24), np.float32), np.zeros((rows, 3), np.float32)
    scales = np.ones((rows, frames), np.float32) if guided else None
    work = {}
    for renderer in (inverse, inverse_group):
        split = renderer.group.split(rows * (1 + guided), frames)
        inputs = x, context, np.zeros(rows, int), micro, scales, x, 1.0
        step = renderer.compiled["step"].fn.lower(renderer.params["unet"], *inputs, split=split)
        work[len(renderer.group)] = step.compile().cost_analysis()["flops"]
    assert 0.45 < work[2] / work[1] < 0.65


# --- bad input -------------------------------------------------------------------------------------------------------

RGB = np.zeros((1, 2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": ["normals"]}, "unknown pass 'normals'; did you mean 'normal'"),
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
    ],
)
def test_bad_images_are_errors(inverse, images, message):
    """Call the check itself, as the tests' type checking would reject these arrays first."""
    with pytest.raises(InputError, match=message):
        inverse.check_images("rgb", images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["albedo"]}, "unknown condition to drop 'albedo'"),
        ({"buffers": {"normal": RGB}}, "not found: basecolor, depth, roughness, metallic"),
        ({"buffers": {name: RGB[:, : 1 + (name == "depth")] for name in CONDITIONS}}, "depth: expected shape"),
        ({"buffers": {}, "drop": CONDITIONS}, "expected at least one G-buffer"),
        ({"environment": {"env_ldr": RGB[0], "env_nrm": RGB[0]}}, "expected a map 'env_log'"),
        (
            {"environment": {label: np.zeros((5, 16, 16, 3), np.float32) for label in LABELS}},
            "1 clips of 2 frames",
        ),
    ],
)
def test_bad_arguments_of_forward_are_errors(forward, change, message):
    environment = {label: np.random.default_rng(0).random((5, 16, 16, 3), np.float32) for label in LABELS}
    arguments = {"buffers": dict.fromkeys(CONDITIONS, RGB), "environment": {k: v[:2] for k, v in environment.items()}}
    if "1 clips" in message:
        change = {"environment": environment}
    with pytest.raises(InputError, match=message):
        forward(**arguments | change)


def test_a_checkpoint_of_the_other_kind_is_an_error(inverse_checkpoint, forward_checkpoint):
    with pytest.raises(InputError, match="holds a 'forward' model, but the inverse renderer needs 'inverse'"):
        InverseRenderer.load(forward_checkpoint)
    with pytest.raises(InputError, match="holds a 'inverse' model"):
        ForwardRenderer.load(inverse_checkpoint)


def test_a_mistyped_dtype_is_an_error_with_a_hint(inverse_checkpoint):
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        InverseRenderer.load(inverse_checkpoint, dtype="bfloat")
