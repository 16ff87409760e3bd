"""Conversion: the naming rule, strictness, what the JSON files may lack, and the way back, bit for bit."""

import hashlib
import json
import math
import os
import runpy
import sys
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from drender import checkpoint, convert, released, torch_files
from drender.config import DOMAINS, EnvEncoderConfig, RendererConfig, SchedulerConfig, UNetConfig, VAEConfig
from drender.env_encoder import EnvEncoder
from drender.errors import InputError
from drender.layers import structure
from drender.unet import UNet

ROOT = Path(__file__).parent.parent
SILENT = lambda line: None
FORWARD = {"in_channels": 24, "temporal_cross_attention_dim": None, "cross_attention_dim": (320, 640, 1280, 1280)}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def converted(folder: Path) -> RendererConfig:
    """Converts a released folder, to `converted` beside it; gives the configuration that is found there."""
    convert.from_released(str(folder), folder.parent / "converted", log=SILENT)
    return checkpoint.load_config(folder.parent / "converted")


def edit(file: Path, **values) -> None:
    """Changes a JSON file's values; `...` removes one."""
    old = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in old.items() if value is not ...}))


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Released tiny checkpoints of each kind; not to be changed."""
    folder = tmp_path_factory.mktemp("released")
    return {kind: tiny.write_released(folder / kind, kind) for kind in tiny.CONFIGS}


@pytest.fixture
def inverse(originals, tmp_path):
    """A tiny inverse checkpoint to spoil: its files are links, to be replaced and not written into."""
    return linked(originals["inverse"], tmp_path / "released")


@pytest.fixture
def forward(originals, tmp_path):
    return linked(originals["forward"], tmp_path / "released")


def linked(original: Path, copy: Path) -> Path:
    for file in original.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(original)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes()) if file.suffix == ".json" else target.symlink_to(file)
    return copy


def replace_weights(folder: Path, change, stem="diffusion_pytorch_model") -> None:
    """Rewrites a component's weights as `change`, which edits a dict of arrays, leaves them."""
    file = folder / f"{stem}.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


# --- the rule --------------------------------------------------------------------------------------------------------


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
def test_full_size_networks_have_the_released_names_and_shapes(component, config, parameters, tensors, names):
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
def test_tiny_checkpoints_are_those_that_the_golden_results_were_made_with(originals, kind, component, expected):
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
    ours = np.arange(math.prod(shape)).reshape(shape)
    torch = convert.to_torch(name, ours)
    assert torch.shape[:2] == (shape[-1], shape[-2])
    assert torch.ndim == (5 if prefix and len(shape) == 4 else len(shape))
    np.testing.assert_array_equal(convert.from_torch(name, torch), ours)


def test_lora_names_of_both_spellings():
    assert convert.torch_name("mid.to_out.0.lora_A") == "mid.to_out.0.lora_A.weight"
    assert convert.torch_name("mid.to_out.0.lora.down") == "mid.to_out.0.lora.down.weight"
    assert convert.torch_name("mid.to_out.0.alpha") == "mid.to_out.0.alpha"


# --- the way there and back ------------------------------------------------------------------------------------------


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
    assert released.read(tmp_path / "back", lines.append)[0] == config
    assert lines == []


