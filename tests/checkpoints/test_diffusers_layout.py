"""The released layout: incomplete and wrong JSON files, wrapped names, LoRA strength."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from drender.checkpoints import convert, diffusers_layout, orbax
from drender.commands import convert as convert_command
from drender.config import DOMAINS, EnvEncoderConfig, SchedulerConfig
from drender.errors import InputError
from drender.models import lora
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module

SILENT = lambda line: None


# --- configurations ---------------------------------------------------------------------------------------------------


def test_configuration_of_each_kind(originals):
    read = lambda kind: diffusers_layout.read(originals[kind], SILENT)[0]
    inverse, forward, svd = read("inverse"), read("forward"), read("svd")
    assert (inverse.kind, inverse.scale_cond_latents, inverse.domains) == ("inverse", False, DOMAINS)
    assert (inverse.unet.context_embedding_type, inverse.unet.context_vocab_size) == ("clip", 16)
    assert inverse.scheduler == SchedulerConfig(0.002, 700.0, "leading")
    assert (forward.kind, forward.scale_cond_latents) == ("forward", True)
    assert forward.unet.temporal_cross_attention_dim is None
    assert forward.env_encoder == EnvEncoderConfig(channels=(32, 32, 64, 64))
    assert forward.scheduler.timestep_spacing == "trailing"
    assert (svd.kind, svd.scale_cond_latents, svd.unet.temporal_cross_attention_dim) == ("svd", False, 48)


def test_tensors_overrule_missing_and_wrong_configuration(inverse):
    tiny.edit_json(inverse / "unet/config.json", context_embedding_type=..., context_vocab_size=3, in_channels=24)
    tiny.edit_json(inverse / "unet/config.json", temporal_cross_attention_dim=...)
    lines = []
    unet = diffusers_layout.read(inverse, lines.append)[0].unet
    assert (unet.context_embedding_type, unet.context_vocab_size, unet.in_channels) == ("clip", 16, 8)
    assert unet.temporal_cross_attention_dim == 48
    assert "unet/config.json: in_channels is 24; using 8, which the tensors determine" in lines
    assert "unet/config.json: context_embedding_type is 'absent'; using 'clip', which the tensors determine" in lines
    assert len(lines) == 4


def test_small_domain_table_drops_domains(inverse):
    change = lambda tensors: tensors.update({"context_embedding.weight": np.zeros((5, 48), np.float16)})
    tiny.edit_weights(inverse / "unet", change)
    config = diffusers_layout.read(inverse, SILENT)[0]
    assert config.unet.context_vocab_size == 5
    assert config.domains == {name: row for name, row in DOMAINS.items() if row < 5}


def test_forward_renderer_is_recognized_by_its_encoder(forward):
    tiny.edit_json(forward / "unet/config.json", multi_res_encoder_hidden_states=..., temporal_cross_attention_dim=...)
    tiny.edit_json(forward / "env_encoder/config.json", in_channels=9, latent_encoder=False)
    config = diffusers_layout.read(forward, SILENT)[0]
    assert config.unet.multi_res_encoder_hidden_states
    assert config.unet.temporal_cross_attention_dim is None
    assert (config.env_encoder.in_channels, config.env_encoder.latent_encoder) == (12, True)


def test_pixel_stem_of_env_encoder_is_recognized(forward):
    config = EnvEncoderConfig(in_channels=9, channels=(32, 32, 64, 64), latent_encoder=False)
    shapes = tiny.network_shapes("env_encoder", config)
    (forward / "env_encoder/diffusion_pytorch_model.safetensors").unlink()
    tiny.write_weights(forward / "env_encoder", "diffusion_pytorch_model", tiny.weights("env_encoder", shapes))
    config_read, tensors = diffusers_layout.read(forward, SILENT)
    assert config_read.env_encoder == config
    convert.match_tensors(abstract_module(EnvEncoder, config)[1], tensors["env_encoder"], "env_encoder")


def test_forward_renderer_without_encoder_is_an_error(forward):
    (forward / "env_encoder").rename(forward / "elsewhere")
    with pytest.raises(InputError, match="without its env_encoder folder"):
        diffusers_layout.read(forward, SILENT)


def test_unused_folders_and_keys_are_reported(forward):
    for name in ("env_decoder", "nrm_encoder", "safety_checker"):
        (forward / name).mkdir()
    (forward / "config.json").write_text("")  # as in the release
    (forward / "README.md").write_text("")
    tiny.edit_json(forward / "unet/config.json", _name_or_path="/home/someone", magic=3)
    tiny.edit_json(forward / "scheduler/scheduler_config.json", prediction_type="epsilon", clip=None)
    lines = []
    config = diffusers_layout.read(forward, lines.append)[0]
    assert lines == [
        "ignored folders, which inference does not use: env_decoder, nrm_encoder, safety_checker",
        "unet/config.json: ignored _name_or_path = '/home/someone', magic = 3",
        "scheduler/scheduler_config.json: ignored prediction_type = 'epsilon', clip = None",
    ]
    assert config.kind == "forward"


@pytest.mark.parametrize(("value", "scaled"), [(True, True), (False, False), ("yes", False), (..., False)])
def test_scale_cond_latents_follows_only_a_boolean(inverse, value, scaled):
    tiny.edit_json(inverse / "model_index.json", scale_cond_latents=value)
    config = diffusers_layout.read(inverse, SILENT)[0]
    assert config.scale_cond_latents is scaled
    assert diffusers_layout.json_files(config)["model_index.json"].get("scale_cond_latents", False) is scaled


def test_settings_without_a_place_in_the_layout_survive_a_round_trip(inverse):
    config = diffusers_layout.read(inverse, SILENT)[0]
    changes = {"domains": DOMAINS | {"glossiness": 6}, "size": (64, 96), "frames": 8, "deterministic": True}
    changed = dataclasses.replace(config, **changes)
    tiny.edit_json(inverse / "model_index.json", **diffusers_layout.json_files(changed)["model_index.json"])
    assert diffusers_layout.read(inverse, SILENT)[0] == changed
    assert "drender" not in diffusers_layout.json_files(config)["model_index.json"]
    tiny.edit_json(inverse / "model_index.json", drender={"frames": 0})
    with pytest.raises(InputError, match=r"frames: expected at least 1"):
        diffusers_layout.read(inverse, SILENT)


def test_scheduler_and_model_index_may_be_missing(inverse):
    for file in ("scheduler/scheduler_config.json", "model_index.json"):
        (inverse / file).unlink()
    (inverse / "scheduler").rmdir()
    assert diffusers_layout.read(inverse, SILENT)[0].scheduler == SchedulerConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "unreadable"),
        ("", "unreadable"),
        ("[1]", "got list"),
        ('{"in_channels": "8"}', "in_channels: expected int"),
    ],
)
def test_invalid_configurations_are_named(inverse, content, message):
    (inverse / "vae/config.json").write_text(content)
    with pytest.raises(InputError, match=rf"vae/config\.json: .*{message}"):
        diffusers_layout.read(inverse, SILENT)


# --- names that a wrapper has changed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed_with_one_line(inverse, tmp_path, prefix):
    def wrap(tensors):
        wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(wrapped)

    expected = diffusers_layout.read(inverse, SILENT)
    tiny.edit_weights(inverse / "unet", wrap)
    lines = []
    config, tensors = diffusers_layout.read(inverse, lines.append)
    assert (config, tensors["unet"].keys()) == (expected[0], expected[1]["unet"].keys())
    assert lines == [f"unet: removed {prefix!r} from the names of all tensors"]


# --- LoRA strength ----------------------------------------------------------------------------------------------------


def write_lora_settings(folder, where, **settings):
    """Write PEFT's settings beside the LoRA's weights, or into their header as diffusers does."""
    if where == "adapter_config.json":
        (folder / where).write_text(json.dumps(settings))
        return
    packed = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    file = folder / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": packed})


def test_inverse_renderers_keep_their_lora(inverse, originals):
    shutil.copytree(originals["forward"] / "lora", inverse / "lora")
    lines = []
    assert set(diffusers_layout.read(inverse, lines.append)[1]) == {"unet", "vae", "lora"}
    assert not any("ignored" in line for line in lines)


def read_alphas(forward, log=SILENT):
    tensors = diffusers_layout.read(forward, log)[1]["lora"]
    return {name: float(tensor.read()) for name, tensor in tensors.items() if name.endswith(".alpha")}


PLACES = ("adapter_config.json", "header")


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
def test_lora_strength_in_peft_settings_reaches_the_kernels(forward, tmp_path, where):
    write_lora_settings(forward / "lora", where, r=4, lora_alpha=16)
    lines = []
    alphas = read_alphas(forward, lines.append)
    modules = {name.rpartition(".lora_")[0] for name in tiny.shapes("forward", "lora")}
    assert alphas == {f"{module}.alpha": 16 for module in modules}
    assert len(lines) == 1 and lines[0].startswith(f"lora: alpha of {len(modules)} modules from {forward}/lora")
    convert.from_released(str(forward), tmp_path / "converted", log=SILENT)
    kernel = np.zeros((64, 64), np.float32)
    factors = orbax.load(tmp_path / "converted", "lora")["mid_block"]["attentions"][0]["transformer_blocks"][0]["attn1"]
    merged = lora.merge({"to_q": {"kernel": kernel}}, {"to_q": factors["to_q"]}, 1.0)["to_q"]["kernel"]
    a, b = (np.asarray(factors["to_q"][name], np.float32) for name in ("lora_A", "lora_B"))
    np.testing.assert_allclose(merged, 4 * a @ b, rtol=1e-5, atol=1e-6)


def test_lora_alpha_equal_to_rank_adds_no_tensor(forward):
    write_lora_settings(forward / "lora", "header", r=4, lora_alpha=4)
    assert read_alphas(forward) == {}


@pytest.mark.parametrize("where", PLACES)
def test_lora_alpha_tensors_and_patterns_come_before_the_default(forward, where):
    to_q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    change = lambda tensors: tensors.update({f"{to_q}.alpha": np.full((), 2, np.float32)})
    tiny.edit_weights(forward / "lora", change, "pytorch_lora_weights")
    patterns = {"attn2.to_q": 8, "attn2.to_[vk]": 32}
    write_lora_settings(forward / "lora", where, r=4, lora_alpha=16, alpha_pattern=patterns, use_rslora=True)
    alphas = read_alphas(forward)
    assert alphas.pop(f"{to_q}.alpha") == 2
    expected = {"attn2.to_q": 8, "attn2.to_k": 32, "attn2.to_v": 32}
    for name, alpha in alphas.items():  # rank 4: alpha/sqrt(rank) is twice alpha/rank
        assert alpha == 2 * expected.get(".".join(name.split(".")[-3:-1]), 16), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 8, "lora_alpha": 16}, r"r is 8, but unet\..* has rank 4"),
        ({"r": 4, "lora_alpha": "16"}, "lora_alpha: expected a number, got '16'"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern: expected numbers by pattern"),
        ({"alpha_pattern": [3]}, "alpha_pattern: expected numbers by pattern"),
    ],
)
@pytest.mark.parametrize("where", PLACES)
def test_inconsistent_lora_settings_are_named(forward, where, settings, message):
    write_lora_settings(forward / "lora", where, **settings)
    place = where if where in PLACES[:1] else "lora_adapter_metadata"
    with pytest.raises(InputError, match=f"{place}: {message}"):
        diffusers_layout.read(forward, SILENT)


# --- a UNet alone -----------------------------------------------------------------------------------------------------


def unet_alone(source, folder, name="unet"):
    """Return a folder that holds nothing but a UNet, as trainers write it."""
    shutil.copytree(source / "unet", folder / name)
    return folder


@pytest.mark.parametrize("kind", ["inverse", "forward"])
def test_base_gives_what_a_folder_lacks(originals, tmp_path, kind):
    folder, lines = unet_alone(originals[kind], tmp_path / "run"), []
    with pytest.raises(InputError, match=r"no vae/config\.json\); --base names a checkpoint to take it from"):
        diffusers_layout.read(folder, SILENT)
    config, tensors = diffusers_layout.read(folder, lines.append, originals[kind])
    expected, expected_tensors = diffusers_layout.read(originals[kind], SILENT)
    assert config == expected
    # The base's LoRA belongs to the base's UNet.
    assert tensors.keys() == expected_tensors.keys() - {"lora"}
    encoder = ["env_encoder"] if kind == "forward" else []
    assert lines[0] == f"taken from {originals[kind]}: {', '.join(['vae', *encoder, 'scheduler'])}"


def test_own_components_come_before_those_of_the_base(inverse, originals):
    tiny.edit_json(inverse / "scheduler/scheduler_config.json", sigma_max=80.0)
    assert diffusers_layout.read(inverse, SILENT, originals["inverse"])[0].scheduler.sigma_max == 80


def test_averaged_unet_is_taken_by_its_name(originals, tmp_path):
    folder = unet_alone(originals["inverse"], tmp_path / "run", "unet_ema")
    tiny.edit_json(folder / "unet_ema/config.json", decay=0.9999, update_after_step=0)
    with pytest.raises(InputError, match=r"no unet/config\.json\); --ema takes unet_ema/"):
        diffusers_layout.read(folder, SILENT)
    lines = []
    _, tensors = diffusers_layout.read(folder, lines.append, originals["inverse"], "unet_ema")
    assert tensors["unet"].keys() == tiny.shapes("inverse", "unet").keys()
    assert any("ignored decay = 0.9999" in line for line in lines)


@pytest.mark.slow
def test_script_takes_base_and_average(originals, tmp_path, monkeypatch):
    folder = unet_alone(originals["inverse"], tmp_path / "run", "unet_ema")
    words = [folder, tmp_path / "converted", "--base", originals["inverse"], "--ema"]
    convert_command.main([str(word) for word in words])
    assert orbax.components(tmp_path / "converted") == ["unet", "vae"]
    with pytest.raises(InputError, match="--base and --ema: only for released weights"):
        convert_command.main([str(tmp_path / "converted"), str(tmp_path / "back"), "--to-torch", "--ema"])
