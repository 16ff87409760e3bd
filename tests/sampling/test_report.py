"""Contents of the HTML page of a run."""

import re

import numpy as np
import pytest
from helpers.pages import HOSTILE, LABELS, Page, clip, decode, frame
from hypothesis import given
from hypothesis import strategies as st

from drender import InputError
from drender.assets import ASSETS
from drender.sampling import report
from drender.sampling.report import PageClip, write_page

NOT_UTF8 = "\udcff"  # Python's form of a byte of a file name that is not UTF-8


def test_page_holds_all_frames_and_links_nothing(tmp_path):
    write_page(tmp_path / "index.html", "Relighting", [clip(), clip("two", count=1)], {"steps": 20})
    found = Page(tmp_path / "index.html")
    assert found.links == ["data:,"]  # no icon
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", (ASSETS / "page.html").read_text("utf-8"))
    assert [entry["name"] for entry in found.data["clip"]] == ["ball", "two"]
    assert found.data["clip"][0]["shown"] == [0, 1, 2, 3, 4]
    for described, images, count in zip(found.data["clip"], found.data["images"], (5, 1), strict=True):
        assert list(images) == described["labels"] == list(LABELS)
        for label, uris in images.items():
            assert len(uris) == count
            for i, uri in enumerate(uris):
                np.testing.assert_allclose(decode(uri), frame(label, i), atol=0.03)


def test_chroma_is_not_subsampled(tmp_path):
    """One red column between blue ones stays red."""
    stripes = np.zeros((16, 16, 3), np.float32)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 1
    write_page(tmp_path / "p.html", "", [PageClip("a", 1.0, 1, {"rgb": lambda i: stripes})], {})
    assert np.abs(decode(Page(tmp_path / "p.html").data["images"][0]["rgb"][0]) - stripes).mean() < 0.05


def test_names_and_settings_are_escaped(tmp_path):
    write_page(tmp_path / "plain.html", "t", [clip()], {"input": "x"})
    name = HOSTILE + NOT_UTF8
    write_page(tmp_path / "p.html", name, [clip(name)], {"input": name})
    plain, found = Page(tmp_path / "plain.html"), Page(tmp_path / "p.html")
    assert found.tags == plain.tags  # nothing broke out
    assert found.data["clip"][0]["name"] == found.data["run"][0]["settings"]["input"] == name
    assert f"{HOSTILE}?" in found.text


def test_settings_that_are_off_are_not_shown(tmp_path):
    values = {"num_steps": 20, "flip": False, "poses": None, "drop": [], "rotate_light": True, "size": (64, 128)}
    values |= {"rotation": 180.0, "strength": 0.25, "seed": 0, "input": f"{ASSETS}/clips"}
    write_page(tmp_path / "p.html", "t", [clip()], values)
    assert Page(tmp_path / "p.html").data["run"][0]["settings"] == {
        "num steps": "20", "rotate light": "yes", "size": "64, 128", "rotation": "180", "strength": "0.25", "seed": "0",
        "input": "drender/assets/clips",
    }  # fmt: skip


def test_lights_that_turn_have_a_thumbnail_per_frame(tmp_path):
    write_page(tmp_path / "p.html", "t", [clip()], {})
    lights = Page(tmp_path / "p.html").data["clip"][0]["lights"]
    assert [light["name"] for light in lights.values()] == ["still", "turning"]
    assert [len(light["thumbnails"]) for light in lights.values()] == [1, 5]
    for i, uri in enumerate(lights["env0001"]["thumbnails"]):
        np.testing.assert_allclose(decode(uri), 0.1 * i, atol=0.01)


def test_long_clips_are_thinned_evenly(tmp_path):
    write_page(tmp_path / "p.html", "t", [clip(count=301, labels=("rgb",))], {})
    found = Page(tmp_path / "p.html")
    assert found.data["clip"][0]["shown"] == list(range(0, 301, 3))  # 101 frames: every second would be 151
    assert found.data["clip"][0]["numFrames"] == 301
    for i, uri in zip(range(0, 301, 3), found.data["images"][0]["rgb"], strict=True):
        np.testing.assert_allclose(decode(uri), frame("rgb", i), atol=0.03)


def test_large_frames_are_scaled_down(tmp_path):
    write_page(tmp_path / "p.html", "t", [clip(count=1, size=(720, 1280), labels=("rgb",))], {})
    found = Page(tmp_path / "p.html")
    assert found.data["clip"][0]["sizes"] == {"rgb": [720, 1280]}
    image = decode(found.data["images"][0]["rgb"][0])
    assert image.shape == (288, 512, 3)
    np.testing.assert_allclose(image, frame("rgb", 0, (288, 512)), atol=0.03)


sides = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@given(st.integers(1, 5000), st.lists(sides, min_size=1, max_size=12), st.integers(1, 800))
def test_page_stays_within_its_pixel_limits(count, sizes, clips):
    sizes = {str(label): size for label, size in enumerate(sizes)}
    shown, scales = report._selection(count, sizes, report.MAX_PIXELS // clips)
    assert shown[0] == 0 and len(shown) <= report.MAX_FRAMES and shown[-1] < count
    longest = {label: scales[label] * max(size) for label, size in sizes.items()}
    assert max(scales.values()) <= 1 and max(longest.values()) <= report.MAX_SIDE + 1e-6
    pixels = sum(h * w * scales[label] ** 2 for label, (h, w) in sizes.items())
    assert clips * len(shown) * pixels <= report.MAX_PIXELS * 1.000001
    if count <= report.MAX_FRAMES and clips * count * len(sizes) * report.MAX_SIDE**2 <= report.MAX_PIXELS:
        assert list(shown) == list(range(count))
        assert all(longest[label] >= min(max(size), report.MAX_SIDE) - 1e-6 for label, size in sizes.items())


def test_page_is_written_atomically_and_reproducibly(tmp_path):
    path = tmp_path / "p.html"
    write_page(path, "t", [clip()], {})
    before = path.read_bytes()
    damaged = clip()
    damaged.frames["normal"] = lambda i: (_ for _ in ()).throw(InputError("0003.png: damaged"))
    with pytest.raises(InputError, match=r"0003\.png"):
        write_page(path, "t", [clip(), damaged], {})
    with pytest.raises(InputError, match="cannot write"):
        write_page(path / "below" / "p.html", "t", [clip()], {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.html"] and path.read_bytes() == before
    write_page(path, "t", [clip()], {})
    assert path.read_bytes() == before
