"""Small textured meshes, written by hand: a square in the plane z = 0 that faces +z, with four colored quarters."""

from pathlib import Path

import numpy as np

from drender.media.images import write_png

# sRGB bytes of the quarters as the image shows them: rows from the top.
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def picture(side: int = 64) -> np.ndarray:
    """Return the picture of the quarters in [0, 1]."""
    return np.kron(QUARTERS, np.ones((side // 2, side // 2, 1))).astype(np.float32) / 255


def write_obj(folder: Path, material: str = "Ns 0\nKd 1 1 1", name: str = "paper", repeat: int = 1) -> Path:
    """Write `square.obj` with a texture of the quarters; v of OBJ runs upward, so (0, 0) is the lower left corner."""
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "quarters.png", picture())
    (folder / "square.mtl").write_text(f"newmtl {name}\n{material}\nmap_Kd quarters.png\n")
    corners = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\n"
    uv = "".join(f"vt {u} {v}\n" for u, v in ((0, 0), (repeat, 0), (repeat, repeat), (0, repeat)))
    faces = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
    path = folder / "square.obj"
    path.write_text(f"mtllib square.mtl\n{corners}{uv}usemtl {name}\n{faces}")
    return path


def write_glb(folder: Path) -> Path:
    """Write `square.glb`: the quarters as basecolor times a factor, roughness and metallic in one packed texture."""
    import trimesh
    from PIL import Image
    from trimesh.visual.material import PBRMaterial
    from trimesh.visual.texture import TextureVisuals

    folder.mkdir(parents=True, exist_ok=True)
    packed = np.zeros((64, 64, 3), np.uint8)
    packed[:, :32, 1], packed[:, 32:, 1] = 51, 204  # roughness 0.2 on the left, 0.8 on the right
    packed[:32, :, 2] = 255  # metallic above
    material = PBRMaterial(
        name="painted metal",
        baseColorTexture=Image.fromarray((picture() * 255).astype(np.uint8)),
        baseColorFactor=[255, 255, 255, 255],
        metallicRoughnessTexture=Image.fromarray(packed),
        metallicFactor=1.0,
        roughnessFactor=0.5,
    )
    visual = TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), material=material)
    vertices, faces = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]]
    path = folder / "square.glb"
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(str(path))
    return path


def write_box(path: Path, size: tuple[float, float, float]) -> Path:
    """Write an OBJ of a box of plain wood."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".mtl").write_text("newmtl oak wood\nKd 0.5 0.3 0.1\nNs 20\nKs 0.1 0.1 0.1\n")
    corners = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij")).reshape(3, -1).T * size
    vertices = "".join("v {} {} {}\n".format(*corner) for corner in corners)
    quads = ((1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4))
    faces = "".join(f"f {a} {b} {c} {d}\n" for a, b, c, d in quads)
    path.write_text(f"mtllib {path.stem}.mtl\n{vertices}usemtl oak wood\n{faces}")
    return path
