"""Damaged files for every reader, and the process in which they are read: a library may end it, eat its memory or hang.

`mutated` damages valid files; `Reader` hands them to a process that runs this file and says how each was taken.
"""

import contextlib
import io
import json
import os
import random
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from stress.valid_files import NAMES, TEXTS, VALID, valid

SECONDS = 20.0  # more is a hang; a loaded machine needs some
MEMORY = 3 * 2**30  # bytes that the process may have beyond those it begins with


# ---- Damage ----


WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF, 65535 << 8)
VALUES = (
    "NaN", "-Infinity", "1e999", "-1", "0", "true", "null", '"x"', '"../../x"', "[]", "{}", "[[1]]", "1" + 500 * "0",
    "1" + 5000 * "0", "0.5", '"\\n"', '"\\ud800"', "2001-99-99", "!!int x", "!!timestamp x", "!!float y", "&a [*a]",
    "? [1]", "3: 4", "[1, x]", "{a: 1}", 1100 * "[", 1100 * '{"a":', "\x00", "0o9", "1:99:99", "<<: 3", "=", "~", "é",
)  # fmt: skip
TOKEN = re.compile(rb'"[^"]*"|[-+.\w]+|[\[\]{},:]')


def mutated(reader: str, data: bytes, draw: random.Random) -> bytes:
    """The file with one to four wounds; checksums are often made to fit, for else they would hide what lies behind."""
    if reader == "latents" and draw.random() < 0.7:
        return rezipped(data, draw)
    for _ in range(draw.randint(1, 4)):
        data = (retold if reader in TEXTS and draw.random() < 0.7 else wounded)(data, draw)
    if reader == "safetensors" and draw.random() < 0.5:
        data = struct.pack("<Q", max(data.find(b"}}") + 2, 0)) + data[8:]
    return resealed(data) if reader == "png" and draw.random() < 0.8 else data


def wounded(data: bytes, draw: random.Random) -> bytes:
    data, size = bytearray(data), max(len(data), 1)
    at = draw.randrange(min(size, draw.choice((64, 512, size))))  # headers are where it hurts
    match draw.randrange(8):
        case 0 | 1 if data:
            data[at] ^= 1 << draw.randrange(8)
        case 2 | 3:
            word = struct.pack(draw.choice("<>") + draw.choice("HIQ").replace("H", "I"), draw.choice(WORDS))
            word = word[: draw.choice((1, 2, 4, 8))]
            data[at : at + len(word)] = word
        case 4:
            del data[draw.randrange(size) :]
        case 5:
            data[at:at] = draw.randbytes(draw.randint(1, 16))
        case 6:
            del data[at : at + draw.randint(1, 32)]
        case _:
            there = draw.randrange(size)
            data[at : at + 16] = data[there : there + 16]
    return bytes(data)


def retold(data: bytes, draw: random.Random) -> bytes:
    """A text with another value, or word of its own, in the place of one."""
    tokens = [match.span() for match in TOKEN.finditer(data)]
    if not tokens:
        return data
    start, stop = draw.choice(tokens)
    there, its = draw.choice(tokens)
    return data[:start] + draw.choice((draw.choice(VALUES).encode(), data[there:its])) + data[stop:]


