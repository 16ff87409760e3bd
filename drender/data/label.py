"""Make training clips of real footage: G-buffers and light, estimated from the clips."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from drender.config import DEFAULT_PASSES, Sampling
from drender.errors import InputError
from drender.fields import from_dict
from drender.lighting.light_file import LIGHT_FILE, Light, write_light
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import HDR_SUFFIXES, write_hdr
from drender.media.resize import ResizeConfig
from drender.renderers.inverse import InverseRenderer, chosen_passes
from drender.sampling.execute import execute
from drender.sampling.inputs import BufferChunks, ChunkConfig
from drender.sampling.jobs import InverseJob
from drender.sampling.lights import OWN_LIGHT, Lights, require_for_own_light
from drender.sampling.options import DeviceOptions, option
from drender.sampling.outputs import RunConfig
from drender.sampling.record import read_record

ESTIMATED_FILE = "environment.exr"


@dataclass(frozen=True, kw_only=True)
class LabelOptions(DeviceOptions):
    """Real clips to clips with estimated G-buffers."""

    source: str = option("image, video, folder of frames, or folder of these", metavar="CLIPS", name="source")
    destination: str = option("folder, to hold a folder per clip", metavar="FOLDER", name="destination")
    checkpoint: str = option("inverse renderer", metavar="FOLDER", required=True)
    frames: int | None = option(
        "frames per chunk (the model's); chunks do not overlap, and an incomplete last one is dropped", metavar="N"
    )
    size: tuple[int, int] | None = option(
        "pixels to cover, rounded up to multiples of 64 (the checkpoint's)", metavar=("H", "W")
    )
    passes: tuple[str, ...] = option("G-buffers to estimate", DEFAULT_PASSES, "NAME")
    num_steps: int | None = option("network evaluations per pass (20)", metavar="N", name="--steps")
    seed: int = option("random seed", 0, "N")
    environments: str | None = option(
        "folder with the light of clip NAME in NAME.hdr or NAME.exr, for a light.json that refers to it",
        metavar="FOLDER",
    )
    light: bool = option(
        "estimate the light of every clip from its first chunk; write environment.exr and light.json", False
    )
    fov: float | None = option("vertical field of view of the clips, in degrees, for --light (50)", metavar="DEGREES")
    overwrite: bool = option("replace results of other options, and light.json", False)


def label_clips(options: LabelOptions, devices: Sequence[jax.Device]) -> None:
    """Estimate the G-buffers of RGB clips. Clips that an earlier run with the same options finished are kept.

    A `light.json` that a clip has already is kept too, unless `overwrite`. A clip whose light cannot be estimated is a
    warning.

    Raises:
      InputError: invalid options or clips, or a clip without an environment.
    """
    config = InverseRenderer.load_config(options.checkpoint)
    frames, size = config.frames if options.frames is None else options.frames, options.size or config.size
    chunks = ChunkConfig(frames, overlap=0, mode="drop-last")
    sampling = {"seed": options.seed} | ({} if options.num_steps is None else {"num_steps": options.num_steps})
    from_dict(Sampling, sampling, "options")  # raises InputError before anything is loaded
    settings = {
        "checkpoint": options.checkpoint, "input": options.source, "passes": options.passes, "frames": frames,
        "overlap": 0, "size": size, "dtype": options.dtype, **sampling,
    }  # fmt: skip
    run = RunConfig(
        Path(options.source), Path(options.destination), settings, (Path(options.checkpoint),), chunks,
        ResizeConfig(size=size), sampling, video=False, overwrite=options.overwrite,
    )  # fmt: skip
    job = InverseJob(run, chosen_passes(config, options.passes))
    if options.light and options.environments:
        raise InputError("--light and --environments exclude each other; leave one out")
    if options.light:
        require_for_own_light(("rgb", *job.passes), "--light: --passes has")
    elif options.fov is not None:
        raise InputError(f"--fov {options.fov:g}: it is for --light; give it too, or leave it out")
    own = Lights([OWN_LIGHT], fov=options.fov) if options.light else None  # raises InputError before anything is loaded
    lights = _lights(job, Path(options.environments)) if options.environments else {}
    try:
        load = lambda devices: InverseRenderer.load(options.checkpoint, options.dtype, devices)
        execute(job, load, devices, options.process)
    finally:
        names = [clip.name for clip in job.discover(lambda _: None)] if options.light else lights
        for name in names:
            folder = run.output / name
            kept = (folder / LIGHT_FILE).exists() and not options.overwrite
            if kept or not read_record(folder / "inverse.json").get("finished"):
                continue
            if own is not None:
                _estimate_light(folder, own)
            else:
                file = lights[name]
                # `..` through a linked folder leads elsewhere, so resolve the folders. A linked file stays a link.
                write_light(folder, Light(os.path.relpath(file.parent.resolve() / file.name, folder.resolve())))


def _estimate_light(folder: Path, lights: Lights) -> None:
    """Estimate the light of a finished clip, and write it and its `light.json`."""
    try:
        (clip,) = find_gbuffer_clips(folder, ("rgb",), labels=("rgb",))
        chunks = BufferChunks.plan(clip, ChunkConfig(max(clip.chunks.values()), overlap=0, mode="first"))
        (chunk,) = chunks.chunks
        own = lights.estimate_own(partial(chunks.read, chunk), clip.labels, chunk, chunk.stop)
    except InputError as error:
        warnings.warn(f"clip {folder.name!r} gets no {LIGHT_FILE}: {error}", stacklevel=2)
        return
    write_hdr(folder / ESTIMATED_FILE, own.light)
    write_light(folder, Light(ESTIMATED_FILE))


def _lights(job: InverseJob, environments: Path) -> dict[str, Path]:
    """Return the environment file of every readable clip; `execute` reports the unreadable ones."""
    files = {}
    for clip in job.discover(lambda _: None):
        names = [clip.name + suffix for suffix in HDR_SUFFIXES]
        found = [environments / name for name in names if (environments / name).is_file()]
        if not found:
            raise InputError(f"{environments}: no {' or '.join(names)} for clip {clip.name!r}; add the file")
        files[clip.name] = found[0]
    return files
