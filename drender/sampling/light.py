"""The command `light`: estimate the light of clips, as maps that `--environment` takes."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender import assets
from drender.config import Sampling
from drender.errors import InputError, oom_guard, say
from drender.fields import from_dict
from drender.lighting.camera import read_poses
from drender.lighting.environment import environment_maps
from drender.lighting.estimation import shade
from drender.locks import PREFIX, lock
from drender.media.encodings import InputEncoding
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import load_image, write_exr, write_png
from drender.media.montage import contact_sheet
from drender.media.resize import ResizeConfig, resize
from drender.media.video import find_clips
from drender.renderers.inverse import InverseRenderer
from drender.sampling.execute import require_writable
from drender.sampling.inputs import BufferChunks, ChunkConfig, ChunkedClip, RgbChunks, require_finished
from drender.sampling.jobs import OnFailure
from drender.sampling.lights import ESTIMATED_FROM, OWN_LIGHT, Lights, OwnLight, require_for_own_light
from drender.sampling.options import SAMPLER_HELP, EstimateOptions
from drender.sampling.record import InputFiles

BALL_SIDE = 256  # pixels
SOURCE = "drender:source"  # attribute of a map: hash of its inputs and options
Read = Callable[[str, int], np.ndarray]  # (label, frame) -> image


def estimate_lights(
    options: EstimateOptions, encoding: InputEncoding, cameras: Float32[np.ndarray, "f 3 3"] | None
) -> None:
    """Write the map of every clip, a mirror ball, and the frames beside a rendering under the map.

    Args:
      encoding: of input files that do not state theirs.
      cameras: camera-to-world rotations of the frames, for normals in world space.
    Raises:
      InputError: invalid options or input, or a clip failed; of several clips the others are written.
    """
    options, output = _complete(options), Path(options.output or Path("outputs") / "light")
    if output.suffix.lower() == ".hdr":
        raise InputError(f"--output {output}: maps are written as OpenEXR; give a name that ends in .exr")
    poses = read_poses(options.poses, relative=True) if options.poses else None
    lights = Lights([OWN_LIGHT], poses=poses, fov=options.fov)
    sampling = {name: getattr(options, name) for name in SAMPLER_HELP if getattr(options, name) is not None}
    from_dict(Sampling, sampling, "options")  # raises InputError before anything is loaded
    failures = []

    def report_failure(error: InputError) -> None:
        failures.append(error)
        print(f"failed: {error}", file=sys.stderr, flush=True)

    clips = _find(options, encoding, cameras, report_failure)
    num_clips = len(clips) + len(failures)
    is_file = output.suffix.lower() == ".exr"
    if is_file and num_clips > 1:
        raise InputError(f"--output {output} is one file, for {num_clips} clips; give a folder")
    load = cache(lambda: InverseRenderer.load(options.checkpoint, options.dtype))
    for clip in clips:
        path = output if is_file else output / f"{clip.name}.exr"
        try:
            source = _fingerprint(clip, options)
            if path.exists() and not options.overwrite:
                if load_image(path).attributes.get(SOURCE) != source:
                    raise InputError(
                        f"{path} was made with other options or of other inputs; give another --output, or --overwrite"
                    )
                say(f"{clip.name}: finished before, skipped")
                continue
            require_writable(path.parent)
            with lock(path.with_name(f"{PREFIX}.{path.name}"), path):
                lights.check(clip.name, clip.num_frames)
                with oom_guard("give fewer --frames or a smaller --size"):
                    read, labels = _reader(clip, load, options, sampling)
                own = lights.estimate_own(read, labels, clip.chunks[0], clip.num_frames)
                written = write_own_light(path, own, options.fov, {SOURCE: source})
            say(f"{clip.name}: done, see {', '.join(map(str, written))}")
        except InputError as error:
            if num_clips == 1:
                raise
            report_failure(InputError(f"{clip.name}: {error}"))
    if failures:
        raise InputError(f"{len(failures)} of {num_clips} clips failed (see above)")


def _fingerprint(clip: ChunkedClip, options: EstimateOptions) -> str:
    """Return a hash of what a clip's light depends on: its files, the checkpoint, the poses, and the options."""
    files = clip.files if isinstance(clip, RgbChunks) else clip.files(clip.clip.labels)
    folders = [Path(path) for path in (options.checkpoint, options.poses) if path is not None]
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "overwrite")}
    content = InputFiles((*files, *folders)).content
    return hashlib.sha256(json.dumps([settings, content], sort_keys=True).encode()).hexdigest()


