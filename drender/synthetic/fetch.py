"""Fetch open assets for synthetic scenes: python -m drender.synthetic assets DIR

Everyday objects of Debian's sweethome3d-furniture (CC0 and CC-BY 3.0) and environments of npm's @pmndrs/assets (CC0),
about 130 MB of downloads. Needs apt-get with Debian's or Ubuntu's package lists, dpkg-deb and npm.

    DIR/objects/NAME/NAME.obj   in meters, y up, with materials and textures; for --meshes
    DIR/environments/NAME.exr   512×256 pixels; for --environments
    DIR/textures/NAME.jpg       pictures of the objects that repeat without a visible seam; for --textures
    DIR/CREDITS.md              authors and licenses, which must accompany what is made of CC-BY assets
"""

import base64
import contextlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drender import cli
from drender.errors import InputError, first_line
from drender.files import write_text
from drender.locks import lock_folder
from drender.media.images import IMAGE_SUFFIXES, read_image
from drender.synthetic.mesh_files import read_mesh

PACKAGE, ENVIRONMENTS = "sweethome3d-furniture", "@pmndrs/assets@1.7.0"
LEFT_OUT = {"Vehicles", "Doors and windows", "Staircases"}  # branded, or meant to be part of a wall
BRANDS = "iphone|ipad|imac|apple tv|kitchenaid|yamaha|vw |coca|pepsi|nutella|ikea|xbox|playstation|nintendo|lego"
TEXTURE_SIDE = 100  # least side in pixels of a texture for floors and walls
MAX_SEAM = 2.0  # largest step across the seam of a repeated picture, in steps inside of it
MIN_CONTRAST = 0.03  # least standard deviation of such a picture


