"""Mesh files: every format is read, unusable ones are named."""

from pathlib import Path

import numpy as np
import pytest

from drender.errors import InputError
from drender.synthetic import meshes


def test_mesh_files_of_every_format_are_read(tmp_path, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box((2, 4, 4)).apply_translation((5, 0, 0))
    for suffix in (".ply", ".obj", ".glb"):
        box.export(str(tmp_path / f"{suffix[1:]}{suffix}"))
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box)).items():
        (tmp_path / name.replace("model", "gltf")).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no mesh")
    found = meshes.find_meshes(tmp_path)
    assert [Path(path).suffix for path in found] == [".glb", ".gltf", ".obj", ".ply"]
    for path in found:
        mesh = meshes.read_mesh(path)
        np.testing.assert_allclose(np.abs(mesh.positions), np.tile([1 / 3, 2 / 3, 2 / 3], (36, 1)), atol=1e-5)
        assert set(np.abs(mesh.normals).round(4).sum(axis=-1)) == {1.0}  # every corner has its face's normal
        assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    monkeypatch.setattr(meshes, "MAX_FACES", 5)
    with pytest.raises(InputError, match=r"expected at most 5 triangles, got 12; simplify it"):
        meshes.read_mesh(found[0])


def test_unusable_meshes_are_named(tmp_path):
    pytest.importorskip("trimesh")
    with pytest.raises(InputError, match=r"nowhere: folder not found"):
        meshes.find_meshes(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no meshes found; expected files \.ply"):
        meshes.find_meshes(tmp_path)
    (tmp_path / "broken.ply").write_text("ply\nnonsense")
    with pytest.raises(InputError, match=r"broken\.ply: not a readable mesh"):
        meshes.read_mesh(tmp_path / "broken.ply")
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(InputError, match=r"flat\.obj: no triangle has an area"):
        meshes.read_mesh(tmp_path / "flat.obj")
