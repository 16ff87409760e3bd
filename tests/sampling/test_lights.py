"""The environments of a run: several, turning, and folders with a map for every frame."""

import numpy as np
import pytest

from drender import assets
from drender.errors import InputError
from drender.lighting import environment
from drender.lighting.environment import environment_maps
from drender.media.images import write_png
from drender.sampling.lights import Lights

SIZE = (12, 12)
pytestmark = [pytest.mark.usefixtures("small_cubes"), pytest.mark.filterwarnings("ignore:.*is not an HDR image")]


def write_maps(folder, lights):
    """Grey maps: what a pixel stores is the number of the map."""
    for i, light in enumerate(lights):
        write_png(folder / f"sky{i}.png", np.full((4, 8, 3), light, np.float32), bits=16)
    return folder


def same(found, expected):
    assert found.keys() == expected.keys()
    for label, images in expected.items():
        np.testing.assert_allclose(found[label], images, atol=1e-6, err_msg=label)


@pytest.fixture
def read(monkeypatch):
    """The maps that are read, in order."""
    names, load_latlong = [], environment.load_latlong
    monkeypatch.setattr(
        environment,
        "load_latlong",
        lambda source, **options: (names.append(source.name), load_latlong(source, **options))[1],
    )
    return names


def test_lights_equal_environment_maps():
    names = ("forest", "night")
    paths = [assets.environment(name) for name in names]
    lights = Lights(paths, rotate_light=True, exposure="auto", roll=20.0, elevation=10.0, elevation_sign="up")
    assert lights.labels == ["env0000", "env0001"]
    for index, path in enumerate(paths):
        whole = environment_maps(
            path, 4, SIZE, rotate_light=True, exposure="auto", roll=20.0, elevation=10.0, elevation_sign="up"
        )
        frames = np.array([1, 3, 3, 0])
        found = lights.maps(index, frames, 4, SIZE)
        same(found, {label: images[frames] for label, images in whole.items()})


def test_a_folder_lights_every_frame_by_its_own_map(tmp_path):
    lights = Lights([write_maps(tmp_path / "sky", np.linspace(0.2, 1, 12))])
    lights.check("walk", 12)
    for frames in ([0, 1], [11, 11], [10, 3]):
        found = lights.maps(0, np.array(frames), 12, SIZE)
        for i, frame in enumerate(frames):
            image = tmp_path / "sky" / f"sky{frame}.png"
            same({label: images[i : i + 1] for label, images in found.items()}, environment_maps(image, 1, SIZE))


def test_maps_of_a_folder_are_read_when_needed(read, tmp_path):
    lights = Lights([write_maps(tmp_path / "sky", np.linspace(0.1, 1, 300))])
    lights.check("walk", 300)
    assert read == ["sky0.png"]
    lights.maps(0, np.array([299, 299]), 300, SIZE)  # as a chunk that is filled up
    lights.maps(0, np.array([299, 0]), 300, SIZE)
    assert read == ["sky0.png", "sky299.png", "sky0.png"]  # one is held


def test_a_folder_equals_an_array_of_maps(tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.random((3, 8, 16, 3)).astype(np.float32)
    found = environment_maps(maps, 2, SIZE, rotate_light=True, exposure=1.0)  # the third is not used
    for i, yaw in enumerate((0.0, 360.0)):
        expected = environment_maps(maps[i], 1, SIZE, yaw=yaw, exposure=1.0)
        for label, images in expected.items():
            np.testing.assert_allclose(found[label][i : i + 1], images, atol=2e-5)
    for i, image in enumerate(maps):
        write_png(tmp_path / "sky" / f"{i}.png", np.clip(image, 0, 1), bits=16)
    from_folder = environment_maps(tmp_path / "sky", 2, SIZE, exposure="auto")
    assert from_folder["env_ldr"].shape == (2, *SIZE, 3)


def test_a_light_that_changes_is_exposed_as_one(tmp_path):
    folder = write_maps(tmp_path / "sky", (0.2, 0.9))
    maps = environment_maps(folder, 2, SIZE, exposure="auto")["env_ldr"]
    linear = np.array([environment_maps(folder / f"sky{i}.png", 1, SIZE)["env_ldr"][0, 0, 0, 0] for i in range(2)])
    assert maps[0].mean() < maps[1].mean() and linear[0] < linear[1]
    assert maps[0].mean() < environment_maps(np.full((1, 2, 3), 0.6, np.float32), 1, SIZE)["env_ldr"].mean()


def test_too_few_maps_are_an_error(tmp_path):
    folder = write_maps(tmp_path / "sky", (0.5, 0.5))
    lights = Lights([folder])
    lights.check("walk", 2)
    message = f"has 3 frames, but environment {folder} only 2 maps; give one for each, or one file for all"
    with pytest.raises(InputError, match=f"clip 'walk' {message}"):
        lights.check("walk", 3)
    with pytest.raises(InputError, match=message):
        environment_maps(folder, 3, SIZE)
    with pytest.raises(InputError, match="holds no maps"):
        environment_maps(np.zeros((0, 4, 8, 3), np.float32), 1, SIZE)


def test_a_damaged_map_is_named_when_it_is_read(tmp_path):
    folder = write_maps(tmp_path / "sky", (0.5, 0.5, 0.5))
    (folder / "sky1.png").write_bytes((folder / "sky1.png").read_bytes()[:60])
    lights = Lights([folder])
    lights.maps(0, np.array([2]), 3, SIZE)
    with pytest.raises(InputError, match=r"sky1\.png: truncated"):
        lights.maps(0, np.array([1]), 3, SIZE)


def test_a_dark_map_is_a_warning_that_names_it_once(tmp_path):
    folder = write_maps(tmp_path / "sky", (0.5, 0.02, 0.03))
    lights = Lights([folder])
    with pytest.warns(UserWarning, match=r"sky1\.png is dark: mean luminance 0.0015, and 100% .* --exposure") as warned:
        lights.maps(0, np.arange(3), 3, SIZE)
    assert len(warned) == 1


def test_displayed_maps_of_a_still_light_are_computed_once(monkeypatch):
    lights = [Lights([assets.environment("night")], rotate_light=turning) for turning in (False, True)]
    for light, count in zip(lights, (1, 3), strict=True):
        computed, maps = [], light.maps
        monkeypatch.setattr(
            light, "maps", lambda *args, maps=maps, calls=computed: (calls.append(args), maps(*args))[1]
        )
        shown = [light.displayed(0, frame, 4, (8, 8)) for frame in (0, 1, 2, 1)]
        assert len(computed) == count
        for frame, image in zip((0, 1, 2, 1), shown, strict=True):
            np.testing.assert_array_equal(image, maps(0, np.array([frame]), 4, (8, 8))["env_ldr"][0])


def test_insets_fit_into_frames_of_few_pixels(tmp_path):
    lights = Lights([write_maps(tmp_path, [0.5]) / "sky0.png"])
    for size in ((1, 1), (3, 200), (8, 8)):
        image = lights.inset(np.zeros((*size, 3), np.float32), 0, 0, 1)
        assert image.shape == (*size, 3) and (image > 0).any(axis=-1).sum() == max(1, min(size) // 4) ** 2
