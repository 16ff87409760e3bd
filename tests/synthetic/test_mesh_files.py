"""Mesh files: every format is read, unusable ones are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.textured import write_box, write_glb, write_obj
from PIL import Image

from drender.errors import InputError
from drender.synthetic import mesh_files
from drender.synthetic.materials import Material, MaterialMix
from drender.synthetic.render import _object_mesh
from drender.synthetic.scene import SceneObject


def test_mesh_files_of_every_format_are_read(tmp_path, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box((2, 4, 4)).apply_translation((5, 0, 0))
    for suffix in (".ply", ".obj", ".glb"):
        box.export(str(tmp_path / f"{suffix[1:]}{suffix}"))
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box)).items():
        (tmp_path / name.replace("model", "gltf")).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no mesh")
    found = mesh_files.find_meshes(tmp_path)
    assert [Path(path).suffix for path in found] == [".glb", ".gltf", ".obj", ".ply"]
    for path in found:
        file = mesh_files.read_mesh(path)
        mesh = file.mesh
        assert file.parts == () and file.radius == pytest.approx(3)
        np.testing.assert_allclose(np.abs(mesh.positions), np.tile([1 / 3, 2 / 3, 2 / 3], (36, 1)), atol=1e-5)
        assert set(np.abs(mesh.normals).round(4).sum(axis=-1)) == {1.0}  # every corner has its face's normal
        assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    monkeypatch.setattr(mesh_files, "MAX_FACES", 5)
    with pytest.raises(InputError, match=r"expected at most 5 triangles, got 12; simplify it"):
        mesh_files.read_mesh(found[0])


def test_unusable_meshes_are_named(tmp_path):
    pytest.importorskip("trimesh")
    with pytest.raises(InputError, match=r"nowhere: folder not found"):
        mesh_files.find_meshes(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no meshes found; expected files \.ply"):
        mesh_files.find_meshes(tmp_path)
    (tmp_path / "broken.ply").write_text("ply\nnonsense")
    with pytest.raises(InputError, match=r"broken\.ply: not a readable mesh"):
        mesh_files.read_mesh(tmp_path / "broken.ply")
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(InputError, match=r"flat\.obj: no opaque triangle has an area"):
        mesh_files.read_mesh(tmp_path / "flat.obj")


def test_obj_keeps_texture_orientation_and_name(tmp_path):
    pytest.importorskip("trimesh")
    file = mesh_files.read_mesh(write_obj(tmp_path))
    (part,) = file.parts
    assert part.name == "paper" and part.roughness is None and part.metallic is None
    upper_left = (file.mesh.positions[:, :2] < [0, np.inf]).all(axis=1) & (file.mesh.positions[:, 1] > 0)
    np.testing.assert_allclose(file.mesh.uv[upper_left], 0, atol=1e-6)  # v runs down the rows
    surface = part.surface(np.random.default_rng(0))
    np.testing.assert_allclose(surface[8, 8], [1, 0, 0, surface[0, 0, 3], 0], atol=1e-6)
    np.testing.assert_allclose(surface[8, -8, :3], [0, 1, 0], atol=1e-6)
    assert 0.6 <= surface[0, 0, 3] <= 1  # paper


def test_glb_keeps_packed_roughness_and_metallic(tmp_path):
    pytest.importorskip("trimesh")
    (part,) = mesh_files.read_mesh(write_glb(tmp_path)).parts
    surface = part.surface(np.random.default_rng(0))
    np.testing.assert_allclose(surface[8, 8], [1, 0, 0, 0.1, 1], atol=1e-3)
    np.testing.assert_allclose(surface[-8, 8], [0, 0, 1, 0.1, 0], atol=1e-3)
    np.testing.assert_allclose(surface[-8, -8], [1, 1, 1, 0.4, 0], atol=1e-3)


def test_textures_are_found_wherever_the_file_says(tmp_path):
    pytest.importorskip("trimesh")
    for number, name in enumerate(("../maps/quarters.png", "..\\maps\\quarters.png", "C:\\maps\\quarters.png")):
        path = write_obj(tmp_path / f"{number}" / "mesh")
        picture = path.with_name("quarters.png")
        if name.startswith(".."):
            path.parents[1].joinpath("maps").mkdir()
            picture = picture.rename(path.parents[1] / "maps" / "quarters.png")
        path.with_suffix(".mtl").write_text(f"newmtl paper\nmap_Kd {name}\n")
        file = mesh_files.read_mesh(path)
        assert file.parts[0].basecolor.shape == (256, 256, 3)
        assert [found.resolve() for found in file.files] == [path, path.with_suffix(".mtl"), picture]


def test_missing_textures_and_materials_are_warned_of(tmp_path):
    pytest.importorskip("trimesh")
    path = write_obj(tmp_path)
    path.with_name("quarters.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"square\.obj: files missing or unreadable: quarters\.png; add them"):
        mesh_files.read_mesh(path)
    path.with_suffix(".mtl").unlink()
    with pytest.warns(UserWarning, match=r"missing or unreadable: square\.mtl; add them"):
        mesh_files.read_mesh(path)


def test_contents_that_are_not_read_are_warned_of(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    colored = trimesh.creation.box()
    colored.visual.vertex_colors = np.tile([255, 0, 0, 255], (8, 1))
    colored.export(str(tmp_path / "scan.ply"))
    with pytest.warns(UserWarning, match=r"scan\.ply: not read: colors of vertices; bake that into glTF textures"):
        mesh_files.read_mesh(tmp_path / "scan.ply")
    with pytest.warns(UserWarning, match=r"not read: map_pr, map_d;"):
        mesh_files.read_mesh(write_obj(tmp_path, "Kd 1 1 1\nmap_Pr rough.png\nmap_d leaf.png"))
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.creation.box())).items():
        (tmp_path / name).write_bytes(data.replace(b'{"', b'{"extensionsUsed": ["KHR_texture_transform"], "', 1))
    with pytest.warns(UserWarning, match=r"model\.gltf: not read: KHR_texture_transform;"):
        mesh_files.read_mesh(tmp_path / "model.gltf")


@pytest.fixture
def gltf(tmp_path):
    """A function that writes a textured square as glTF with a changed header."""
    trimesh = pytest.importorskip("trimesh")
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.load_scene(write_glb(tmp_path / "glb"))).items():
        (tmp_path / name).write_bytes(data)
    header = json.loads((tmp_path / "model.gltf").read_text())

    def write(change) -> Path:
        change(header, header["meshes"][0]["primitives"][0]["attributes"])
        (tmp_path / "model.gltf").write_text(json.dumps(header))
        return tmp_path / "model.gltf"

    return write


def test_texture_coordinates_that_are_not_read_are_warned_of(gltf):
    def second(header, attributes):
        header["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = 1

    def quantized(header, attributes):
        header["accessors"][attributes["TEXCOORD_0"]]["normalized"] = True

    with pytest.warns(UserWarning, match=r"model\.gltf: not read: a second set of texture coordinates; bake"):
        mesh_files.read_mesh(gltf(second))
    with pytest.warns(UserWarning, match="not read: a second set of texture coordinates, quantized or sparse coord"):
        mesh_files.read_mesh(gltf(quantized))


def test_compressed_meshes_that_cannot_be_decoded_are_named(gltf):
    def compressed(header, attributes):
        header["extensionsRequired"] = ["KHR_draco_mesh_compression"]
        del header["accessors"][attributes["POSITION"]]["bufferView"]

    with pytest.raises(InputError, match="has an area; export it without KHR_draco_mesh_compression"):
        mesh_files.read_mesh(gltf(compressed))


def test_a_part_thinner_than_rounding_shifts_no_material(tmp_path):
    pytest.importorskip("trimesh")
    path = write_obj(tmp_path)
    path.write_text(path.read_text() + "v 0 1e-12 0\nv 1 1e-12 0\nv 0 0 0\nusemtl thin\nf 5 6 7\n")
    (tmp_path / "square.mtl").write_text("newmtl paper\nKd 1 1 1\nnewmtl thin\nKd 1 0 0\n")
    plain = Material((1.0, 1.0, 1.0), 0.5, 0.0)
    mix, origin = MaterialMix(plain, plain, "uniform", 1, 0, 0.0), (0.0, 0.0, 0.0)
    item = SceneObject(str(path), 0, mix, 1.0, origin, (0.0, 0.0), 0.0, 0.0, origin, True)
    mesh, surfaces = _object_mesh(item)
    assert len(mesh_files.read_mesh(path).parts) == 2 and len(surfaces) == mesh.num_parts


def test_deep_gray_textures_and_physical_obj_values_are_read(tmp_path):
    pytest.importorskip("trimesh")
    path = write_obj(tmp_path, "Kd 1 1 1\nPr 0.2\nPm 1")
    Image.fromarray(np.full((64, 64), 0.5 * 65535, np.uint16)).save(tmp_path / "quarters.png")
    surface = mesh_files.read_mesh(path).parts[0].surface(np.random.default_rng(0))
    np.testing.assert_allclose(surface[8, 8], [*[0.214] * 3, 0.2, 1], atol=5e-3)


def test_transparent_parts_are_left_out(tmp_path):
    pytest.importorskip("trimesh")
    path = write_obj(tmp_path, name="glass", material="Kd 1 1 1\nd 0.3")
    with pytest.raises(InputError, match="no opaque triangle has an area"):
        mesh_files.read_mesh(path)


def test_dark_metals_take_their_specular_color(tmp_path):
    pytest.importorskip("trimesh")
    material = "Kd 0.02 0.02 0.02\nKs 0.8 0.8 0.8\nNs 96"
    path = write_obj(tmp_path, name="chrome", material=material)
    (tmp_path / "square.mtl").write_text(f"newmtl chrome\n{material}\n")
    (part,) = mesh_files.read_mesh(path).parts
    surface = part.surface(np.random.default_rng(0))
    np.testing.assert_allclose(surface[:3], ((0.8 + 0.055) / 1.055) ** 2.4, atol=5e-3)
    assert surface[4] == 1 and 0.04 <= surface[3] <= 0.15


def test_outermost_points_bound_a_mesh(tmp_path):
    pytest.importorskip("trimesh")
    points, radius = mesh_files.mesh_outline(str(write_box(tmp_path / "box.obj", (1, 2, 2))))
    assert radius == pytest.approx(1.5)
    np.testing.assert_allclose(np.abs(points).max(axis=0), [1 / 3, 2 / 3, 2 / 3], atol=1e-5)
