"""Low-rank factors: what merging computes, what it leaves alone, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drender import lora
from drender.errors import InputError

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


def test_both_spellings_are_the_same(params):
    a = factors()
    old = {"lora": {"down": a["lora_A"], "up": a["lora_B"]}}
    one, other = (lora.merge(params, {"attention": {"to_q": x}}, 1.0)["attention"]["to_q"] for x in (a, old))
    np.testing.assert_array_equal(one["kernel"], other["kernel"])


def test_alpha_over_rank_scales(params):
    a = factors(rank=4)
    double = a | {"alpha": jnp.asarray(8.0, jnp.float16)}
    change = lambda factors, scale: (
        lora.merge(params, {"attention": {"to_q": factors}}, scale)["attention"]["to_q"]["kernel"]
        - params["attention"]["to_q"]["kernel"]
    )
    np.testing.assert_allclose(change(double, 0.5), change(a, 1.0), rtol=1e-4, atol=1e-6)


def test_convolutions_are_those_of_the_two_in_a_row(params):
    a = {"lora_A": normal(3, 3, 6, 2), "lora_B": normal(1, 1, 2, 8)}
    x = normal(1, 5, 4, 6)
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    kernel = lora.merge(params, {"conv": a}, 0.5)["conv"]["kernel"]
    expected = convolve(x, params["conv"]["kernel"]) + 0.5 * convolve(convolve(x, a["lora_A"]), a["lora_B"])
    np.testing.assert_allclose(convolve(x, kernel), expected, atol=1e-4)


def test_only_affected_kernels_change_and_the_rest_is_shared(params):
    before = jax.tree.map(np.array, params)
    merged = lora.merge(params, {"attention": {"to_q": factors()}}, 1.0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert merged["conv"] is params["conv"]
    assert merged["attention"]["to_out"] is params["attention"]["to_out"]
    assert merged["attention"]["to_q"]["bias"] is params["attention"]["to_q"]["bias"]
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_scale_zero_is_no_change(params):
    assert lora.merge(params, {"attention": {"to_q": factors()}}, 0.0) is params


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_computed_in_float32_and_rounded_once(params, dtype):
    kernel = normal(64, 32, dtype=dtype)
    a, b = normal(64, 4, dtype="float16"), normal(4, 32, dtype="float16")
    merged = lora.merge({"m": {"kernel": kernel}}, {"m": {"lora_A": a, "lora_B": b}}, 0.3)["m"]["kernel"]
    assert merged.dtype == jnp.dtype(dtype)
    exact = np.asarray(kernel, np.float64) + 0.3 * np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    # One rounding: half a unit in the last place, and the little that float32 loses.
    unit = np.spacing(np.abs(exact).astype(np.float32)) * 2.0 ** (23 - jnp.finfo(dtype).nmant)
    assert np.all(np.abs(np.asarray(merged, np.float64) - exact) <= 0.5 * unit + 1e-6)


@pytest.mark.parametrize(
    ("adapted", "message"),
    [
        ({"attention": {"to_v": factors()}}, "no module 'attention.to_v'"),
        ({"attention": {"to_out": {1: factors()}}}, "no module 'attention.to_out.1'"),
        ({"attention": {"to_q": {"alpha": normal()}}}, "no module 'attention.to_q.alpha'"),
        ({"norm": factors()}, "'norm' has no kernel"),
        ({"conv": factors()}, r"'conv' has factors of shape \(6, 2\) and \(2, 8\).*\(3, 3, 6, 8\)"),
        ({"attention": {"to_q": {"lora_A": normal(6, 2)}}}, "'attention.to_q' has only one"),
        ({"attention": {"to_q": {"lora": {"up": normal(2, 8)}}}}, "'attention.to_q' has only one"),
        ({"attention": {"to_q": factors() | {"lora_B": normal(3, 8)}}}, "do not multiply"),
    ],
)
def test_what_does_not_fit_is_refused(params, adapted, message):
    with pytest.raises(InputError, match=message):
        lora.merge(params, adapted, 1.0)
