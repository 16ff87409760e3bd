"""The model and weights of a run: init_from, trainable, and exports."""

import contextlib

import jax
import numpy as np
import pytest
from helpers import small, smallest

from drender import InputError, InverseRenderer
from drender.checkpoints import convert, orbax
from drender.data.latent_cache import fingerprint
from drender.media.gbuffers import frame_path
from drender.media.images import write_png
from drender.models import lora
from drender.models.params import abstract_module, flatten
from drender.models.registry import network_of
from drender.training import loop
from drender.training.config import LoraConfig
from drender.training.export import export
from drender.training.trace import trace_gradient, unreached
from drender.training.weights import _require_same_shapes, resolve_weights


def weights(config, resumed=False, log=lambda line: None):
    return resolve_weights(config).split(True, resumed, log)


def stored(path, *names) -> dict:
    return flatten({name: orbax.load(path, name) for name in names})


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# Loading takes longer the more parameters there are, so these checkpoints have fewer than those of all tests.
@pytest.fixture(scope="module")
def inverse_checkpoint(tmp_path_factory):
    return write_half(tmp_path_factory.mktemp("inverse") / "checkpoint", small.inverse_config(), {})


@pytest.fixture(scope="module")
def forward_checkpoint(tmp_path_factory):
    config = small.forward_config()
    factors = lora.init(abstract_module(*network_of(config, "unet"))[1], 4, LoraConfig().targets, seed=0)
    return write_half(tmp_path_factory.mktemp("forward") / "checkpoint", config, {"lora": factors})


def write_half(folder, config, more: dict):
    half = lambda params: jax.tree.map(lambda x: np.asarray(x, np.float16), params)
    orbax.save(folder, config, half(small.params_of(config)) | more)
    return folder


# --- init_from -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_released_model_is_kept_exactly(inverse_checkpoint):
    config = smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model={})
    assert resolve_weights(config).model == orbax.load_config(inverse_checkpoint)
    lines = []
    trained, frozen = weights(config, log=lines.append)
    original = stored(inverse_checkpoint, "unet", "vae")
    assert same(trained | frozen, {name: np.asarray(x) for name, x in original.items()})
    assert {name.split(".")[0] for name in trained} == {"unet"}
    assert {name.split(".")[0] for name in frozen} == {"vae"}
    assert all(f"{name}: kept" in line for name, line in zip(("unet", "vae"), lines, strict=True))


@pytest.mark.slow
def test_frozen_parameters_have_the_compute_dtype(inverse_checkpoint):
    config = smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model={}, dtype="bfloat16")
    trained, frozen = weights(config)
    assert {x.dtype.name for x in trained.values()} == {"float32"}
    assert {x.dtype.name for x in frozen.values()} == {"bfloat16"}


@pytest.mark.slow
def test_only_matches_of_trainable_are_trained(inverse_checkpoint):
    patterns = ["unet.*.temporal_res_block", "unet.conv_out"]
    config = smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model={}, trainable=patterns)
    trained, frozen = weights(config)
    assert trained and all(".temporal_res_block." in name or "conv_out." in name for name in trained)
    assert "unet.conv_in.kernel" in frozen


@pytest.mark.slow
def test_lora_alone_leaves_the_base_frozen(forward_checkpoint):
    options = {"init_from": str(forward_checkpoint), "model": {}, "trainable": ["lora"], "lora": {"rank": 2}}
    with pytest.raises(InputError, match=r"lora: .* is \(\d+, \d+\), but `lora` needs \(\d+, 2\)"):
        weights(smallest.config("forward", "", "", **options))
    parts = {name: str(forward_checkpoint) for name in ("unet", "vae", "env_encoder")}
    trained, frozen = weights(smallest.config("forward", "", "", **(options | {"init_from": parts})))
    assert {name.split(".")[0] for name in trained} == {"lora"}
    assert {name.split(".")[0] for name in frozen} == {"unet", "vae", "env_encoder"}


@pytest.mark.slow
def test_lora_beside_a_trained_base_needs_real_rows(inverse_checkpoint):
    options = {
        "init_from": {"unet": str(inverse_checkpoint), "vae": str(inverse_checkpoint)},
        "model": {},
        "lora": {"rank": 2},
    }
    for trainable in (None, ["unet.conv_out", "lora"], ["*"]):
        with pytest.raises(InputError, match=r"lora: .* `real: true`, but data\.sources has none; mark one as"):
            weights(smallest.config("inverse", "", "", trainable=trainable, **options))
    real = {"data.sources": [{"path": "", "real": True}]}
    trained, _ = weights(smallest.config("inverse", "", "", **options, **real))
    assert {name.split(".")[0] for name in trained} == {"unet", "lora"}


@pytest.mark.parametrize(("trainable", "expected"), [(["lora"], True), (None, False)])
def test_factors_that_train_alone_act_on_all_rows(trainable, expected):
    config = smallest.config("inverse", "", "", lora={"rank": 2}, trainable=trainable)
    setup = loop.make_setup(config, resolve_weights(config), latent=False, mesh=None)
    assert setup.lora_on_all_rows is expected


