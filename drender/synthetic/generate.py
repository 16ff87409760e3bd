"""Generate synthetic clips for training and evaluation: python -m drender.synthetic OUT --clips N

Random scenes after the published recipe, path traced with Mitsuba 3: RGB, G-buffers, mask, light and camera of every
frame, in the layout that training reads. Equal options and seeds give equal bytes on one kind of machine, with any
number of processes. Run the same command again to resume; a larger --clips adds clips. Needs the extra `data`.

    OUT/00000/{chunk}.{frame}.{label}.png   rgb basecolor normal depth roughness metallic mask
    OUT/00000/light.json                    environment, its rotation and strength, motion of light and camera
    OUT/00000/scene.json                    description of the scene, field of view, metric range of the depth
    OUT/00000b/                             the same clip under another light, with --lights 2
    OUT/environments/                       the environment maps that light.json names
    OUT/CREDITS.md                          credits found with the meshes, environments and textures
    OUT/contact.png                         contact sheet of some clips
"""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from drender import cli
from drender.assets import ENVIRONMENTS as BUNDLED
from drender.data.clips import open_clips
from drender.errors import InputError, say
from drender.files import atomic_dir, list_dir, read_json, remove_partial, write_text
from drender.lighting.latlong import load_latlong
from drender.lighting.light_file import write_light
from drender.locks import lock_folder
from drender.media.gbuffers import frame_path
from drender.media.images import image_size, write_hdr, write_png
from drender.media.montage import contact_sheet
from drender.settings import differences
from drender.synthetic import environments as skies
from drender.synthetic import mesh_files, pool, textures
from drender.synthetic.atlas import TILE
from drender.synthetic.layouts import LAYOUTS, random_scene
from drender.synthetic.render import render_clip
from drender.synthetic.scene import Scene
from drender.synthetic.splits import SPLITS, AssetSplit, split_assets
from drender.synthetic.tracer import Tracer

ENVIRONMENTS = "environments"
CONTACT = "contact.png"
CREDITS = "CREDITS.md"
SHOWN = ("basecolor", "normal", "depth", "roughness", "metallic")  # columns of the contact sheet
MANY_JOBS = 300  # planning so many takes longer than checking all assets
SHOWN_CLIPS = 12  # rows of the contact sheet
Job = tuple[int, int]  # index of a clip and of its light


@dataclass(frozen=True)
class Settings:
    """Everything that determines the bytes of a clip, besides its index and light."""

    frames: int
    size: tuple[int, int]
    spp: int
    seed: int
    split: str
    layouts: tuple[str, ...]
    assets: AssetSplit
    paths: dict[str, str]  # of the environments by name

    def scene(self, index: int) -> Scene:
        """Return the scene of clip `index`."""
        return random_scene(self.seed, self.split, index, self.assets, self.layouts)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # encoding images needs no GPU, which a training run may hold
    args = parser().parse_args()
    settings, output = read_settings(args), Path(args.output)
    with lock_folder(output):
        remove_partial(output)
        check_record(output, settings)
        jobs = list(itertools.product(range(args.first, args.first + args.clips), range(args.lights)))
        names = [clip_name(*job) for job in jobs]
        todo = [job for job, name in zip(jobs, names, strict=True) if not (output / name).exists()]
        prepare(output, settings, todo)
        begin = time.monotonic()
        done = pool.run(functools.partial(make_clip, output, settings), todo, args.processes)
        for _ in tqdm(done, total=len(todo), unit="clip", smoothing=0.05, disable=not todo):
            pass
        rate = len(todo) / (time.monotonic() - begin) * 60
        write_png(output / CONTACT, make_sheet(output, names))
        write_credits(output, [folder for folder in (args.meshes, args.environments, args.textures) if folder])
    made = f", {len(todo)} of them new, {rate:.0f} per minute" if todo else ""
    say(f"{output}: {len(names)} clips{made}; contact sheet: {output / CONTACT}")


