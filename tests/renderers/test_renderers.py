"""Properties of the renderers: shapes, independence of clips, windows, and the effect of every option."""

import dataclasses
import itertools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from drender import ForwardRenderer, InverseRenderer
from drender.config import CONDITIONS, ENVIRONMENT_LABELS, Sampling
from drender.renderers import inverse as inverse_module
from drender.renderers import stages

# --- shapes ----------------------------------------------------------------------------------------------------------


def test_programs_for_many_shapes_do_not_pile_up_on_a_cpu(monkeypatch):
    monkeypatch.setattr(stages, "MAX_CPU_PROGRAMS", 3)
    stage = stages.Stage("double", "vae", jax.jit(lambda params, x, split: 2 * x, static_argnames="split"))
    for frames in range(1, 9):
        np.testing.assert_array_equal(stages.run_stage(stage, {}, jnp.ones((1, frames))), np.full((1, frames), 2.0))
        assert 1 <= stage.fn._cache_size() <= 3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 16, 24), (2, 3, 10, 6)])
def test_any_shape_compiles_each_stage_once(inverse, shape):
    """Any number of frames and sides that the VAE divides; a second seed compiles nothing."""
    rgb = np.random.default_rng(1).random((*shape, 3), np.float32)
    sizes = lambda: np.array([stage.fn._cache_size() for stage in inverse.stages.values()])
    before = sizes()
    for seed in range(2):
        buffers = inverse(rgb, ["depth"], num_steps=3, seed=seed)
        assert buffers["depth"].shape == rgb.shape
        assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1
        assert (sizes() == before + 1).all()


@pytest.mark.slow
def test_clips_of_a_batch_are_independent(inverse):
    """Two clips together equal each alone; nine frames make two decoder chunks per clip."""
    random = np.random.default_rng(2)
    rgb, noise = random.random((2, 9, 8, 8, 3), np.float32), random.standard_normal((2, 9, 4, 4, 4), np.float32)
    together = inverse(rgb, ["normal"], num_steps=2, noise=noise)["normal"]
    for i in range(2):
        alone = inverse(rgb[i : i + 1], ["normal"], num_steps=2, noise=noise[i : i + 1])["normal"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-4)


@pytest.mark.slow
def test_forward_stages_compile_once(clip):
    stages._jitted.cache_clear()  # which other tests share
    renderer = small.renderer(ForwardRenderer, small.forward_config())
    for dynamic in (False, True):
        renderer(clip[1], clip[2], num_steps=3, dynamic_guidance=dynamic)
    sizes = {name: stage.fn._cache_size() for name, stage in renderer.stages.items()}
    assert [sizes[name] for name in ("environment", "denoise", "decode")] == [1, 1, 1]


def test_renderers_of_one_configuration_share_compiled_stages():
    first, second = (small.renderer(InverseRenderer, small.inverse_config()) for _ in range(2))
    assert all(first.stages[name].fn is second.stages[name].fn for name in first.stages)


@pytest.mark.parametrize("frames", [2, 3])
def test_what_is_compiled_ahead_is_not_compiled_again(clip, caplog, frames):
    """One window, and two; the stages then run as ever."""
    buffers = {name: np.resize(images[..., :8, :], (1, frames, 16, 8, 3)) for name, images in clip[1].items()}
    options = {"num_steps": 1, "frames": 2, "progress": False}

    def call(renderer: ForwardRenderer) -> tuple[np.ndarray, list[str]]:
        caplog.clear()
        with jax.log_compiles():
            images = renderer(buffers, clip[2], drop=["environment"], **options)
        return images, re.findall(r"Compiling jit\((call_method|predict_x0)\)", caplog.text)

    stages._jitted.cache_clear()  # which other tests share
    expected, needed = call(small.renderer(ForwardRenderer, small.forward_config()))
    stages._jitted.cache_clear()
    renderer = small.renderer(ForwardRenderer, small.forward_config())
    zeros, compiled = call(renderer.compiling())
    assert "predict_x0" in compiled and sorted(compiled) == sorted(needed)
    assert (zeros == 0.5).all()  # of latents and outputs that are zero
    images, compiled = call(renderer)
    assert compiled == []
    np.testing.assert_array_equal(images, expected)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_windows_are_blended_at_every_step(inverse):
    """Against the arithmetic written out: average the windows' x̂₀, then take an Euler step of all frames."""
    rgb = np.random.default_rng(3).random((1, 5, 8, 8, 3), np.float32)
    sampling = inverse.sampling({"frames": 3, "overlap": 1, "num_steps": 3})
    latents = inverse.encode(rgb, sampling)
    noise = inverse.initial_noise(None, sampling, latents.shape)
    ((_, result),) = inverse.estimate(latents, ["normal"], sampling, noise, progress=False)
    assert result.windows == [slice(0, 3), slice(2, 5)]

    context = jnp.zeros((1, 1, 1, inverse.config.unet.cross_attention_dim[-1]))
    micro, domain = np.float32([[6, 127, 0]]), jnp.array([inverse.config.domains["normal"]])
    sigmas, step = inverse.sigmas(sampling), inverse.stages["denoise"].fn
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


