"""The renderers against golden results of the released pipeline, and what their arguments do."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from drender import ForwardRenderer, InputError, InverseRenderer
from drender.renderers import inverse as renderers
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
    """Two frames for what needs no golden numbers: rgb, G-buffers, environment."""
    random = np.random.default_rng(0)
    image = lambda: random.random((1, 2, 16, 16, 3), np.float32)
    return image(), {name: image() for name in CONDITIONS}, {label: image() for label in LABELS}


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


# --- golden ----------------------------------------------------------------------------------------------------------


def test_inverse_passes_agree_with_the_released_pipeline(inverse_checkpoint):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype="float32")
    buffers = renderer(golden["rgb"], meta["passes"], noise=golden["noise"], num_steps=meta["steps"])
    for name in meta["passes"]:
        assert np.abs(buffers[name] - golden[f"frames.{name}"]).max() < 2e-3, name


@pytest.mark.parametrize(("name", "scale"), [("forward_tiny_nolora", 0.0), ("forward_tiny_lora025", 0.25)])
def test_forward_agrees_with_the_released_pipeline(forward_checkpoint, name, scale):
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
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 39.0), ("float16", 55.0)])
def test_half_precision_stays_close_to_the_released_pipeline(inverse_checkpoint, dtype, least):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype=dtype)
    frames = renderer(golden["rgb"], ["normal"], noise=golden["noise"], num_steps=meta["steps"])["normal"]
    assert frames.dtype == np.float32
    assert psnr(frames, golden["frames.normal"]) > least


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 16, 24), (2, 2, 10, 6)])
def test_any_number_of_frames_and_any_sides_that_the_vae_divides(inverse, shape):
    rgb = np.random.default_rng(1).random((*shape, 3), np.float32)
    buffers = inverse(rgb, ["depth"], num_steps=1)
    assert buffers["depth"].shape == rgb.shape
    assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1


def test_clips_of_a_batch_do_not_mix(inverse):
    """Two clips together give what each gives alone; nine frames make two decoder runs per clip."""
    random = np.random.default_rng(2)
    rgb, noise = random.random((2, 9, 8, 8, 3), np.float32), random.standard_normal((2, 9, 4, 4, 4), np.float32)
    together = inverse(rgb, ["normal"], num_steps=2, noise=noise)["normal"]
    for i in range(2):
        alone = inverse(rgb[i : i + 1], ["normal"], num_steps=2, noise=noise[i : i + 1])["normal"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


def test_each_stage_is_compiled_once(clip):
    renderer = small.renderer(InverseRenderer, small.inverse_config())
    for seed in range(2):
        renderer(clip[0], ["normal", "depth"], num_steps=3, seed=seed)
    assert [stage._cache_size() for stage in (renderer._encode, renderer._clean, renderer._decode)] == [1, 1, 1]


def test_forward_stages_are_compiled_once(clip):
    renderer = small.renderer(ForwardRenderer, small.forward_config())
    for dynamic in (False, True):
        renderer(clip[1], clip[2], num_steps=3, dynamic_guidance=dynamic)
    stages = (renderer._clean, renderer._decode, renderer._encode_light)
    assert [stage._cache_size() for stage in stages] == [1, 1, 1]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_blended_at_every_step(inverse):
    """Against the same arithmetic written down: windows' x̂₀ averaged, then an Euler step of all frames."""
    rgb = np.random.default_rng(3).random((1, 5, 8, 8, 3), np.float32)
    sampling = inverse.sampling({"frames": 3, "overlap": 1, "num_steps": 3})
    latents = inverse.encode(rgb, sampling)
    noise = inverse.initial_noise(None, 0, latents.shape)
    ((_, found),) = inverse.estimate(latents, ["normal"], sampling, noise, progress=False)
    assert found.windows == [slice(0, 3), slice(2, 5)]

    context = jnp.zeros((1, 1, 1, inverse.config.unet.cross_attention_dim[-1]))
    micro, domain = np.float32([[6, 127, 0]]), jnp.array([inverse.config.domains["normal"]])
    sigmas = inverse.sigmas(sampling)
    x = noise * np.float32(np.sqrt(sigmas[0] ** 2 + 1))
    for sigma, following in itertools.pairwise(sigmas):
        clean = lambda part, x=x, sigma=sigma: np.asarray(
            inverse._clean(inverse.params["unet"], latents[:, part], context, domain, micro, None, x[:, part], sigma)
        )
        first, second = clean(slice(0, 3)), clean(slice(2, 5))
        shared = (first[:, 2:] + second[:, :1]) / 2
        x0 = np.concatenate([first[:, :2], shared, second[:, 1:]], axis=1)
        x = x + (following - sigma) * (x - x0) / sigma
    np.testing.assert_allclose(found.blended(), x, atol=1e-4)