def test_factors_of_the_source_that_are_left_out_are_a_warning(forward_checkpoint):
    options = {"init_from": str(forward_checkpoint), "model": {}}
    with pytest.warns(UserWarning, match=r"init_from .*: its LoRA factors are left out; set lora\.rank to theirs"):
        resolve_weights(smallest.config("forward", "", "", **options))
    resolve_weights(smallest.config("forward", "", "", **options, lora={"rank": 2}))


def test_factors_of_another_strength_are_refused():
    factors = lambda alpha: {"to_q": {"lora_A": np.zeros((2, 1)), "alpha": np.full((), alpha, np.float32)}}
    assert _require_same_shapes(factors(8), factors(8), "lora")["to_q"]["alpha"] == 8
    with pytest.raises(
        InputError, match=r"to_q\.alpha is 4\.0, but `lora` needs 8\.0; set its rank, alpha and targets"
    ):
        _require_same_shapes(factors(8), factors(4), "lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ["unet"]}, None),
        ({"trainable": ["unet", "vae.decoder"]}, r"objective 'inverse' has no gradient by 'vae\.decoder'; remove it"),
        ({"trainable": ["unet"], "data.image_fraction": 1.0}, None),  # its layers in space learn
        ({"trainable": ["*temporal*"], "data.image_fraction": 1.0}, r"has no gradient by '\*temporal\*'; .*below 1"),
    ],
)
def test_weights_that_no_row_can_reach_are_refused(changes, message):
    config = smallest.config("inverse", "", "", **changes)
    resolved = resolve_weights(config)
    setup = loop.make_setup(config, resolved, latent=False, mesh=None)
    shapes = {key: leaf for name in ("unet", "vae") for key, leaf in resolved.shapes(name).items()}
    trained = {key: leaf for key, leaf in shapes.items() if resolved.trains(key)}
    frozen = {key: leaf for key, leaf in shapes.items() if key not in trained}
    batch = jax.eval_shape(lambda: smallest.batch(2))
    found = unreached(trace_gradient(setup, config, trained, frozen, batch), trained)
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        resolved.check_reach(found)


def test_a_resumed_run_gets_shapes_of_trained_parameters(inverse_checkpoint):
    config = smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model={})
    trained, _ = weights(config, resumed=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in trained.values())


@pytest.mark.slow
def test_input_convolution_and_domain_table_grow(inverse_checkpoint):
    model = {"domains": {"glossiness": 20}, "unet": {"context_vocab_size": 24}}
    config = smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model=model)
    renderer = resolve_weights(config).model
    assert renderer.domains["glossiness"] == 20 and renderer.domains["normal"] == 3
    trained, _ = weights(config)
    table = stored(inverse_checkpoint, "unet")["unet.context_embedding.embedding"]
    np.testing.assert_array_equal(trained["unet.context_embedding.embedding"][:16], table)
    assert trained["unet.context_embedding.embedding"].shape[0] == 24


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("inverse", {}, "objective 'inverse' needs a trained vae, which stays frozen; give init_from.vae"),
        ("inverse", {"init_from": "nowhere"}, r"init_from: nowhere: no such folder"),
        ("inverse", {"init_from": {"vea": "x"}}, "unknown component of init_from 'vea'; did you mean 'vae'"),
        ("inverse", {"init_from": {"lora": "CHECKPOINT"}}, "init_from.lora .*: has no lora; it has unet, vae"),
        ("inverse", {"init_from": "CHECKPOINT", "trainable": ["unet.conv_on"]}, "trainable: 'unet.conv_on' matches no"),
        ("inverse", {"model": {"unet": {"in_channel": 8}}}, "model: unet: unknown key 'in_channel'; did you mean"),
        (
            "inverse",
            {"model": {"unet": {"in_channels": 12}}, "init_from": "CHECKPOINT"},
            r"model: unet\.in_channels: expected 8, .* got 12",
        ),
        (
            "inverse",
            {"model": {"domains": {"glossiness": 16}}, "init_from": "CHECKPOINT"},
            "model: domains: expected rows below unet.context_vocab_size 16, got glossiness 16",
        ),
        ("forward", {"init_from": "CHECKPOINT"}, "expected a model of kind 'forward' or 'svd' .*, got kind 'inverse'"),
    ],
)
def test_invalid_init_from_is_refused(inverse_checkpoint, objective, options, message):
    put = lambda value: str(inverse_checkpoint) if value == "CHECKPOINT" else value
    if "init_from" in options:
        start = options["init_from"]
        options = options | {
            "init_from": {key: put(x) for key, x in start.items()} if isinstance(start, dict) else put(start)
        }
    if "model" not in options and "init_from" in options:
        options = options | {"model": {}}
    with pytest.raises(InputError, match=message):
        weights(smallest.config(objective, "", "", **options))


