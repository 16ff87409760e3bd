"""The released layout: what its JSON files may lack or get wrong, and how it is fetched."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from helpers import tiny
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from drender.checkpoints import convert, diffusers_layout
from drender.config import DOMAINS, EnvEncoderConfig, SchedulerConfig
from drender.errors import InputError
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


def test_tensors_decide_where_the_configuration_is_silent_or_wrong(inverse):
    tiny.edit_json(inverse / "unet/config.json", context_embedding_type=..., context_vocab_size=3, in_channels=24)
    tiny.edit_json(inverse / "unet/config.json", temporal_cross_attention_dim=...)
    lines = []
    unet = diffusers_layout.read(inverse, lines.append)[0].unet
    assert (unet.context_embedding_type, unet.context_vocab_size, unet.in_channels) == ("clip", 16, 8)
    assert unet.temporal_cross_attention_dim == 48
    assert "unet/config.json: in_channels is 24; the tensors tell 8, which counts" in lines
    assert "unet/config.json: context_embedding_type is 'not given'; the tensors tell 'clip', which counts" in lines
    assert len(lines) == 4


def test_a_small_domain_table(inverse):
    change = lambda tensors: tensors.update({"context_embedding.weight": np.zeros((5, 48), np.float16)})
    tiny.edit_weights(inverse / "unet", change)
    config = diffusers_layout.read(inverse, SILENT)[0]
    assert config.unet.context_vocab_size == 5
    assert config.domains == {name: row for name, row in DOMAINS.items() if row < 5}


def test_the_forward_renderer_is_known_by_its_encoder(forward):
    tiny.edit_json(forward / "unet/config.json", multi_res_encoder_hidden_states=..., temporal_cross_attention_dim=...)
    tiny.edit_json(forward / "env_encoder/config.json", in_channels=9, latent_encoder=False)
    config = diffusers_layout.read(forward, SILENT)[0]
    assert config.unet.multi_res_encoder_hidden_states
    assert config.unet.temporal_cross_attention_dim is None
    assert (config.env_encoder.in_channels, config.env_encoder.latent_encoder) == (12, True)


def test_the_pixel_stem(forward):
    config = EnvEncoderConfig(in_channels=9, channels=(32, 32, 64, 64), latent_encoder=False)
    shapes = tiny.network_shapes("env_encoder", config)
    (forward / "env_encoder/diffusion_pytorch_model.safetensors").unlink()
    tiny.write_weights(forward / "env_encoder", "diffusion_pytorch_model", tiny.weights("env_encoder", shapes))
    found, tensors = diffusers_layout.read(forward, SILENT)
    assert found.env_encoder == config
    convert.match_tensors(abstract_module(EnvEncoder, config)[1], tensors["env_encoder"], "env_encoder")


def test_forward_without_encoder(forward):
    (forward / "env_encoder").rename(forward / "elsewhere")
    with pytest.raises(InputError, match="without its env_encoder folder"):
        diffusers_layout.read(forward, SILENT)


def test_the_unused_is_named_and_left(forward):
    for name in ("env_decoder", "nrm_encoder", "safety_checker"):
        (forward / name).mkdir()
    (forward / "config.json").write_text("")  # as in the release
    (forward / "README.md").write_text("")
    tiny.edit_json(forward / "unet/config.json", _name_or_path="/home/someone", magic=3)
    tiny.edit_json(forward / "scheduler/scheduler_config.json", prediction_type="epsilon", clip=None)
    lines = []
    config = diffusers_layout.read(forward, lines.append)[0]
    assert lines == [
        "left alone, inference does not use them: env_decoder, nrm_encoder, safety_checker",
        "unet/config.json: ignored _name_or_path = '/home/someone', magic = 3",
        "scheduler/scheduler_config.json: ignored prediction_type = 'epsilon', clip = None",
    ]
    assert config.kind == "forward"


@pytest.mark.parametrize(("said", "scaled"), [(True, True), (False, False), ("yes", False), (..., False)])
def test_scaling_of_conditions_follows_a_boolean(inverse, said, scaled):
    tiny.edit_json(inverse / "model_index.json", scale_cond_latents=said)
    config = diffusers_layout.read(inverse, SILENT)[0]
    assert config.scale_cond_latents is scaled
    assert diffusers_layout.json_files(config)["model_index.json"].get("scale_cond_latents", False) is scaled


def test_scheduler_and_model_index_may_be_missing(inverse):
    for file in ("scheduler/scheduler_config.json", "model_index.json"):
        (inverse / file).unlink()
    (inverse / "scheduler").rmdir()
    assert diffusers_layout.read(inverse, SILENT)[0].scheduler == SchedulerConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no JSON"), ("", "no JSON"), ("[1]", "found list"), ('{"in_channels": "8"}', "in_channels: expected int")],
)
def test_configurations_that_cannot_be_read(inverse, content, message):
    (inverse / "vae/config.json").write_text(content)
    with pytest.raises(InputError, match=rf"vae/config\.json: .*{message}"):
        diffusers_layout.read(inverse, SILENT)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


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
    assert diffusers_layout.find("owner/name", SILENT) == forward
    weights = [f"{component}/diffusion_pytorch_model.safetensors" for component in ("unet", "vae", "env_encoder")]
    configs = [f"{component}/config.json" for component in ("unet", "vae", "env_encoder")]
    others = ["model_index.json", "scheduler/scheduler_config.json", "lora/pytorch_lora_weights.safetensors"]
    assert sorted(hub.requested) == sorted(weights + configs + others)


def test_shards_are_fetched_with_their_index():
    stem = "diffusion_pytorch_model"
    shards = [f"unet/{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [name.replace(f"{stem}-", f"{stem}.fp16-") for name in shards]
    index = f"unet/{stem}.safetensors.index.json"
    assert sorted(diffusers_layout.wanted([*shards, *half, index])) == sorted([*shards, index])
    index = f"unet/{stem}.safetensors.index.fp16.json"
    assert sorted(diffusers_layout.wanted([*shards, *half, index])) == sorted([*half, index])


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
        diffusers_layout.find("owner/name", SILENT)
    assert "\n" not in str(caught.value)


def test_an_earlier_download_serves_offline(originals, monkeypatch):
    Hub(monkeypatch, originals["inverse"], listing=ConnectionError())
    lines = []
    assert diffusers_layout.find("owner/name", lines.append) == originals["inverse"]
    assert lines == ["Hugging Face cannot be reached (ConnectionError); looking for an earlier download"]
