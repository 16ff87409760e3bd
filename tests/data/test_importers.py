"""Importers on miniatures in the layouts of the sets, checked by values computed by hand."""

import json
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.renders import POSE, write_blender

from drender.data import importers
from drender.data.clips import open_clips
from drender.data.importers import import_clips, tone_scale
from drender.errors import InputError
from drender.media.color import linear_to_srgb
from drender.media.images import read_image, write_exr

# 0.5 is the 90th percentile, becomes 0.8 ** 2.2 = 0.6120, and 0.8048 by the sRGB curve.
TONED = 0.8048
BYTE = 0.5 / 255 + 1e-3
REC2020_TO_REC709 = np.array([[1.6605, -0.1246, -0.0182], [-0.5876, 1.1329, -0.1006], [-0.0728, -0.0083, 1.1187]])


def read(folder: Path, frame: int, label: str) -> np.ndarray:
    return read_image(folder / f"0000.{frame:04d}.{label}.png")


def exr(path: Path, values, names: str = "RGB") -> None:
    """Write a 2×2 EXR of one color."""
    write_exr(path, {name: np.full((2, 2), value, np.float32) for name, value in zip(names, values, strict=True)})


# --- tone mapping -----------------------------------------------------------------------------------------------------


def test_the_percentile_rule():
    assert tone_scale(np.linspace(0, 2, 101)) == pytest.approx(0.8**2.2 / 1.8)  # the 90th percentile is 1.8
    assert tone_scale(np.zeros(4)) == 0 and tone_scale(np.zeros(0)) == 1


# --- Hypersim ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hypersim(tmp_path):
    """A trajectory of two frames of 4×2 pixels, of planes at z = 2 and z = 4; frame 0 has an invalid pixel."""
    h5py = pytest.importorskip("h5py")
    images = tmp_path / "ai_001_001" / "images"
    # f = 2 / tan 30°, so f² = 12, and pixels lie at ±0.5 and ±1.5 in x and at ±0.5 in y.
    outer, inner = np.sqrt(1 + 2.5 / 12), np.sqrt(1 + 0.5 / 12)
    slant = np.float32([[outer, inner, inner, outer]] * 2)
    for frame, z in enumerate((2.0, 4.0)):
        color, entity, distance = np.full((2, 4, 3), 0.5), np.ones((2, 4), int), z * slant
        if frame == 0:
            color[1, 3] = 100
            entity[0, 0], distance[0, 0], color[0, 0] = -1, np.nan, np.nan
        arrays = {
            "final_hdf5": {"color": color, "diffuse_reflectance": np.full((2, 4, 3), 0.2140)},
            "geometry_hdf5": {
                "depth_meters": distance,
                "normal_cam": np.broadcast_to([0.6, 0.0, 0.8], (2, 4, 3)),
                "render_entity_id": entity,
            },
        }
        for folder, parts in arrays.items():
            for name, array in parts.items():
                path = images / f"scene_cam_00_{folder}" / f"frame.{frame:04d}.{name}.hdf5"
                path.parent.mkdir(parents=True, exist_ok=True)
                with h5py.File(path, "w") as file:
                    file["dataset"] = array.astype(np.float16 if name == "color" else array.dtype)
    return tmp_path / "ai_001_001"


def test_hypersim(hypersim, tmp_path, capsys):
    import_clips("hypersim", hypersim, tmp_path / "clips")
    clip = tmp_path / "clips" / "ai_001_001_cam_00"
    np.testing.assert_allclose(read(clip, 0, "depth")[1], 0, atol=2e-5)  # a plane again
    np.testing.assert_allclose(read(clip, 1, "depth"), 1, atol=2e-5)
    rgb = read(clip, 0, "rgb")
    np.testing.assert_allclose(rgb[0, 1], TONED, atol=BYTE)
    np.testing.assert_array_equal(rgb[1, 3], 1)
    np.testing.assert_allclose(read(clip, 0, "diffuse_albedo")[1], 0.5, atol=BYTE)  # sRGB of 0.2140
    np.testing.assert_allclose(read(clip, 1, "normal"), np.broadcast_to([0.8, 0.5, 0.9], (2, 4, 3)), atol=2e-5)
    np.testing.assert_array_equal(read(clip, 0, "valid")[..., 0], [[0, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(read(clip, 1, "valid"), 1)
    np.testing.assert_allclose(read(clip, 0, "depth")[0, 0], 1)
    np.testing.assert_allclose(read(clip, 0, "normal")[0, 0], [0.5, 0.5, 1], atol=2e-5)
    (opened,) = open_clips(tmp_path / "clips", ("rgb",), ("basecolor", "diffuse_albedo", "normal", "depth"))
    assert set(opened.labels) == {"rgb", "diffuse_albedo", "normal", "depth", "valid"} and opened.num_frames == 2
    shown = capsys.readouterr()
    assert "1 of 1 clips to import" in shown.out and "1/1" in shown.err  # outside a terminal too


def test_a_clip_that_exists_is_kept(hypersim, tmp_path, monkeypatch, capsys):
    import_clips("hypersim", hypersim.parent, tmp_path / "clips")
    monkeypatch.setattr(importers, "write_clip", None)
    import_clips("hypersim", hypersim.parent, tmp_path / "clips")
    assert "0 of 1 clips to import" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:100]), r"depth_meters\.hdf5: not a readable HDF5 file"),
        (Path.unlink, r"depth_meters\.hdf5: missing; add it, or remove the other files of its frame"),
    ],
)
def test_a_damaged_file_is_one_line_and_leaves_no_clip(hypersim, tmp_path, change, message):
    change(hypersim / "images" / "scene_cam_00_geometry_hdf5" / "frame.0001.depth_meters.hdf5")
    with pytest.raises(InputError, match=message) as error:
        import_clips("hypersim", hypersim, tmp_path / "clips")
    assert "\n" not in str(error.value) and not list((tmp_path / "clips").iterdir())


