"""Options of `sample.py`, declared once as fields of dataclasses: name, type, default and help text."""

import argparse
import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from drender import assets, cli
from drender.config import DEFAULT_PASSES, DTYPES
from drender.diffusion import SAMPLERS
from drender.lighting.camera import ELEVATION_SIGNS
from drender.lighting.projection import PROJECTIONS
from drender.media.encodings import DEPTHS, INPUT_NORMALS, KINDS, NORMALS, TRANSFERS
from drender.media.resize import MODES as FIT_MODES
from drender.media.resize import OUTPUTS
from drender.sampling.inputs import MODES

# --- from fields to options ---


def option(help: str, default: Any = None, metavar: str | tuple[str, ...] | None = None, **argparse_options) -> Any:
    """Declare a field as an option `--field-name`.

    Args:
      **argparse_options: arguments of `add_argument` that the field's type does not imply; `name` is another name. A
        positional argument is named as the field.
    """
    argparse_options |= {"help": help} | ({"metavar": metavar} if metavar else {})
    return dataclasses.field(default=default, metadata=argparse_options)


def add_options(command: cli.Parser, cls: type) -> None:
    """Add the fields of a dataclass to a command."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        arguments = _implied_arguments(hints[field.name]) | field.metadata
        if "choices" in arguments:
            arguments["type"] = type(arguments["choices"][0])
        if "action" in arguments:
            arguments.pop("type", None)
        arguments.pop("name", None)
        if (name := option_name(field)).startswith("-"):
            arguments |= {"dest": field.name, "default": field.default}
        command.add_argument(name, **arguments)


def option_name(field: dataclasses.Field) -> str:
    """Return the option of a field, or the name of its positional argument."""
    return field.metadata.get("name", "--" + field.name.replace("_", "-"))


def _implied_arguments(hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` that a field's type implies."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(member for member in typing.get_args(hint) if member is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        return {"nargs": "+" if members[-1] is Ellipsis else len(members), "type": members[0]}
    return {"action": "store_true"} if hint is bool else {"type": cli.path if hint is str else hint}


def select(cls: type, options: Any) -> dict[str, Any]:
    """Return the values of `options` for the fields of `cls`, by name, with tuples for argparse's lists."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(cls)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def stops(text: str) -> float | str:
    """Convert an exposure: a number, or a word such as "auto", which the environment checks."""
    try:
        return float(text)
    except ValueError:
        return text


def layer(text: str) -> tuple[str, str]:
    """Convert LABEL=NAME."""
    label, _, name = text.partition("=")
    if not (label and name):
        raise argparse.ArgumentTypeError(f"{text!r}: expected LABEL=NAME, such as basecolor=DiffCol")
    return label, name


# --- groups of options ---

CLIPS = "image, video, folder of frames, or folder of these (the built-in clip)"
CHECKPOINT = "folder of `drender convert`, folder of released weights, or Hugging Face name owner/name[@revision]"
GBUFFERS = "folder of G-buffers, or folder of these (the built-in clip)"


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Input and results."""

    input: str | None = option(CLIPS, metavar="PATH")
    output: str | None = option("folder of the results (outputs/COMMAND)", metavar="FOLDER")
    overwrite: bool = option("sample finished clips again, and replace results of other options or inputs", False)
    video: bool = option("write no mp4 and no contact sheet", True, name="--no-video", action="store_false")
    html: bool = option("write index.html, a page that shows the results", False)
    quality: float = option("quality of the mp4, 0 to 10; 7 is x264's CRF 18; one more is 3 CRF less", 7.0, "Q")


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """Encoding of RGB files that do not state theirs."""

    input_transfer: str | None = option(
        "transfer curve of colors in images that do not state it (srgb; linear in files of floats)", choices=TRANSFERS
    )
    input_layers: tuple[tuple[str, str], ...] = option(
        "EXR layers or channels that hold a label: basecolor=DiffCol roughness=G",
        (), "LABEL=NAME", nargs="+", type=layer,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BufferEncodingOptions(EncodingOptions):
    """Encoding of G-buffers that do not state theirs."""

    input_normals: str = option(
        "axes of normals in files that do not state them; world needs --poses", "opengl", choices=INPUT_NORMALS
    )
    input_depth: str | None = option(
        "depth of other programs: relative is 0 near to 1 far, metric a distance in any unit, inverse its reciprocal; "
        "the last two are normalized over the clip (relative; metric if the first frame is out of range)",
        choices=DEPTHS,
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The renderer of a command that uses one."""

    checkpoint: str | None = option(f"{CHECKPOINT} (the built-in model)", metavar="CHECKPOINT")


