"""The UNet against diffusers', and its context, image and dtype properties."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array, channels_first, diffusers, network, params_of, randomized, torch

from drender.config import UNetConfig
from drender.models.params import abstract_module
from drender.models.unet import UNet

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
def test_unet_equals_diffusers(variation, tokens, size):
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
    config = small.forward_config(small.UNET).unet
    params = small.random_params(UNet, config)
    call = network(UNet, config, params)
    x, micro = array(2, 3, 4, 4, 24), np.float32([[6, 127, 0]] * 2)
    context = [array(2, 3, 5, 32, seed=1), array(2, 3, 2, 64, seed=2)]
    return lambda context, rows=2: call(x[:rows], np.float32([0.1] * rows), context, micro[:rows]), context


@pytest.mark.slow
def test_clip_context_equals_the_same_context_per_frame(forward_unet):
    call, context = forward_unet
    first = [level[:, :1] for level in context]
    repeated = [np.repeat(level, 3, axis=1) for level in first]
    np.testing.assert_allclose(call(first), call(repeated), atol=1e-5)
    assert np.abs(call(context) - call(repeated)).max() > 1e-3


@pytest.mark.slow
def test_clips_beyond_the_context_attend_to_zeros(forward_unet):
    call, context = forward_unet
    with_zeros = [np.concatenate([level[:1], np.zeros_like(level[1:])]) for level in context]
    np.testing.assert_allclose(call([level[:1] for level in context]), call(with_zeros), atol=1e-5)


@pytest.mark.slow
def test_zero_context_may_be_one_token(forward_unet):
    call, context = forward_unet
    zeros = [np.zeros_like(level) for level in context]
    np.testing.assert_allclose(call([level[:, :1, :1] for level in zeros]), call(zeros), atol=1e-5)


@pytest.fixture(scope="module")
def inverse_unet():
    """Return the network as a function of (x, time, context, micro, domain, image_only), and inputs of two clips."""
    config = small.inverse_config(small.ONE_LEVEL).unet
    call = network(UNet, config, small.random_params(UNet, config))
    return call, (
        array(2, 3, 4, 4, 8),
        np.float32([0.1, 0.3]),
        np.zeros((2, 1, 1, 24), "f"),
        array(2, 3),
        np.int32([3, 0]),
    )


@pytest.mark.slow
def test_image_only_frames_do_not_see_each_other(inverse_unet):
    """Marked clips are as their frames alone; a clip beside them is unchanged."""
    call, (x, *inputs) = inverse_unet
    mixed = call(x, *inputs, np.array([True, False]))
    for i in range(3):
        alone = call(x[:1, i : i + 1], *(y[:1] for y in inputs), np.array([True]))
        np.testing.assert_allclose(mixed[:1, i : i + 1], alone, atol=1e-5)
    np.testing.assert_allclose(mixed[1], call(x, *inputs)[1], atol=1e-5)


@pytest.mark.slow
def test_image_only_true_equals_marking_all_clips(inverse_unet):
    """Temporal branches are skipped, also with rematerialization."""
    call, inputs = inverse_unet
    config = small.inverse_config(small.ONE_LEVEL).unet
    graphdef, params = abstract_module(UNet, config)[0], small.random_params(UNet, config)
    skipping = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs, image_only=True, remat=True))
    np.testing.assert_allclose(skipping(params, *inputs), call(*inputs, np.array([True, True])), atol=1e-5)


@pytest.mark.oracle
def test_long_domain_embeddings_are_scaled_as_in_torch():
    config = small.inverse_config(small.ONE_LEVEL).unet
    params = small.random_params(UNet, config)
    params["context_embedding"]["embedding"][3] *= 5
    table = torch.nn.Embedding(16, 24, max_norm=10.0)
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(params["context_embedding"]["embedding"]))
        expected = table(torch.tensor([2, 3])).numpy()
    ours = network(UNet, config, params, "context_embedding")(np.int32([2, 3]))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert np.linalg.norm(ours[1]) == pytest.approx(10, rel=1e-6)


def test_products_compute_in_the_dtype_of_parameters():
    """No product of the network has a float32 operand by accident."""
    dtype = "bfloat16"
    config = small.inverse_config(small.ONE_LEVEL).unet
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