# --- InteriorVerse ----------------------------------------------------------------------------------------------------


def test_interiorverse(tmp_path):
    scene = tmp_path / "dataset_85" / "L3D1"
    for view, depth in (("000", np.float32([[1000, 2000], [3000, np.inf]])), ("001", np.full((2, 2), 500, np.float32))):
        exr(scene / f"{view}_im.exr", (0.5, 0.5, 0.5))
        exr(scene / f"{view}_albedo.exr", (0.2140, 1.0, 0.0))
        exr(scene / f"{view}_material.exr", (0.25, 0.75, 0.0))
        exr(scene / f"{view}_normal.exr", (0.0, -0.6, 0.8))
        exr(scene / f"{view}_mask.exr", (1.0, 1.0, 1.0))
        write_exr(scene / f"{view}_depth.exr", dict.fromkeys("RGB", depth))
    import_clips("interiorverse", tmp_path / "dataset_85", tmp_path / "clips")
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["L3D1_000", "L3D1_001"]  # unrelated views
    clip = tmp_path / "clips" / "L3D1_000"
    np.testing.assert_allclose(read(clip, 0, "depth")[..., 0], [[0, 0.5], [1, 1]], atol=2e-5)
    np.testing.assert_array_equal(read(clip, 0, "valid")[..., 0], [[1, 1], [1, 0]])
    np.testing.assert_allclose(read(clip, 0, "rgb")[0, 0], TONED, atol=BYTE)
    np.testing.assert_allclose(read(clip, 0, "basecolor")[0, 0], [0.5, 1, 0], atol=BYTE)
    np.testing.assert_allclose(read(clip, 0, "roughness")[0, 0], 0.25, atol=BYTE)
    np.testing.assert_allclose(read(clip, 0, "metallic")[0, 0], 0.75, atol=BYTE)
    np.testing.assert_allclose(read(clip, 0, "normal")[0, 0], [0.5, 0.2, 0.9], atol=1e-4)
    assert not (tmp_path / "clips" / "L3D1_001" / "0000.0000.valid.png").exists()  # everything is valid


# --- Blender ----------------------------------------------------------------------------------------------------------


def test_blender(tmp_path):
    write_blender(tmp_path / "shots" / "chair", Metallic=("X", (1.0,)), BaseColor=("RGB", (1.0, 0.2140, 0.0)))
    import_clips("blender", tmp_path / "shots", tmp_path / "clips")
    clip = tmp_path / "clips" / "chair"
    np.testing.assert_allclose(read(clip, 0, "depth")[..., 0], [[0, 1], [0.5, 1]], atol=2e-5)
    np.testing.assert_allclose(read(clip, 1, "depth"), 0, atol=2e-5)  # one scale for the clip
    normal = read(clip, 0, "normal")
    np.testing.assert_allclose(normal[0, 0], [1, 0.5, 0.5], atol=1e-4)  # to the right of the camera
    np.testing.assert_allclose(normal[1, 1], [0.5, 0.5, 1], atol=1e-4)  # background
    np.testing.assert_allclose(read(clip, 0, "rgb")[0, 0], [0.5, 0.5, 1], atol=BYTE)  # with the exposure it has
    np.testing.assert_allclose(read(clip, 0, "diffuse_albedo")[0, 0], [0.5, 0, 1], atol=BYTE)
    np.testing.assert_allclose(read(clip, 0, "basecolor")[0, 0], [1, 0.5, 0], atol=BYTE)
    np.testing.assert_array_equal(read(clip, 0, "metallic")[0, 0], 1)
    labels = {path.name.split(".")[2] for path in clip.iterdir()}
    assert labels == {"rgb", "basecolor", "diffuse_albedo", "normal", "depth", "metallic"}


