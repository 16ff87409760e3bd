"""Random scenes: placement, motion, determinism and splits."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from drender.synthetic import environments, shapes, solids
from drender.synthetic.scene import MOTIONS
from drender.synthetic.splits import split_assets

EVERYTHING = split_assets("all", (), tuple(environments.find_environments()))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_objects_never_meet_and_camera_stays_outside(index):
    scene = solids.random_solids(0, "all", index, EVERYTHING)
    assert 1 <= len(scene.objects) <= 6
    for time in np.linspace(0, 1, 9):
        centers = np.stack([item.center(time) for item in scene.objects])
        radii = np.array([item.radius for item in scene.objects])
        gaps = np.linalg.norm(centers[:, None] - centers, axis=-1) - radii[:, None] - radii
        assert (gaps[~np.eye(len(radii), dtype=bool)] > 0.99 * solids.GAP).all()
        pose = scene.camera.pose(float(time))
        eye = pose[:3, 3]
        if scene.plane is None:
            assert (np.linalg.norm(centers - eye, axis=-1) > radii).all()
        else:
            assert eye[1] > 0 and (centers[:, 1] == 0).all()
            assert (np.linalg.norm((centers - eye)[:, [0, 2]], axis=-1) > radii).all() or eye[1] > 2 * radii.max()
            assert (np.abs(centers) + radii[:, None] <= scene.plane.half).all()
        rotation = pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5) and rotation[1, 1] > 0  # upright
        np.testing.assert_allclose((scene.camera.target - eye) @ rotation, [0, 0, -scene.camera.distance], atol=1e-3)


def test_exactly_one_motion_per_clip():
    seen = set()
    for index in range(60):
        scene = solids.random_solids(0, "all", index, EVERYTHING)
        moving = {
            "orbit": scene.camera.sweep != 0,
            "oscillation": scene.camera.swing[0] > 0,
            "light": all(light.spin != 0 for light in scene.lights),
            "rotation": all(item.spin != 0 for item in scene.objects),
            "translation": all(np.any(item.shift) for item in scene.objects),
        }
        assert [name for name, moves in moving.items() if moves] == [scene.motion]
        seen.add(scene.motion)
    assert seen == set(MOTIONS)


def test_splits_share_no_asset():
    files = tuple(f"mesh{i}.ply" for i in range(200))
    pictures = tuple(f"wood{i}.jpg" for i in range(100))
    train, test = (split_assets(split, files, EVERYTHING.environments, pictures) for split in ("train", "test"))
    for name in ("families", "meshes", "environments", "textures"):
        ours, held_out = set(getattr(train, name)), set(getattr(test, name))
        assert ours and held_out and not ours & held_out
    assert set(train.families) | set(test.families) == set(shapes.FAMILIES)
    assert set(test.families) == set(shapes.HELD_OUT)
    assert 5 < len(test.meshes) < 40
    moved = tuple(f"elsewhere/{path}" for path in files)
    assert len(split_assets("test", moved, ()).meshes) == len(test.meshes)
    shown = {item.shape for i in range(40) for item in solids.random_solids(0, "test", i, test).objects}
    assert shown <= set(test.families) | set(test.meshes)