def _complete(options: EstimateOptions) -> EstimateOptions:
    """Return the options with the built-in clip and model, and the model's defaults."""
    if options.gbuffers is not None:
        if options.input is not None:
            raise InputError("--input and --gbuffers exclude each other; leave one out")
        return dataclasses.replace(options, frames=sys.maxsize if options.frames is None else options.frames)
    checkpoint = options.checkpoint or str(assets.checkpoint("inverse"))
    model = InverseRenderer.load_config(checkpoint)
    frames = model.frames if options.frames is None else options.frames
    source = options.input or str(assets.CLIPS)
    return dataclasses.replace(
        options, input=source, checkpoint=checkpoint, frames=frames, size=options.size or model.size
    )


def _find(
    options: EstimateOptions,
    encoding: InputEncoding,
    cameras: Float32[np.ndarray, "f 3 3"] | None,
    on_failure: OnFailure,
) -> list[ChunkedClip]:
    """Return the clips, each with one chunk: the frames that are used."""
    chunks = ChunkConfig(options.frames, overlap=0, mode="first")
    if options.gbuffers is None:
        return [RgbChunks.plan(clip, chunks) for clip in find_clips(options.input, on_failure, assumed=encoding)]
    labels = ("rgb", *ESTIMATED_FROM)
    clips = find_gbuffer_clips(options.gbuffers, (), on_failure, labels, require_finished, encoding)
    return [BufferChunks.plan(clip, chunks, cameras=cameras) for clip in clips]


def _reader(
    clip: ChunkedClip, load: Callable[[], InverseRenderer], options: EstimateOptions, sampling: dict
) -> tuple[Read, Sequence[str]]:
    """Return a reader of the frames of a clip's chunk, and its labels; RGB clips are rendered to G-buffers first."""
    (chunk,) = clip.chunks
    if isinstance(clip, BufferChunks):
        require_for_own_light(clip.clip.labels, f"clip {clip.name!r} has")
        return lambda label, i: clip.read(chunk, i, label), clip.clip.labels
    plan = ResizeConfig(size=options.size).place(clip.size)
    rgb = np.concatenate(list(clip.batches(chunk, plan)), axis=1)
    inverse = load()
    passes = [name for name in ESTIMATED_FROM if name in inverse.config.domains]
    images = {"rgb": rgb} | inverse(rgb, passes, **sampling)
    return lambda label, i: images[label][0, i], list(images)


def write_own_light(
    path: Path, own: OwnLight, fov: float | None, attributes: Mapping[str, str]
) -> tuple[Path, Path, Path]:
    """Write a map, a mirror ball as the camera sees it, and the frames beside what the light makes of them.

    Args:
      attributes: of the map's header.
    Returns:
      their paths.
    """
    ball_path, comparison_path = (path.with_suffix(f".{name}.png") for name in ("ball", "comparison"))
    ball = environment_maps(own.light, 1, (BALL_SIDE, BALL_SIDE), poses=own.poses[:1], projection="ball")
    write_png(ball_path, np.asarray(ball["env_ldr"][0]))
    shown = sorted({0, len(own.rgb) // 2, len(own.rgb) - 1})
    shaded = shade(own.light, {name: images[shown] for name, images in own.buffers.items()}, fov, own.poses[shown])
    rgb = [resize(frame, shaded.shape[1:3]) for frame in own.rgb[shown]]
    write_png(comparison_path, contact_sheet([list(pair) for pair in zip(rgb, shaded, strict=True)]))
    channels = dict(zip("RGB", np.moveaxis(own.light, -1, 0), strict=True))
    write_exr(path, channels, attributes)  # last: it marks the clip as done
    return path, ball_path, comparison_path