def main(words: list[str]) -> None:
    """Run the command."""
    parser = cli.Parser(prog="python -m drender.synthetic assets", description=__doc__)
    parser.add_argument("output", type=cli.path, metavar="DIR", help="folder to write")
    output = Path(parser.parse_args(words).output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: expected a new or empty folder; give another one or remove it")
    for program in ("apt-get", "dpkg-deb", "npm"):
        if shutil.which(program) is None:
            raise InputError(f"{program} not found; install it, or make the folders of meshes and environments by hand")
    with lock_folder(output), tempfile.TemporaryDirectory() as folder:
        download = Path(folder)
        environments = fetch_environments(download, output / "environments")
        credits = fetch_objects(download, output / "objects")
        textures = collect_textures(output / "objects", output / "textures")
        write_text(output / "CREDITS.md", credits_text(credits, environments))
    print(f"{output}: {len(credits)} objects, {environments} environments, {textures} textures")


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        reason = first_line(result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}")
        raise InputError(f"{' '.join(command)}: failed ({reason}); check the network and the package lists")


# --- Environments ---


def fetch_environments(download: Path, output: Path) -> int:
    """Write the environment maps of the npm package; return their number."""
    _run(["npm", "pack", "--silent", ENVIRONMENTS], download)
    output.mkdir(parents=True)
    with tarfile.open(next(download.glob("*.tgz"))) as archive:
        files = [member for member in archive.getmembers() if member.name.endswith(".exr.js")]
        for member in files:
            encoded = archive.extractfile(member).read().decode().partition("base64,")[2].rstrip("';\n ")
            (output / Path(member.name).name.removesuffix(".js")).write_bytes(base64.b64decode(encoded))
    return len(files)


# --- Objects ---


def fetch_objects(download: Path, output: Path) -> list[tuple[str, str, str, str]]:
    """Write the objects of the Debian package; return (name, title, author, license) of each."""
    _run(["apt-get", "download", PACKAGE], download)
    _run(["dpkg-deb", "-x", str(next(download.glob(f"{PACKAGE}*.deb"))), "debian"], download)
    credits = []
    for library in sorted((download / "debian").rglob("*.sh3f")):
        folder = download / library.stem
        with zipfile.ZipFile(library) as archive:
            archive.extractall(folder)
        license_text, entries = read_catalog(folder / "PluginFurnitureCatalog.properties")
        for entry in tqdm(entries, desc=library.stem):
            title, author = entry.get("name", ""), entry.get("creator", library.stem)
            if entry.get("category") in LEFT_OUT or re.search(BRANDS, f"{title} {entry['model']} ".lower()):
                continue
            source = folder / entry["model"].lstrip("/")
            name = f"{library.stem}-{source.stem}".lower()
            if source.suffix.lower() == ".obj" and source.exists() and copy_object(source, output / name, entry):
                credits.append((name, title, author, license_text))
    return credits


def read_catalog(path: Path) -> tuple[str, list[dict[str, str]]]:
    """Return the license and the entries of a furniture catalog of Sweet Home 3D."""
    lines = [line.partition("=") for line in path.read_text(encoding="latin-1").splitlines() if "=" in line]
    header = {key: value for key, _, value in lines if "#" not in key}
    entries: dict[str, dict[str, str]] = {}
    for key, _, value in lines:
        label, separator, number = key.strip().partition("#")
        if separator and number.isdigit():
            entries.setdefault(number, {})[label] = value.strip()
    return " ".join(header.get("license", "unknown").split()), [entry for entry in entries.values() if "model" in entry]


def copy_object(source: Path, folder: Path, entry: dict[str, str]) -> bool:
    """Copy an OBJ file, upright and in meters, and its materials; return False if it is unusable."""
    lines = source.read_text(encoding="latin-1").splitlines()
    places = [i for i, line in enumerate(lines) if line.startswith("v ")]
    if not places:
        return False
    rotation = np.array(entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), np.float64).reshape(3, 3)
    vertices = np.array([lines[i].split()[1:4] for i in places], np.float64) @ rotation.T
    extent = np.ptp(vertices, axis=0).max()
    size = max(float(entry.get(side, 0)) for side in ("width", "depth", "height")) / 100
    if not (extent > 0 and size > 0):
        return False
    for i, vertex in zip(places, vertices * size / extent, strict=True):
        lines[i] = "v {:.6f} {:.6f} {:.6f}".format(*vertex)
    shutil.copytree(source.parent, folder, ignore=shutil.ignore_patterns("*.obj", "*.OBJ"))
    target = folder / f"{folder.name}.obj"
    target.write_text("\n".join(lines) + "\n", encoding="latin-1")
    try:
        read_mesh(str(target))
    except InputError:
        shutil.rmtree(folder)
        return False
    return True


# --- Textures and credits ---


def collect_textures(objects: Path, output: Path) -> int:
    """Copy the pictures of the objects that repeat without a visible seam; return their number."""
    output.mkdir()
    pictures = [path for path in sorted(objects.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    count = 0
    for path in tqdm(pictures, desc="textures"):
        with contextlib.suppress(InputError):
            if repeats(read_image(path)):
                shutil.copy(path, output / f"{path.parent.name}-{path.name.lower()}")
                count += 1
    return count


def repeats(image: np.ndarray) -> bool:
    """Return whether a picture can cover a floor: it is large, not plain, and its opposite edges match."""
    if min(image.shape[:2]) < TEXTURE_SIDE or image.std() < MIN_CONTRAST:
        return False
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean()
        seam = np.abs(np.take(image, 0, axis) - np.take(image, -1, axis)).mean()
        if seam > MAX_SEAM * steps + 1e-3:
            return False
    return True


def credits_text(credits: list[tuple[str, str, str, str]], environments: int) -> str:
    """Return the credits as Markdown."""
    rows = "\n".join("| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in credits)
    return (
        f"# Credits\n\nObjects of Debian's {PACKAGE} (Sweet Home 3D, www.sweethome3d.com), scaled to meters, and the "
        f"textures taken from them:\n\n| file | object | author | license |\n|---|---|---|---|\n{rows}\n\n"
        f"{environments} environments of npm's {ENVIRONMENTS}: CC0 1.0 (Poly Haven and others).\n"
    )
