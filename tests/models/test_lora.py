"""LoRA factors: merging into kernels, applying beside kernels, initial values, and errors."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

from drender.errors import InputError
from drender.models import lora
from drender.models.params import abstract_module, flatten
from drender.models.unet import UNet

RNG = np.random.default_rng(0)


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


@pytest.fixture
def params():
    linear = lambda: {"kernel": normal(6, 8), "bias": normal(8)}
    return {
        "attention": {"to_q": linear(), "to_out": {0: linear()}},
        "conv": {"kernel": normal(3, 3, 6, 8), "bias": normal(8)},
        "norm": {"scale": normal(8), "bias": normal(8)},
    }


def factors(rank=2, **more):
    return {"lora_A": normal(6, rank), "lora_B": normal(rank, 8), **more}


def test_linear_kernels_gain_the_product(params):
    a = factors()
    merged = lora.merge(params, {"attention": {"to_out": {0: a}}}, 0.25)
    expected = params["attention"]["to_out"][0]["kernel"] + 0.25 * a["lora_A"] @ a["lora_B"]
    np.testing.assert_allclose(merged["attention"]["to_out"][0]["kernel"], expected, rtol=1e-6)


def test_both_spellings_of_factors_are_the_same(params):
    a = factors()
    old = {"lora": {"down": a["lora_A"], "up": a["lora_B"]}}
    new_spelling, old_spelling = (
        lora.merge(params, {"attention": {"to_q": x}}, 1.0)["attention"]["to_q"]["kernel"] for x in (a, old)
    )
    np.testing.assert_array_equal(new_spelling, old_spelling)


def test_alpha_over_rank_scales(params):
    a = factors(rank=4)
    double = a | {"alpha": jnp.asarray(8.0, jnp.float16)}
    change = lambda factors, scale: (
        lora.merge(params, {"attention": {"to_q": factors}}, scale)["attention"]["to_q"]["kernel"]
        - params["attention"]["to_q"]["kernel"]
    )
    np.testing.assert_allclose(change(double, 0.5), change(a, 1.0), rtol=1e-4, atol=1e-6)


def test_merged_convolution_equals_both_factors_in_a_row(params):
    a = {"lora_A": normal(3, 3, 6, 2), "lora_B": normal(1, 1, 2, 8)}
    x = normal(1, 5, 4, 6)
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    kernel = lora.merge(params, {"conv": a}, 0.5)["conv"]["kernel"]
    expected = convolve(x, params["conv"]["kernel"]) + 0.5 * convolve(convolve(x, a["lora_A"]), a["lora_B"])
    np.testing.assert_allclose(convolve(x, kernel), expected, atol=1e-4)


def test_only_adapted_kernels_change_and_others_are_shared(params):
    before = jax.tree.map(np.array, params)
    merged = lora.merge(params, {"attention": {"to_q": factors()}}, 1.0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    changed = {name for name, x in flatten(merged).items() if x is not flatten(params)[name]}
    assert changed == {"attention.to_q.kernel"}
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_scale_zero_returns_the_same_parameters(params):
    assert lora.merge(params, {"attention": {"to_q": factors()}}, 0.0) is params


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merge_computes_in_float32_and_rounds_once(params, dtype):
    kernel = normal(64, 32, dtype=dtype)
    a, b = normal(64, 4, dtype="float16"), normal(4, 32, dtype="float16")
    merged = lora.merge({"m": {"kernel": kernel}}, {"m": {"lora_A": a, "lora_B": b}}, 0.3)["m"]["kernel"]
    assert merged.dtype == jnp.dtype(dtype)
    exact = np.asarray(kernel, np.float64) + 0.3 * np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    # One rounding is half a unit in the last place, plus the error of float32.
    unit = np.spacing(np.abs(exact).astype(np.float32)) * 2.0 ** (23 - jnp.finfo(dtype).nmant)
    assert np.all(np.abs(np.asarray(merged, np.float64) - exact) <= 0.5 * unit + 1e-6)


@pytest.mark.parametrize(
    ("adapted", "message"),
    [
        ({"attention": {"to_v": factors()}}, "no kernel 'attention.to_v.kernel'"),
        ({"attention": {"to_out": {1: factors()}}}, "no kernel 'attention.to_out.1.kernel'"),
        ({"attention": {"to_q": {"alpha": normal()}}}, "'attention.to_q' lacks one of its two"),
        ({"norm": factors()}, "no kernel 'norm.kernel'"),
        ({"conv": factors()}, r"'conv' has factors of shape \(6, 2\) and \(2, 8\).*\(3, 3, 6, 8\)"),
        ({"attention": {"to_q": {"lora_A": normal(6, 2)}}}, "'attention.to_q' lacks one of its two"),
        ({"attention": {"to_q": {"lora": {"up": normal(2, 8)}}}}, "'attention.to_q' lacks one of its two"),
        ({"attention": {"to_q": factors() | {"lora_B": normal(3, 8)}}}, "do not multiply"),
    ],
)
def test_merge_rejects_factors_that_do_not_fit(params, adapted, message):
    with pytest.raises(InputError, match=message):
        lora.merge(params, adapted, 1.0)


# --- factors beside the kernels --------------------------------------------------------------------------------------

CONFIGS = {"inverse": small.inverse_config(small.UNET).unet, "forward": small.forward_config(small.UNET).unet}
TARGETS = ("to_q", "to_k", "to_v", "to_out")
# The emitters that other tests compile with round the same sums differently.
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ["XLA_FLAGS"] else None


def unet_inputs(kind: str, seed: int = 0) -> tuple:
    """Return inputs of two clips of three frames."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    x, time, micro = draw(2, 3, 4, 4, CONFIGS[kind].in_channels), np.float32([0.3, -0.8]), draw(2, 3)
    if kind == "inverse":
        return x, time, np.zeros((2, 1, 1, 24), "f"), micro, np.int32([3, 1])
    return x, time, [draw(2, 3, 5, 32), draw(2, 3, 2, 64)], micro


