"""G-buffer folders: names, the three layouts and their errors."""

import numpy as np
import pytest
from helpers.refusals import broken

from drender.config import CONDITIONS, DEFAULT_PASSES, DOMAINS
from drender.errors import InputError
from drender.media.encodings import InputEncoding
from drender.media.gbuffers import find_gbuffer_clips, frame_path
from drender.media.images import write_exr, write_png

RELEASED = "{chunk:04d}.{frame:04d}.{label}.png"
WEBDATASET = "walk-{frame}.{label}.png"
FOLDERS = "{label}/{frame}.png"


def frame_value(label, chunk, frame):
    return (DOMAINS.get(label, 9) * 4096 + chunk * 256 + frame) / 65535


def write_clip(folder, layout=RELEASED, labels=CONDITIONS, chunks=(2,), size=(2, 3)):
    """Frames of one colour, 16 bits, which says where they belong."""
    for chunk, frames in enumerate(chunks):
        for frame in range(frames):
            for label in labels:
                image = np.full((*size, 3), frame_value(label, chunk, frame), np.float32)
                write_png(folder / layout.format(chunk=chunk, frame=frame, label=label), image, bits=16)
    return folder


# --- Names ---


def test_names_match_released_models():
    assert list(DOMAINS) == ["basecolor", "metallic", "roughness", "normal", "depth", "diffuse_albedo"]
    assert list(DOMAINS.values()) == [0, 1, 2, 3, 4, 5]
    assert DEFAULT_PASSES == ("basecolor", "metallic", "roughness", "normal", "depth")
    assert CONDITIONS == ("basecolor", "normal", "depth", "roughness", "metallic")


# --- Folders ---


def test_frame_path_of_released_layout(tmp_path):
    assert frame_path(tmp_path, 2, 13, "basecolor") == tmp_path / "0002.0013.basecolor.png"
    assert str(frame_path("out", 0, 0, "env0001")).endswith("0000.0000.env0001.png")


@pytest.mark.parametrize("name", ["rgb", "depth", "basecolor", "orm"])
def test_clips_may_be_named_as_buffers(tmp_path, name):
    for clip in (name, "walk"):
        write_clip(tmp_path / clip)
    named, walk = sorted(find_gbuffer_clips(tmp_path, labels=("rgb",)), key=lambda clip: clip.name == "walk")
    assert (named.name, named.folder, walk.folder) == (name, tmp_path / name, tmp_path / "walk")
    assert set(named.labels) == set(walk.labels) == set(CONDITIONS)


@pytest.mark.parametrize("layout", [RELEASED, WEBDATASET, FOLDERS])
def test_round_trip_in_every_layout(tmp_path, layout):
    chunks = (12, 3) if layout == RELEASED else (12,)  # 12: natural order matters
    (clip,) = find_gbuffer_clips(write_clip(tmp_path / "walk", layout, chunks=chunks))
    assert clip.name == "walk" and set(clip.labels) == set(CONDITIONS)
    assert clip.chunks == dict(enumerate(chunks))
    for label in CONDITIONS:
        found = np.stack([*clip.frames(label)])
        assert found.shape == (sum(chunks), 2, 3, 3) and found.dtype == np.float32
        expected = [frame_value(label, chunk, frame) for chunk, count in enumerate(chunks) for frame in range(count)]
        np.testing.assert_allclose(found[:, 1, 2, 0], expected, atol=1e-7)


def test_clips_in_natural_order(tmp_path):
    for name, layout in (("clip10", RELEASED), ("clip2", FOLDERS), ("a", WEBDATASET)):
        write_clip(tmp_path / name, layout)
    write_clip(tmp_path / "only pictures", labels=("rgb",))
    write_clip(tmp_path / ".hidden")
    (tmp_path / "clip2.viz.mp4").write_text("")
    assert [clip.name for clip in find_gbuffer_clips(tmp_path)] == ["a", "clip2", "clip10"]


def test_other_files_are_ignored(tmp_path):
    write_clip(tmp_path, labels=(*CONDITIONS, "rgb", "env0000"))
    for name in (".0000.0009.depth.png", "notes.depth.txt", "depth.png", "0000.0000.depth"):
        (tmp_path / name).write_text("")
    (clip,) = find_gbuffer_clips(tmp_path)
    assert set(clip.labels) == set(CONDITIONS) and clip.chunks == {0: 2}


