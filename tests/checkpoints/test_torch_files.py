"""Torch's weight files: every form is read, written ones equal the library's, and damage is one line."""

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


def test_written_file_equals_safetensors_library_byte_for_byte(tmp_path):
    shapes = tiny.shapes("inverse", "vae")
    tensors = tiny.weights("vae", shapes) | {"scalar": np.full((), 3, np.float32), "half": np.ones(3, jnp.bfloat16)}
    save_file(tensors, tmp_path / "expected.safetensors", {"format": "pt"})
    lazy = {name: torch_files.Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    torch_files.write(tmp_path / "written.safetensors", lazy)
    assert (tmp_path / "written.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_safetensors_are_read_bit_for_bit(tmp_path, dtype):
    saved = {"a": np.arange(6.0).reshape(2, 3).astype(jnp.dtype(dtype)), "b": np.full((), 3, jnp.dtype(dtype))}
    save_file(saved, tmp_path / "w.safetensors")
    for name, tensor in torch_files.read(tmp_path, "w").items():
        array = tensor.read()
        assert (tensor.dtype, tensor.shape) == (array.dtype, array.shape) == (saved[name].dtype, saved[name].shape)
        assert array.tobytes() == saved[name].tobytes()


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_legacy_pickles_are_read_bit_for_bit(tmp_path, dtype):
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
def test_pickles_execute_no_code(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"not a state dict of weights \(its pickle holds more than") as caught:
        torch_files.read(tmp_path, "diffusion_pytorch_model")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_pickle_without_torch_asks_to_install_it(tmp_path, monkeypatch):
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
        (b"", "damaged or not a safetensors"),
        (b"<html>not found</html>", "damaged or not a safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS, not the weights; run `git lfs pull`"),
        (safetensors_of({}, size=10**12), "damaged or not a safetensors"),
        (safetensors_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(9)), "damaged or not"),
        (
            safetensors_of({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
            "a is I64; expected .* F16",
        ),
    ],
)
def test_damaged_safetensors_are_one_line(tmp_path, content, message):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"w\.safetensors: {message}") as caught:
        torch_files.read(tmp_path, "w")
    assert "\n" not in str(caught.value)


def test_truncated_safetensors_are_named(originals, tmp_path):
    whole = (originals["inverse"] / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="damaged or not a safetensors"):
        torch_files.read(tmp_path, "w")


def test_file_truncated_after_listing_is_an_error(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"a": np.ones(100, np.float32)}, file)
    tensors = torch_files.read(tmp_path, "w")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"w\.safetensors: damaged"):
        tensors["a"].read()


def test_missing_weights_and_shards_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights; expected w\.safetensors"):
        torch_files.read(tmp_path, "w")
    tiny.write_weights(tmp_path, "w", {name: np.ones(2, np.float32) for name in "abc"}, sharded=True)
    assert torch_files.read(tmp_path, "w").keys() == {*"abc"}
    index = tmp_path / "w.safetensors.index.json"
    index.rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        InputError, match=r"no weights; expected w\.safetensors\.index\.json beside w-00001-of-00003\.saf"
    ):
        torch_files.read(tmp_path, "w")
    (tmp_path / "elsewhere.json").rename(index)
    (tmp_path / "w-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"00002-of-00003\.safetensors: missing, although w\.safetensors\.index\.json"):
        torch_files.read(tmp_path, "w")
    for text, message in (("{", "unreadable"), ("[]", "unreadable"), ('{"weight_map": 3}', "not an index")):
        index.write_text(text)
        with pytest.raises(InputError, match=rf"index\.json: {message}"):
            torch_files.read(tmp_path, "w")


INDICES = ("w.safetensors.index{}.json", "w{}.safetensors.index.json", "w.safetensors{}.index.json", "w{}.index.json")


@pytest.mark.parametrize("variant", ["", ".fp16", ".bf16"])
@pytest.mark.parametrize("index", INDICES)
def test_index_and_shards_of_any_spelling_are_read(tmp_path, index, variant):
    shards = {"a": "first.safetensors", "b": f"w{variant}-2.safetensors"}
    for name, shard in shards.items():
        save_file({name: np.ones(2, np.float16)}, tmp_path / shard)
    (tmp_path / index.format(variant)).write_text(json.dumps({"weight_map": shards}))
    assert torch_files.read(tmp_path, "w").keys() == {"a", "b"}


def test_best_form_of_weights_is_chosen():
    names = ["w.bin", "w.safetensors.index.fp16.json", "w.bf16.safetensors", "w.safetensors", "other.safetensors"]
    for best in ("w.safetensors", "w.safetensors.index.fp16.json", "w.bf16.safetensors", "w.bin"):
        assert torch_files.find_weights(names, "w") == best
        names.remove(best)
    assert torch_files.find_weights(names, "w") is None


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "..", "w.pth", 3])
def test_shards_elsewhere_than_beside_the_index_are_refused(tmp_path, shard):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "folder").mkdir()
    index = tmp_path / "folder/w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match=r"index\.json: expected names of weight files beside it, got"):
        torch_files.read(tmp_path / "folder", "w")