@functools.cache
def adapted_unet(kind: str):
    """Return the UNet's parameters, non-zero factors, and the compiled network (params, factors, gate, inputs) -> F."""
    params = small.random_params(UNet, CONFIGS[kind])
    factors = lora.init(params, 2, TARGETS, seed=0, alpha=3.0)
    random = np.random.default_rng(1)
    move = lambda path, x: x if path[-1].key == "alpha" else x + random.standard_normal(x.shape).astype(np.float32) / 4
    factors = jax.tree_util.tree_map_with_path(move, factors)
    graphdef = abstract_module(UNet, CONFIGS[kind])[0]

    def call(params, factors, gate, inputs):
        return lora.adapt(nnx.merge(graphdef, params), factors, gate)(*inputs)

    return params, factors, jax.jit(call, compiler_options=EMITTERS)


def test_initial_factors_are_zero_products_for_every_target():
    params = abstract_module(UNet, CONFIGS["inverse"])[1]
    factors = flatten(lora.init(params, 3, ["to_q", "to_out"], seed=5))
    expected = [name for name in flatten(params) if name.endswith((".to_q.kernel", ".to_out.0.kernel"))]
    assert {name.rpartition(".")[0] for name in factors} == {name.removesuffix(".kernel") for name in expected}
    assert len(factors) == 2 * len(expected)
    for name in expected:
        module, shape = name.removesuffix(".kernel"), flatten(params)[name].shape
        a, b = factors[f"{module}.lora_A"], factors[f"{module}.lora_B"]
        assert (a.shape, b.shape, a.dtype, b.any()) == ((shape[0], 3), (3, shape[1]), np.float32, False)
        assert 0.7 < np.abs(a).max() * np.sqrt(shape[0]) <= 1
    again, other = (flatten(lora.init(params, 3, ["to_q", "to_out"], seed=seed)) for seed in (5, 6))
    assert all(np.array_equal(again[name], factors[name]) for name in factors)
    assert not any(np.array_equal(other[name], factors[name]) for name in factors if name.endswith("lora_A"))


def test_initial_factors_store_alpha_if_given():
    factors = flatten(lora.init(abstract_module(UNet, CONFIGS["forward"])[1], 2, TARGETS, seed=0, alpha=4.0))
    assert {float(x) for name, x in factors.items() if name.endswith(".alpha")} == {4.0}