@pytest.mark.slow
def test_a_mismatch_names_both_shapes(inverse_checkpoint):
    model = {"unet": {"block_out_channels": [64]}}
    with pytest.raises(InputError, match=r"is \(128,\), but the model to train needs \(256,\)") as error:
        weights(smallest.config("inverse", "", "", init_from=str(inverse_checkpoint), model=model))
    assert "\n" not in str(error.value)


# --- a run, and what comes of it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return smallest.write_vae(tmp_path_factory.mktemp("vae") / "checkpoint", dtype="float16")


@pytest.fixture(scope="module")
def run(tmp_path_factory, vae):
    """A step of an inverse renderer of which one layer learns, with a kind of G-buffer that nobody else knows."""
    folder = tmp_path_factory.mktemp("run")
    clips = smallest.write_balls(folder / "clips")
    for frame in range(2):
        write_png(frame_path(clips / "clip0", 0, frame, "glossiness"), np.full((16, 16, 3), 0.25, np.float32))
    config = smallest.config(
        "inverse",
        clips,
        folder / "run",
        init_from={"vae": str(vae)},
        trainable=["unet.conv_out"],
        **{
            "model.domains": {"glossiness": 6},
            "data.passes": ["glossiness"],
            "optimizer.steps": 1,
            "optimizer.warmup": 0,
            "evaluation.path": str(clips),
            "loss.one_step": True,
        },
    )
    assert loop.train(config) == 0
    return config


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    export(run.output, folder, log=lambda line: None)
    return folder


@pytest.mark.slow
def test_export_holds_the_ema_and_the_frozen_parameters(run, exported, vae):
    trained, frozen = weights(run)
    found = stored(exported, "unet", "vae")
    changed = {name for name, x in found.items() if not np.array_equal(x, (trained | frozen)[name])}
    assert changed == {"unet.conv_out.kernel", "unet.conv_out.bias"}
    assert same(stored(exported, "vae"), stored(vae, "vae"))


@pytest.mark.slow
def test_export_stores_frozen_weights_in_their_dtype(exported):
    assert {x.dtype.name for x in stored(exported, "vae").values()} == {"float16"}
    assert {x.dtype.name for x in stored(exported, "unet").values()} == {"float32"}


@pytest.mark.slow
def test_export_in_half_precision(run, exported, tmp_path):
    export(run.output, tmp_path / "half", dtype="float16", log=lambda line: None)
    half, whole = stored(tmp_path / "half", "unet", "vae"), stored(exported, "unet", "vae")
    assert {x.dtype for x in half.values()} == {np.dtype("float16")}
    assert same(half, {name: np.asarray(x, np.float16) for name, x in whole.items()})


@pytest.mark.slow
def test_a_new_gbuffer_is_sampled_by_name(exported):
    inverse = InverseRenderer.load(exported)
    assert inverse.config.deterministic  # remembered: one step, whatever the number of steps
    rgb = np.random.default_rng(0).random((1, 2, 16, 16, 3), np.float32)
    frames = inverse(rgb, ("glossiness",), progress=False)["glossiness"]
    with pytest.warns(UserWarning, match="num_steps 3 has no effect"):
        again = inverse(rgb, ("glossiness",), num_steps=3, progress=False)["glossiness"]
    np.testing.assert_array_equal(frames, again)
    other = inverse(rgb, ("glossiness",), num_steps=1, deterministic=False, progress=False)["glossiness"]
    assert not np.array_equal(frames, other)


@pytest.mark.slow
def test_export_to_the_released_layout_and_back(exported, tmp_path):
    convert.to_released(exported, tmp_path / "released", log=lambda line: None)
    convert.from_released(str(tmp_path / "released"), tmp_path / "back", log=lambda line: None)
    assert same(stored(tmp_path / "back", "unet", "vae"), stored(exported, "unet", "vae"))


@pytest.mark.slow
def test_a_run_can_be_initialized_from(run, exported):
    config = smallest.config("inverse", "", "", init_from=run.output, model={})
    trained, frozen = weights(config)
    assert same(trained | frozen, stored(exported, "unet", "vae"))
    assert resolve_weights(config).model.domains["glossiness"] == 6


@pytest.mark.slow
def test_latents_of_another_vae_are_refused(run, vae):
    made_by = fingerprint(orbax.load(vae, "vae"))
    resolve_weights(run).check_latents(made_by)
    with pytest.raises(InputError, match=rf"has the fingerprint {made_by}, but the cached latents were made with 0123"):
        resolve_weights(run).check_latents("0123")
    with pytest.raises(InputError, match="init_from has no vae"):
        resolve_weights(smallest.config("inverse", "", "")).check_latents(made_by)
    noisy = smallest.config("inverse", "", "", init_from={"vae": str(vae)}, **{"loss.condition_noise": [-3, 0.5]})
    with pytest.raises(InputError, match="condition_noise is added to pixels"):
        resolve_weights(noisy).check_latents(made_by)


@pytest.mark.slow
def test_export_overwrites_nothing(run, exported, tmp_path):
    with pytest.raises(InputError, match="already exists"):
        export(run.output, exported)
    with pytest.raises(InputError, match="a training run"):
        export(tmp_path, tmp_path / "out")
