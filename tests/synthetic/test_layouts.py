"""Scenes of everyday objects: placement, cameras, determinism and splits."""

import functools

import numpy as np
import pytest
from helpers.textured import write_box

from drender.synthetic import layouts, solids
from drender.synthetic.mesh_files import mesh_outline, outermost
from drender.synthetic.shapes import FAMILIES, parametric
from drender.synthetic.splits import AssetSplit

pytest.importorskip("trimesh")
SIZES = ((0.3, 0.8, 0.3), (1.8, 0.8, 0.9), (0.1, 0.12, 0.1), (0.5, 1.9, 0.4), (1.2, 0.7, 0.7))


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    files = tuple(str(write_box(folder / f"box{i}.obj", size)) for i, size in enumerate(SIZES))
    return AssetSplit(("cube", "vase"), files, ("sunset", "park"), ("wood.png",))


def boxes_of(scene, time: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the bounding boxes of the objects as they are rendered."""
    boxes = []
    for item in scene.objects:
        mesh = item.shape not in FAMILIES
        points = mesh_outline(item.shape)[0] if mesh else outermost(parametric(item.shape, item.seed))
        turned = points @ item.rotation(time).T * item.radius
        lift = turned[:, 1].min() if scene.plane is not None else 0
        center = item.center(time) - [0, lift, 0]
        boxes.append((turned.min(axis=0) + center, turned.max(axis=0) + center))
    return boxes


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in layouts.LAYOUTS if name != "solids"])
def test_objects_never_meet_and_camera_stays_outside(assets, layout):
    for index in range(25):
        scene = layouts.random_scene(0, "all", index, assets, (layout,))
        assert scene.layout == layout and 1 <= len(scene.objects) <= 8
        assert len(scene.walls) == {"wall": 1, "corner": 2}.get(layout, 0)
        assert (scene.plane is None) == (layout == "air")
        for time in np.linspace(0, 1, 5):
            boxes = boxes_of(scene, float(time))
            for i, (low, high) in enumerate(boxes):
                for other_low, other_high in boxes[:i]:
                    assert (low > other_high - 1e-6).any() or (high < other_low + 1e-6).any()
                for wall in scene.walls:
                    normal = np.cross(wall.across, wall.up) / np.linalg.norm(np.cross(wall.across, wall.up))
                    assert np.minimum(low * normal, high * normal).sum() > np.dot(wall.corner, normal) - 1e-6
            eye = scene.camera.pose(float(time))[:3, 3]
            assert not any(((eye > low) & (eye < high)).all() for low, high in boxes)
            assert layout == "air" or eye[1] > 0


def test_corners_use_the_sizes_of_files(assets):
    drawn = [layouts.random_scene(0, "all", index, assets, ("corner",)) for index in range(50)]
    sofa = next(item for scene in drawn for item in scene.objects if "box1" in item.shape)
    assert sofa.radius == pytest.approx(np.linalg.norm(SIZES[1]) / 2, rel=1e-4)


def test_scene_depends_only_on_its_arguments(assets):
    draw = functools.partial(layouts.random_scene, assets=assets, layouts=layouts.LAYOUTS)
    assert draw(0, "all", 3) == draw(0, "all", 3)
    assert len({repr(draw(*key)) for key in ((0, "all", 3), (1, "all", 3), (0, "train", 3), (0, "all", 4))}) == 4
    assert {draw(0, "all", index).layout for index in range(60)} == set(layouts.LAYOUTS)
    assert draw(0, "all", 5).layout != "solids" or draw(0, "all", 5) == solids.random_solids(0, "all", 5, assets)


def test_used_files_are_meshes_and_pictures(assets):
    for index in range(30):
        scene = layouts.random_scene(0, "all", index, assets, ("corner",))
        assert scene.files <= {*assets.meshes, *assets.textures}