@pytest.mark.parametrize("layout", [RELEASED, WEBDATASET, FOLDERS])
def test_extra_labels_are_found_on_request(tmp_path, layout):
    write_clip(tmp_path / "walk", layout, labels=(*CONDITIONS, "rgb", "mask"))
    (clip,) = find_gbuffer_clips(tmp_path, required=("rgb", "depth"), labels=("mask", "rgb"))
    assert set(clip.labels) == {*CONDITIONS, "rgb", "mask"}
    np.testing.assert_allclose([*clip.frames("rgb")][1][0, 0], frame_value("rgb", 0, 1), atol=1e-7)
    (clip,) = find_gbuffer_clips(tmp_path, required=("rgb",), labels=("rgb",))
    assert "mask" not in clip.labels
    with pytest.raises(InputError, match="clip 'walk' has no 'env0000'"):
        find_gbuffer_clips(tmp_path, required=("env0000",), labels=("env0000",))


def test_exr_frames_among_png(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    write_clip(tmp_path)
    depth = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    for frame in (0, 1):
        (tmp_path / f"0000.{frame:04d}.depth.png").unlink()
        file = OpenEXR.File({"type": OpenEXR.scanlineimage}, {"Y": depth / (frame + 1)})
        file.write(str(tmp_path / f"0000.{frame:04d}.depth.exr"))
    found = np.stack([*find_gbuffer_clips(tmp_path)[0].frames("depth")])
    np.testing.assert_array_equal(found, np.stack([depth, depth / 2])[..., None] * np.ones(3, np.float32))


def test_required_labels(tmp_path):
    write_clip(tmp_path, labels=("basecolor", "diffuse_albedo"))
    frame_path(tmp_path, 0, 1, "diffuse_albedo").unlink()
    (clip,) = find_gbuffer_clips(tmp_path, required=("basecolor",))
    assert clip.labels == ("basecolor",) and clip.chunks == {0: 2}
    (clip,) = find_gbuffer_clips(tmp_path, required=())
    assert clip.labels == ("basecolor",)


# --- Errors ---


def test_frames_without_the_required_labels_are_named(tmp_path):
    folder = write_clip(tmp_path / "walk", labels=("rgb", "depth"), chunks=(4,))
    for frame in (1, 2):
        (folder / f"0000.{frame:04d}.rgb.png").unlink()
    with pytest.warns(UserWarning) as caught:
        (clip,) = find_gbuffer_clips(tmp_path, ("rgb",), labels=("rgb",))
    (message,) = (str(warning.message) for warning in caught)
    assert message == "clip 'walk': 2 frames, such as 0000.0001, have no 'rgb', so they are left out; add the files"
    assert [path.name for path in clip.paths["depth"]] == ["0000.0000.depth.png", "0000.0003.depth.png"]


def test_error_names_missing_frames(tmp_path):
    write_clip(tmp_path / "walk", chunks=(4, 2))
    frame_path(tmp_path / "walk", 0, 3, "depth").unlink()
    frame_path(tmp_path / "walk", 0, 1, "normal").unlink()
    frame_path(tmp_path / "walk", 1, 0, "normal").unlink()
    message = broken(find_gbuffer_clips, tmp_path)
    assert "clip 'walk' has no 'normal' (frame 0000.0001 and 1 more), no 'depth' (frame 0000.0003)" in message


def test_error_names_missing_buffer(tmp_path):
    write_clip(tmp_path / "walk", labels=("basecolor", "depth", "roughness", "metallic"))
    assert "clip 'walk' has no 'normal' (frame 0000.0000 and 1 more)" in broken(find_gbuffer_clips, tmp_path / "walk")
    write_clip(tmp_path / "run", labels=("diffuse_albedo",))
    assert "clip 'run' has no 'basecolor', no 'depth'" in broken(
        find_gbuffer_clips, tmp_path / "run", ("basecolor", "depth")
    )


def test_clip_without_a_complete_buffer_is_an_input_error(tmp_path):
    for name in ("0000.0000.basecolor.png", "0000.0001.normal.png"):
        write_png(tmp_path / name, np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match="no G-buffer has all 2 frames"):
        find_gbuffer_clips(tmp_path, ())


def test_no_gbuffers_is_an_input_error(tmp_path):
    assert "does not exist" in broken(find_gbuffer_clips, tmp_path / "none")
    write_clip(tmp_path / "walk", labels=("rgb",))
    assert "no G-buffers" in broken(find_gbuffer_clips, tmp_path)
    assert "is not a folder" in broken(find_gbuffer_clips, tmp_path / "walk" / "0000.0000.rgb.png")


def test_duplicate_frame_is_an_input_error(tmp_path):
    write_clip(tmp_path)
    frame_path(tmp_path, 0, 0, "depth").with_suffix(".jpg").write_text("")
    assert "0000.0000.depth.png are the same buffer" in broken(find_gbuffer_clips, tmp_path)


def test_frames_of_different_size_are_an_input_error(tmp_path):
    write_clip(tmp_path, chunks=(3,))
    write_png(frame_path(tmp_path, 0, 2, "depth"), np.zeros((4, 4, 3), np.float32))
    (clip,) = find_gbuffer_clips(tmp_path)
    assert len([*clip.frames("normal")]) == 3
    with pytest.raises(InputError, match=r"0000\.0002\.depth\.png has 4x4 pixels, 0000\.0000\.depth\.png 3x2"):
        list(clip.frames("depth"))


def test_links_to_clips_have_names_of_their_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / name).symlink_to(write_clip(tmp_path / "store" / name / "frames"))
    assert [clip.name for clip in find_gbuffer_clips(tmp_path / "clips")] == ["a", "b"]
    assert [clip.name for clip in find_gbuffer_clips(tmp_path / "clips" / "b")] == ["b"]


