"""Conversion: the naming rule, bit-exact round trips, strictness, and the script."""

import hashlib
import json
import math
import os
import runpy
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from drender.checkpoints import convert, diffusers_layout, orbax, torch_files
from drender.config import EnvEncoderConfig, RendererConfig, UNetConfig, VAEConfig
from drender.errors import InputError
from drender.models.params import abstract_module, unflatten
from drender.models.unet import UNet

ROOT = Path(__file__).parents[2]
SILENT = lambda line: None
FORWARD = {"in_channels": 24, "temporal_cross_attention_dim": None, "cross_attention_dim": (320, 640, 1280, 1280)}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def converted(folder: Path) -> RendererConfig:
    """Convert a released folder, to `converted` beside it, and return the configuration there."""
    convert.from_released(str(folder), folder.parent / "converted", log=SILENT)
    return orbax.load_config(folder.parent / "converted")


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "config", "parameters", "tensors", "names"),
    [
        ("unet", UNetConfig(context_embedding_type="clip"), 1_524_639_466, 1429, "fdc32b65a4629a40"),
        ("unet", UNetConfig(**FORWARD), 1_473_513_642, 1316, "70c2b08017406bd3"),
        ("vae", VAEConfig(), 97_742_847, 374, "7614fb0c6ad7b8d7"),
        ("env_encoder", EnvEncoderConfig(), 161_462_720, 76, "37264533bad32688"),
        ("env_encoder", EnvEncoderConfig(in_channels=9, latent_encoder=False), 162_515_184, 90, "a00e93ec5e4b9f99"),
    ],
)
def test_full_size_networks_have_released_names_and_shapes(component, config, parameters, tensors, names):
    shapes = tiny.network_shapes(component, config)
    assert sum(map(math.prod, shapes.values())) == parameters
    assert len(shapes) == tensors
    # The names and shapes of the released networks, sorted, a line each.
    lines = sorted(f"{name} {' '.join(map(str, shape))}" for name, shape in shapes.items())
    assert sha("\n".join(lines).encode()) == names


@pytest.mark.parametrize(
    ("kind", "component", "expected"),
    [
        ("inverse", "unet", "c51339e78279ba53"),
        ("inverse", "vae", "a7f3b5c8a6f64ea3"),
        ("forward", "unet", "ac76503ac1cab538"),
        ("forward", "env_encoder", "859dbf9c592ef58d"),
        ("forward", "lora", "8bf61a061288010a"),
    ],
)
def test_tiny_checkpoints_are_those_of_the_golden_results(originals, kind, component, expected):
    (file,) = (originals[kind] / component).glob("*.safetensors")
    assert sha(file.read_bytes()) == expected


modules = st.lists(st.sampled_from(["down_blocks", "0", "13", "attn1", "to_out", "conv"]), min_size=1).map(".".join)
temporal = st.sampled_from(["", "temporal_res_block.", "decoder.time_conv_out."])
sizes = st.integers(1, 4)


@given(modules, temporal, st.sampled_from(["kernel", "lora_A", "lora.up"]), st.lists(sizes, min_size=2, max_size=4))
def test_layouts_invert_each_other(module, prefix, leaf, shape):
    if len(shape) == 3 or (prefix and len(shape) == 4):
        shape = [shape[0], 1, *shape[-2:]]  # over time
    name = f"{prefix}{module}.{leaf}"
    parameter = np.arange(math.prod(shape)).reshape(shape)
    torch = convert.to_torch(name, parameter)
    assert torch.shape[:2] == (shape[-1], shape[-2])
    assert torch.ndim == (5 if prefix and len(shape) == 4 else len(shape))
    np.testing.assert_array_equal(convert.from_torch(name, torch), parameter)


def test_lora_names_in_both_spellings():
    assert convert.torch_name("mid.to_out.0.lora_A") == "mid.to_out.0.lora_A.weight"
    assert convert.torch_name("mid.to_out.0.lora.down") == "mid.to_out.0.lora.down.weight"
    assert convert.torch_name("mid.to_out.0.alpha") == "mid.to_out.0.alpha"


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_round_trip_is_bit_for_bit(tmp_path):
    source = tiny.write_released(tmp_path / "source", "forward", "bfloat16", variant="fp16")
    config = converted(source)
    convert.to_released(tmp_path / "converted", tmp_path / "back", log=SILENT)
    for component in tiny.components("forward"):
        (file,) = (tmp_path / "back" / component).glob("*.safetensors")
        back, wanted = load_file(file), tiny.weights(component, tiny.shapes("forward", component), "bfloat16")
        assert back.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
            assert back[name].tobytes() == tensor.tobytes(), name
    lines = []
    assert diffusers_layout.read(tmp_path / "back", lines.append)[0] == config
    assert lines == []