def resealed(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again."""
    data, start = bytearray(data), 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(data)


def rezipped(data: bytes, draw: random.Random) -> bytes:
    """An .npz whose arrays are damaged, with the right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w") as after:
        for name in before.namelist():
            array = before.read(name)
            for _ in range(draw.randint(0, 2)):
                array = draw.choice((wounded, retold))(array, draw)
            after.writestr(name, array)
    return file.getvalue()


def odd_names(draw: random.Random) -> Iterator[bytes]:
    """Names of the files in a folder of G-buffers."""
    for _ in range(draw.randint(1, 8)):
        name = draw.choice(NAMES).encode()
        for _ in range(draw.randint(0, 2)):
            name = draw.choice((wounded, retold))(name, draw)
            name += draw.choice((b"", b".png", b"\xff.normal.png", "٣.basecolor.png".encode(), b"\n.normal.png"))
        if name := name.replace(b"/", b"").replace(b"\0", b"")[:200].strip(b"."):
            yield name


def damaged(reader: str, folder: Path, draw: random.Random) -> Path:
    """Writes a damaged file, or a folder of oddly named ones, with the whole files that it needs around it."""
    if reader == "gbuffers":
        for name in odd_names(draw):
            place = os.path.join(os.fsencode(folder), name)
            if os.path.exists(place):
                continue
            if draw.random() < 0.2:
                os.mkdir(place)
            else:
                Path(os.fsdecode(place)).write_bytes(valid("png", 0)[1])
        return folder
    name, data = valid(reader, draw.randrange(len(VALID[reader])))
    clip = folder / "clip"
    clip.mkdir(exist_ok=True)
    if reader == "record":
        for place in ("0000.0000", "0000.0001", "0001.0000", "0001.0001"):
            (clip / f"{place}.normal.png").write_bytes(valid("png", 0)[1])
    if reader == "index":
        (clip / "model-00001-of-00001.safetensors").write_bytes(valid("safetensors", 0)[1])
    (clip / name).write_bytes(mutated(reader, data, draw))
    return clip / name


# ---- The process ----


class Reader:
    """The other side of `serve`: a process that is started anew when it has died or hung."""

    def __init__(self):
        self.process = None

    def __call__(self, reader: str, path: Path) -> str:
        """How a file was taken: "value", "error: …", or "BUG: …"."""
        self.start()
        self.process.stdin.write(f"{reader}\t{path}\n".encode())
        self.process.stdin.flush()
        return self._answer(SECONDS)

    def start(self) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
            self._answer(60)

    def _answer(self, seconds: float) -> str:
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if ready and (line := self.process.stdout.readline()):
            return json.loads(line)
        if not ready:
            self.process.kill()
        code = self.process.wait()
        self.close()
        assert not ready or code < 0, "the process cannot start, or ends by itself"
        return f"BUG: the process died of {signal.Signals(-code).name}" if ready else "BUG: it hangs"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def serve() -> None:
    """Reads lines `reader⇥path` and answers each with a line: a JSON string."""
    readers = make_readers()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        name, path = line.rstrip("\n").split("\t")
        with contextlib.redirect_stdout(sys.stderr):
            said = answer(readers[name], Path(path))
        print(json.dumps(said), file=out, flush=True)


def answer(reader: Callable[[Path], bool], path: Path) -> str:
    """How a file is taken: "value", "error: …", or "BUG: …"."""
    from drender.errors import InputError

    try:
        return "value" if reader(path) else "BUG: a value of the wrong kind"
    except InputError as error:
        if len(str(error).splitlines()) != 1:
            return f"BUG: not one line: {error}"
        return f"error: {error}" if len(str(error)) < 2000 else f"BUG: a line of {len(str(error))} characters"
    except BaseException as error:
        frames, trace = [], error.__traceback__
        while trace:
            frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        return f"BUG: {type(error).__name__}: {str(error)[:200]} ({' '.join(frames[1:])[-200:]})"


def make_readers() -> dict[str, Callable[[Path], bool]]:
    """Of every kind of file: reads it, and says whether the value is of the right kind."""
    from drender.checkpoints import orbax, torch_files
    from drender.config import RendererConfig
    from drender.data.latent_cache import LatentCacheManifest, read_manifest
    from drender.lighting.camera import read_poses
    from drender.lighting.light_file import Light, read_light
    from drender.media.gbuffers import find_gbuffer_clips
    from drender.media.images import load_image, read_image
    from drender.media.video import find_clips
    from drender.renderers.windows import WindowedLatents
    from drender.sampling.inputs import BufferChunks, Chunk, ChunkConfig
    from drender.sampling.outputs import ClipOutput, RunConfig
    from drender.training.config import TrainConfig, read_config
    from drender.training.run_dir import read_run

    def is_image(image) -> bool:
        return isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 3 and image.shape[2] == 3

    def clips(path: Path) -> bool:
        (clip,) = find_clips(path)
        return 0 < clip.fps < np.inf and len([is_image(image) for image in clip.frames()]) == clip.num_frames

    def tensors(path: Path) -> bool:
        found = torch_files.read(path.parent, "model")
        return all(tensor.read().shape == tensor.shape for tensor in found.values())

    def gbuffers(path: Path) -> bool:
        found = find_gbuffer_clips(path, ("basecolor",))
        return all(is_image(image) for clip in found for label in clip.paths for image in clip.frames(label))

    def output(path: Path) -> ClipOutput:
        run = RunConfig(path.parent, path.parents[1], {}, overwrite=True)
        return ClipOutput(run, path.parent.name, "inverse", ("normal",), ())

    def record(path: Path) -> bool:
        folder = output(path)
        chunks = [
            BufferChunks.plan(clip, ChunkConfig(2, 1), None) for clip in find_gbuffer_clips(path.parent, ("normal",))
        ]
        json.dumps(folder._record, allow_nan=False)
        return all(0 < plan.fps < np.inf for plan in chunks) and isinstance(folder.has(Chunk(0, 0, 3, 3)), bool)

    def remembered(path: Path) -> bool:
        folder = output(path)
        folder._continued = True
        found = folder.load_latents(Chunk(0, 0, 3, 3), "normal")
        return found is None or (isinstance(found, WindowedLatents) and found.blended().shape[1] == 3)

    def poses(path: Path) -> bool:
        found = read_poses(path, relative=True)
        return found.dtype == np.float32 and found.shape[1:] == (4, 4) and bool(np.isfinite(found).all())

    image = lambda path: is_image(read_image(path))
    return {
        **dict.fromkeys(("png", "jpeg", "tiff", "webp"), image),
        **dict.fromkeys(("hdr", "exr"), lambda path: is_image(load_image(path).image)),
        "video": clips, "animation": clips, "safetensors": tensors, "index": tensors, "gbuffers": gbuffers,
        "record": record, "latents": remembered, "poses": poses,
        "config": lambda path: isinstance(orbax.load_config(path.parent), RendererConfig),
        "run": lambda path: isinstance(read_run(path.parent)[1], RendererConfig),
        "set": lambda path: isinstance(read_manifest(path.parent), LatentCacheManifest),
        "light": lambda path: isinstance(read_light(path.parent, 3), Light),
        "yaml": lambda path: isinstance(read_config(path), TrainConfig),
    }  # fmt: skip


if __name__ == "__main__":
    serve()