@pytest.mark.slow
def test_a_long_clip_is_sampled_and_decoded_in_windows(inverse, forward):
    rgb = np.random.default_rng(4).random((2, 7, 8, 8, 3), np.float32)
    options = {"num_steps": 2, "frames": 3, "overlap": 1, "decode_chunk_size": 2}
    buffers = inverse(rgb, CONDITIONS, **options)
    assert {buffer.shape for buffer in buffers.values()} == {rgb.shape}
    assert buffers["depth"].min() >= 0 and buffers["depth"].max() <= 1
    light = {label: np.random.default_rng(5).random((7, 8, 8, 3), np.float32) for label in ENVIRONMENT_LABELS}
    for environment in (light, {label: maps[:1] for label, maps in light.items()}):
        assert forward(buffers, environment, **options).shape == rgb.shape


def test_decoding_is_bit_exact_for_device_and_host_latents(inverse):
    """A resumed run decodes latents from a file; devices and numpy divide differently."""
    z = np.random.default_rng(6).standard_normal((1, 3, 8, 8, 4), np.float32)
    device, host = (list(inverse.decode_latents(latents, 2)) for latents in (jnp.asarray(z), z))
    np.testing.assert_array_equal(np.concatenate(device, axis=1), np.concatenate(host, axis=1))


@pytest.mark.slow
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
    noise = inverse.initial_noise(None, sampling, latents.shape)
    with pytest.raises(KeyboardInterrupt):
        list(inverse.estimate(latents, ["normal"], sampling, noise, progress=False, stop=stop))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
        {"deterministic": True, "num_steps": 1},
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


@pytest.mark.slow
def test_guidance_of_one_is_no_guidance(forward, clip):
    plain = forward(clip[1], clip[2], num_steps=2, guidance=(1.0, 1.0))
    nearly = forward(clip[1], clip[2], num_steps=2, guidance=(1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(plain, nearly, atol=1e-4)


@pytest.mark.slow
def test_a_single_environment_frame_equals_its_repetition(forward, clip):
    _, buffers, environment = clip
    still = {label: maps[0, :1] for label, maps in environment.items()}
    repeated = {label: np.repeat(maps, 2, axis=0) for label, maps in still.items()}
    np.testing.assert_array_equal(forward(buffers, still, num_steps=2), forward(buffers, repeated, num_steps=2))


@pytest.mark.slow
def test_a_static_environment_is_encoded_exactly(forward, clip):
    """Tokens of one frame serve all: against an environment that changes by a negligible amount."""
    _, buffers, environment = clip
    still = {label: np.repeat(maps[0, :1], 2, axis=0) for label, maps in environment.items()}
    moving = {label: maps + np.float32([0, 1e-6])[:, None, None, None] for label, maps in still.items()}
    np.testing.assert_allclose(forward(buffers, still, num_steps=2), forward(buffers, moving, num_steps=2), atol=1e-4)


@pytest.mark.slow
def test_dropping_a_condition_zeroes_its_latents(forward, clip):
    _, buffers, environment = clip
    kept = {name: buffer for name, buffer in buffers.items() if name != "depth"}
    dropped = forward(buffers, environment, num_steps=2, drop=["depth"])
    np.testing.assert_array_equal(dropped, forward(kept, environment, num_steps=2, drop=["depth"]))
    assert np.abs(dropped - forward(buffers, environment, num_steps=2)).max() > 1e-4


@pytest.mark.slow
def test_dropping_everything_leaves_the_unconditional_branch(forward, clip):
    _, buffers, environment = clip
    everything = [*CONDITIONS, "environment"]
    free = [forward(buffers, environment, num_steps=2, drop=everything, guidance=g) for g in ((1, 1), (5, 5))]
    np.testing.assert_allclose(free[0], free[1], atol=1e-4)


@pytest.mark.slow
def test_deterministic_forward_ignores_the_seed(forward, clip):
    frames = forward(clip[1], clip[2], deterministic=True)
    np.testing.assert_array_equal(frames, forward(clip[1], clip[2], deterministic=True, seed=3))


def test_one_step_models_have_no_guidance_by_default(forward):
    assert forward.sampling({}).guidance == (1.2, 1.2)
    config = dataclasses.replace(forward.config, deterministic=True)
    one_step = ForwardRenderer(config, forward.params)
    assert one_step.sampling({}).guidance == (1.0, 1.0)
    assert one_step.sampling({"guidance": (2.0, 2.0)}).guidance == (2.0, 2.0)
    assert one_step.sampling({"deterministic": False}).guidance == (1.2, 1.2)


def test_steps_of_a_one_step_model_have_no_effect_and_are_warned_of(forward):
    one_step = ForwardRenderer(dataclasses.replace(forward.config, deterministic=True), forward.params)
    with pytest.warns(UserWarning, match="num_steps 20 has no effect on this one-step model"):
        assert len(one_step.sigmas(one_step.sampling({"num_steps": 20}))) == 2
    assert len(one_step.sigmas(one_step.sampling({"num_steps": 20, "deterministic": False}))) == 21


def test_none_stands_for_the_default_of_every_option(forward):
    names = [field.name for field in dataclasses.fields(Sampling)]
    assert forward.sampling(dict.fromkeys(names)) == forward.sampling({})


@pytest.mark.slow
def test_another_device_gives_the_same_bits(inverse, clip):
    second = jax.devices()[1]
    other = InverseRenderer(inverse.config, jax.device_put(inverse.params, second))
    np.testing.assert_array_equal(
        inverse(clip[0], ["normal"], num_steps=2)["normal"], other(clip[0], ["normal"], num_steps=2)["normal"]
    )
    assert jax.tree.leaves(other.params)[0].device == second
