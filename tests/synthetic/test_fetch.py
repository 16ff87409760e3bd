"""Fetching assets: catalogs, objects, textures and credits, without a network."""

import numpy as np
import pytest
from helpers.textured import write_obj

from drender.errors import InputError
from drender.synthetic import fetch
from drender.synthetic.materials import pattern
from drender.synthetic.mesh_files import read_mesh

CATALOG = """id=library
license=CC-BY 3.0
id#1=a
name#1=Table
category#1=Kitchen
model#1=/a/a.obj
width#1=120
depth#1=60
height#1=75
creator#1=Somebody
id#2=b
name#2=Nothing
"""


def test_catalogs_are_read(tmp_path):
    (tmp_path / "catalog.properties").write_text(CATALOG)
    license_text, (entry,) = fetch.read_catalog(tmp_path / "catalog.properties")
    assert license_text == "CC-BY 3.0" and (entry["model"], entry["creator"], entry["height"]) == (
        "/a/a.obj",
        "Somebody",
        "75",
    )


def test_objects_are_copied_upright_and_in_meters(tmp_path):
    pytest.importorskip("trimesh")
    source = write_obj(tmp_path / "a")
    entry = {"width": "50", "height": "2", "depth": "50", "modelRotation": "1 0 0 0 0 1 0 -1 0"}
    assert fetch.copy_object(source, tmp_path / "objects" / "library-a", entry)
    file = read_mesh(tmp_path / "objects" / "library-a" / "library-a.obj")
    assert file.radius == pytest.approx(0.25 * 2**0.5, rel=1e-4)  # half the diagonal of a square of 50 cm
    assert (np.ptp(file.mesh.positions, axis=0) > [1, -1, 1]).all() and np.ptp(file.mesh.positions[:, 1]) < 1e-5
    assert file.parts[0].basecolor.shape[0] > 1
    source.write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    assert not fetch.copy_object(source, tmp_path / "objects" / "library-b", entry)


def test_only_pictures_without_seams_become_textures():
    clouds = pattern("clouds", 128, 4, np.random.default_rng(0))
    image = clouds[..., None].repeat(3, axis=-1)
    assert fetch.repeats(image)
    assert not fetch.repeats(image[:64, :64]) and not fetch.repeats(np.full((128, 128, 3), 0.5, np.float32))
    ramp = np.linspace(0, 1, 128, dtype=np.float32)[:, None, None]
    assert not fetch.repeats(np.broadcast_to(ramp, (128, 128, 3)))


def test_credits_name_every_author():
    text = fetch.credits_text([("library-a", "Table", "Somebody", "CC-BY 3.0")], 18)
    assert "| library-a | Table | Somebody | CC-BY 3.0 |" in text and "18 environments" in text


def test_missing_programs_and_used_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="apt-get not found; install it"):
        fetch.main([str(tmp_path / "new")])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        fetch.main([str(tmp_path)])
