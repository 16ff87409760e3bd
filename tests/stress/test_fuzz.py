"""Every reader on damaged files returns a value or a one-line error; `fuzz_readers.py` tries many more."""

import io
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stress import fuzzing, valid_files

from drender.errors import InputError
from drender.media.images import write_png

FILES = [(reader, number) for reader, files in fuzzing.VALID.items() for number in range(len(files))]


@pytest.fixture(scope="module")
def read():
    reader = fuzzing.Reader()
    yield reader
    reader.close()


@pytest.mark.parametrize(("reader", "number"), FILES)
def test_whole_files_are_read(read, tmp_path, reader, number):
    whole = random.Random()
    whole.randrange = lambda *_: number
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzzing, "mutated", lambda reader, data, draw: data)
        assert read(reader, fuzzing.damaged(reader, tmp_path, whole)) == "value"


@pytest.mark.parametrize("reader", [*fuzzing.VALID, "gbuffers"])
@given(draw=st.randoms(use_true_random=False), number=st.integers(0, 2**32))
@settings(max_examples=25)
def test_damaged_files_give_a_value_or_one_line_error(read, tmp_path_factory, reader, draw, number):
    draw.seed(number)
    answer = read(reader, fuzzing.damaged(reader, tmp_path_factory.mktemp("damaged"), draw))
    assert not answer.startswith("BUG"), answer


# --- Known bugs ---


def tiff_of(channels: int = 3, width: int = 16, height: int = 12, depth: int = 1) -> bytes:
    """A TIFF whose tags declare any size; its pixels are missing."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 273: 8, 277: channels, 278: height, 279: 8, 32997: depth}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IQH", 16, 0, len(tags)) + entries + bytes(4)


KNOWN_BUGS = {
    "an EXR attribute that is not UTF-8": ("exr", "a.exr", lambda: edited("exr", b"words", b"w\xffrds")),
    "an EXR attribute's name that is not UTF-8": ("exr", "a.exr", lambda: edited("exr", b"capDate", b"cap\xffate")),
    "an EXR attribute's type with a line break": ("exr", "a.exr", lambda: edited("exr", b"box2i", b"bo\n2i")),
    "a WebP that claims 16383x16383 in few bytes": ("webp", "a.webp", lambda: lossless(16383, 16383)),
    "a TIFF of 65535 channels": ("tiff", "a.tif", lambda: tiff_of(channels=65535, width=4096, height=4096)),
    "a TIFF of many slices": ("tiff", "a.tif", lambda: tiff_of(depth=4096)),
    "a safetensors side beyond 64 bits": ("safetensors", "model.safetensors", lambda: header([0, 2**63])),
    "a safetensors name with a line break": ("safetensors", "model.safetensors", lambda: header([1], "a\nb", "I8")),
    "an index nested deeply": ("index", "model.safetensors.index.json", lambda: b"[" * 100_000),
    "poses nested deeply": ("poses", "a.json", lambda: b"[" * 100_000),
    "a pose of an endless number": ("poses", "a.json", lambda: b'{"frames": [%s]}' % endless("transform_matrix")),
    "YAML that is not UTF-8": ("yaml", "a.yaml", lambda: b"objective: \xff"),
    "YAML with an invalid date": ("yaml", "a.yaml", lambda: b"seed: 2001-99-99"),
    "YAML nested deeply": ("yaml", "a.yaml", lambda: b"[" * 1000),
    "YAML with a number for a key": ("yaml", "a.yaml", lambda: b"3: 4"),
    "YAML with an endless key": ("yaml", "a.yaml", lambda: b"a" * 5000 + b": 4"),
    "YAML of a billion laughs": ("yaml", "a.yaml", lambda: laughs()),
    "YAML with an endless number": ("yaml", "a.yaml", lambda: b"optimizer: " + endless("learning_rate")),
    "a record nested deeply": ("record", "inverse.json", lambda: b"[" * 100_000),
    "a record with a frame rate of NaN": ("record", "inverse.json", lambda: record(fps=float("nan"))),
    "a record with a frame rate of 0": ("record", "inverse.json", lambda: record(fps=0)),
    "a record whose labels are numbers": ("record", "inverse.json", lambda: record(labels=[1, "a"])),
    "a record whose chunks are lists": ("record", "inverse.json", lambda: record(chunks=[[0]])),
    "a record whose overlap is a word": ("record", "inverse.json", lambda: record(settings={"overlap": "x"})),
    "latents without windows": ("latents", ".0000.normal.latents.npz", lambda: npz(windows=np.array(3))),
    "latents of other windows": ("latents", ".0000.normal.latents.npz", lambda: npz(windows=np.array([(0, 3)]))),
}  # fmt: skip


def endless(name: str) -> bytes:
    return f'{{"{name}": 1{400 * "0"}}}'.encode()


def edited(reader: str, before: bytes, after: bytes) -> bytes:
    _, data = fuzzing.valid(reader, 0)
    assert before in data
    return data.replace(before, after, 1)


def lossless(width: int, height: int) -> bytes:
    """A WebP's beginning."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + bits.to_bytes(4, "little") + bytes(60)
    chunk = b"WEBPVP8L" + struct.pack("<I", len(data)) + data + b"\0"
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


def header(shape: list[int], name: str = "a", dtype: str = "F32") -> bytes:
    size = int(np.prod([float(side) for side in shape])) * (4 if dtype == "F32" else 1)
    text = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def laughs() -> bytes:
    """Lists of lists, each named once and used ten times: small in memory, endless in print."""
    lists = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return f"seed: [&a0 [0, 0], {', '.join(lists)}]".encode()


def record(**changes) -> bytes:
    return json.dumps(valid_files.RECORD | {"fps": 7.0} | changes).encode()


def npz(**changes) -> bytes:
    file = io.BytesIO()
    np.savez(file, **({"windows": np.array([(0, 2), (1, 3)]), "pieces": np.zeros((2, 1, 2, 4, 4, 3), "f4")} | changes))
    return file.getvalue()


@pytest.mark.parametrize("bug", KNOWN_BUGS)
def test_known_bugs_stay_fixed(read, tmp_path, bug):
    reader, name, make = KNOWN_BUGS[bug]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzzing, "mutated", lambda *_: make())
        path = fuzzing.damaged(reader, tmp_path, random.Random(0)).rename(tmp_path / "clip" / name)
    answer = read(reader, path)
    assert not answer.startswith("BUG"), answer


def test_non_utf8_name_is_an_input_error(read, tmp_path):
    name = os.fsencode(tmp_path) + b"/0000.0000.basecolor\xff.basecolor.png"
    Path(os.fsdecode(name)).write_bytes(fuzzing.valid("png", 0)[1])
    assert read("gbuffers", tmp_path).endswith(
        "basecolor\\udcff.basecolor.png: the name is not valid UTF-8; rename the file"
    )
    with pytest.raises(InputError, match="the name is not valid UTF-8"):
        write_png(tmp_path / "a\udcff.png", np.zeros((2, 2, 3), np.float32))


def test_error_is_one_line_whatever_it_quotes():
    assert str(InputError("a\nb\x1b[2J\udcff é")) == "a\\nb\\x1b[2J\\udcff é"