def test_adapted_layers_are_those_with_factors():
    graphdef, shapes = abstract_module(UNet, CONFIGS["forward"])
    factors = lora.init(shapes, 2, ["to_q", "to_out"], seed=0)
    network = lora.adapt(nnx.merge(graphdef, shapes), factors, jnp.ones(2))
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
    adapted = {path for path, module in modules.items() if isinstance(module, lora.AdaptedLinear)}
    assert adapted == {name.rpartition(".")[0] for name in flatten(factors)}
    assert any(path.endswith(".to_out.0") for path in adapted)


def test_unknown_target_is_rejected():
    with pytest.raises(InputError, match="unknown LoRA target 'to_output'; did you mean 'to_out'"):
        lora.init(abstract_module(UNet, CONFIGS["forward"])[1], 2, ["to_q", "to_output"], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_gates_equal_merging(kind):
    params, factors, call = adapted_unet(kind)
    inputs = unet_inputs(kind)
    merged = call(lora.merge(params, factors, 0.6), {}, np.float32([0, 0]), inputs)
    np.testing.assert_allclose(call(params, factors, np.float32([0.6, 0.6]), inputs), merged, atol=2e-5)
    base = call(params, factors, np.float32([0, 0]), inputs)
    np.testing.assert_allclose(base, call(params, {}, np.float32([0, 0]), inputs), atol=1e-6)
    assert np.abs(base - merged).max() > 1e-2


@pytest.mark.parametrize("kind", [pytest.param("inverse", marks=pytest.mark.slow), "forward"])
def test_every_clip_has_its_own_gate(kind):
    params, factors, call = adapted_unet(kind)
    inputs = unet_inputs(kind)
    mixed = call(params, factors, np.float32([0, 1]), inputs)
    for clip, gate in enumerate((0, 1)):
        same = call(params, factors, np.float32([gate, gate]), inputs)
        np.testing.assert_allclose(mixed[clip], same[clip], atol=2e-5)


@pytest.mark.slow
def test_factors_get_gradients_from_gated_clips_alone():
    """With the gate open for the second clip only, its gradient is the whole gradient; alpha has none."""
    params, factors, call = adapted_unet("inverse")

    def loss(factors, params, weights, gate, inputs):
        return jnp.sum(weights[:, None, None, None, None] * call.__wrapped__(params, factors, gate, inputs) ** 2)

    gradient = jax.jit(jax.grad(loss))
    gate, inputs = np.float32([0, 1]), unet_inputs("inverse")
    both, gated, ungated = (
        gradient(factors, params, np.float32(weights), gate, inputs) for weights in ([1, 1], [0, 1], [1, 0])
    )
    for name, leaf in flatten(both).items():
        np.testing.assert_allclose(leaf, flatten(gated)[name], rtol=1e-3, atol=1e-5)
        assert not np.asarray(flatten(ungated)[name]).any()
        # Attention to one token uses neither queries nor keys.
        is_used = not name.endswith("alpha") and not (".attn2.to_q" in name or ".attn2.to_k" in name)
        assert bool(np.asarray(leaf).any()) == is_used, name


@pytest.mark.parametrize(
    ("adapted", "message"),
    [
        ({"conv_in": factors()}, "no linear layer 'conv_in'"),
        ({"conv_inn": factors()}, "no linear layer 'conv_inn'"),
        ({"down_blocks": {5: {"attentions": {0: {"proj_in": factors()}}}}}, "no linear layer 'down_blocks.5"),
        ({"time_embedding": {"linear_1": factors()}}, "do not multiply"),
        ({"time_embedding": {"linear_1": {"lora_A": normal(32, 2)}}}, "lacks one"),
    ],
)
def test_adapt_rejects_factors_that_do_not_fit(adapted, message):
    graphdef, shapes = abstract_module(UNet, CONFIGS["inverse"])
    with pytest.raises(InputError, match=message):
        lora.adapt(nnx.merge(graphdef, shapes), adapted, jnp.ones(2))
