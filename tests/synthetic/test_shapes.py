"""Parametric shapes: closed, oriented, reproducible."""

import numpy as np
import pytest

from drender.synthetic import shapes


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_family_members_are_closed_and_in_unit_ball(family):
    for seed in range(6):
        mesh = shapes.parametric(family, seed)
        corners = mesh.positions.reshape(-1, 3, 3).astype(np.float64)
        areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert np.linalg.norm(mesh.positions, axis=-1).max() == pytest.approx(1, abs=1e-5)
        assert np.abs(areas.sum(axis=0)).max() < 1e-5  # closed: what looks left is as large as what looks right
        assert np.einsum("fi,fi->", corners[:, 0], areas) > 0  # six times its volume: not inside out
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-5)
        outward = np.einsum(
            "fki,fi->fk", mesh.normals.reshape(-1, 3, 3), areas / np.linalg.norm(areas, axis=-1)[:, None]
        )
        assert outward.min() > 0.7  # no smoothing over creases
        assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1


def test_normals_match_analytic_shapes():
    ball = shapes.lathe(shapes.superellipse(), shapes.arch(1.0))
    np.testing.assert_allclose(
        ball.normals, ball.positions / np.linalg.norm(ball.positions, axis=-1)[:, None], atol=0.04
    )
    cube = shapes.parametric("cube", 0)
    np.testing.assert_allclose(
        np.sort(np.abs(cube.normals), axis=-1), np.tile([0, 0, 1], (len(cube.normals), 1)), atol=1e-6
    )
    for round_ in (False, True):
        ground = shapes.plane(2.0, round_)
        assert (ground.normals == [0, 1, 0]).all() and np.abs(ground.positions).max() == pytest.approx(2, abs=0.01)


def test_families_are_reproducible():
    first, second, other = (shapes.parametric("pebble", seed) for seed in (1, 1, 2))
    assert (first.positions == second.positions).all() and (first.positions[:9] != other.positions[:9]).any()
