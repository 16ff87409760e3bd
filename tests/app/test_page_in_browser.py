"""The page to relight in, in Chromium: upload, G-buffers, light, result, download; bad files; what is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.chromium import chromium
from helpers.runs import ROOT, png

from drender.media.images import read_image

pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[app]'")
pytestmark = [pytest.mark.browser, pytest.mark.long]

browser = pytest.fixture(scope="module")(chromium)


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page with the built-in models: (its address, the folder of its temporary files)."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "drender", "app", "--port", str(port), "--frames", "4", "--max-upload", "1"]
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)}, stdout=log, stderr=log)
        while server.poll() is None and not answers(port):
            time.sleep(0.2)
        assert server.poll() is None, (folder / "log.txt").read_text()
        yield f"http://127.0.0.1:{port}", folder
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, (folder / "log.txt").read_text()
    assert not list(folder.glob("drender-app-*"))


class Visitor:
    def __init__(self, browser, address: str, width: int):
        self.browser = browser
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(address)
        self.wait_for("#ball img")

    def js(self, script: str, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def wait(self, condition, what: str, seconds: float = 300):
        until = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < until, f"no {what}; the page says {self.messages()}"
            time.sleep(0.2)
        return value

    def wait_for(self, selector: str, count: int = 1):
        return self.wait(lambda: self.js("document.querySelectorAll(arguments[0]).length", selector) >= count, selector)

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def upload(self, path: Path, selector: str = "#upload input[type=file]") -> None:
        self.wait_for(selector)
        self.browser.find_element("css selector", selector).send_keys(str(path))

    def text(self, selector: str) -> str:
        return self.js("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def messages(self) -> str:
        return self.js("[...document.querySelectorAll('.toast-body')].map(toast => toast.innerText).join(' ')")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_clip_is_relit_and_downloaded(browser, served, tmp_path, width):
    address, folder = served
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    visitor = Visitor(browser, address, width)
    visitor.upload(png(tmp_path / "walk.png"))
    visitor.wait(lambda: "a picture" in visitor.text("#about"), "description")
    visitor.wait_for("#buffers img", 6)
    ball = visitor.js("document.querySelector('#ball img').src")
    visitor.js("(input => {input.value = 90; input.dispatchEvent(new Event('input', {bubbles: true}))})"
               "(document.querySelector('#yaw input[type=number]'))")  # fmt: skip
    visitor.wait(lambda: visitor.js("document.querySelector('#ball img').src") != ball, "turned ball")
    visitor.click("#relight")
    visitor.wait_for("#result img", 2)
    assert visitor.js("document.documentElement.scrollWidth <= innerWidth")
    visitor.wait(lambda: "Download PNG" in visitor.text("#download"), "download")
    visitor.click("#download")
    visitor.wait(lambda: list(tmp_path.glob("*.relit.png")), "file")
    time.sleep(0.5)
    assert read_image(next(tmp_path.glob("*.relit.png"))).shape == (128, 128, 3)
    assert not list(folder.rglob("walk.png"))  # the upload, whose frames are in memory


def test_bad_and_large_uploads_are_messages(browser, served, tmp_path):
    visitor = Visitor(browser, served[0], 1280)
    (tmp_path / "notes.txt").write_text("no picture")
    visitor.upload(tmp_path / "notes.txt")
    visitor.wait(lambda: "no images or videos found" in visitor.messages(), "message")
    (tmp_path / "large.png").write_bytes(np.random.default_rng(0).bytes(2 * 2**20))
    visitor.upload(tmp_path / "large.png")
    visitor.wait(lambda: "size" in visitor.messages().lower(), "message on the size")
    visitor.upload(tmp_path / "notes.txt", "input[data-testid*=lat-long]")
    visitor.wait(lambda: "unknown image suffix" in visitor.messages(), "message on the map")
    assert str(served[1]) not in visitor.messages()
    visitor.click("#relight")
    visitor.wait(lambda: "wait for its G-buffers" in visitor.messages(), "message")


def test_a_job_is_cancelled_and_leaving_removes_the_files(browser, served, tmp_path):
    visitor = Visitor(browser, served[0], 1280)
    visitor.click("#example")
    visitor.wait_for("#buffers img")
    visitor.click("#cancel")
    visitor.wait(lambda: "Cancelled" in visitor.messages() or visitor.js(
        "document.querySelectorAll('#buffers img').length >= 6"), "end of the job")  # fmt: skip
    assert list(served[1].glob("drender-app-*/session*"))
    browser.get("about:blank")
    visitor.wait(lambda: not list(served[1].glob("drender-app-*/session*")), "removal of all files", 90)
