"""Sampling: `inverse`, `forward` and `relight`. `python sample.py relight --help` lists the options of the last."""

from pathlib import Path

import jax

from drender import cli, runs
from drender.config import DEFAULT_PASSES, Sampling, from_dict
from drender.environment import PROJECTIONS, read_poses
from drender.errors import InputError
from drender.renderers import ForwardRenderer, InverseRenderer
from drender.stages import DTYPES
from drender.windows import MODES

# Options that change where and how fast a run works, not what comes out.
NOT_RECORDED = {"command", "output", "devices", "overwrite", "video"}


def main() -> None:
    args = parser().parse_args()
    sampling = {name: getattr(args, name) for name in Sampling.__dataclass_fields__ if getattr(args, name) is not None}
    from_dict(Sampling, sampling, "options")  # a bad value is told before anything is loaded
    shared = {
        "input": Path(args.input),
        "output": runs.writable_folder(args.output),
        "cut": runs.Cut(args.frames, args.overlap, args.chunks, size(args)),
        "sampling": sampling,
        "settings": {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        "bits": args.bits,
        "video": args.video,
        "overwrite": args.overwrite,
    }
    if args.command == "inverse":
        run = runs.InverseRun(**shared, passes=args.passes)
        load = lambda device: InverseRenderer.load(args.checkpoint, args.dtype, device)
    elif args.command == "forward":
        run = runs.ForwardRun(**shared, lights=lights(args), drop=args.drop, fixed_frame=args.fixed_frame)
        load = lambda device: ForwardRenderer.load(args.checkpoint, args.dtype, device, args.lora_scale)
    else:
        run = runs.RelightRun(**shared, lights=lights(args), passes=args.passes, drop=args.drop)
        load = lambda device: (
            InverseRenderer.load(args.inverse, args.dtype, device),
            ForwardRenderer.load(args.forward, args.dtype, device, args.lora_scale),
        )
    runs.execute(run, load, jax.local_devices()[: args.devices])


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__)
    add = top.add_commands()
    inverse = add("inverse", help="RGB clips to G-buffers")
    forward = add("forward", help="G-buffers to RGB clips under another light")
    relight = add("relight", help="RGB clips to G-buffers to RGB clips under another light")
    for command in (inverse, forward):
        command.add_argument("--checkpoint", required=True, help="folder written by convert_weights.py")
    relight.add_argument("--inverse", required=True, help="checkpoint of the inverse renderer")
    relight.add_argument("--forward", required=True, help="checkpoint of the forward renderer")
    clips = "image, video, folder of frames, or folder of such"
    for command, kind in ((inverse, clips), (forward, "folder of G-buffers, or of such folders"), (relight, clips)):
        files(command, kind)
    for command in (inverse, relight):
        command.add_argument("--passes", nargs="+", default=DEFAULT_PASSES, help="G-buffers to estimate")
    for command in (forward, relight):
        light(command)
    forward.add_argument("--fixed-frame", type=int, help="repeat this frame of the clip for --frames frames")
    for command in (inverse, forward, relight):
        cutting(command, None if command is forward else (512, 512))
        sampler(command)
    return top


def files(command: cli.Parser, kind: str) -> None:
    command.add_argument("--input", required=True, help=kind)
    command.add_argument("--output", required=True, help="folder for the results")
    command.add_argument("--overwrite", action="store_true", help="replace results made with other options")
    command.add_argument("--bits", type=int, choices=(8, 16), default=8, help="of the PNG files")
    command.add_argument("--no-video", dest="video", action="store_false", help="write no side-by-side mp4")
    command.add_argument("--devices", type=int, help="how many local devices share the clips; all if not given")
    command.add_argument("--dtype", choices=DTYPES, help="float32 on a CPU and bfloat16 elsewhere if not given")


def light(command: cli.Parser) -> None:
    command.add_argument(
        "--environment", nargs="+", required=True, metavar="HDR", help=".hdr, .exr or LDR lat-long maps"
    )
    command.add_argument("--environment-size", type=int, nargs=2, metavar=("H", "W"), help="the model's if not given")
    command.add_argument(
        "--rotation", type=float, default=180.0, help="degrees by which the map is rolled to the right"
    )
    command.add_argument("--flip", action="store_true", help="mirror the map first")
    command.add_argument("--strength", type=float, default=1.0, help="factor on the light")
    command.add_argument("--rotate-light", action="store_true", help="turn the light once over the clip")
    command.add_argument(
        "--elevation", type=float, default=0.0, help="degrees of the fixed camera (signed as released)"
    )
    command.add_argument("--poses", help="transforms.json with a camera-to-world pose per frame, for a moving camera")
    command.add_argument("--projection", choices=PROJECTIONS, default="frame")
    command.add_argument(
        "--lora-scale", type=float, default=0.25, help="0.25 for real footage, 0 for synthetic objects"
    )
    command.add_argument("--drop", nargs="+", default=(), metavar="NAME", help="conditions to leave out")


def cutting(command: cli.Parser, default_size: tuple[int, int] | None) -> None:
    command.add_argument("--frames", type=int, default=24, help="frames per chunk")
    command.add_argument("--overlap", type=int, default=6, help="frames that neighbouring chunks share")
    command.add_argument("--chunks", choices=MODES, default="all")
    command.add_argument(
        "--size", type=int, nargs=2, default=default_size, metavar=("H", "W"),
        help="height and width to cover; sides are rounded up to multiples of 64",
    )  # fmt: skip


def sampler(command: cli.Parser) -> None:
    """The fields of `Sampling`; what is not given is the renderer's to choose."""
    command.add_argument("--steps", dest="num_steps", type=int, help="calls of the network per pass (20)")
    command.add_argument(
        "--guidance", type=float, nargs=2, metavar=("FIRST", "LAST"), help="per frame (forward: 1.2 1.2)"
    )
    command.add_argument("--dynamic-guidance", action="store_true", help="let the guidance grow over the steps")
    command.add_argument("--fps", type=float, help="frame rate that the model is told (7)")
    command.add_argument("--motion-bucket-id", type=float, help="motion that the model is told (127)")
    command.add_argument("--noise-aug-strength", type=float, help="noise added to the conditions (0)")
    command.add_argument("--decode-chunk-size", type=int, help="frames that the VAE decodes together (8)")
    command.add_argument("--seed", type=int, help="of the initial noise (0)")
    command.add_argument("--deterministic", action="store_true", help="one step, for models trained so")


def lights(args) -> runs.Lights:
    poses = read_poses(args.poses, relative=True) if args.poses else None
    return runs.Lights(
        args.environment, args.rotation, args.flip, args.strength, args.rotate_light, args.elevation, poses,
        args.projection, tuple(args.environment_size) if args.environment_size else None,
    )  # fmt: skip


def size(args) -> tuple[int, int] | None:
    if args.size is None:
        return None
    if min(args.size) < 1:
        raise InputError(f"--size {args.size[0]} {args.size[1]}: both sides must be 1 or more")
    covered = tuple(-(-side // 64) * 64 for side in args.size)
    if covered != tuple(args.size):
        print(f"--size {args.size[0]} {args.size[1]}: rounded up to {covered[0]} {covered[1]}, multiples of 64")
    return covered


if __name__ == "__main__":
    cli.run(main)
