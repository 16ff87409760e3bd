"""Objects inserted into G-buffers: by depth and mask, from files and rendered; and lit as one scene with the rest."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from highlights import spot
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sample
from drender import ForwardRenderer, environment_maps
from drender.assets import GBUFFERS
from drender.config import CONDITIONS
from drender.editing.insertion import (
    OCCLUSION_SOFTNESS,
    Layer,
    RenderedObject,
    add_diffuse_albedo,
    guide,
    insert,
    place_depth,
)
from drender.editing.materials import to_linear
from drender.errors import InputError
from drender.media.color import LUMINANCE, srgb_to_linear
from drender.media.encodings import decode_normal, encode_normal
from drender.media.gbuffers import find_gbuffer_clips, frame_path
from drender.media.images import read_image, write_png
from drender.media.resize import fit_cover

with_mitsuba = pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="mitsuba is not installed")
IMAGES = hnp.arrays(np.float32, (3, 4, 3), elements=st.floats(0, 1, width=32))
MASKS = hnp.arrays(np.float32, (3, 4, 1), elements=st.sampled_from([0, 0.25, 0.7, 1]))


def flat(value, size=(3, 4)) -> np.ndarray:
    return np.broadcast_to(np.float32(value), (*size, 3)).copy()


def ball(size=(64, 64), centre=(0.5, 0.5), height=0.55, **material) -> Layer:
    """A sphere seen without perspective; 4×4 samples of every pixel for its edges."""
    y, x = np.mgrid[: 4 * size[0], : 4 * size[1]] + 0.5
    y, x = y / (4 * size[0]) - centre[1], (x / (4 * size[1]) - centre[0]) * size[1] / size[0]
    r = height / 2
    inside = x**2 + y**2 < r**2
    z = np.sqrt(np.maximum(r**2 - x**2 - y**2, 0))
    mean = lambda a: a.reshape(size[0], 4, size[1], 4, -1).mean(axis=(1, 3)).astype(np.float32)
    coverage = mean(inside)
    normal = mean(np.stack([x, -y, z], axis=-1) * inside[..., None] / r)
    depth = mean((1 - z / r) * inside) / np.maximum(coverage, 1e-6)
    values = {"basecolor": 0.9, "roughness": 0.4, "metallic": 0.0} | material
    images = {label: flat(value, size) for label, value in values.items()}
    images |= {"normal": encode_normal(decode_normal(encode_normal(normal))), "depth": depth.repeat(3, axis=-1)}
    return Layer(images, coverage)


# --- Arrays ---


@given(IMAGES, IMAGES, MASKS)
@settings(max_examples=40)
def test_insert_is_exact_outside_and_inside_mask(clip, image, coverage):
    buffers = dict.fromkeys((*CONDITIONS, "rgb"), clip)
    layer = Layer(dict.fromkeys(CONDITIONS, image), coverage)
    result, visible = insert(buffers, layer, (0.0, 1.0), (0.0, 0.5))
    depth = image * np.float32(0.5)
    expected = coverage * ((clip - depth)[..., :1] / OCCLUSION_SOFTNESS + 1).clip(0, 1)
    np.testing.assert_allclose(visible, expected, atol=1e-5)
    untouched, whole = (np.broadcast_to(visible == value, clip.shape) for value in (0, 1))
    assert result["rgb"].tobytes() == clip.tobytes()
    for label in CONDITIONS:
        assert result[label][untouched].tobytes() == clip[untouched].tobytes()
        if label not in ("normal", "depth"):
            assert (result[label][whole] == image[whole]).all()
    np.testing.assert_allclose(result["depth"][whole], depth[whole], atol=1e-6)
    mixed = clip * (1 - visible) + image * visible
    np.testing.assert_allclose(result["roughness"], mixed, atol=1e-6)
    light = to_linear("basecolor", clip) * (1 - visible) + to_linear("basecolor", image) * visible
    np.testing.assert_allclose(to_linear("basecolor", result["basecolor"]), light, atol=1e-4)


def test_mixed_normals_are_unit_vectors():
    right, up = encode_normal(flat((1, 0, 0))), encode_normal(flat((0, 1, 0)))
    layer = Layer({"normal": up, "depth": flat(0)}, np.full((3, 4, 1), 0.5, np.float32))
    result, _ = insert({"normal": right, "depth": flat(1)}, layer, (0.0, 1.0), (0.1, 0.2))
    np.testing.assert_allclose(result["normal"] * 2 - 1, flat((0.5**0.5, 0.5**0.5, 0)), atol=1e-6)


def test_nearer_surfaces_occlude_the_object():
    depth = flat(0.3)
    depth[:, 2:] = 0.7
    layer = Layer({"depth": flat(0.5), "metallic": flat(1)}, np.ones((3, 4, 1), np.float32))
    result, _ = insert({"depth": depth, "metallic": flat(0)}, layer, (0.0, 1.0), (0.4, 0.6))
    assert (result["metallic"][:, :2] == 0).all() and (result["metallic"][:, 2:] == 1).all()
    np.testing.assert_allclose(result["depth"][:, 2:], 0.5, atol=1e-6)


def test_masks_join_and_missing_buffers_are_named():
    layer = Layer({"depth": flat(0)}, np.full((3, 4, 1), 0.5, np.float32))
    result, _ = insert({"depth": flat(1), "mask": flat(0.2)}, layer, (0.0, 1.0), (0.0, 0.1))
    np.testing.assert_allclose(result["mask"], 0.6, atol=1e-6)
    with pytest.raises(InputError, match="the object has no metallic, which the clip has"):
        insert({"depth": flat(1), "metallic": flat(1)}, layer, (0.0, 1.0), (0.0, 0.1))
    with pytest.raises(InputError, match="the clip has no depth to occlude the object by"):
        insert({}, layer, (0.0, 1.0), (0.0, 0.1))


def test_edge_pixels_take_nearest_inside_values():
    """Whatever background they are mixed with there."""
    mask = np.float32([0, 0.5, 1, 1, 0.25, 0])[None, :, None]
    for background in (0, 0.5, 1):
        image = (np.float32(0.8) * mask + background * (1 - mask)).repeat(3, -1)
        layer = Layer.from_mask({"roughness": image}, mask)
        assert (layer.images["roughness"] == np.float32(0.8)).all()
        np.testing.assert_array_equal(layer.coverage, mask)


def test_object_stands_on_surface_behind_its_foot():
    layer = ball((64, 64), height=0.5)
    depth = np.linspace(1, 0, 64, dtype=np.float32)[:, None, None].repeat(64, 1).repeat(3, 2)  # ground, nearer below
    near, far = place_depth(layer, depth, None)
    assert far == pytest.approx(depth[47, 0, 0], abs=0.02) and far - near == pytest.approx(0.25, abs=0.01)
    assert place_depth(layer, depth, (0.6,)) == (pytest.approx(0.35, abs=0.01), 0.6)
    assert place_depth(layer, depth, (0.1,)) == (0, 0.1)
    assert place_depth(layer, depth, (0.1, 0.4)) == (0.1, 0.4)


def test_diffuse_albedo_of_metals_is_black():
    images = add_diffuse_albedo({"basecolor": flat(0.5), "metallic": flat((0, 0, 0))})
    np.testing.assert_allclose(images["diffuse_albedo"], 0.5, atol=1e-6)
    assert add_diffuse_albedo({"basecolor": flat(0.5), "metallic": flat(1)})["diffuse_albedo"].max() == 0


def test_guide_equals_picture_outside_object():
    layer, rgb = ball(), np.random.default_rng(0).random((64, 64, 3), np.float32)
    shown = guide(rgb, layer, layer.coverage)
    outside = layer.coverage[..., 0] == 0
    assert (shown[outside] == rgb[outside]).all()
    assert shown[20, 32].mean() > shown[44, 32].mean() + 0.05  # lit from above


# --- On the command line ---


@pytest.fixture
def run(run_main):
    return functools.partial(run_main, sample.main, "sample.py", "insert")


def write_scene(folder: Path, frames: int = 2, labels=(*CONDITIONS, "rgb"), size=(32, 32)) -> Path:
    """A wall at depth 0.8 with a pole at 0.2 before it."""
    for i in range(frames):
        for label in labels:
            image = flat(0.8 if label == "depth" else 0.5, size)
            image[:, 14:18] = 0.2
            write_png(frame_path(folder, 0, i, label), image, bits=16)
    return folder


def write_object(folder: Path, frames: int = 1, labels=(*CONDITIONS, "mask"), size=(32, 32)) -> Path:
    layer = ball(size, height=0.6)
    for i in range(frames):
        for label in labels:
            image = layer.coverage.repeat(3, -1) if label == "mask" else layer.images[label]
            write_png(frame_path(folder, 0, i, label), image, bits=16)
    return folder


def test_file_object_is_composited_between_depths(run, tmp_path):
    clip, thing = write_scene(tmp_path / "in" / "scene"), write_object(tmp_path / "ball")
    where = ("--input", clip, "--output", tmp_path / "out", "--object", thing)
    code, out, err = run(*where, "--depth", 0.4, 0.6, "--basecolor", "#ff0000", "--metallic", 1, "--guide")
    assert (code, err) == (0, "") and "scene: done" in out
    coverage = ball((32, 32), height=0.6).coverage[..., 0]
    of = lambda folder, label, i=0: read_image(frame_path(folder, 0, i, label))
    for i in range(2):
        pole = np.zeros((32, 32), bool)
        pole[:, 14:18] = True
        for label in CONDITIONS:
            before, after = of(clip, label, i), of(tmp_path / "out/scene", label, i)
            outside = pole | (coverage < 1e-4)
            assert (before[outside] == after[outside]).all()
        whole = ~pole & (coverage > 0.9999)
        assert (of(tmp_path / "out/scene", "basecolor", i)[whole] == [1, 0, 0]).all()
        depth = of(tmp_path / "out/scene", "depth", i)[..., 0]
        assert 0.4 <= depth[whole].min() < 0.45 and 0.55 < depth[whole].max() <= 0.6001
        assert (of(tmp_path / "out/scene", "rgb", i) == of(clip, "rgb", i)).all()
        assert (of(tmp_path / "out/scene", "guide", i)[pole] == of(clip, "rgb", i)[pole]).all()
    (found,) = find_gbuffer_clips(tmp_path / "out")  # as `forward` reads it
    assert set(found.labels) == set(CONDITIONS)


def test_moving_objects_move_and_a_frame_can_be_held(run, tmp_path):
    clip, thing = write_scene(tmp_path / "scene", frames=3), tmp_path / "thing"
    for i in range(3):
        mask = np.zeros((32, 32, 3), np.float32)
        mask[10 * i : 10 * i + 8] = 1
        for label in (*CONDITIONS, "mask"):
            write_png(frame_path(thing, 0, i, label), mask if label == "mask" else flat(1, (32, 32)))
    where = ("--input", clip, "--object", thing, "--depth", 0.1)
    rows = lambda output, i: np.flatnonzero(
        (read_image(frame_path(output / "scene", 0, i, "metallic")) == 1).all(axis=(1, 2))
    )
    assert run(*where, "--output", tmp_path / "moving")[0] == 0
    assert [rows(tmp_path / "moving", i)[0] for i in range(3)] == [0, 10, 20]
    assert run(*where, "--output", tmp_path / "held", "--object-frame", 1)[0] == 0
    assert [rows(tmp_path / "held", i)[0] for i in range(3)] == [10, 10, 10]


def test_objects_from_files_bring_buffers_of_other_models(run, tmp_path):
    clip = write_scene(tmp_path / "scene", frames=1, labels=(*CONDITIONS, "emission"))
    thing = write_object(tmp_path / "ball")
    where = ("--input", clip, "--output", tmp_path / "out", "--object", thing, "--depth", 0, 0.1)
    code, _, err = run(*where)
    assert code == 2 and "has no emission, which clip 'scene' has; add the files" in err
    write_png(frame_path(thing, 0, 0, "emission"), flat(1, (32, 32)), bits=16)
    assert run(*where)[0] == 0
    assert (read_image(frame_path(tmp_path / "out/scene", 0, 0, "emission"))[16, 16] == 1).all()


@pytest.mark.filterwarnings("default")
def test_invisible_object_warns(run, tmp_path):
    clip, thing = write_scene(tmp_path / "scene"), write_object(tmp_path / "ball")
    code, _, err = run("--input", clip, "--output", tmp_path / "out", "--object", thing, "--depth", 0.9, 1)
    assert code == 0 and "warning: clip 'scene': the object is not visible in any frame" in err


def test_objects_that_do_not_fit_are_one_line(run, tmp_path):
    clip = write_scene(tmp_path / "scene", frames=3)
    good, without = write_object(tmp_path / "good"), write_object(tmp_path / "without", labels=CONDITIONS)
    two, four = write_object(tmp_path / "two", frames=2), write_object(tmp_path / "four", frames=4)
    (tmp_path / "p.json").write_text(json.dumps({"frames": [{"transform_matrix": np.eye(4).tolist()}] * 3}))
    world = ("--input-normals", "world", "--poses", tmp_path / "p.json")
    fewer = write_object(tmp_path / "fewer", labels=("depth", "normal", "mask"))
    wide = write_object(tmp_path / "wide", size=(32, 48))
    flat_clip = write_scene(tmp_path / "flat", labels=("basecolor", "depth"))
    call = functools.partial(run, "--output", tmp_path / "out")
    cases = [
        (clip, ("--object", without), "expected a mask of every frame"),
        (clip, ("--object", two), "expected 1 or 3 frames for clip 'scene', got 2; hold one with --object-frame"),
        (clip, ("--object", two, "--object-frame", 2), "--object-frame 2"),
        (clip, ("--object", four, "--object-frame", 3, *world), "has 4 frames, but --poses only 3; give one for each"),
        (clip, ("--object", fewer), "has no basecolor, no metallic, no roughness, which clip 'scene' has"),
        (clip, ("--object", wide), "expected basecolor of the clip's aspect ratio, 32x32, got 48x32"),
        (clip, ("--object", good, "--depth", 0.5, 0.4), "--depth 0.5 0.4: must be one depth, or NEAR FAR"),
        (clip, ("--object", good, "--metallic", 2), "metallic: expected one number from 0 to 1, got 2"),
        (clip, ("--object", good, "--height", 0.3), "--height is for meshes and shapes"),
        (clip, ("--object", "sphere", "--object-frame", 0), "--object-frame is for folders of G-buffers"),
        (flat_clip, ("--object", good, "--guide"), "clip 'flat' has no 'rgb'"),
        (tmp_path / "good" / "..", ("--object", good), "would put results among the input's files"),
    ]
    for source, words, message in cases:
        code, _, err = call("--input", source, *words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err, (words, err)
        assert not any((tmp_path / "out").glob("*"))


def test_without_extra_only_file_objects_work(run, tmp_path, monkeypatch):
    for name in ("mitsuba", "drjit", "trimesh"):
        monkeypatch.setitem(sys.modules, name, None)
    clip, thing = write_scene(tmp_path / "scene"), write_object(tmp_path / "ball")
    code, _, err = run("--input", clip, "--output", tmp_path / "out", "--object", "sphere")
    assert code == 2 and err.count("\n") == 1 and 'pip install "drender[data]"' in err
    assert run("--input", clip, "--output", tmp_path / "out", "--object", thing)[0] == 0


@with_mitsuba
def test_rendered_sphere_has_requested_place_and_size():
    shown = RenderedObject("sphere", position=(0.375, 0.5), height=0.5, fov=3.0).layer("", 0, (64, 128))
    expected = ball((64, 128), centre=(0.375, 0.5), height=0.5)  # so narrow a view is almost without perspective
    np.testing.assert_allclose(shown.coverage.sum(), expected.coverage.sum(), rtol=0.01)
    assert np.abs(shown.coverage - expected.coverage).max() < 0.2
    inside = expected.coverage[..., 0] > 0.999
    angle = (decode_normal(shown.images["normal"]) * decode_normal(expected.images["normal"])).sum(-1)[inside]
    assert np.rad2deg(np.arccos(angle.clip(-1, 1))).mean() < 2
    near, far = shown.depth_range()
    depth = (shown.images["depth"][..., 0] - near) / (far - near)
    assert np.corrcoef(depth[inside], expected.images["depth"][..., 0][inside])[0, 1] > 0.99


@with_mitsuba
def test_rendered_objects_are_0_in_buffers_of_other_models(run, tmp_path):
    clip = write_scene(tmp_path / "scene", frames=1, labels=(*CONDITIONS, "diffuse_albedo", "emission"))
    where = ("--input", clip, "--output", tmp_path / "out", "--object", "sphere", "--depth", 0, 0.1)
    assert run(*where)[0] == 0
    emission, albedo = (read_image(frame_path(tmp_path / "out/scene", 0, 0, x)) for x in ("emission", "diffuse_albedo"))
    assert (emission[16, 16] == 0).all() and (emission[0] > 0).all() and (albedo[16, 16] > 0).all()


@with_mitsuba
def test_rendered_meshes_turn_and_errors_are_named(run, tmp_path):
    (tmp_path / "wall.obj").write_text("v -1 0 0\nv 1 0 0\nv 1 1 0\nv -1 1 0\nf 1 2 3\nf 1 3 4\n")
    normal = lambda turn: decode_normal(
        RenderedObject(str(tmp_path / "wall.obj"), turn=turn).layer("", 0, (16, 16)).images["normal"][8, 8]
    )
    np.testing.assert_allclose(normal((0.0, 0.0, 0.0)), [0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(normal((45.0, 0.0, 0.0)), [0.5**0.5, 0, 0.5**0.5], atol=1e-3)
    np.testing.assert_allclose(normal((0.0, -45.0, 0.0)), [0, 0.5**0.5, 0.5**0.5], atol=1e-3)
    clip = write_scene(tmp_path / "scene", frames=1)
    code, _, err = run("--input", clip, "--output", tmp_path / "out", "--object", tmp_path / "wall.obj", "--depth", 0.5)
    assert (code, err) == (0, "")
    (tmp_path / "wall.mtl").write_text("newmtl red\nKd 1 0 0\n")
    (tmp_path / "wall.obj").write_text(f"mtllib wall.mtl\nusemtl red\n{(tmp_path / 'wall.obj').read_text()}")
    where = ("--input", clip, "--output", tmp_path / "red", "--object", tmp_path / "wall.obj", "--depth", 0.5)
    assert run(*where)[0] == 0
    (tmp_path / "wall.mtl").write_text("newmtl red\nKd 0 1 0\n")
    code, _, err = run(*where)
    assert code == 2 and "results made from other contents of the same input files" in err
    (tmp_path / "broken.obj").write_text("nonsense")
    for name, message in (
        ("broken.obj", "broken.obj: "),
        ("none.ply", "none.ply: file not found"),
        ("sfere", "did you mean 'sphere'"),
    ):
        code, _, err = run(
            "--input", clip, "--output", tmp_path / "out", "--object", tmp_path / name if "." in name else name
        )
        assert code == 2 and err.count("\n") == 1 and message in err
    for option, value in (("--height", 0), ("--fov", 0), ("--fov", "nan")):
        code, _, err = run("--input", clip, "--output", tmp_path / "out", option, value)
        assert code == 2 and f"{option}: expected" in err and f"got {value}" in err


# --- Lit ---


@pytest.fixture(scope="module")
def forward() -> ForwardRenderer:
    return ForwardRenderer.load()


@pytest.mark.slow
@pytest.mark.parametrize("material", [{"metallic": 1.0}, {"roughness": 0.2}], ids=["metal", "white"])
def test_built_in_model_lights_inserted_sphere_from_lamp_side(material, forward):
    """The mean place of its brightest tenth, where 1 is the sphere's radius. Path tracing puts it at 0.57 to 0.64."""
    (clip,) = find_gbuffer_clips(GBUFFERS)
    layer = ball(centre=(0.55, 0.5), **material)
    buffers = {label: fit_cover(next(clip.frames(label)), (64, 64)) for label in clip.labels}
    buffers, visible = insert(buffers, layer, layer.depth_range(), (0.0, 0.05))
    inside = visible[..., 0] > 0.95
    y, x = np.mgrid[:64, :64] + 0.5
    for direction in ((-1, 0.25, 0.5), (1, 0.25, 0.5), (0, 1, 0.5)):
        light = environment_maps(spot(direction, height=32), 1, forward.environment_size, rotation=0.0)
        lit = forward({label: image[None, None] for label, image in buffers.items()}, light)[0, 0]
        luminance = srgb_to_linear(lit) @ LUMINANCE
        brightest = inside & (luminance >= np.quantile(luminance[inside], 0.9))
        place = np.array([x[brightest].mean() / 64 - 0.55, 0.5 - y[brightest].mean() / 64]) / (0.55 / 2)
        toward = np.array(direction[:2]) / np.linalg.norm(direction[:2])
        assert place @ toward > 0.2
