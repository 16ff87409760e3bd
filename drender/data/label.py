"""Make training clips of real footage: G-buffers and light, estimated from the clips."""

import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from drender.config import Sampling
from drender.errors import InputError
from drender.fields import from_dict
from drender.lighting.light_file import LIGHT_FILE, Light, write_light
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import HDR_SUFFIXES, write_hdr
from drender.media.resize import ResizeConfig
from drender.renderers.inverse import InverseRenderer, chosen_passes
from drender.sampling.base import RunConfig
from drender.sampling.execute import execute
from drender.sampling.inputs import BufferChunks, ChunkConfig
from drender.sampling.jobs import InverseJob
from drender.sampling.lights import OWN_LIGHT, Lights, require_for_own_light
from drender.sampling.record import read_record

ESTIMATED_FILE = "environment.exr"


def label_clips(
    source: str | Path,
    destination: str | Path,
    checkpoint: str | Path,
    *,
    passes: Sequence[str],
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    environments: str | Path | None = None,
    light: bool = False,
    fov: float | None = None,
    overwrite: bool = False,
    devices: Sequence[jax.Device] | None = None,
    process: tuple[int, int] = (0, 1),
) -> None:
    """Estimate the G-buffers of RGB clips. Clips that an earlier run with the same arguments finished are kept.

    Args:
      source: image, video, folder of frames, or folder of these.
      destination: folder, to hold a folder per clip.
      checkpoint: of the inverse renderer.
      passes: G-buffers to estimate.
      frames: frames per chunk; None: the model's. Chunks do not overlap, and an incomplete last chunk is dropped.
      size: height and width to cover, with sides rounded up to multiples of 64; None: the model's.
      num_steps: network evaluations per pass; None: the renderer's default.
      seed, dtype: see `drender.config.Sampling` and `Renderer.load`.
      environments: folder with the light of clip NAME in NAME.hdr or NAME.exr. The clip gets a `light.json`
        that refers to it, unless it has one.
      light: estimate the light of every clip from the frames of its first chunk. The clip gets `environment.exr` and a
        `light.json`, unless it has one. A clip whose light cannot be estimated is a warning.
      fov: vertical field of view of the clips in degrees, for `light`; None: 50.
      overwrite: replace results of other arguments, and every `light.json`.
      devices: devices that share the work; None: all local ones.
      process: index of this process, and number of processes that share the clips.
    Raises:
      InputError: invalid arguments or clips, or a clip without an environment.
    """
    config = InverseRenderer.load_config(checkpoint)
    frames, size = config.frames if frames is None else frames, size or config.size
    chunks = ChunkConfig(frames, overlap=0, mode="drop-last")
    sampling = {"seed": seed} | ({} if num_steps is None else {"num_steps": num_steps})
    from_dict(Sampling, sampling, "options")  # raises InputError before anything is loaded
    settings = {
        "checkpoint": str(checkpoint), "input": str(source), "passes": passes, "frames": frames, "overlap": 0,
        "size": size, "dtype": dtype, **sampling,
    }  # fmt: skip
    run = RunConfig(
        Path(source), Path(destination), settings, (Path(checkpoint),), chunks, ResizeConfig(size=size), sampling,
        video=False, overwrite=overwrite,
    )  # fmt: skip
    job = InverseJob(run, chosen_passes(config, passes))
    if light and environments:
        raise InputError("--light and --environments exclude each other; leave one out")
    if light:
        require_for_own_light(("rgb", *job.passes), "--light: --passes has")
    elif fov is not None:
        raise InputError(f"--fov {fov:g}: it is for --light; give it too, or leave it out")
    own = Lights([OWN_LIGHT], fov=fov) if light else None  # raises InputError before anything is loaded
    lights = _lights(job, Path(environments)) if environments else {}
    try:
        execute(
            job,
            lambda devices: InverseRenderer.load(checkpoint, dtype, devices),
            devices or jax.local_devices(),
            process,
        )
    finally:
        names = [clip.name for clip in job.discover(lambda _: None)] if light else lights
        for name in names:
            folder = run.output / name
            kept = (folder / LIGHT_FILE).exists() and not overwrite
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