def test_unrelated_stills_are_clips_of_their_own(tmp_path):
    for stem in ("chair", "lamp", "walk-1", "walk-2"):
        for label in CONDITIONS:
            write_png(tmp_path / "set" / f"{stem}.{label}.png", np.full((2, 3, 3), 0.5, np.float32))
    clips = {clip.name: clip.chunks for clip in find_gbuffer_clips(tmp_path / "set")}
    assert clips == {"set_chair": {0: 1}, "set_lamp": {0: 1}, "set_walk": {0: 2}}


def test_missing_frames_are_named(tmp_path):
    for number in (1, 2, 3, 5):
        write_png(tmp_path / "walk" / f"{number}.depth.png", np.full((2, 3, 3), 0.5, np.float32))
    with pytest.warns(UserWarning, match="walk: frames are missing between '1' and '5': 4;"):
        (clip,) = find_gbuffer_clips(tmp_path, ["depth"])
    assert clip.chunks == {0: 4}


def test_frames_of_multi_layer_exr_need_no_names_of_labels(tmp_path):
    value = lambda x: np.full((2, 3), x, np.float32)
    for frame in range(2):
        layers = {f"View.DiffCol.{c}": value(0.25) for c in "RGB"} | {"View.Depth.Z": value(0.5)}
        normal = {f"View.Odd.{c}": value(x) for c, x in zip("XYZ", (0, 0, 1), strict=True)}
        write_exr(tmp_path / "shot" / f"a.{frame}.exr", layers | normal)
    assumed = InputEncoding(layers=(("normal", "Odd"),))
    (clip,) = find_gbuffer_clips(tmp_path / "shot", ("basecolor", "normal", "depth"), assumed=assumed)
    assert (clip.name, clip.chunks, clip.folder) == ("shot", {0: 2}, tmp_path / "shot")
    np.testing.assert_allclose(
        np.stack([*clip.frames("normal")]), np.broadcast_to([0.5, 0.5, 1], (2, 2, 3, 3)), atol=1e-6
    )
    np.testing.assert_allclose(np.stack([*clip.frames("depth")]), 0.5)
    message = broken(find_gbuffer_clips, tmp_path / "shot", ("basecolor", "normal"))
    assert "a.0.exr: no layer fits the label 'normal': View.Depth, View.DiffCol, View.Odd; name one with" in message


def test_layers_of_a_new_kind_of_gbuffer(tmp_path):
    layers = {"View.Gloss.V": np.full((2, 3), 0.25), "View.Depth.Z": np.full((2, 3), 0.5)}
    write_exr(tmp_path / "shot" / "a.0.exr", layers)
    assumed, labels = InputEncoding(layers=(("glossiness", "Gloss"),)), ("glossiness", "depth")
    (clip,) = find_gbuffer_clips(tmp_path / "shot", labels, labels=labels, assumed=assumed)
    np.testing.assert_allclose(next(clip.frames("glossiness")), 0.25)
