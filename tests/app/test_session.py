"""The page's work, without a page: reading, lighting, editing and saving."""

import zipfile

import numpy as np
import pytest
from helpers.runs import write_frames
from helpers.stand_ins import ForwardStandIn, InverseStandIn

from drender import assets
from drender.app.session import Light, Session
from drender.errors import InputError
from drender.lighting.environment import environment_maps
from drender.media.images import read_image, write_png
from drender.media.video import find_clips

SIZE = (64, 64)


@pytest.fixture
def session(tmp_path, small_cubes) -> Session:
    (tmp_path / "session").mkdir()
    session = Session(tmp_path / "session")
    session.open(write_frames(tmp_path / "walk", 3), SIZE, 2)
    shades = {"basecolor": 0.2, "normal": 0.5, "depth": 0.5, "roughness": 0.4, "metallic": 0.0}
    session.estimated = {name: np.full_like(session.rgb, shade) for name, shade in shades.items()}
    session.estimated["basecolor"][:, :, 32:] = 0.8
    session.reset()
    return session


@pytest.mark.parametrize("turn", [{"yaw": 90.0}, {"pitch": -40.0, "exposure": 1.5}, {"yaw": 20.0, "roll": 130.0}])
def test_the_mirror_ball_shows_the_light_that_renders(small_cubes, turn):
    path = assets.environment("studio")
    expected = environment_maps(path, 1, (48, 48), projection="ball", **turn)["env_ldr"][0]
    shown = Light(path, **turn).mirror_ball(48)
    # The turn is applied to the look-up instead of to the cube map, which is sampled once less.
    assert np.abs(shown - np.asarray(expected)).mean() < 0.02


def test_opening_reads_the_first_frames_and_says_so(session, tmp_path):
    assert session.rgb.shape == (2, 64, 64, 3)
    lines = session.open(write_frames(tmp_path / "long", 5), SIZE, 2)
    assert lines[0].startswith("long: the first 2 of 5 frames")
    assert session.buffers == {}


def test_bad_files_leave_the_session_unchanged(session, tmp_path):
    before = session.rgb
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    write_png(tmp_path / "strip.png", np.zeros((8, 400, 3), np.float32))
    for name in ("notes.txt", "broken.png", "strip.png"):
        with pytest.raises(InputError):
            session.open(tmp_path / name, SIZE, 24)
    assert session.rgb is before
    assert session.name == "walk"


def test_edits_change_a_color_range_and_can_be_undone(session):
    assert session.edit("#333333", 0.1, {"basecolor": "#ff0000", "metallic": "1"}) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(session.buffers["basecolor"][0, 0, 0], [1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(session.buffers["basecolor"][:, :, 40:], session.estimated["basecolor"][:, :, 40:])
    assert session.buffers["metallic"][0, 0, 0, 0] == 1
    session.reset()
    np.testing.assert_array_equal(session.buffers["metallic"], session.estimated["metallic"])
    with pytest.raises(InputError, match="nothing to change"):
        session.edit("#333333", 0.1, {})


def test_missing_buffers_are_named(session):
    del session.buffers["depth"], session.buffers["basecolor"]  # cancelled before they were estimated
    with pytest.raises(InputError, match="no basecolor, no depth yet"):
        session.relight(ForwardStandIn(), Light(assets.environment("studio")))
    with pytest.raises(InputError, match="no basecolor yet"):
        session.edit("#333333", 0.1, {"metallic": "1"})


@pytest.mark.parametrize("gray", ["#cccccc", "rgb(204, 204, 204)", "rgba(203.7, 204.1, 204, 1)"])
def test_colors_of_every_picker_are_read(session, gray):
    assert session.edit(gray, 0.01, {"basecolor": "rgba(255, 0, 0, 1)"}) == pytest.approx(0.5)
    np.testing.assert_allclose(session.buffers["basecolor"][0, 0, -1], [1, 0, 0], atol=1e-6)


def test_results_are_saved_in_every_format(session):
    session.relit = np.linspace(0, 1, session.rgb.size, dtype=np.float32).reshape(session.rgb.shape)
    video = session.save("mp4")
    assert find_clips(video)[0].num_frames == 2
    for kind, name in (("png", "walk/0000.0001.env0000.png"), ("exr", "walk/0000.0001.env0000.exr")):
        with zipfile.ZipFile(session.save(kind)) as archive:
            assert name in archive.namelist()
    with zipfile.ZipFile(session.save("gbuffers")) as archive:
        assert "walk/0000.0000.basecolor.png" in archive.namelist()
    session.relit = session.relit[:1]
    np.testing.assert_allclose(read_image(session.save("png")), session.relit[0], atol=0.5 / 255)
    session.close()
    assert not session.folder.exists()


def test_jobs_can_be_stopped(session):
    events = []

    class Inverse(InverseStandIn):
        def encode(self, images, sampling, rng=None):
            return images

        def estimate(self, *arguments, stop):
            events.append(stop)
            return super().estimate(*arguments, progress=False)

    class Forward(ForwardStandIn):
        def __call__(self, buffers, environment, *, stop):
            events.append(stop)
            return buffers["basecolor"]

    assert list(session.estimate(Inverse(), ["normal", "depth"])) == ["normal", "depth"]
    session.relight(Forward(), Light(assets.environment("studio")))
    assert events == [session.stop] * 2
    assert session.relit.shape == session.rgb.shape