def test_primaries_and_regions_of_blender_are_honored(tmp_path):
    file = write_blender(tmp_path / "chair") / "0000.exr"
    source = oiio.ImageInput.open(str(file))
    pixels, spec = source.read_image("float"), source.spec()
    spec.full_width, spec.x = 3, 1  # a region without the first column
    spec.attribute("chromaticities", "float[8]", (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290))
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(file), spec) and output.write_image(pixels) and output.close()
    (tmp_path / "chair/transforms.json").write_text(
        json.dumps({"frames": [{"file_path": "0000", "transform_matrix": POSE}]})
    )
    import_clips("blender", tmp_path / "chair", tmp_path / "clips")
    clip = tmp_path / "clips" / "chair"
    np.testing.assert_allclose(read(clip, 0, "depth")[..., 0], [[1, 0, 1], [1, 0.5, 1]], atol=2e-5)
    albedo = np.clip(np.array([0.2140, 0, 1]) @ REC2020_TO_REC709, 0, 1)  # green is out of gamut
    np.testing.assert_allclose(read(clip, 0, "diffuse_albedo")[0, 1], linear_to_srgb(albedo), atol=0.01)


def test_frames_of_blender_are_in_the_order_of_their_names(tmp_path):
    file = write_blender(tmp_path / "chair") / "transforms.json"
    frames = json.loads(file.read_text())["frames"][::-1]
    frames[0]["file_path"] += ".png"  # beside which the EXR lies
    file.write_text(json.dumps({"frames": frames}))
    import_clips("blender", tmp_path / "chair", tmp_path / "clips")
    np.testing.assert_allclose(read(tmp_path / "clips" / "chair", 1, "depth"), 0, atol=2e-5)


@pytest.mark.parametrize("pose", [np.zeros((4, 4)), np.diag([-1.0, 1, 1, 1]), np.full((4, 4), np.inf), np.eye(3)])
def test_matrices_of_no_camera_are_input_errors(tmp_path, pose):
    write_blender(tmp_path / "chair", poses=(POSE, pose.tolist()))
    text = (tmp_path / "chair/transforms.json").read_text().replace("Infinity", "1e300")
    (tmp_path / "chair/transforms.json").write_text(text)
    with pytest.raises(InputError, match=r"transforms\.json.* transform_matrix|holds no list of poses"):
        import_clips("blender", tmp_path / "chair", tmp_path / "clips")


def test_one_bad_clip_does_not_stop_the_others(tmp_path, capsys):
    for name in ("a", "b", "c"):
        write_blender(tmp_path / "shots" / name)
    file = tmp_path / "shots" / "b" / "transforms.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # the byte-order mark of Windows
    (tmp_path / "shots" / "a" / "0001.exr").unlink()
    with pytest.raises(InputError, match=r"1 of 3 clips failed \(see above\)"):
        import_clips("blender", tmp_path / "shots", tmp_path / "clips")
    assert capsys.readouterr().err.count("0001.exr: missing; add it") == 1
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["b", "c"]


def test_clips_of_one_name_are_refused(tmp_path):
    for folder in ("85/L3D1", "120/L3D1"):
        exr(tmp_path / folder / "000_im.exr", (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="several clips are named 'L3D1_000'"):
        import_clips("interiorverse", tmp_path, tmp_path / "clips")


def test_blender_without_passes_of_its_own(tmp_path):
    import_clips("blender", write_blender(tmp_path / "chair"), tmp_path / "clips")
    labels = {path.name.split(".")[2] for path in (tmp_path / "clips" / "chair").iterdir()}
    assert labels == {"rgb", "diffuse_albedo", "normal", "depth"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("blender", r"transforms\.json holds no list of poses"),
        ("hypersim", r"no clips of hypersim found; expected \{scene\}/images"),
        ("interiorverse", r"no clips of interiorverse found; expected \{scene\}/000_im\.exr"),
    ],
)
def test_bad_sources(tmp_path, kind, message):
    write_blender(tmp_path / "chair", poses=(POSE, [[1]]))
    with pytest.raises(InputError, match=message):
        import_clips(kind, tmp_path / "chair", tmp_path / "clips")
    with pytest.raises(InputError, match="nowhere does not exist"):
        import_clips(kind, tmp_path / "nowhere", tmp_path / "clips")