def parser() -> cli.Parser:
    description, _, layout = __doc__.partition("\n\n    ")
    parser = cli.Parser(prog="python -m drender.synthetic", description=description, epilog="    " + layout)
    add = parser.add_argument
    add("output", type=cli.path, metavar="OUT", help="folder of clips")
    add("--clips", type=int, required=True, metavar="N", help="number of clips")
    add("--first", type=int, default=0, metavar="K", help="index of the first clip")
    add("--frames", type=int, default=8, metavar="F", help="frames per clip")
    add("--spp", type=int, default=32, metavar="N", help="paths per pixel, before denoising")
    add("--seed", type=int, default=0, metavar="S", help="random seed")
    processes = "number of processes, each on one core"
    add("--processes", type=int, default=os.cpu_count(), metavar="N", help=processes)
    add("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"), help="size of a frame in pixels")
    add("--lights", type=int, choices=(1, 2), default=1, help="number of lights that each clip is rendered under")
    split = "assets to use: all, or one of two parts that share no shape family, mesh file or map"
    add("--split", choices=SPLITS, default="all", help=split)
    environments = "folder of .hdr and .exr maps that replace the bundled ones"
    add("--environments", type=cli.path, metavar="FOLDER", help=environments)
    meshes = "folder of .glb, .gltf, .obj and .ply files, used with their materials"
    add("--meshes", type=cli.path, metavar="FOLDER", help=meshes)
    pictures = "folder of pictures for floors and walls of everyday scenes"
    add("--textures", type=cli.path, metavar="FOLDER", help=pictures)
    kinds = f"kinds of scenes, among {' '.join(LAYOUTS)}; all with --meshes, else solids"
    add("--layouts", nargs="+", choices=LAYOUTS, metavar="NAME", help=kinds)
    return parser


def read_settings(args) -> Settings:
    """Return the settings of a command line; raise InputError for invalid values."""
    for option, minimum in {"clips": 1, "first": 0, "frames": 1, "spp": 1, "seed": 0, "processes": 1}.items():
        if getattr(args, option) < minimum:
            raise InputError(f"--{option}: expected {minimum} or more, got {getattr(args, option)}")
    if min(args.size) < 1:
        raise InputError(f"--size: expected sides of 1 or more, got {args.size[0]} {args.size[1]}")
    files = mesh_files.find_meshes(args.meshes) if args.meshes else ()
    paths = skies.find_environments(args.environments or BUNDLED)
    pictures = textures.find_textures(args.textures) if args.textures else ()
    assets = split_assets(args.split, files, tuple(paths), pictures)
    found = {"meshes": files, "environments": paths, "textures": pictures}
    for option, given in found.items():
        if given and not getattr(assets, option):
            raise InputError(f"--{option}: none of the {len(given)} files is in --split {args.split}; add more files")
    environments = {name: str(paths[name]) for name in assets.environments}
    layouts = tuple(dict.fromkeys(args.layouts or (LAYOUTS if files else LAYOUTS[:1])))
    if pictures and layouts == ("solids",):
        warnings.warn("--textures: scenes of solids have none; name other --layouts, or give --meshes", stacklevel=2)
    return Settings(args.frames, tuple(args.size), args.spp, args.seed, args.split, layouts, assets, environments)


def check_record(output: Path, settings: Settings) -> None:
    """Write the settings of a folder; raise InputError if it holds clips of other settings."""
    record = {name: getattr(settings, name) for name in ("frames", "size", "spp", "seed", "split", "layouts")}
    assets = settings.assets
    files = {"meshes": assets.meshes, "environments": settings.paths.values(), "textures": assets.textures}
    record |= {"families": assets.families} | {kind: files_digest(paths) for kind, paths in files.items()}
    file = output / "synthetic.json"
    if not file.exists() and list_dir(output):
        raise InputError(f"{output}: expected a new folder or one of synthetic clips; give another one")
    if any(output.glob("[0-9]*")):
        if changes := differences(read_json(file, "give another folder"), record):
            raise InputError(f"{output} holds clips made with another {changes[0]}; give another folder")
    else:
        shutil.rmtree(output / ENVIRONMENTS, ignore_errors=True)  # left by a run that made no clip
        write_text(file, json.dumps(record, indent=1) + "\n")


def files_digest(files: Iterable[str]) -> str:
    """Summarize files by name and size, so that moving them is allowed and changing them is not."""
    sizes = sorted((Path(file).name, os.path.getsize(file)) for file in files)
    return f"{len(sizes)} files, {zlib.crc32(repr(sizes).encode()):08x}"


