"""The HTML page of a run shows its results, whenever they were made."""

from pathlib import Path

import numpy as np
from helpers.pages import Page, decode
from helpers.runs import (
    PASSES,
    Stop,
    check_one_line,
    contents,
    frames,
    labels,
    write_gbuffers,
)

from drender.config import CONDITIONS
from drender.lighting.environment import environment_maps
from drender.media.images import read_image, write_png
from drender.renderers.inverse import InverseRenderer


def check_page(output: Path, clips: int, *folders: Path) -> Page:
    """The page of a run shows what is in these folders of its first clip: each frame once, as on disk."""
    page = Page(output / "index.html")
    assert len(page.data["clip"]) == len(page.data["images"]) == clips
    shown = set()
    for folder in folders:
        for label in labels(folder):
            stems = [stem for stem in frames(folder, label) if stem[:4] == "0000" or stem[5:] != "0000"]  # overlap 1
            uris = page.data["images"][0][label]
            for stem, uri in zip(stems, uris, strict=True):
                assert np.abs(decode(uri) - read_image(folder / f"{stem}.{label}.png")).mean() < 0.05
            shown.add(label)
    assert shown == set(page.data["images"][0])
    return page


def smooth(folder: Path, count: int = 3) -> Path:
    """Frames that JPEG keeps well."""
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 64
    for i in range(count):
        write_png(folder / f"{i:03d}.png", np.stack([x, y, np.full_like(x, i / count)], axis=-1))
    return folder


def test_page_of_each_command_shows_its_images(inverse, forward, relight, sky, tmp_path):
    smooth(tmp_path / "walk")
    assert inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--html")[0] == 0
    page = check_page(tmp_path / "out", 1, tmp_path / "out/walk")
    assert page.data["run"][0]["settings"]["passes"] == ", ".join(PASSES)
    buffers, lit = (tmp_path / "both" / part / "walk" for part in ("gbuffers", "relit"))
    assert relight("--input", tmp_path / "walk", "--output", tmp_path / "both", "--html")[0] == 0
    page = check_page(tmp_path / "both", 1, buffers, lit)
    (light,) = page.data["clip"][0]["lights"].values()
    assert light["name"] == "sky" and len(light["thumbnails"]) == 1
    turning = ("--output", tmp_path / "relit", "--html", "--rotate-light")
    assert forward("--input", tmp_path / "both/gbuffers", *turning)[0] == 0
    page = check_page(tmp_path / "relit", 1, buffers, tmp_path / "relit/walk")  # with the picture that lies beside
    (light,) = page.data["clip"][0]["lights"].values()
    expected = environment_maps(sky, 3, (256, 512), rotate_light=True)["env_ldr"]
    for uri, image in zip(light["thumbnails"], np.asarray(expected), strict=True):
        assert np.abs(decode(uri) - image.reshape(64, 4, 128, 4, 3).mean((1, 3))).mean() < 0.06


def test_page_of_a_fixed_frame_repeats_it(forward, tmp_path):
    write_gbuffers(tmp_path / "in", (2,))
    options = ("--fixed-frame", 1, "--frames", 4, "--rotate-light", "--html")
    assert forward("--input", tmp_path / "in", "--output", tmp_path / "out", *options)[0] == 0
    images = Page(tmp_path / "out/index.html").data["images"][0]
    assert [len(images[label]) for label in (*CONDITIONS, "env0000")] == [4] * (len(CONDITIONS) + 1)
    assert len(set(images["normal"])) == 1 and len(set(images["env0000"])) > 1


def test_page_of_a_finished_run_is_made_from_its_files(inverse, monkeypatch, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk"), "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    assert not (tmp_path / "out/index.html").exists()
    before = contents(tmp_path / "out")
    monkeypatch.setattr(InverseRenderer, "load", None)  # nothing is left to render
    code, out, _ = inverse(*arguments, "--html")
    assert code == 0 and "finished before, skipped" in out and f"{tmp_path / 'out/index.html'}: a page" in out
    after = contents(tmp_path / "out")
    page = after.pop("index.html")
    assert after == before
    assert inverse(*arguments, "--html")[0] == 0
    assert contents(tmp_path / "out") == before | {"index.html": page}


def test_page_of_a_resumed_run_shows_all_frames(inverse, monkeypatch, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk", 5), "--output", tmp_path / "out", "--html")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(7, KeyboardInterrupt()))
        assert inverse(*arguments)[0] == 130
    assert not (tmp_path / "out/index.html").exists()
    assert inverse(*arguments)[0] == 0
    page = check_page(tmp_path / "out", 1, tmp_path / "out/walk")
    assert page.data["clip"][0]["shown"] == list(range(5))


def test_page_shows_the_clips_that_did_not_fail(inverse, tmp_path):
    smooth(tmp_path / "in/a")
    smooth(tmp_path / "in/b")
    (tmp_path / "in/b/001.png").write_bytes((tmp_path / "in/b/001.png").read_bytes()[:200])
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    assert code == 2 and "1 of 2 clips failed" in err
    assert check_page(tmp_path / "out", 1, tmp_path / "out/a").data["clip"][0]["name"] == "a"


def test_a_page_that_cannot_be_made_is_an_error_of_one_line(inverse, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk"), "--output", tmp_path / "out")
    assert inverse(*arguments, "--html")[0] == 0
    page = (tmp_path / "out/index.html").read_bytes()
    damaged = tmp_path / "out/walk/0000.0001.normal.png"
    damaged.write_bytes(b"damaged")
    check_one_line(inverse(*arguments, "--html"), str(damaged))
    assert (tmp_path / "out/index.html").read_bytes() == page and not list((tmp_path / "out").glob(".*"))