def test_a_long_clip_is_sampled_and_decoded_in_windows(inverse, forward):
    rgb = np.random.default_rng(4).random((2, 7, 8, 8, 3), np.float32)
    options = {"num_steps": 2, "frames": 3, "overlap": 1, "decode_chunk_size": 2}
    buffers = inverse(rgb, CONDITIONS, **options)
    assert {buffer.shape for buffer in buffers.values()} == {rgb.shape}
    assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1
    light = {label: np.random.default_rng(5).random((7, 8, 8, 3), np.float32) for label in LABELS}
    for environment in (light, {label: maps[:1] for label, maps in light.items()}):
        assert forward(buffers, environment, **options).shape == rgb.shape


def test_latents_of_a_device_are_decoded_to_the_bits_of_those_of_a_file(inverse):
    """A stopped run goes on from a file. Devices and numpy divide differently."""
    z = np.random.default_rng(6).standard_normal((1, 3, 8, 8, 4), np.float32)
    device, file = (list(inverse.decode_latents(latents, 2)) for latents in (jnp.asarray(z), z))
    np.testing.assert_array_equal(np.concatenate(device, axis=1), np.concatenate(file, axis=1))


def test_passes_together_are_what_each_is_alone(inverse, clip, monkeypatch):
    together = inverse(clip[0], CONDITIONS, num_steps=2)
    monkeypatch.setattr(renderers, "BATCH_LATENTS", 1)
    for name, alone in inverse(clip[0], CONDITIONS, num_steps=2).items():
        np.testing.assert_allclose(together[name], alone, atol=1e-4)


# --- options ---------------------------------------------------------------------------------------------------------


def test_seeds_repeat_and_differ(inverse, clip):
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


def test_one_environment_for_all_frames_equals_the_same_repeated(forward, clip):
    _, buffers, environment = clip
    still = {label: maps[0, :1] for label, maps in environment.items()}
    repeated = {label: np.repeat(maps, 2, axis=0) for label, maps in still.items()}
    np.testing.assert_array_equal(forward(buffers, still, num_steps=2), forward(buffers, repeated, num_steps=2))


def test_a_still_environment_is_encoded_as_if_it_moved(forward, clip):
    """One frame of tokens for all frames is exact: against an environment that moves by less than matters."""
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


def test_dropping_the_environment_and_all_conditions_leaves_the_unconditional_model(forward, clip):
    _, buffers, environment = clip
    everything = [*CONDITIONS, "environment"]
    free = [forward(buffers, environment, num_steps=2, drop=everything, guidance=g) for g in ((1, 1), (5, 5))]
    np.testing.assert_allclose(free[0], free[1], atol=1e-4)


def test_deterministic_forward(forward, clip):
    frames = forward(clip[1], clip[2], deterministic=True)
    np.testing.assert_array_equal(frames, forward(clip[1], clip[2], deterministic=True, seed=3))


def test_what_is_trained_for_one_step_is_not_guided_unless_asked(forward):
    assert forward.sampling({}, guidance=(1.2, 1.2)).guidance == (1.2, 1.2)
    config = dataclasses.replace(forward.config, deterministic=True)
    one_step = ForwardRenderer(config, forward.params)
    assert one_step.sampling({}, guidance=(1.2, 1.2)).guidance == (1.0, 1.0)
    assert one_step.sampling({"guidance": (2.0, 2.0)}, guidance=(1.2, 1.2)).guidance == (2.0, 2.0)
    assert one_step.sampling({"deterministic": False}, guidance=(1.2, 1.2)).guidance == (1.2, 1.2)


def test_a_second_device_computes_the_same(inverse, clip):
    second = jax.devices()[1]
    other = InverseRenderer(inverse.config, jax.device_put(inverse.params, second))
    np.testing.assert_array_equal(
        inverse(clip[0], ["normal"], num_steps=2)["normal"], other(clip[0], ["normal"], num_steps=2)["normal"]
    )
    assert jax.tree.leaves(other.params)[0].device == second


# --- several devices -------------------------------------------------------------------------------------------------


def shared(renderer):
    """The same renderer on all devices."""
    team = DeviceGroup(tuple(jax.devices()))
    return type(renderer)(renderer.config, jax.device_put(renderer.params, team.replicated), team)


@pytest.fixture(scope="module")
def inverse_team(inverse):
    return shared(inverse)


@pytest.fixture(scope="module")
def forward_team(forward):
    return shared(forward)


# Frames of a clip; three windows of 4; one frame, which is shared as passes, or as a last pass by nobody.
@pytest.mark.parametrize(("frames", "options"), [(6, {}), (9, {"frames": 4, "overlap": 1}), (1, {})])
def test_two_devices_estimate_what_one_does(inverse, inverse_team, frames, options):
    rgb = np.random.default_rng(5).random((1, frames, 16, 16, 3), np.float32)
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(rgb, CONDITIONS, **options) for renderer in (inverse, inverse_team))
    for name in CONDITIONS:
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)