def test_lora_of_convolutions_with_alpha_and_older_spelling(forward, tmp_path):
    resnet = "unet.down_blocks.0.resnets.0"
    to_q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {
        f"{to_q}.lora.down.weight": (4, 64),
        f"{to_q}.lora.up.weight": (64, 4),
        f"{resnet}.spatial_res_block.conv1.lora_A.weight": (4, 32, 3, 3),
        f"{resnet}.spatial_res_block.conv1.lora_B.weight": (32, 4, 1, 1),
        f"{resnet}.temporal_res_block.conv2.lora_A.weight": (4, 32, 3, 1, 1),
        f"{resnet}.temporal_res_block.conv2.lora_B.weight": (32, 4, 1, 1, 1),
    }
    tensors = tiny.weights("lora", factors) | {f"{to_q}.alpha": np.full((), 8, np.float32)}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    config, _ = diffusers_layout.read(forward, SILENT)
    unet = abstract_module(UNet, config.unet)[1]
    matched = convert.match_lora(unet, torch_files.read(tmp_path, "pytorch_lora_weights"), "lora")
    nested = unflatten({name: convert.from_torch(name, tensor.read()) for name, tensor in matched.items()})
    conv = nested["down_blocks"][0]["resnets"][0]["temporal_res_block"]["conv2"]
    assert (conv["lora_A"].shape, conv["lora_B"].shape) == ((3, 1, 32, 4), (1, 1, 4, 32))
    orbax.save(tmp_path / "converted", config, {"lora": nested})
    convert.to_released(tmp_path / "converted", tmp_path / "back", log=SILENT)
    back = load_file(tmp_path / "back/lora/pytorch_lora_weights.safetensors")
    assert {name: (x.shape, x.tobytes()) for name, x in back.items()} == {
        name: (x.shape, x.tobytes()) for name, x in tensors.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_to_torch_casts_all_weights_to_dtype(monkeypatch, inverse_checkpoint, tmp_path, dtype):
    assert script(monkeypatch, "--to-torch", inverse_checkpoint, tmp_path / "back", "--dtype", dtype) == 0
    for component in tiny.components("inverse"):
        (file,) = (tmp_path / "back" / component).glob("*.safetensors")
        expected = tiny.weights(component, tiny.shapes("inverse", component))
        for name, tensor in load_file(file).items():
            assert tensor.dtype == jnp.dtype(dtype)
            assert tensor.tobytes() == expected[name].astype(jnp.dtype(dtype)).tobytes(), name


def test_weight_too_large_for_dtype_is_named_and_nothing_written(forward, tmp_path):
    config, _ = diffusers_layout.read(forward, SILENT)
    orbax.save(tmp_path / "large", config, {"lora": {"conv_in": {"alpha": np.full((), 1e5, np.float32)}}})
    with pytest.raises(InputError, match=r"large: lora\.conv_in\.alpha overflows float16; choose bfloat16"):
        convert.to_released(tmp_path / "large", tmp_path / "back", dtype="float16", log=SILENT)
    assert not (tmp_path / "back").exists()


@pytest.mark.oracle
def test_diffusers_reads_converted_checkpoint(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    converted(tiny.write_released(tmp_path / "source", "svd", "float32", sharded=True, variant="fp16"))
    convert.to_released(tmp_path / "converted", tmp_path / "back", log=SILENT)
    for component, cls in (
        ("unet", diffusers.UNetSpatioTemporalConditionModel),
        ("vae", diffusers.AutoencoderKLTemporalDecoder),
    ):
        network, info = cls.from_pretrained(tmp_path / "back" / component, output_loading_info=True)
        assert not any(info.values())
        state = network.state_dict()
        for name, tensor in tiny.weights(component, tiny.shapes("svd", component), "float32").items():
            assert torch.equal(state[name], torch.from_numpy(tensor)), name
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "back" / "scheduler")
    scheduler.set_timesteps(20)
    np.testing.assert_allclose(scheduler.sigmas[:3], [700, 510.36, 366.57], rtol=1e-4)
    index = json.loads((tmp_path / "back/model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNetSpatioTemporalConditionModel"]


# --- strictness -------------------------------------------------------------------------------------------------------


def test_misfits_are_listed_and_nothing_is_written(inverse, tmp_path):
    def spoil(tensors):
        del tensors["encoder.conv_in.bias"], tensors["quant_conv.weight"]
        tensors["encoder.conv_out.bias"] = np.zeros(3, np.float16)
        tensors["extra.weight"] = np.zeros((2, 2), np.float16)

    tiny.edit_weights(inverse / "vae", spoil)
    with pytest.raises(InputError) as caught:
        converted(inverse)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("/vae: 4 tensors do not fit the network")
    assert sorted(line.strip() for line in lines) == [
        "left over: extra.weight [2, 2]",
        "misshapen: encoder.conv_out.bias [3], expected [8]",
        "missing: encoder.conv_in.bias [32]",
        "missing: quant_conv.weight [8, 8, 1, 1]",
    ]
    assert os.listdir(tmp_path) == ["released"]


def test_long_list_of_misfits_is_truncated(inverse):
    tiny.edit_weights(inverse / "vae", dict.clear)
    with pytest.raises(InputError, match="370 tensors do not fit") as caught:
        converted(inverse)
    lines = str(caught.value).splitlines()
    assert len(lines) == convert.MAX_LINES + 2
    assert lines[-1].strip() == "and 350 more"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("text_encoder.to_q.lora_A.weight", (4, 32), r"left over: text_encoder.to_q.lora_A.weight \[4, 32\]"),
        ("unet.mid_block.dora_scale", (4, 32), r"left over: unet.mid_block.dora_scale"),
        ("unet.conv_in.lora_A.weight", (4, 24, 3), r"misshapen: unet.conv_in.lora_A.weight"),
        ("unet.conv_in.lora_A.weight", (4, 24, 3, 3), "'conv_in' lacks one of its two factors"),
        ("unet.middle.to_q.lora_A.weight", (4, 32), "the network has no kernel 'middle.to_q.kernel'"),
    ],
)
def test_misfits_of_lora_are_named(forward, name, shape, message):
    change = lambda tensors: tensors.update({name: np.zeros(shape, np.float16)})
    tiny.edit_weights(forward / "lora", change, "pytorch_lora_weights")
    with pytest.raises(InputError, match=message):
        converted(forward)


