"""Describe a checkpoint, a training run, a folder of results, a clip or G-buffers, one property a line."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from drender import cli, files
from drender.checkpoints import hub, orbax
from drender.checkpoints.cache import progress, resolve
from drender.config import DOMAINS, RendererConfig
from drender.errors import extent, say
from drender.media.animation import is_animated
from drender.media.decoding import open_video
from drender.media.gbuffers import buffer_labels, find_gbuffer_clips, find_images
from drender.media.images import open_image
from drender.media.video import VIDEO_SUFFIXES, Clip, find_clips
from drender.sampling.record import read_record
from drender.training import run_dir, run_record

Property = tuple[str, object]
RECORDS = ("inverse.json", "forward.json", "edit.json", "insert.json")


def main(words: list[str] | None = None, prog: str | None = None) -> None:
    """Describe; `words` are the command line's, by default this process's."""
    top = cli.Parser(prog=prog, description=__doc__)
    help = "checkpoint (a folder, released weights, or a Hugging Face name, which is downloaded), training run, "
    help += "folder of results, image, video, or folder of frames or G-buffers"
    top.add_argument("path", type=cli.path, help=help)
    args = top.parse_args(words)
    for name, value in describe(args.path):
        say(f"{name + ':':14} {value}")


def describe(path: str) -> Iterator[Property]:
    """Yield name and value of each property; raise InputError if the path holds nothing that is known."""
    folder = files.expand_home(path)
    if run_record.is_run(folder):
        yield from describe_run(folder)
    elif hub.is_name(path) or (folder / "unet").is_dir():
        yield from describe_checkpoint(resolve(path, progress))
    elif records := [file for name in RECORDS for file in sorted(folder.rglob(name)) if read_record(file)]:
        for file in records:
            yield from describe_record(file)
    elif folder.is_dir() and find_images(folder, tuple(DOMAINS)):
        for clip in find_gbuffer_clips(folder, (), labels=buffer_labels(folder)):
            yield "G-buffers", f"{clip.name}: {', '.join(clip.labels)}"
            yield "frames", f"{clip.num_frames} in {len(clip.chunks)} chunks, {extent(clip.size)}"
    else:
        for clip in find_clips(folder):
            yield from describe_clip(clip)


def describe_checkpoint(folder: Path) -> Iterator[Property]:
    yield "checkpoint", folder
    yield from describe_model(orbax.load_config(folder))
    for name in orbax.components(folder):
        arrays = orbax.stored_arrays(folder.resolve() / name)
        dtypes = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
        size = sum(math.prod(array.shape) for array in arrays.values())
        ranks = {x.shape[-1] for key, x in arrays.items() if key.endswith((".lora_A", ".down"))}
        rank = f", rank {', '.join(map(str, sorted(ranks)))}" if ranks else ""
        yield name, f"{size:,} parameters in {len(arrays)} arrays, {dtypes}{rank}"
    if "lora" not in orbax.components(folder):
        yield "lora", "none"


def describe_model(config: RendererConfig) -> Iterator[Property]:
    yield "kind", f"{config.kind}, {'one step' if config.deterministic else 'several steps'}"
    yield "made for", f"{config.frames} frames of {extent(config.size)}"
    if config.kind == "inverse":
        yield "passes", ", ".join(config.domains)
    if config.kind == "forward":
        yield "conditions", f"{', '.join(config.conditions)}; environment of {extent(config.environment_size)}"


def describe_run(folder: Path) -> Iterator[Property]:
    config, model = run_record.read_run(folder)
    yield "training run", folder
    yield "objective", config.objective
    yield "steps", f"{run_dir.resolve_step(folder)} saved, of {config.optimizer.steps}"
    if lines := run_record.read_metrics(folder / run_record.METRICS):
        yield "last metrics", ", ".join(f"{key} {value}" for key, value in lines[-1].items())
    yield from describe_model(model)


def describe_record(file: Path) -> Iterator[Property]:
    record = read_record(file)
    state = "finished" if record["finished"] else f"{len(record['chunks'])} chunks done, unfinished"
    yield f"{file.stem} results", f"{file.parent}: {state}"
    yield "images", ", ".join(record["labels"])
    settings = {key: value for key, value in record["settings"].items() if value not in (None, False)}
    yield "settings", ", ".join(f"{key} {value}" for key, value in settings.items())


def describe_clip(clip: Clip) -> Iterator[Property]:
    """Yield what the reader makes of a clip; what it cannot honor is printed as warnings."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(path.suffix for path in clip.paths).items())
    yield "clip", f"{clip.name} ({kinds})"
    yield "frames", f"{clip.num_frames}, {clip.num_frames / clip.fps:.3g} s at {clip.fps:.6g} a second"
    yield "file says", ", ".join(f"{name} {value}" for name, value in declared(clip.paths[0]).items())
    frame = next(clip.frames(0, 1))  # an error, such as one of two layers, follows what the file says
    yield "as read", f"{extent(frame.shape)}, upright, square pixels, sRGB from {frame.min():.3g} to {frame.max():.3g}"


def declared(path: Path) -> dict[str, object]:
    """Return what a file states about its pixels; the reader honors all of it, or warns."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        with open_video(path) as (_, stream):
            codec, aspect = stream.codec_context, stream.sample_aspect_ratio
            return {
                "codec": codec.name,
                "format": codec.pix_fmt,
                "size": f"{codec.width}x{codec.height}",
                "transfer": ColorTrc(codec.color_trc).name,
                "primaries": ColorPrimaries(codec.color_primaries).name,
                "matrix": Colorspace(codec.colorspace).name,
                "range": ColorRange(codec.color_range).name,
                "pixel aspect": aspect or "not stated",
            }
    if is_animated(path):
        return {"animation": path.suffix}
    spec = open_image(path).spec()
    transfer = spec.get_string_attribute("drender:transfer") or spec.get_string_attribute("oiio:ColorSpace")
    return {
        "format": spec.format,
        "size": f"{spec.width}x{spec.height}",
        "channels": " ".join(spec.channelnames),
        "transfer": transfer or "not stated",
        "orientation": spec.get_int_attribute("Orientation", 1),
        "profile": "none" if spec.getattribute("ICCProfile") is None else "ICC",
    }