# Both halves of guidance; frames; windows.
@pytest.mark.parametrize(
    ("frames", "lit", "options"),
    [
        (3, 3, {}),
        (4, 4, {"guidance": (1.0, 1.0)}),
        (9, 1, {"frames": 4, "overlap": 1, "dynamic_guidance": True}),
    ],
)
def test_two_devices_render_what_one_does(forward, forward_team, frames, lit, options):
    random = np.random.default_rng(6)
    buffers = {name: random.random((1, frames, 16, 16, 3), np.float32) for name in CONDITIONS}
    light = {label: random.random((lit, 16, 16, 3), np.float32) for label in LABELS}
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(buffers, light, **options) for renderer in (forward, forward_team))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize(("rows", "frames", "guided"), [(2, 3, False), (1, 4, False), (1, 3, True)])
def test_a_device_of_two_has_about_half_of_a_step_to_do(inverse, inverse_team, rows, frames, guided):
    x = np.zeros((rows, frames, 8, 8, 4), np.float32)
    context, micro = np.zeros((rows, 1, 1, 24), np.float32), np.zeros((rows, 3), np.float32)
    scales = np.ones((rows, frames), np.float32) if guided else None
    work = {}
    for renderer in (inverse, inverse_team):
        split = renderer.team.split(rows * (1 + guided), frames)
        inputs = x, context, np.zeros(rows, int), micro, scales, x, 1.0
        step = renderer._clean.lower(renderer.params["unet"], *inputs, split)
        work[len(renderer.team)] = step.compile().cost_analysis()["flops"]
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
        ({"sigma_min": 800.0}, "sigma_min is 800.0 and sigma_max 700.0; the former must be less"),
        ({"rho": 0.0}, "rho: expected above 0, got 0.0"),
        ({"sampler": "dpm"}, r"sampler: expected one of 'euler', 'heun', 'dpm\+\+', got 'dpm'"),
        ({"num_steps": "20"}, "num_steps: expected int, got '20'"),
        ({"nun_steps": 20}, "did you mean 'num_steps'"),
        ({"guidance": (1.0, 2.0, 3.0)}, "expected two numbers"),
        ({"rgb": RGB[:, :0]}, "rgb has shape"),
        ({"rgb": RGB[:, :, :7]}, "rgb is 7×16; sides must be multiples of 2"),
        ({"noise": RGB}, r"these images need \(1, 2, 8, 8, 4\)"),
    ],
)
def test_bad_arguments_of_inverse(inverse, arguments, message):
    with pytest.raises(InputError, match=message):
        inverse(**{"rgb": RGB} | arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (RGB[0], r"rgb has shape \(2, 16, 16, 3\); expected \[batch"),
        ((RGB * 255).astype(np.uint8), "divide bytes by 255"),
        ([["text"]], "rgb has shape"),
    ],
)
def test_bad_images(inverse, images, message):
    """Asked of the check itself: the tests' own checking of signatures would be first to refuse them."""
    with pytest.raises(InputError, match=message):
        inverse.check_images("rgb", images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["albedo"]}, "unknown condition to drop 'albedo'"),
        ({"buffers": {"normal": RGB}}, "lack basecolor, depth, roughness, metallic"),
        ({"buffers": {name: RGB[:, : 1 + (name == "depth")] for name in CONDITIONS}}, "depth has shape"),
        ({"buffers": {}, "drop": CONDITIONS}, "no G-buffer is given"),
        ({"environment": {"env_ldr": RGB[0], "env_nrm": RGB[0]}}, "lacks 'env_log'"),
        ({"environment": {label: np.zeros((5, 16, 16, 3), np.float32) for label in LABELS}}, "1 clips of 2 frames"),
    ],
)
def test_bad_arguments_of_forward(forward, change, message):
    environment = {label: np.random.default_rng(0).random((5, 16, 16, 3), np.float32) for label in LABELS}
    arguments = {"buffers": dict.fromkeys(CONDITIONS, RGB), "environment": {k: v[:2] for k, v in environment.items()}}
    if "1 clips" in message:
        change = {"environment": environment}
    with pytest.raises(InputError, match=message):
        forward(**arguments | change)


def test_a_checkpoint_of_the_other_kind(inverse_checkpoint, forward_checkpoint):
    with pytest.raises(InputError, match="holds a 'forward' model, but the inverse renderer needs 'inverse'"):
        InverseRenderer.load(forward_checkpoint)
    with pytest.raises(InputError, match="holds a 'inverse' model"):
        ForwardRenderer.load(inverse_checkpoint)


def test_mistyped_dtype(inverse_checkpoint):
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        InverseRenderer.load(inverse_checkpoint, dtype="bfloat")