@dataclass(frozen=True, kw_only=True)
class InverseModelOptions:
    """Estimated G-buffers."""

    passes: tuple[str, ...] = option("G-buffers to estimate", DEFAULT_PASSES, "NAME")
    normals: str = option("axes of the written normals; directx has y down", "opengl", choices=NORMALS)


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """The camera that took the clips."""

    poses: str | None = option("transforms.json with a camera-to-world pose per frame (a fixed camera)", metavar="JSON")
    fov: float | None = option("vertical field of view in degrees, for the clip's own light (50)", metavar="DEGREES")


@dataclass(frozen=True, kw_only=True)
class LightOptions(CameraOptions):
    """Arguments of `Lights`."""

    environment: tuple[str, ...] = option(
        ".hdr, .exr or LDR lat-long maps, folders with a map per frame, clip for the clip's own light, which is "
        f"estimated, or built-in maps: {', '.join(assets.environments())}",
        assets.LIGHTS, "HDR", type=cli.path,
    )  # fmt: skip
    environment_size: tuple[int, int] | None = option("pixels of the encoded maps (the model's)", metavar=("H", "W"))
    rotation: float = option(
        "shift of the map to the right, in degrees; the default puts its center behind the camera", 180.0, "DEGREES"
    )
    flip: bool = option("mirror the map before it is shifted", False)
    yaw: float = option("turn of the light to the right, about the vertical, in degrees", 0.0, "DEGREES")
    pitch: float = option("turn of the light upward, about the axis from left to right, in degrees", 0.0, "DEGREES")
    roll: float = option("turn of the light clockwise, about the line of sight, in degrees", 0.0, "DEGREES")
    strength: float = option("factor on the light", 1.0, "X")
    exposure: float | str = option(
        "exposure of the light, in stops; auto brings its mean luminance to 0.6", 0.0, "STOPS", type=stops
    )
    blur: float = option("blur of the light, in degrees of standard deviation", 0.0, "DEGREES")
    prefilter: bool = option("average maps that are finer than the model's images, so that no sun flickers", False)
    rotate_light: bool = option("turn the light once over the clip, in the direction of --yaw", False)
    elevation: float = option("elevation of the fixed camera, in degrees", 0.0, "DEGREES")
    elevation_sign: str = option(
        "meaning of a positive elevation: up raises the camera, released lights the clip as if it were lowered",
        "released", choices=ELEVATION_SIGNS,
    )  # fmt: skip
    projection: str = option(
        "projection of the maps: frame is all directions, ball a mirror ball", "frame", choices=PROJECTIONS
    )


