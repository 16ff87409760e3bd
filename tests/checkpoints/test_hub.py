"""Downloads from Hugging Face: only the required files, and one line for every failure."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from helpers import tiny
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from drender.checkpoints import hub
from drender.errors import InputError

SILENT = lambda line: None


class FakeHub:
    """A stand-in for huggingface_hub: one repository, or an error."""

    def __init__(self, monkeypatch, folder: Path | None = None, listing=None, download=None, cached=None):
        self.folder, self.listing, self.download, self.cached = folder, listing, download, cached
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, name, revision=None, files_metadata=True, timeout=None):
        if self.listing:
            raise self.listing
        files = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
        size = lambda name: (self.folder / name).stat().st_size
        siblings = [type("File", (), {"rfilename": name, "size": size(name)}) for name in files]
        return type("Info", (), {"siblings": siblings, "sha": "a" * 40})

    def snapshot_download(self, name, revision=None, allow_patterns=None, local_files_only=False):
        self.requested = allow_patterns
        if error := self.cached if local_files_only else self.download:
            raise error
        return str(self.folder)


def hub_error(cls):
    error = cls.__new__(cls)
    Exception.__init__(error, "no\nmore lines")
    return error


def test_only_required_files_are_downloaded(forward, monkeypatch):
    for name in ("svd.safetensors", "README.md", "image_encoder/model.safetensors", "env_decoder/config.json"):
        (forward / name).parent.mkdir(exist_ok=True)
        (forward / name).write_bytes(b"")
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        (forward / "unet" / name).write_bytes(b"")
    fake = FakeHub(monkeypatch, forward)
    assert hub.find("owner/name", SILENT) == forward
    weights = [f"{component}/diffusion_pytorch_model.safetensors" for component in ("unet", "vae", "env_encoder")]
    configs = [f"{component}/config.json" for component in ("unet", "vae", "env_encoder")]
    others = ["model_index.json", "scheduler/scheduler_config.json", "lora/pytorch_lora_weights.safetensors"]
    assert sorted(fake.requested) == sorted(weights + configs + others)


@pytest.mark.parametrize("index", ["safetensors.index.fp16.json", "fp16.safetensors.index.json"])
def test_shards_are_downloaded_with_their_index(tmp_path, monkeypatch, index):
    tiny.write_released(tmp_path, "inverse", sharded=True, variant="fp16")
    stem = "diffusion_pytorch_model"
    for component in ("unet", "vae"):
        (tmp_path / component / f"{stem}.safetensors.index.fp16.json").rename(tmp_path / component / f"{stem}.{index}")
    tiny.write_weights(tmp_path / "unet", stem, {}, variant="bf16")  # a worse form
    fake, lines = FakeHub(monkeypatch, tmp_path), []
    assert hub.find("owner/name", lines.append) == tmp_path
    files = ["config.json", f"{stem}.{index}", *(f"{stem}.fp16-0000{i}-of-00003.safetensors" for i in (1, 2, 3))]
    expected = [f"{component}/{file}" for component in ("unet", "vae") for file in files]
    assert sorted(fake.requested) == sorted([*expected, "model_index.json", "scheduler/scheduler_config.json"])
    assert [line.rpartition(",")[0] for line in lines] == [
        "downloading 6 files of owner/name from Hugging Face",
        "downloading 12 files of owner/name from Hugging Face",
    ]


def test_shards_outside_the_folder_are_not_requested(inverse, monkeypatch):
    file = inverse / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bf16.safetensors"))
    index = file.with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    FakeHub(monkeypatch, inverse)
    with pytest.raises(InputError, match="expected names of weight files beside it"):
        hub.find("owner/name", SILENT)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"listing": hub_error(RepositoryNotFoundError)}, "neither a local folder nor a public repository"),
        ({"listing": hub_error(GatedRepoError)}, "accept its terms at https://huggingface.co/owner/name"),
        ({"download": hub_error(GatedRepoError)}, "accept its terms"),
        ({"download": RuntimeError("checksum\nmore lines")}, r"download failed \(checksum\)"),
        ({"listing": OSError(), "cached": hub_error(LocalEntryNotFoundError)}, "no such folder, and no earlier"),
    ],
)
def test_failed_downloads_are_one_line(originals, monkeypatch, errors, message):
    FakeHub(monkeypatch, originals["inverse"], **errors)
    with pytest.raises(InputError, match=f"owner/name: {message}") as caught:
        hub.find("owner/name", SILENT)
    assert "\n" not in str(caught.value)


def test_earlier_download_is_used_offline(originals, monkeypatch):
    FakeHub(monkeypatch, originals["inverse"], listing=ConnectionError())
    lines = []
    assert hub.find("owner/name", lines.append) == originals["inverse"]
    assert lines == ["Hugging Face cannot be reached (ConnectionError); looking for an earlier download of owner/name"]


def test_a_download_that_does_not_fit_on_the_disk_is_not_begun(originals, monkeypatch):
    fake = FakeHub(monkeypatch, originals["inverse"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(InputError, match=r"needs 0\.0\d+ GB of disk, 0\.001 GB are free; free space, or set HF_HOME"):
        hub.find("owner/name", SILENT)
    assert not hasattr(fake, "requested")


def test_revision_is_part_of_a_name(originals, monkeypatch):
    fake = FakeHub(monkeypatch, originals["inverse"])
    assert hub.pin("owner/name@dev", SILENT) == "owner/name@" + "a" * 40
    assert hub.pin("owner/name@" + "b" * 40, SILENT) == "owner/name@" + "b" * 40
    fake.listing = hub_error(RevisionNotFoundError)
    with pytest.raises(InputError, match="owner/name@dev: the repository has no revision dev; check its branches"):
        hub.find("owner/name@dev", SILENT)