def test_other_sources_are_refused(originals, inverse_checkpoint, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "0000.0000.normal.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"clip: not a released checkpoint \(no unet/config\.json\)"):
        convert.from_released(str(tmp_path / "clip"), tmp_path / "out")
    with pytest.raises(InputError, match="converted already"):
        convert.from_released(str(inverse_checkpoint), tmp_path / "out")
    with pytest.raises(InputError, match="made for torch; convert it first"):
        convert.to_released(originals["svd"], tmp_path / "out")
    with pytest.raises(InputError, match="neither a folder nor a Hugging Face name"):
        convert.from_released("nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="neither a folder nor a Hugging Face name"):
        convert.from_released(str(tmp_path / "clip/0000.0000.normal.png"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="already exists"):  # before anything is downloaded
        convert.from_released("owner/name", tmp_path / "out")


def test_to_torch_overwrites_only_released_folders(inverse_checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    for destination in (tmp_path / "photos", inverse_checkpoint):
        with pytest.raises(InputError, match="not a checkpoint, so it is not overwritten"):
            convert.to_released(inverse_checkpoint, destination, overwrite=True)


# --- the script -------------------------------------------------------------------------------------------------------


def script(monkeypatch, *arguments) -> int:
    """Run convert_weights.py in this process, which saves the imports, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert_weights.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "convert_weights.py"), run_name="__main__")
    return caught.value.code


@pytest.mark.slow
def test_script_converts_both_ways(originals, monkeypatch, tmp_path, capsys):
    assert script(monkeypatch, originals["inverse"], tmp_path / "converted") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{originals['inverse']}: inverse renderer, domain table of 16 rows",
        "unet: 4,417,258 parameters in 1427 tensors, float16",
        "vae: 1,637,599 parameters in 370 tensors, float16",
        f"wrote {tmp_path / 'converted'}",
    ]
    assert script(monkeypatch, "--to-torch", tmp_path / "converted", tmp_path / "back") == 0
    for component in ("unet", "vae"):
        file = f"{component}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "back" / file).read_bytes() == (originals["inverse"] / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--overwrit"], "unknown option '--overwrit'; did you mean '--overwrite'?"),
        (["nowhere", "b"], "error: nowhere: neither a folder nor a Hugging Face name of the form owner/name"),
        (["--to-torch", "nowhere", "b"], "error: nowhere: no such folder; give a checkpoint, released"),
        (["nowhere", "b", "--dtype", "float16"], "error: --dtype float16: only for training runs and --to-torch"),
    ],
)
def test_usage_errors_are_one_line_and_code_2(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert script(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_released_weights_are_not_converted_to_convert_them_back(monkeypatch, originals, tmp_path, capsys):
    monkeypatch.setenv("DRENDER_CACHE", str(tmp_path / "cache"))
    assert script(monkeypatch, "--to-torch", originals["inverse"], tmp_path / "back") == 2
    assert "made for torch; convert it first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