def test_files_are_those_that_the_safetensors_library_writes(tmp_path, originals):
    shapes = tiny.shapes("inverse", "vae")
    tensors = tiny.weights("vae", shapes) | {"scalar": np.full((), 3, np.float32), "half": np.ones(3, jnp.bfloat16)}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    ours = {name: torch_files.Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    torch_files.write(tmp_path / "ours.safetensors", ours)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_lora_with_alpha_and_of_convolutions_and_the_older_spelling(forward, tmp_path):
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
    config, _ = released.read(forward, SILENT)
    unet = structure(UNet, config.unet)[1]
    pulled = convert.pull_lora(unet, torch_files.read(tmp_path, "pytorch_lora_weights"), "lora")
    ours = checkpoint.unflatten({name: convert.from_torch(name, tensor.read()) for name, tensor in pulled.items()})
    conv = ours["down_blocks"][0]["resnets"][0]["temporal_res_block"]["conv2"]
    assert (conv["lora_A"].shape, conv["lora_B"].shape) == ((3, 1, 32, 4), (1, 1, 4, 32))
    checkpoint.save(tmp_path / "ours", config, {"lora": ours})
    convert.to_released(tmp_path / "ours", tmp_path / "back", log=SILENT)
    back = load_file(tmp_path / "back/lora/pytorch_lora_weights.safetensors")
    assert {name: (x.shape, x.tobytes()) for name, x in back.items()} == {
        name: (x.shape, x.tobytes()) for name, x in tensors.items()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_legacy_pickles(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    state = {"a": torch.randn(3, 4).to(getattr(torch, dtype)), "b": torch.randn(()).to(getattr(torch, dtype))}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    tensors = torch_files.read(tmp_path, "diffusion_pytorch_model")
    for name, tensor in state.items():
        array = tensors[name].read()
        assert (array.dtype, array.shape) == (jnp.dtype(dtype), tuple(tensor.shape))
        np.testing.assert_array_equal(array.astype("float32"), tensor.float().numpy())


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_pickles_run_no_code(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="damaged or no state dict") as caught:
        torch_files.read(tmp_path, "diffusion_pytorch_model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="needs torch"):
        torch_files.read(tmp_path, "diffusion_pytorch_model")


def test_diffusers_reads_what_we_write(tmp_path):
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


# --- strictness ------------------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_listed_and_nothing_written(inverse, tmp_path):
    def spoil(tensors):
        del tensors["encoder.conv_in.bias"], tensors["quant_conv.weight"]
        tensors["encoder.conv_out.bias"] = np.zeros(3, np.float16)
        tensors["extra.weight"] = np.zeros((2, 2), np.float16)

    replace_weights(inverse / "vae", spoil)
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


def test_a_long_list_is_cut(inverse):
    replace_weights(inverse / "vae", dict.clear)
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
        ("unet.conv_in.lora_A.weight", (4, 24, 3, 3), "'conv_in' has only one of its two factors"),
        ("unet.middle.to_q.lora_A.weight", (4, 32), "the network has no module 'middle'"),
    ],
)
def test_lora_tensors_that_do_not_fit(forward, name, shape, message):
    change = lambda tensors: tensors.update({name: np.zeros(shape, np.float16)})
    replace_weights(forward / "lora", change, "pytorch_lora_weights")
    with pytest.raises(InputError, match=message):
        converted(forward)


# --- configurations --------------------------------------------------------------------------------------------------


def test_configuration_of_each_kind(originals):
    read = lambda kind: released.read(originals[kind], SILENT)[0]
    inverse, forward, svd = read("inverse"), read("forward"), read("svd")
    assert (inverse.kind, inverse.scale_cond_latents, inverse.domains) == ("inverse", False, DOMAINS)
    assert (inverse.unet.context_embedding_type, inverse.unet.context_vocab_size) == ("clip", 16)
    assert inverse.scheduler == SchedulerConfig(0.002, 700.0, "leading")
    assert (forward.kind, forward.scale_cond_latents) == ("forward", True)
    assert forward.unet.temporal_cross_attention_dim is None
    assert forward.env_encoder == EnvEncoderConfig(channels=(32, 32, 64, 64))
    assert forward.scheduler.timestep_spacing == "trailing"
    assert (svd.kind, svd.scale_cond_latents, svd.unet.temporal_cross_attention_dim) == ("svd", False, 48)


def test_tensors_decide_where_the_configuration_is_silent_or_wrong(inverse):
    edit(inverse / "unet/config.json", context_embedding_type=..., context_vocab_size=3, in_channels=24)
    edit(inverse / "unet/config.json", temporal_cross_attention_dim=...)
    lines = []
    unet = released.read(inverse, lines.append)[0].unet
    assert (unet.context_embedding_type, unet.context_vocab_size, unet.in_channels) == ("clip", 16, 8)
    assert unet.temporal_cross_attention_dim == 48
    assert "unet/config.json: in_channels is 24; the tensors tell 8, which counts" in lines
    assert "unet/config.json: context_embedding_type is 'not given'; the tensors tell 'clip', which counts" in lines
    assert len(lines) == 4


def test_a_small_domain_table(inverse):
    change = lambda tensors: tensors.update({"context_embedding.weight": np.zeros((5, 48), np.float16)})
    replace_weights(inverse / "unet", change)
    config = released.read(inverse, SILENT)[0]
    assert config.unet.context_vocab_size == 5
    assert config.domains == {name: row for name, row in DOMAINS.items() if row < 5}


def test_the_forward_renderer_is_known_by_its_encoder(forward):
    edit(forward / "unet/config.json", multi_res_encoder_hidden_states=..., temporal_cross_attention_dim=...)
    edit(forward / "env_encoder/config.json", in_channels=9, latent_encoder=False)
    config = released.read(forward, SILENT)[0]
    assert config.unet.multi_res_encoder_hidden_states
    assert config.unet.temporal_cross_attention_dim is None
    assert (config.env_encoder.in_channels, config.env_encoder.latent_encoder) == (12, True)


def test_the_pixel_stem(forward):
    config = EnvEncoderConfig(in_channels=9, channels=(32, 32, 64, 64), latent_encoder=False)
    shapes = tiny.network_shapes("env_encoder", config)
    (forward / "env_encoder/diffusion_pytorch_model.safetensors").unlink()
    tiny.write_weights(forward / "env_encoder", "diffusion_pytorch_model", tiny.weights("env_encoder", shapes))
    found, tensors = released.read(forward, SILENT)
    assert found.env_encoder == config
    convert.pull(structure(EnvEncoder, config)[1], tensors["env_encoder"], "env_encoder")


def test_forward_without_encoder(forward):
    (forward / "env_encoder").rename(forward / "elsewhere")
    with pytest.raises(InputError, match="without its env_encoder folder"):
        released.read(forward, SILENT)


def test_the_unused_is_named_and_left(forward):
    for name in ("env_decoder", "nrm_encoder", "safety_checker"):
        (forward / name).mkdir()
    (forward / "config.json").write_text("")  # as in the release
    (forward / "README.md").write_text("")
    edit(forward / "unet/config.json", _name_or_path="/home/someone", magic=3)
    edit(forward / "scheduler/scheduler_config.json", prediction_type="epsilon", clip=None)
    lines = []
    config = released.read(forward, lines.append)[0]
    assert lines == [
        "left alone, inference does not use them: env_decoder, nrm_encoder, safety_checker",
        "unet/config.json: ignored _name_or_path = '/home/someone', magic = 3",
        "scheduler/scheduler_config.json: ignored prediction_type = 'epsilon', clip = None",
    ]
    assert config.kind == "forward"


@pytest.mark.parametrize(("said", "scaled"), [(True, True), (False, False), ("yes", False), (..., False)])
def test_scaling_of_conditions_follows_a_boolean(inverse, said, scaled):
    edit(inverse / "model_index.json", scale_cond_latents=said)
    config = released.read(inverse, SILENT)[0]
    assert config.scale_cond_latents is scaled
    assert released.json_files(config)["model_index.json"].get("scale_cond_latents", False) is scaled


def test_scheduler_and_model_index_may_be_missing(inverse):
    for file in ("scheduler/scheduler_config.json", "model_index.json"):
        (inverse / file).unlink()
    (inverse / "scheduler").rmdir()
    assert released.read(inverse, SILENT)[0].scheduler == SchedulerConfig()


# --- sources that cannot be read -------------------------------------------------------------------------------------


def safetensors_of(header: dict, data: bytes = b"", size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no safetensors"),
        (b"<html>not found</html>", "damaged or no safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "damaged or no safetensors"),
        (safetensors_of({}, size=10**12), "damaged or no safetensors"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(9)), "damaged or no"),
        (safetensors_of({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "a is I64; .* F16"),
    ],
)
def test_damaged_weights(inverse, content, message):
    file = inverse / "vae/diffusion_pytorch_model.safetensors"
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"vae/diffusion_pytorch_model\.safetensors: {message}") as caught:
        released.read(inverse, SILENT)
    assert "\n" not in str(caught.value)


def test_truncated_weights(inverse, originals):
    file = inverse / "unet/diffusion_pytorch_model.safetensors"
    file.unlink()
    file.write_bytes((originals["inverse"] / "unet" / file.name).read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or no safetensors"):
        released.read(inverse, SILENT)


def test_weights_that_shrink_while_they_are_read(inverse, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"a": np.ones(100, np.float32)}, file)
    tensors = torch_files.read(tmp_path, "w")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be read"):
        tensors["a"].read()


def test_missing_weights_shards_and_indices(tmp_path):
    with pytest.raises(InputError, match=r"no weights; expected w\.safetensors"):
        torch_files.read(tmp_path, "w")
    tiny.write_weights(tmp_path, "w", {name: np.ones(2, np.float32) for name in "abc"}, sharded=True)
    assert torch_files.read(tmp_path, "w").keys() == {*"abc"}
    (tmp_path / "w-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"00002-of-00003\.safetensors: missing, though w\.safetensors\.index\.json"):
        torch_files.read(tmp_path, "w")
    for text in ("{", "[]", '{"weight_map": 3}'):
        (tmp_path / "w.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json: not an index"):
            torch_files.read(tmp_path, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no JSON"), ("", "no JSON"), ("[1]", "found list"), ('{"in_channels": "8"}', "in_channels: expected int")],
)
def test_configurations_that_cannot_be_read(inverse, content, message):
    (inverse / "vae/config.json").write_text(content)
    with pytest.raises(InputError, match=rf"vae/config\.json: .*{message}"):
        released.read(inverse, SILENT)


def test_sources_that_are_something_else(originals, inverse_checkpoint, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "0000.0000.normal.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"clip: no released checkpoint \(it has no unet/config\.json\)"):
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
    with pytest.raises(InputError, match="exists already"):  # before anything is fetched
        convert.from_released("owner/name", tmp_path / "out")


def test_the_way_back_overwrites_only_its_own_kind(inverse_checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    for destination in (tmp_path / "photos", inverse_checkpoint):
        with pytest.raises(InputError, match="not a checkpoint, so it is not overwritten"):
            convert.to_released(inverse_checkpoint, destination, overwrite=True)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


class Hub:
    """Stands for huggingface_hub: one repository, or an error."""

    def __init__(self, monkeypatch, folder: Path | None = None, listing=None, download=None, cached=None):
        self.folder, self.listing, self.download, self.cached = folder, listing, download, cached
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, name):
        if self.listing:
            raise self.listing
        files = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
        return type("Info", (), {"siblings": [type("File", (), {"rfilename": name}) for name in files]})

    def snapshot_download(self, name, allow_patterns=None, local_files_only=False):
        self.requested = allow_patterns
        if error := self.cached if local_files_only else self.download:
            raise error
        return str(self.folder)


def hub_error(cls):
    error = cls.__new__(cls)
    Exception.__init__(error, "no\nmore lines")
    return error


def test_only_the_needed_files_are_fetched(forward, monkeypatch):
    for name in ("svd.safetensors", "README.md", "image_encoder/model.safetensors", "env_decoder/config.json"):
        (forward / name).parent.mkdir(exist_ok=True)
        (forward / name).write_bytes(b"")
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        (forward / "unet" / name).write_bytes(b"")
    hub = Hub(monkeypatch, forward)
    assert released.find("owner/name", SILENT) == forward
    weights = [f"{component}/diffusion_pytorch_model.safetensors" for component in ("unet", "vae", "env_encoder")]
    configs = [f"{component}/config.json" for component in ("unet", "vae", "env_encoder")]
    others = ["model_index.json", "scheduler/scheduler_config.json", "lora/pytorch_lora_weights.safetensors"]
    assert sorted(hub.requested) == sorted(weights + configs + others)


def test_shards_are_fetched_with_their_index():
    stem = "diffusion_pytorch_model"
    shards = [f"unet/{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [name.replace(f"{stem}-", f"{stem}.fp16-") for name in shards]
    index = f"unet/{stem}.safetensors.index.json"
    assert sorted(released.wanted([*shards, *half, index])) == sorted([*shards, index])
    index = f"unet/{stem}.safetensors.index.fp16.json"
    assert sorted(released.wanted([*shards, *half, index])) == sorted([*half, index])


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"listing": hub_error(RepositoryNotFoundError)}, "neither a local folder nor a public repository"),
        ({"listing": hub_error(GatedRepoError)}, "accept its terms at https://huggingface.co/owner/name"),
        ({"download": hub_error(GatedRepoError)}, "accept its terms"),
        ({"download": RuntimeError("checksum\nmore lines")}, r"could not be fetched \(checksum\)"),
        ({"listing": OSError(), "cached": hub_error(LocalEntryNotFoundError)}, "no such folder, and no earlier"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(originals, monkeypatch, errors, message):
    Hub(monkeypatch, originals["inverse"], **errors)
    with pytest.raises(InputError, match=f"owner/name: {message}") as caught:
        released.find("owner/name", SILENT)
    assert "\n" not in str(caught.value)


def test_an_earlier_download_serves_offline(originals, monkeypatch):
    Hub(monkeypatch, originals["inverse"], listing=ConnectionError())
    lines = []
    assert released.find("owner/name", lines.append) == originals["inverse"]
    assert lines == ["Hugging Face cannot be reached (ConnectionError); looking for an earlier download"]


# --- the script ------------------------------------------------------------------------------------------------------


def script(monkeypatch, *arguments) -> int:
    """Runs convert_weights.py here, which spares the imports, and gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["convert_weights.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "convert_weights.py"), run_name="__main__")
    return caught.value.code


def test_the_script(originals, monkeypatch, tmp_path, capsys):
    assert script(monkeypatch, originals["inverse"], tmp_path / "ours") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{originals['inverse']}: inverse renderer, domain table of 16 rows",
        "unet: 4,417,258 parameters in 1427 tensors, float16",
        "vae: 1,637,599 parameters in 370 tensors, float16",
        f"wrote {tmp_path / 'ours'}",
    ]
    assert script(monkeypatch, "--to-torch", tmp_path / "ours", tmp_path / "back") == 0
    for component in ("unet", "vae"):
        file = f"{component}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "back" / file).read_bytes() == (originals["inverse"] / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--overwrit"], "unknown option '--overwrit'; did you mean '--overwrite'?"),
        (["nowhere", "b"], "error: nowhere: neither a folder nor a Hugging Face name of the form owner/name"),
        (["--to-torch", "nowhere", "b"], "error: nowhere: no such folder; give one that convert_weights.py wrote"),
    ],
)
def test_mistakes_are_one_line_and_code_2(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert script(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