def prepare(output: Path, settings: Settings, todo: Sequence[Job]) -> None:
    """Copy the environments and check the meshes and pictures that the jobs need, or all for very many jobs."""
    assets = settings.assets
    environments, files = set(assets.environments), {*assets.meshes, *assets.textures}
    if len(todo) < MANY_JOBS:
        planned = tqdm(todo, desc="planning", unit="scene", disable=not todo)
        drawn = [(settings.scene(index), light) for index, light in planned]
        environments = {scene.lights[light].environment for scene, light in drawn}
        files = set().union(*(scene.files for scene, _ in drawn))
    for path in tqdm(sorted(files), desc="assets", disable=not files):
        if Path(path).suffix.lower() in mesh_files.MESH_SUFFIXES:
            mesh_files.mesh_outline(path)
        else:
            textures.PictureMaterial(path, 0).maps(TILE)  # reads its other maps too
    for name in sorted(environments - skies.GENERATED.keys()):
        copy = output / ENVIRONMENTS / f"{name}.exr"
        if not copy.exists():
            skies.copy_environment(Path(settings.paths[name]), copy)
        load_latlong(copy)  # warns of a suspicious map


def write_credits(output: Path, folders: Sequence[str | Path]) -> None:
    """Copy the credits found in asset folders, or beside them, which must accompany the clips."""
    places = [place for folder in map(Path, folders) for place in (folder, folder.resolve().parent)]
    files = [place / CREDITS for place in places if (place / CREDITS).is_file()]
    texts = dict.fromkeys(file.read_text("utf-8", errors="replace") for file in files)
    if texts:
        write_text(output / CREDITS, "\n".join(texts))


def clip_name(index: int, light: int) -> str:
    return f"{index:05d}" + "b" * light


# --- One clip ---


@functools.cache
def tracer_of(size: tuple[int, int], spp: int) -> Tracer:
    """Return the tracer of a worker process, which compiles its kernels once."""
    jax.config.update("jax_platforms", "cpu")
    return Tracer(size, spp)


def make_clip(output: Path, settings: Settings, job: Job) -> None:
    """Render the folder of a clip under one of its lights; the folder appears when it is complete."""
    index, light = job
    scene, tracer = settings.scene(index), tracer_of(settings.size, settings.spp)
    drawn = scene.lights[light]
    with atomic_dir(output / clip_name(index, light), False, lambda _: False) as folder:
        environment = f"../{ENVIRONMENTS}/{drawn.environment}.exr"
        if drawn.environment in skies.GENERATED:
            environment = "environment.exr"
            write_hdr(folder / environment, skies.GENERATED[drawn.environment](drawn.seed))
        seeds = np.random.SeedSequence([settings.seed, index, light]).generate_state(settings.frames).tolist()
        images, recorded, (near, far) = render_clip(tracer, scene, drawn, folder, environment, seeds)
        for label, frames in images.items():
            for number, image in enumerate(frames):
                write_png(frame_path(folder, 0, number, label), image)
        write_light(folder, recorded)
        facts = {"seed": settings.seed, "split": settings.split, "clip": index, "light": light}
        facts |= {"other_light": clip_name(index, 1 - light), "fov": scene.camera.fov, "near": near, "far": far}
        (folder / "scene.json").write_text(json.dumps(facts | dataclasses.asdict(scene), indent=1) + "\n")


# --- Contact sheet ---


def make_sheet(output: Path, names: Sequence[str]) -> Float32[np.ndarray, "h w 3"]:
    """Draw one clip per row: first and last frame, then the G-buffers and environment (env_ldr) of the last."""
    rows = []
    for index in np.unique(np.linspace(0, len(names) - 1, SHOWN_CLIPS).astype(int)):
        folder = output / names[index]
        (clip,) = open_clips(folder, ("rgb", *SHOWN, "env_ldr"))
        size, last = image_size(frame_path(folder, 0, 0, "rgb")), clip.num_frames - 1
        shown = [("rgb", 0), ("rgb", last), *((label, last) for label in SHOWN)]
        images = [clip.read(label, [frame], size)[0] for label, frame in shown]
        rows.append([*images, clip.environment(size, [last])["env_ldr"][0]])
    return contact_sheet(rows)
