"""Behavior of the HTML page of a run in a browser. Skipped if Chromium or its driver is not installed."""

import base64
import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.chromium import chromium
from helpers.pages import HOSTILE, clip, decode, frame
from PIL import Image

from drender.sampling.report import write_page

pytestmark = pytest.mark.browser


browser = pytest.fixture(scope="module")(chromium)


class Viewer:
    """A page that is open in a window of some width."""

    def __init__(self, browser, path: Path, width: int, height: int = 800, scheme: str = "light", motion: str = ""):
        self.browser = browser
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500, "maxTouchPoints": 1})
        browser.get(path.as_uri())

    def js(self, script: str, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def drawn(self, expected: str) -> None:
        """Waits until this label and frame are drawn."""
        until = time.monotonic() + 5
        while (found := self.js("document.getElementById('stage').dataset.drawn")) != expected:
            assert time.monotonic() < until, f"{found!r} is drawn, not {expected!r}"
            time.sleep(0.02)

    def shown(self, canvas: str) -> np.ndarray:
        uri = self.js(f"document.getElementById('{canvas}').toDataURL()")
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255

    def key(self, key: str, on: str = "document.body") -> None:
        self.js(f"{on}.dispatchEvent(new KeyboardEvent('keydown', {{key: arguments[0], bubbles: true}}))", key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        event = {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
        self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)

    def box(self, selector: str) -> dict:
        return self.js("document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)

    def split(self) -> float:
        return float(self.js("document.getElementById('divider').getAttribute('aria-valuenow')"))

    def screenshot(self) -> np.ndarray:
        content = self.browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 255

    def errors(self) -> list:
        return self.browser.get_log("browser")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(path, "Relighting", [clip(HOSTILE), clip("long", count=300)], {"steps": 20, "input": HOSTILE * 4})
    return path


@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize("width", (360, 1280))
def test_page_fits_its_window_in_both_schemes(browser, path, width, scheme):
    viewer = Viewer(browser, path, width, scheme=scheme)
    viewer.drawn("env0000 0")
    assert viewer.js("document.documentElement.scrollWidth") <= width
    stage = viewer.box("#stage")
    assert stage["left"] >= 0 and stage["right"] <= width and stage["bottom"] < 700
    assert stage["width"] / stage["height"] == pytest.approx(8 / 6, rel=0.01)
    small = viewer.js(
        "[...document.querySelectorAll('button, select, .choice')].map(x => x.getBoundingClientRect())"
        ".filter(x => x.width && (x.height < 40 || x.width < 40)).length"
    )
    assert small == 0  # fingers hit them all
    picture = viewer.screenshot()
    assert (picture[2, 2].mean() > 0.9) == (scheme == "light")
    y = int(stage["top"] + stage["height"] * 0.8)
    left, right = (picture[y, int(stage["left"] + stage["width"] * x)] for x in (0.1, 0.9))
    np.testing.assert_allclose(left, frame("rgb", 0)[3, 0], atol=0.05)
    np.testing.assert_allclose(right, frame("env0000", 0)[3, 7], atol=0.05)
    assert viewer.errors() == []


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_text_has_enough_contrast(browser, path, scheme):
    """WCAG AA: a contrast of 4.5 to 1 of every text."""
    viewer = Viewer(browser, path, 1280, scheme=scheme)
    viewer.drawn("env0000 0")
    pairs = viewer.js(
        """[...document.querySelectorAll('h1, h2, legend, p, small, dt, dd, label, bdi, kbd, #number, span')].map(x => {
          const fill = (y) => getComputedStyle(y).backgroundColor;
          let behind = x;
          while (fill(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
          return [x.textContent, getComputedStyle(x).color, fill(behind)];
        })"""
    )
    assert len(pairs) > 20
    for text, *colours in pairs:
        light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, colours)


def luminance(colour: str) -> float:
    values = np.array([int(x) for x in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_every_control_has_a_name(browser, path):
    viewer = Viewer(browser, path, 1280)
    viewer.drawn("env0000 0")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = {}
    for node in nodes:
        if not node["ignored"]:
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(found["radio"]) == 4 and found["radio"][2:] == ["still", "turning"]
    assert {"Play", "Previous frame", "Next frame"} <= set(found["button"])
    assert sorted(found["slider"]) == ["Divider of the two images", "Frame"]
    for role in ("button", "radio", "slider", "combobox", "image"):
        assert all(found.get(role, [])), (role, found.get(role))


def test_buffers_and_lights_are_chosen_and_compared(browser, path):
    viewer = Viewer(browser, path, 1280)
    viewer.drawn("env0000 0")
    viewer.js("document.querySelector('input[value=env0001]').click()")
    viewer.drawn("env0001 0")
    np.testing.assert_allclose(viewer.shown("after"), frame("env0001", 0), atol=0.03)
    np.testing.assert_allclose(viewer.shown("before"), frame("rgb", 0), atol=0.03)
    viewer.key("2")
    viewer.drawn("normal 0")
    assert "up; blue is z, toward the camera" in viewer.js("document.getElementById('note').textContent")
    choose = "(x => { const s = document.getElementById('compare'); s.value = x; s.onchange(); })(arguments[0])"
    viewer.js(choose, "env0001")
    viewer.key("ArrowRight")
    viewer.drawn("normal 1")
    np.testing.assert_allclose(viewer.shown("before"), frame("env0001", 1), atol=0.03)
    for nothing in ("", "normal"):  # there is nothing to divide
        viewer.js(choose, nothing)
        viewer.key("ArrowRight")
        viewer.drawn("normal 2" if nothing == "" else "normal 3")
        assert viewer.js("document.getElementById('divider').hidden")
    assert viewer.errors() == []


def test_frames_are_scrubbed_stepped_and_played(browser, path):
    viewer = Viewer(browser, path, 1280, motion="reduce")
    viewer.drawn("env0000 0")
    assert viewer.js("view.playing") is False  # nothing moves unasked
    assert viewer.js("getComputedStyle(document.getElementById('play')).transitionProperty") == "none"
    scrub = "(x => { const s = document.getElementById('scrub'); s.value = x; s.oninput(); })(arguments[0])"
    viewer.js(scrub, 3)
    viewer.drawn("env0000 3")
    np.testing.assert_allclose(viewer.shown("after"), frame("env0000", 3), atol=0.03)
    assert viewer.js("document.getElementById('number').textContent") == "3 / 4"
    for key, at in (("ArrowRight", 4), ("ArrowRight", 4), ("ArrowLeft", 3)):
        viewer.key(key)
        viewer.drawn(f"env0000 {at}")
    thumbnail = viewer.js("document.querySelector('input[value=env0001]').nextElementSibling.src")
    np.testing.assert_allclose(decode(thumbnail), 0.3, atol=0.01)  # the light has turned too
    seen, began = [], time.monotonic()
    viewer.key(" ")
    assert viewer.js("document.getElementById('play').getAttribute('aria-label')") == "Pause"
    while len(seen) < 7:  # more than once around
        at = int(viewer.js("document.getElementById('stage').dataset.drawn").split()[1])
        if not seen or seen[-1] != at:
            seen.append(at)
        assert time.monotonic() < began + 30
    viewer.key(" ")
    assert viewer.js("view.playing") is False
    assert time.monotonic() - began > 6 / 5 * 0.8  # at five frames a second
    assert set(seen) == set(range(5)) or len(set(seen)) >= 3  # a slow machine leaves some out
    assert viewer.errors() == []


def test_the_divider_follows_mouse_and_keys(browser, path):
    viewer = Viewer(browser, path, 1280)
    viewer.drawn("env0000 0")
    stage = viewer.box("#stage")
    x, y = stage["left"] + stage["width"] / 4, stage["top"] + stage["height"] / 2
    viewer.mouse("mousePressed", x, y)
    assert viewer.split() == 25
    viewer.mouse("mouseMoved", x + stage["width"] / 2, y + 500)  # outside too
    viewer.mouse("mouseReleased", x + stage["width"] / 2, y)
    assert viewer.split() == 75
    assert viewer.js("document.activeElement.id") == "divider"
    for key, at in (("ArrowLeft", 73), ("End", 100), ("Home", 0), ("ArrowRight", 2)):
        viewer.key(key, "document.activeElement")
        assert viewer.split() == at
    viewer.drawn("env0000 0")  # the frame is another matter
    picture = viewer.screenshot()
    colour = picture[int(stage["top"] + stage["height"] * 0.8), int(stage["left"] + stage["width"] * 0.1)]
    np.testing.assert_allclose(colour, frame("env0000", 0)[3, 0], atol=0.05)


def test_the_divider_follows_a_finger_that_can_still_scroll(browser, path):
    viewer = Viewer(browser, path, 360, 640)
    viewer.drawn("env0000 0")
    stage = viewer.box("#stage")
    x, y = stage["left"] + stage["width"] / 2, stage["top"] + stage["height"] / 2
    viewer.touch("touchStart", (x, y))
    for part in range(1, 11):
        viewer.touch("touchMove", (x + part * stage["width"] / 40, y))
    viewer.touch("touchEnd")
    assert viewer.split() == pytest.approx(75, abs=1)
    assert viewer.js("scrollY") == 0
    viewer.touch("touchStart", (x, y))
    for part in range(1, 21):
        viewer.touch("touchMove", (x, y - 10 * part))
    viewer.touch("touchEnd")
    assert viewer.js("scrollY") > 50


def test_clips_are_changed_and_omitted_frames_are_stated(browser, path):
    viewer = Viewer(browser, path, 1280)
    viewer.drawn("env0000 0")
    assert viewer.js("[...document.querySelectorAll('#clips bdi')].map(x => x.textContent)") == [HOSTILE, "long"]
    viewer.js("document.querySelectorAll('#clips button')[1].click()")
    viewer.drawn("env0000 0")
    viewer.key("ArrowRight")
    viewer.drawn("env0000 1")
    assert viewer.js("document.getElementById('number').textContent") == "3 / 299"
    np.testing.assert_allclose(viewer.shown("after"), frame("env0000", 3), atol=0.03)
    extent = viewer.js("document.getElementById('extent').textContent")
    assert "300 frames at 5 per second, of which this page holds every 3rd" in extent
    assert viewer.js("document.querySelectorAll('b').length") == 1  # the caption's own, not the name's
    assert viewer.errors() == []
