"""Initial parameters: random draws, and pretrained ones that are kept, grown, replaced or refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

from drender.config import EnvEncoderConfig, RendererConfig, UNetConfig
from drender.errors import InputError
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.unet import UNet
from drender.models.vae import VAE
from drender.training import init

SVD = RendererConfig(
    "svd", UNetConfig(**small.UNET, cross_attention_dim=24, temporal_cross_attention_dim=24), small.VAE
)


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def method(cls, config, name="__call__"):
    graphdef = abstract_module(cls, config)[0]
    return jax.jit(lambda params, *args: getattr(nnx.merge(graphdef, params), name)(*args))


def with_random(params: dict, *names: str) -> dict:
    """The parameters with some of those that begin at zero moved off it."""
    leaves = flatten(params)
    draw = lambda name, x: array(*x.shape, seed=len(name)) / 8 if any(part in name for part in names) else x
    return unflatten({name: draw(name, x) for name, x in leaves.items()})


# --- at random -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "config"), [(UNet, SVD.unet), (VAE, small.VAE), (EnvEncoder, small.forward_config().env_encoder)]
)
def test_parameters_have_shape_variance_and_seed(cls, config):
    params, again = (flatten(init.init_params(cls, config, seed=3)) for _ in range(2))
    assert {name: x.shape for name, x in params.items()} == {
        name: leaf.shape for name, leaf in flatten(abstract_module(cls, config)[1]).items()
    }
    assert {x.dtype.name for x in params.values()} == {"float32"}
    other = flatten(init.init_params(cls, config, seed=4))
    for name, x in params.items():
        np.testing.assert_array_equal(x, again[name])
        if name.endswith(".kernel") and x.any() and "time_conv_out" not in name:
            assert not np.array_equal(x, other[name])
            assert np.std(x) * np.sqrt(np.prod(x.shape[:-1])) == pytest.approx(1, abs=6 / np.sqrt(x.size))
        if name.endswith((".bias", ".scale")):
            assert (x == name.endswith(".scale")).all()


def test_mix_factors_and_domains_are_initialized_as_in_svd():
    factors = lambda params: {float(x[0]) for name, x in flatten(params).items() if name.endswith("mix_factor")}
    config = dataclasses.replace(small.inverse_config().unet, cross_attention_dim=400)
    params = init.init_params(UNet, config, seed=0)
    assert (factors(params), factors(init.init_params(VAE, small.VAE, seed=0))) == ({0.5}, {0.0})
    assert np.linalg.norm(params["context_embedding"]["embedding"], axis=1) == pytest.approx(10)
    narrow = init.init_params(UNet, small.inverse_config().unet, seed=0)["context_embedding"]["embedding"]
    assert np.std(narrow) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_initial_unet_treats_a_video_as_images():
    config = small.inverse_config(small.ONE_LEVEL).unet
    params, call = init.init_params(UNet, config, seed=0), method(UNet, config)
    inputs = array(2, 3, 4, 4, 8), array(2), array(2, 1, 1, 24), array(2, 3), np.int32([0, 3])
    assert not np.any(call(params, *inputs, np.array([False, False])))
    params = with_random(params, "conv_out", "proj_out")
    video, images = (call(params, *inputs, np.array([image_only] * 2)) for image_only in (False, True))
    assert np.std(video) > 0.1
    np.testing.assert_allclose(video, images, atol=1e-5)


@pytest.mark.slow
def test_initial_decoder_treats_a_video_as_images():
    params, decode = init.init_params(VAE, small.VAE, seed=0), method(VAE, small.VAE, "decode")
    latents = array(1, 3, 4, 4, 4)
    video = decode(params, latents)
    assert np.std(video) > 0.1
    for i in range(3):
        np.testing.assert_allclose(video[:, i : i + 1], decode(params, latents[:, i : i + 1]), atol=1e-5)


# --- from a checkpoint -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def svd() -> dict:
    return small.random_params(UNet, SVD.unet)


def test_inverse_renderer_is_initialized_as_svd(svd):
    """Without a domain it computes what the start does."""
    config = init.renderer_config("inverse", SVD).unet
    params, report = init.adapt_pretrained(UNet, config, svd, 0, "svd/unet")
    assert report == [f"svd/unet: kept {len(flatten(svd))} tensors", "svd/unet: new context_embedding"]
    new = flatten(params)
    np.testing.assert_array_equal(
        new.pop("context_embedding.embedding"), init.init_params(UNet, config, 0)["context_embedding"]["embedding"]
    )
    jax.tree.map(np.testing.assert_array_equal, new, flatten(svd))


def test_forward_renderer_is_initialized_as_svd_without_buffers(svd):
    config = init.renderer_config("forward", SVD).unet
    params, report = init.adapt_pretrained(UNet, config, svd, 0, "svd/unet")
    assert report[1:3] == [
        "svd/unet: grown conv_in",
        "svd/unet: new 4 × transformer_blocks.attn2.to_k, 4 × transformer_blocks.attn2.to_v",
    ]
    assert report[3].startswith("svd/unet: dropped 4 × temporal_transformer_blocks.attn2.to_k, 4 × temporal_")
    np.testing.assert_array_equal(params["conv_in"]["kernel"][:, :, :8], svd["conv_in"]["kernel"])
    assert not params["conv_in"]["kernel"][:, :, 8:].any()
    old, new, fresh = flatten(svd), flatten(params), flatten(init.init_params(UNet, config, 0))
    for name, x in new.items():
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            np.testing.assert_array_equal(x, fresh[name])
        elif name != "conv_in.kernel":
            np.testing.assert_array_equal(x, old[name])


def test_a_domain_table_grows_by_new_rows():
    start = small.inverse_config().unet
    config = dataclasses.replace(start, context_vocab_size=20)
    stored = small.random_params(UNet, start)
    params, report = init.adapt_pretrained(UNet, config, stored, 1, "start")
    assert report[1:] == ["start: grown context_embedding"]
    table, fresh = (x["context_embedding"]["embedding"] for x in (params, init.init_params(UNet, config, 1)))
    np.testing.assert_array_equal(table[:16], stored["context_embedding"]["embedding"])
    np.testing.assert_array_equal(table[16:], fresh[16:])


def test_kept_parameters_keep_their_dtype_and_are_not_copied(svd):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), svd)
    for stored in (half, svd):
        params, _ = init.adapt_pretrained(UNet, SVD.unet, stored, 0, "start")
        jax.tree.map(np.testing.assert_array_equal, params, stored)
        assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, stored)
    assert np.shares_memory(params["conv_in"]["kernel"], svd["conv_in"]["kernel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 4}, r"conv_in.kernel is \(3, 3, 8, 32\), but the model to train needs \(3, 3, 4, 32\)"),
        ({"block_out_channels": (32, 96)}, r"is \(\d*,? ?64\S*, but the model to train needs .*96"),
        ({"layers_per_block": 2}, "is missing, but the model to train needs"),
        ({"down_block_types": ("DownBlockSpatioTemporal",) * 2}, "needs no such parameter"),
    ],
)
def test_other_differences_are_refused(svd, change, message):
    with pytest.raises(InputError, match=message) as error:
        init.adapt_pretrained(UNet, dataclasses.replace(SVD.unet, **change), svd, 0, "runs/a/unet")
    assert str(error.value).startswith("runs/a/unet: ")


def test_a_smaller_domain_table_is_refused():
    start = small.inverse_config().unet
    with pytest.raises(InputError, match=r"context_embedding.embedding is \(16, 24\)"):
        init.adapt_pretrained(
            UNet, dataclasses.replace(start, context_vocab_size=5), small.random_params(UNet, start), 0, "start"
        )


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_size_renderers_are_the_released_ones():
    svd = RendererConfig("svd")
    size = lambda cls, config: sum(leaf.size for leaf in jax.tree.leaves(abstract_module(cls, config)[1]))
    inverse, forward = (init.renderer_config(kind, svd) for kind in ("inverse", "forward"))
    assert size(UNet, inverse.unet) == 1_524_639_466
    assert size(UNet, forward.unet) == 1_473_513_642
    assert (inverse.scale_cond_latents, inverse.scheduler.timestep_spacing) == (False, "leading")
    assert (forward.scale_cond_latents, forward.scheduler.timestep_spacing) == (True, "trailing")
    assert (inverse.env_encoder, forward.env_encoder) == (None, EnvEncoderConfig())


def test_a_base_of_the_same_kind_is_unchanged():
    for kind, config in (("inverse", small.inverse_config()), ("forward", small.forward_config()), ("svd", SVD)):
        assert init.renderer_config(kind, config) is config


def test_a_base_of_another_kind_is_refused():
    with pytest.raises(
        InputError, match=r"init_from: expected a model of kind 'forward' or 'svd' .*, got kind 'inverse'"
    ):
        init.renderer_config("forward", small.inverse_config())
