"""The truth about the motorcycle, on a plane whose depth and normal are known."""

import numpy as np
import photographs
import pytest

from drender.media.encodings import decode_normal


@pytest.mark.parametrize("size", [(20, 20), (10, 15)])
def test_a_slanted_plane_has_its_depth_and_normal(size):
    """z = 4 m + x / 2, with z away from the camera: x = z (u − 80) / f, so z = 4 / (1 − (u − 80) / 2 f)."""
    u = np.arange(160) + 0.5
    z = np.broadcast_to(4 / (1 - (u - 80) / (2 * photographs.FOCAL)), (100, 160))
    disparity = photographs.BASELINE * photographs.FOCAL / z - photographs.OFFSET
    disparity[50, 80] = np.inf
    depth, normal, valid = photographs.truth(disparity, size)
    columns = 30 + ((np.arange(size[1]) + 0.5) * 100 / size[1]).astype(int)
    np.testing.assert_allclose(depth[0], z[0, columns], rtol=1e-6)
    expected = np.array([0.5, 0, 1]) / np.sqrt(1.25)  # of −z = −4 − x / 2, towards the camera
    np.testing.assert_allclose(decode_normal(normal)[valid], np.broadcast_to(expected, (valid.sum(), 3)), atol=1e-4)
    assert valid[0].all() and valid.sum() >= valid.size - 5