@dataclass(frozen=True, kw_only=True)
class ForwardModelOptions:
    """The forward renderer."""

    lora_scale: float = option("scale of the LoRA: 0.25 suits real footage, 0 synthetic objects", 0.25, "X")
    drop: tuple[str, ...] = option("conditions to leave out, or environment", (), "NAME")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Devices and processes."""

    devices: int | None = option("number of local devices that share the work (all)", metavar="N")
    process: tuple[int, int] = option("index and number of the processes that share the work", (0, 1), ("I", "N"))
    dtype: str | None = option("dtype of the computation (float32 on CPUs, else bfloat16)", choices=DTYPES)


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOptions, FileOptions):
    """Chunks, sizes, and encoding of images."""

    frames: int | None = option("frames per window or chunk (the model's)", metavar="N")
    overlap: int | None = option("frames that windows or chunks share (6, at most half of --frames)", metavar="N")
    chunks: str = option(
        "blend: all frames in one chunk of blended windows; or separate chunks, as released: all, the first, or all "
        "but an incomplete last",
        "blend", choices=MODES,
    )  # fmt: skip
    size: tuple[int, int] | None = option(
        "size in pixels that frames are fitted to, rounded up to multiples of 64 (the model's)", metavar=("H", "W")
    )
    fit: str = option(
        "how frames fit the size: cover it, lie inside it (padded; results are cropped), or stretch to it",
        "cover", choices=FIT_MODES,
    )  # fmt: skip
    output_size: str = option("size of the results: the model's or the source's", "model", choices=OUTPUTS)
    format: str = option("format of the images; exr is half float", "png", choices=KINDS)
    bits: int | None = option("bits per channel of PNG files (8)", choices=(8, 16))
    transfer: str | None = option("transfer curve of colors in the images (srgb; linear in EXR)", choices=TRANSFERS)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Fields of `Sampling`; None leaves the choice to the renderer."""

    num_steps: int | None = option("denoising steps (20; 1 for one-step models)", metavar="N", name="--steps")
    sampler: str | None = option("sampler (euler); heun calls the network twice per step", choices=tuple(SAMPLERS))
    rho: float | None = option("exponent of the noise levels (7)", metavar="X")
    sigma_min: float | None = option("lowest noise level (the model's)", metavar="X")
    sigma_max: float | None = option("highest noise level (the model's)", metavar="X")
    guidance: tuple[float, float] | None = option("guidance scale (forward: 1.2 1.2)", metavar=("FIRST", "LAST"))
    dynamic_guidance: bool = option("let the guidance grow over the steps", False)
    fps: float | None = option("frame rate that the model is conditioned on (7)", metavar="X")
    motion_bucket_id: float | None = option("amount of motion that the model is conditioned on (127)", metavar="X")
    noise_aug_strength: float | None = option("standard deviation of noise added to the conditions (0)", metavar="X")
    decode_chunk_size: int | None = option("frames that the VAE decodes together (8)", metavar="N")
    decode_overlap: int | None = option("frames that cross-fade decoded chunks (0; 2 in blended windows)", metavar="N")
    seed: int | None = option("seed of the initial noise (0)", metavar="N")
    deterministic: bool | None = option(
        "take one step from zeros, for one-step models (the model's)", action=argparse.BooleanOptionalAction
    )


# --- commands ---


@dataclass(frozen=True, kw_only=True)
class InverseOptions(SamplerOptions, RunOptions, InverseModelOptions, EncodingOptions, CheckpointOptions):
    """RGB clips to G-buffers."""

    lora_scale: float = option("scale of the LoRA, if the checkpoint has one", 1.0, "X")


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(SamplerOptions, CameraOptions, BufferEncodingOptions, CheckpointOptions):
    """The light of clips, as maps for --environment."""

    input: str | None = option(CLIPS, metavar="PATH")
    gbuffers: str | None = option(
        "folder of G-buffers and rgb, or folder of these, instead of --input, whose G-buffers are estimated first",
        metavar="PATH",
    )
    output: str | None = option(".exr file of the map, or folder for one file per clip (outputs/light)", metavar="PATH")
    overwrite: bool = option("replace existing maps", False)
    frames: int | None = option("number of frames that are used, from the start of the clip (the model's)", metavar="N")
    size: tuple[int, int] | None = option(
        "size in pixels that frames are scaled to cover, rounded up to multiples of 64 (the model's)",
        metavar=("H", "W"),
    )
    dtype: str | None = option("dtype of the computation (float32 on CPUs, else bfloat16)", choices=DTYPES)


@dataclass(frozen=True, kw_only=True)
class ForwardOptions(
    SamplerOptions, RunOptions, ForwardModelOptions, LightOptions, BufferEncodingOptions, CheckpointOptions
):
    """G-buffers to RGB clips under another light."""

    input: str | None = option(GBUFFERS, metavar="PATH")
    frames: int | None = option(
        "frames per window or chunk (the model's); without blending, G-buffers in several chunks keep these",
        metavar="N",
    )
    size: tuple[int, int] | None = option(
        "size in pixels that frames are fitted to, rounded up to multiples of 64 (their own)", metavar=("H", "W")
    )
    fixed_frame: int | None = option("index of a frame of the clip to repeat for --frames frames", metavar="I")


@dataclass(frozen=True, kw_only=True)
class RelightOptions(
    SamplerOptions, RunOptions, InverseModelOptions, ForwardModelOptions, LightOptions, EncodingOptions
):
    """RGB clips to G-buffers to RGB clips under another light."""

    inverse: str | None = option(f"inverse renderer: {CHECKPOINT} (the built-in model)", metavar="CHECKPOINT")
    forward: str | None = option("forward renderer, likewise (the built-in model)", metavar="CHECKPOINT")
