"""Attention in chunks and with shared keys against PyTorch's and plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.oracles import array, torch

from drender.models import attention


@pytest.mark.oracle
@pytest.mark.parametrize("limit", [2 * 7 * 9 * 2, 2 * 7 * 9, 40, 1])
def test_chunked_attention_equals_whole_attention(monkeypatch, limit):
    """Chunks of rows, then of queries of a row; gradients too."""
    q, k, v = array(5, 7, 2, 8), array(5, 9, 2, 8, seed=1), array(5, 9, 2, 8, seed=2)
    attend = lambda: attention.attend(*map(jnp.asarray, (q, k, v)))
    gradients = lambda: jax.grad(lambda *qkv: jnp.sum(jnp.sin(attention.attend(*qkv))), (0, 1, 2))(q, k, v)
    whole, whole_gradients = attend(), gradients()
    monkeypatch.setattr(attention, "MAX_LOGITS_CPU", limit)
    np.testing.assert_allclose(attend(), whole, atol=1e-5)
    for gradient, whole_gradient in zip(gradients(), whole_gradients, strict=True):
        np.testing.assert_allclose(gradient, whole_gradient, atol=1e-5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k, v))
    )
    np.testing.assert_allclose(whole, expected.transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize("limit", [2**20, 3 * 64 * 16, 1])
@pytest.mark.parametrize("heads", [1, 2])
def test_shared_keys_equal_repeated_keys(monkeypatch, heads, limit):
    """A still light for all frames; XLA once returned NaN for it with a single head."""
    monkeypatch.setattr(attention, "MAX_LOGITS_CPU", limit)
    graphdef, shapes = nnx.split(attention.Attention(32, heads, 32))
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.asarray(array(*leaf.shape)) / 6, shapes))
    x, context = jnp.asarray(array(10, 64, 32)), jnp.asarray(array(2, 16, 32, seed=1))
    shared = jax.jit(lambda x, context: layer(x, context))(x, context)
    repeated = [layer(x[i : i + 1], context[i // 5 : i // 5 + 1]) for i in range(10)]
    np.testing.assert_allclose(shared, jnp.concatenate(repeated), atol=1e-5)
