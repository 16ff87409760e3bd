"""The networks against tiny modules of diffusers with the same weights, and the exactness of what is saved."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array, channels_first, diffusers, network, params_of, randomized, torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drender.config import EnvEncoderConfig, UNetConfig, VAEConfig
from drender.models import attention, cpu_conv, layers, lora, params
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.unet import UNet
from drender.models.vae import VAE
from drender.training import flops

# --- UNet ------------------------------------------------------------------------------------------------------------

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"
VARIATIONS = {
    "small": {},
    "several layers": {"layers_per_block": (1, 2), "transformer_layers_per_block": (2, 1)},
    "attention at every level": {"down_block_types": (CROSS_DOWN,) * 2, "up_block_types": (CROSS_UP,) * 2},
    "three levels": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": (CROSS_DOWN, "DownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "UpBlockSpatioTemporal", CROSS_UP),
        "num_attention_heads": (1, 2, 4),
    },
}


@functools.cache
def svd_unet(variation: str):
    options = small.UNET | VARIATIONS[variation] | {"cross_attention_dim": 24}
    torch.manual_seed(0)
    oracle = randomized(diffusers.UNetSpatioTemporalConditionModel(**options))
    config = UNetConfig(**options, temporal_cross_attention_dim=24)
    return oracle, config, params_of(UNet, config, oracle)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("variation", "tokens", "size"),
    [("small", 1, (4, 6)), ("small", 3, (5, 7)), ("several layers", 3, (4, 4)), ("attention at every level", 3, (4, 4)),
     ("three levels", 1, (6, 5))],
)  # fmt: skip
def test_unet_is_that_of_diffusers(variation, tokens, size):
    oracle, config, params = svd_unet(variation)
    x, context, time = array(2, 3, *size, 8), array(2, tokens, 24, seed=1), np.float32([0.3, -1.2])
    micro = np.float32([[6, 127, 0], [23, 30, 0.1]])
    with torch.no_grad():
        expected = [
            oracle(channels_first(x[i : i + 1]), torch.tensor(time[i]), torch.from_numpy(context[i : i + 1]),
                   torch.from_numpy(micro[i : i + 1])).sample
            for i in range(2)
        ]  # fmt: skip
    ours = network(UNet, config, params)(x, time, context[:, None], micro)
    np.testing.assert_allclose(np.moveaxis(torch.cat(expected).numpy(), 2, -1), ours, atol=2e-4)


@pytest.fixture(scope="module")
def forward_unet():
    config = small.forward_config().unet
    params = small.random_params(UNet, config)
    call = network(UNet, config, params)
    x, micro = array(2, 3, 4, 4, 24), np.float32([[6, 127, 0]] * 2)
    context = [array(2, 3, 5, 32, seed=1), array(2, 3, 2, 64, seed=2)]
    return lambda context, rows=2: call(x[:rows], np.float32([0.1] * rows), context, micro[:rows]), context


def test_context_per_frame_reaches_its_frame_alone_in_spatial_attention(forward_unet):
    """All frames alike: a context per frame, the same repeated, and one for the clip are the same."""
    call, context = forward_unet
    first = [level[:, :1] for level in context]
    repeated = [np.repeat(level, 3, axis=1) for level in first]
    np.testing.assert_allclose(call(first), call(repeated), atol=1e-5)
    assert np.abs(call(context) - call(repeated)).max() > 1e-3


def test_rows_without_context_have_zeros(forward_unet):
    call, context = forward_unet
    with_zeros = [np.concatenate([level[:1], np.zeros_like(level[1:])]) for level in context]
    np.testing.assert_allclose(call([level[:1] for level in context]), call(with_zeros), atol=1e-5)


def test_context_of_zeros_may_be_one_token(forward_unet):
    call, context = forward_unet
    zeros = [np.zeros_like(level) for level in context]
    np.testing.assert_allclose(call([level[:, :1, :1] for level in zeros]), call(zeros), atol=1e-5)


def test_images_do_not_see_each_other():
    """With the temporal branches off, frames of a clip are what each is alone; a clip beside them is as ever."""
    config = small.inverse_config().unet
    call = network(UNet, config, small.random_params(UNet, config))
    x, context, micro, domain = array(2, 3, 4, 4, 8), np.zeros((2, 1, 1, 24), "f"), array(2, 3), np.int32([3, 0])
    time = np.float32([0.1, 0.1])
    mixed = call(x, time, context, micro, domain, np.array([True, False]))
    for i in range(3):
        alone = call(x[:1, i : i + 1], time[:1], context[:1], micro[:1], domain[:1], np.array([True]))
        np.testing.assert_allclose(mixed[:1, i : i + 1], alone, atol=1e-5)
    np.testing.assert_allclose(mixed[1], call(x, time, context, micro, domain)[1], atol=1e-5)


@pytest.mark.oracle
def test_long_domain_embeddings_are_shortened_as_in_torch():
    config = small.inverse_config().unet
    params = small.random_params(UNet, config)
    params["context_embedding"]["embedding"][3] *= 5
    table = torch.nn.Embedding(16, 24, max_norm=10.0)
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(params["context_embedding"]["embedding"]))
        expected = table(torch.tensor([2, 3])).numpy()
    ours = network(UNet, config, params, "_domain_embedding")(np.int32([2, 3]))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert np.linalg.norm(ours[1]) == pytest.approx(10, rel=1e-6)


def test_networks_compute_in_the_dtype_of_their_parameters():
    """Nothing in between is quietly float32: of all products, none has a float32 operand."""
    dtype = "bfloat16"
    config = small.inverse_config().unet
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract_module(UNet, config)[1])
    graphdef = abstract_module(UNet, config)[0]
    arguments = [jnp.asarray(x) for x in (array(1, 2, 4, 4, 8), [0.1], np.zeros((1, 1, 1, 24)), array(1, 3), [0])]
    jaxpr = jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(*arguments))(params)
    products = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(products) > 50
    assert {operand.aval.dtype.name for eqn in products for operand in eqn.invars} == {dtype}
    assert jaxpr.out_avals[0].dtype == jnp.float32


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


# --- VAE and environment encoder -------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"block_out_channels": (32, 64), "layers_per_block": 1},
        {"block_out_channels": (32, 32, 64), "layers_per_block": 2},
    ],
)
def test_vae_is_that_of_diffusers(options):
    torch.manual_seed(0)
    levels = len(options["block_out_channels"])
    oracle = randomized(
        diffusers.AutoencoderKLTemporalDecoder(**options, down_block_types=("DownEncoderBlock2D",) * levels)
    )
    config = VAEConfig(**options)
    params = params_of(VAE, config, oracle)
    images = array(2, 3, 16, 24, 3)
    with torch.no_grad():
        latents = oracle.encode(channels_first(images).flatten(0, 1)).latent_dist
        decoded = oracle.decode(latents.mode(), num_frames=3).sample
    mean, log_variance = network(VAE, config, params, "moments")(images)
    last = lambda x: np.moveaxis(x.unflatten(0, (2, 3)).numpy(), 2, -1)
    np.testing.assert_allclose(mean, last(latents.mean), atol=1e-4)
    np.testing.assert_allclose(log_variance, last(latents.logvar), atol=1e-4)
    np.testing.assert_allclose(network(VAE, config, params, "decode")(mean), last(decoded), atol=2e-4)


@pytest.mark.oracle
def test_environment_encoder_is_made_of_diffusers_blocks():
    torch.manual_seed(0)
    config = EnvEncoderConfig(channels=(32, 64), num_res_blocks=2)
    blocks = [
        diffusers.models.unets.unet_2d_blocks.DownEncoderBlock2D(before, after, num_layers=2, add_downsample=i > 0)
        for i, (before, after) in enumerate([(32, 32), (32, 64)])
    ]
    oracle = torch.nn.Module()
    oracle.conv_in, oracle.down_blocks = torch.nn.Conv2d(12, 32, 3, padding=1), torch.nn.ModuleList(blocks)
    randomized(oracle)
    maps = array(1, 2, 8, 6, 12)
    tokens = network(EnvEncoder, config, params_of(EnvEncoder, config, oracle))(maps)
    with torch.no_grad():
        x = oracle.conv_in(channels_first(maps)[0])
        for block, level in zip(blocks, tokens, strict=True):
            x = block(x)
            np.testing.assert_allclose(level[0], x.flatten(2).mT.numpy(), atol=1e-4)


@pytest.mark.oracle
def test_pixel_stem_shrinks_by_eight():
    config = EnvEncoderConfig(in_channels=9, channels=(32, 64), latent_encoder=False)
    params = small.random_params(EnvEncoder, config)
    oracle = torch.nn.Sequential()
    for name in ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"):
        branch = functools.reduce(lambda tree, key: tree[key], map(_key, name.split(".")), params["conv_in"])
        kernel = branch["kernel"]
        conv = torch.nn.Conv2d(
            *kernel.shape[2:], 3, stride=2 if name in ("blocks.1", "blocks.3", "blocks.5") else 1, padding=1
        )
        conv.weight.data, conv.bias.data = (
            torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
            torch.from_numpy(branch["bias"]),
        )
        oracle.extend([conv, torch.nn.SiLU()])
    maps = array(1, 1, 32, 16, 9)
    with torch.no_grad():
        expected = oracle[:-1](channels_first(maps)[0])
    stem = jax.jit(lambda params, x: nnx.merge(abstract_module(EnvEncoder, config)[0], params).conv_in(x))(
        params, maps[0]
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(stem), -1, 1), expected.numpy(), atol=1e-4)
    assert stem.shape == (1, 4, 2, 32)


def _key(part: str) -> str | int:
    return int(part) if part.isdecimal() else part


# --- what is saved is saved exactly ----------------------------------------------------------------------------------


@pytest.mark.oracle
@settings(max_examples=40)
@given(n=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 70), kernel=st.sampled_from([(1, 1), (3, 1), (3, 3)]))
def test_convolutions_of_every_grid_are_torch_convolutions(n, h, w, kernel):
    """Small grids become matrix products, and taps that see only padding are left out."""
    x, weights, bias = array(n, h, w, 4), array(*kernel, 4, 5, seed=1), array(5, seed=2)
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected = torch.nn.functional.conv2d(
        channels_first(x),
        torch.from_numpy(weights.transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(bias),
        padding=padding,
    )
    convolution = layers.conv(4, 5, kernel, rngs=params.ParamRngs(jax.random.key(0)))
    convolution.kernel[...], convolution.bias[...] = jnp.asarray(weights), jnp.asarray(bias)
    with jax.disable_jit():
        np.testing.assert_allclose(convolution(jnp.asarray(x)), np.moveaxis(expected.numpy(), 1, -1), atol=1e-4)


@pytest.mark.parametrize("piece", [2**30, 2**16, 1])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 17, 31), (3, 3)), ((3, 16, 16), (3, 3)), ((1, 5, 128), (3, 1)), ((2, 2, 200), (3, 1)), ((1, 90, 7), (1, 3))],
)
def test_minimal_filtering_is_convolution(monkeypatch, shape, kernel, piece):
    """Odd sides, bands of rows that see each other's edges, and grids taken together; and its gradients."""
    monkeypatch.setattr(cpu_conv, "PIECE", piece)
    jax.clear_caches()  # of what was traced with other pieces
    x, weights = jnp.asarray(array(*shape, 64)), jnp.asarray(array(*kernel, 64, 72, seed=1)) / 24
    padding = [(k // 2, k // 2) for k in kernel]
    plain = lambda x, weights: cpu_conv._plain(x, weights, padding, 1)
    filtered = lambda x, weights: cpu_conv.conv2d(x, weights, padding)
    assert flops.count(cpu_conv._filter, x, weights) <= 0.8 * flops.count(plain, x, weights)
    np.testing.assert_allclose(filtered(x, weights), plain(x, weights), atol=1e-5)
    gradients = lambda fn: jax.grad(lambda *inputs: jnp.sum(jnp.sin(fn(*inputs))), (0, 1))(x, weights)
    for found, expected in zip(gradients(filtered), gradients(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("limit", [2 * 7 * 9 * 2, 2 * 7 * 9, 40, 1])
def test_attention_in_pieces_is_attention(monkeypatch, limit):
    """Rows at a time, then queries of a row at a time."""
    q, k, v = array(5, 7, 2, 8), array(5, 9, 2, 8, seed=1), array(5, 9, 2, 8, seed=2)
    attend = lambda: attention.attend(*map(jnp.asarray, (q, k, v)))
    gradients = lambda: jax.grad(lambda *qkv: jnp.sum(jnp.sin(attention.attend(*qkv))), (0, 1, 2))(q, k, v)
    whole, whole_gradients = attend(), gradients()
    monkeypatch.setattr(attention, "MAX_LOGITS_CPU", limit)
    np.testing.assert_allclose(attend(), whole, atol=1e-5)
    for piecewise, gradient in zip(gradients(), whole_gradients, strict=True):
        np.testing.assert_allclose(piecewise, gradient, atol=1e-5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k, v))
    )
    np.testing.assert_allclose(whole, expected.transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize("limit", [2**20, 3 * 64 * 16, 1])
@pytest.mark.parametrize("heads", [1, 2])
def test_frames_that_share_their_keys_attend_as_if_they_had_their_own(monkeypatch, heads, limit):
    """One still light for all frames; XLA once made numbers of it that were none, of a single head."""
    monkeypatch.setattr(attention, "MAX_LOGITS_CPU", limit)
    layer = attention.Attention(32, heads, 32, rngs=params.ParamRngs(jax.random.key(0)))
    x, context = jnp.asarray(array(10, 64, 32)), jnp.asarray(array(2, 16, 32, seed=1))
    found = jax.jit(lambda x, context: layer(x, context, each=5))(x, context)
    each = [layer(x[i : i + 1], context[i // 5 : i // 5 + 1]) for i in range(10)]
    np.testing.assert_allclose(found, jnp.concatenate(each), atol=1e-5)


# --- rematerialisation -----------------------------------------------------------------------------------------------

ONE_LEVEL = small.UNET | {
    "block_out_channels": (64,),
    "down_block_types": (CROSS_DOWN,),
    "up_block_types": (CROSS_UP,),
    "num_attention_heads": (2,),
}


def unet_with_factors(unet: UNet, remat: bool):
    """With adapted layers too, which are no part of the network that was split."""
    unet = lora.adapt(unet, lora.init(abstract_module(UNet, unet.config)[1], 2, ["to_v"], seed=0), jnp.ones(2))
    shapes = (2, 4, 8, 8, 8), (2,), (2, 1, 3, 24), (2, 3)
    inputs = [jnp.asarray(array(*shape)) for shape in shapes]
    return unet(*inputs, image_only=jnp.array([True, False]), remat=remat)


def encoded_and_decoded(vae: VAE, remat: bool):
    return vae.decode(vae.encode(jnp.asarray(array(1, 4, 16, 16, 3)), remat), remat)


def concatenated_tokens(encoder: EnvEncoder, remat: bool):
    return jnp.concatenate([level.ravel() for level in encoder(jnp.asarray(array(1, 4, 16, 16, 12)), remat)])


REMATERIALISED = {
    "unet": (UNet, UNetConfig(**ONE_LEVEL, cross_attention_dim=24, temporal_cross_attention_dim=24), unet_with_factors),
    "vae": (VAE, small.VAE, encoded_and_decoded),
    "env_encoder": (EnvEncoder, EnvEncoderConfig(channels=(32, 64)), concatenated_tokens),
}


@pytest.mark.parametrize("name", REMATERIALISED)
def test_rematerialisation_keeps_gradients_and_saves_memory(name):
    cls, config, call = REMATERIALISED[name]
    graphdef, params = abstract_module(cls, config)[0], small.random_params(cls, config)

    def compiled(remat):
        loss = lambda params: jnp.mean(jnp.sin(call(nnx.merge(graphdef, params), remat)))
        # For CPUs alone, XLA drops what keeps it from sharing the work of both passes again.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile(options)

    plain, again = compiled(False), compiled(True)
    (value, gradients), (same_value, same_gradients) = plain(params), again(params)
    np.testing.assert_allclose(same_value, value, rtol=1e-5)
    largest = max(np.linalg.norm(x) for x in jax.tree.leaves(gradients))
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(same_gradients), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * largest)
    memory = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
    assert memory(again) < 0.6 * memory(plain)


def test_batches_of_images_alone_skip_the_temporal_branches():
    config = small.inverse_config().unet
    graphdef, params = abstract_module(UNet, config)[0], small.random_params(UNet, config)
    inputs = array(2, 3, 4, 4, 8), np.float32([0.1, 0.3]), np.zeros((2, 1, 1, 24), "f"), array(2, 3), np.int32([3, 0])
    expected = network(UNet, config, params)(*inputs, np.array([True, True]))
    images = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs, image_only=True, remat=True))
    np.testing.assert_allclose(images(params, *inputs), expected, atol=1e-5)


def test_images_are_decoded_alone_and_without_the_temporal_branches():
    graphdef, params = abstract_module(VAE, small.VAE)[0], small.random_params(VAE, small.VAE)
    spatial = {name: x - 40 if name.endswith("mix_factor") else x for name, x in flatten(params).items()}
    decode = lambda params, z, images: nnx.merge(graphdef, params).decode(z, remat=True, images=images)
    decode, z = jax.jit(decode, static_argnums=2), array(2, 3, 4, 4, 4)
    alone = [decode(unflatten(spatial), z[:, i : i + 1], False) for i in range(3)]
    np.testing.assert_allclose(decode(params, z, True), np.concatenate(alone, axis=1), atol=1e-5)


# --- full size -------------------------------------------------------------------------------------------------------

FORWARD_UNET = UNetConfig(
    in_channels=24,
    cross_attention_dim=(320, 640, 1280, 1280),
    temporal_cross_attention_dim=None,
    multi_res_encoder_hidden_states=True,
)


@pytest.mark.parametrize(
    ("cls", "config", "parameters", "tensors"),
    [
        (UNet, UNetConfig(context_embedding_type="clip"), 1_524_639_466, 1429),
        (UNet, FORWARD_UNET, 1_473_513_642, 1316),
        (VAE, VAEConfig(), 97_742_847, 374),
        (EnvEncoder, EnvEncoderConfig(), 161_462_720, 76),
    ],
)
def test_full_size_networks_have_the_released_parameters(cls, config, parameters, tensors):
    leaves = jax.tree.leaves(abstract_module(cls, config)[1])
    assert (sum(leaf.size for leaf in leaves), len(leaves)) == (parameters, tensors)
