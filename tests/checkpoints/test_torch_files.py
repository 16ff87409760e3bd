"""Torch's weight files: every form is read, ours are the library's, and damage is told in one line."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import save_file

from drender.checkpoints import torch_files
from drender.errors import InputError


def test_files_are_those_that_the_safetensors_library_writes(tmp_path):
    shapes = tiny.shapes("inverse", "vae")
    tensors = tiny.weights("vae", shapes) | {"scalar": np.full((), 3, np.float32), "half": np.ones(3, jnp.bfloat16)}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    ours = {name: torch_files.Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    torch_files.write(tmp_path / "ours.safetensors", ours)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.oracle
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


@pytest.mark.oracle
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
    with pytest.raises(InputError, match="install torch"):
        torch_files.read(tmp_path, "diffusion_pytorch_model")


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
def test_damaged_weights(tmp_path, content, message):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"w\.safetensors: {message}") as caught:
        torch_files.read(tmp_path, "w")
    assert "\n" not in str(caught.value)


def test_truncated_weights(originals, tmp_path):
    whole = (originals["inverse"] / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="damaged or no safetensors"):
        torch_files.read(tmp_path, "w")


def test_weights_that_shrink_while_they_are_read(tmp_path):
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
