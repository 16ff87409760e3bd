"""The page: Gradio components, and what happens when they change."""

import functools
import inspect
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drender import assets
from drender.app.session import Light, Session
from drender.config import DEFAULT_PASSES
from drender.errors import InputError
from drender.media.images import to_integers
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer, chosen_passes

try:
    import gradio as gr
except ImportError as error:
    raise InputError(f'the page needs Gradio ({error}); pip install "drender[app]"') from error

DOWNLOADS = {"PNG": "png", "EXR": "exr", "mp4": "mp4", "G-buffers": "gbuffers"}
MAP = "or a lat-long map (.hdr, .exr)"
# Every event that uses the device: one at a time, others queue.
DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}
# Sliders send many events: compute the last one, without a spinner.
AT_ONCE = {"trigger_mode": "always_last", "show_progress": "hidden", "concurrency_limit": 4}
CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: auto}
.ball img {border-radius: 50%} .ball {max-width: 260px; margin: auto}
#buffers .grid-wrap {min-height: 0; max-height: none} #buffers {min-height: 0}
footer {display: none !important}
"""


@dataclass
class App:
    """The renderers, and the visitors' sessions by the browser's session name."""

    inverse: InverseRenderer
    forward: ForwardRenderer
    folder: Path  # temporary, of all sessions
    size: tuple[int, int]  # (height, width) that clips are fitted to
    max_frames: int  # of a clip, the rest is not read
    sessions: dict[str, Session] = field(default_factory=dict)
    device: threading.Lock = field(default_factory=threading.Lock)
    passes: list[str] = field(init=False)  # of the inverse renderer, among them all that the forward renderer needs

    def __post_init__(self):
        self.passes = chosen_passes(self.inverse.config, (*DEFAULT_PASSES, *self.forward.config.conditions))

    def session(self, request: gr.Request) -> Session:
        name = request.session_hash
        if name not in self.sessions:
            self.sessions[name] = Session(Path(tempfile.mkdtemp(prefix="session", dir=self.folder)))
        return self.sessions[name]

    def close(self, request: gr.Request) -> None:
        """Forget a visitor who has left."""
        if session := self.sessions.pop(request.session_hash, None):
            session.close()

    # --- clip ---

    def begin(self, request: gr.Request) -> None:
        self.session(request).stop.clear()

    def cancel(self, request: gr.Request) -> None:
        self.session(request).stop.set()

    def open(self, path: str | None, request: gr.Request) -> tuple:
        session = self.session(request)
        try:
            line, *caught = session.open(path or assets.CLIPS, self.size, self.max_frames)
        finally:
            if path:
                Path(path).unlink(missing_ok=True)  # its frames are in memory
        for warning in caught:
            gr.Warning(without_folder(warning))
        last = len(session.rgb) - 1
        frame = gr.Slider(0, max(1, last), 0, visible=last > 0)
        return line, frame, gallery(session, 0), None, None, gr.DownloadButton(interactive=False)

    def estimate(self, request: gr.Request, progress: Any = gr.Progress(track_tqdm=True)) -> Iterator[tuple]:  # noqa: B008
        session = self.session(request)
        if session.rgb is None or session.estimated:  # the file could not be opened, and an earlier clip remains
            yield gr.skip()
            return
        with self.device:
            for _ in session.estimate(self.inverse, self.passes):
                yield gallery(session, 0), shown(session.buffers.get("basecolor"), 0)

    def show(self, index: int, request: gr.Request) -> tuple:
        session = self.session(request)
        return gallery(session, index), shown(session.buffers.get("basecolor"), index), comparison(session, index)

    # --- materials ---

    def pick(self, index: int, request: gr.Request, event: gr.SelectData) -> str:
        x, y = event.index
        color = to_integers(self.session(request).buffers["basecolor"][index, y, x])
        return "#{:02x}{:02x}{:02x}".format(*color)

    def edit(self, index, color, distance, parts, new, roughness, metallic, request: gr.Request) -> tuple:
        session = self.session(request)
        given = {"basecolor": new, "roughness": str(roughness), "metallic": str(metallic)}
        fraction = session.edit(color, float(distance), {name: given[name] for name in parts})
        gr.Info(f"{fraction:.1%} of the pixels changed")
        return self.show(index, request)[:2]

    def reset(self, index: int, request: gr.Request) -> tuple:
        self.session(request).reset()
        return self.show(index, request)[:2]

    # --- light ---

    def ball(self, name, file, yaw, pitch, roll, exposure) -> np.ndarray:
        return to_integers(light(name, file, yaw, pitch, roll, exposure).mirror_ball())

    def use_map(self, path: str) -> Any:
        """Take an uploaded map; the built-in environment remains if the map cannot be read."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                Light(path).mirror_ball()
        except InputError as error:
            gr.Warning(without_folder(error))
            return gr.UploadButton(MAP, value=None)
        for warning in caught:
            gr.Warning(without_folder(warning.message))
        return gr.UploadButton(f"map: {Path(path).name}", value=path)

    def relight(
        self, index, kind, name, file, yaw, pitch, roll, exposure, request: gr.Request,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> tuple:  # fmt: skip
        session = self.session(request)
        with self.device:
            session.relight(self.forward, light(name, file, yaw, pitch, roll, exposure))
        return comparison(session, index), self.save(kind, request)

    def save(self, kind: str, request: gr.Request) -> Any:
        session = self.session(request)
        if session.rgb is None or (session.relit is None and kind != "G-buffers") or not session.buffers:
            return gr.DownloadButton(interactive=False)
        return gr.DownloadButton(f"Download {kind}", value=str(session.save(DOWNLOADS[kind])), interactive=True)


def light(name: str, file: str | None, yaw: float, pitch: float, roll: float, exposure: float) -> Light:
    return Light(file or assets.environment(name), *map(float, (yaw, pitch, roll, exposure)))  # sliders give integers


def without_folder(message: object) -> str:
    """Return a message about an upload without the server's temporary folder."""
    return re.sub(r"\S*/gradio/\w+/", "", str(message))


def shown(clip: np.ndarray | None, index: int) -> np.ndarray | None:
    return None if clip is None else to_integers(clip[min(index, len(clip) - 1)])


def gallery(session: Session, index: int) -> list[tuple[np.ndarray, str]]:
    clips = {} if session.rgb is None else {"input": session.rgb} | session.buffers
    return [(shown(clip, index), name) for name, clip in clips.items()]


def comparison(session: Session, index: int) -> tuple | None:
    return None if session.relit is None else (shown(session.rgb, index), shown(session.relit, index))


def one_line(function: Callable) -> Callable:
    """Show bad input and cancellation as a message and change nothing else, in a handler that is called or iterated."""

    def show(error: BaseException) -> Any:
        if isinstance(error, KeyboardInterrupt):
            gr.Info("Cancelled")
        else:
            gr.Warning(without_folder(error), duration=10)
        return gr.skip()

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def iterated(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except (InputError, KeyboardInterrupt) as error:
                yield show(error)

        return iterated

    @functools.wraps(function)
    def called(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (InputError, KeyboardInterrupt) as error:
            return show(error)

    return called


# --- layout ---


def build(app: App) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="drender", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# drender\nRelight a picture or a clip: open it, choose a light, relight.")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                gr.Markdown("### 1 Clip")
                with gr.Row():
                    upload = gr.File(label="Picture or clip", height=140, elem_id="upload", interactive=True)
                    example = gr.Button("Take the built-in clip", elem_id="example", min_width=140)
                about = gr.Markdown(elem_id="about")
                look = {"columns": 3, "object_fit": "contain", "elem_id": "buffers"}
                buffers = gr.Gallery(label="G-buffers", format="png", **look)
                frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False)
                with gr.Accordion("Change materials", open=False):
                    with gr.Row():
                        basecolor = gr.Image(label="Click a color", format="png", interactive=False, min_width=160)
                        with gr.Column(min_width=160):
                            color = gr.ColorPicker("#808080", label="where the basecolor is near")
                            distance = gr.Slider(0, 1, 0.15, label="within a distance of")
                            parts = gr.CheckboxGroup(["basecolor", "roughness", "metallic"], label="set")
                            new = gr.ColorPicker("#c03020", label="basecolor")
                            roughness = gr.Slider(0, 1, 0.3, label="roughness")
                            metallic = gr.Slider(0, 1, 0, label="metallic")
                    with gr.Row():
                        change, undo = gr.Button("Change"), gr.Button("Undo all")
            with gr.Column(scale=1, min_width=280):
                gr.Markdown("### 2 Light")
                names = assets.environments()
                name = gr.Dropdown(names, value=assets.LIGHTS[0], label="Built-in environment", elem_id="light")
                file = gr.UploadButton(MAP, elem_id="map")
                look = {"elem_classes": "ball", "elem_id": "ball", "buttons": ["fullscreen"]}
                ball = gr.Image(label="Mirror ball", interactive=False, format="png", **look)
                yaw = gr.Slider(-180, 180, 0, step=1, label="Yaw, °: to the right", elem_id="yaw")
                pitch = gr.Slider(-90, 90, 0, step=1, label="Pitch, °: upward")
                roll = gr.Slider(-180, 180, 0, step=1, label="Roll, °: clockwise")
                exposure = gr.Slider(-5, 5, 0, step=0.1, label="Exposure, stops")
        gr.Markdown("### 3 Relit")
        with gr.Row():
            run = gr.Button("Relight", variant="primary", elem_id="relight")
            stop = gr.Button("Cancel", variant="stop", elem_id="cancel")
        result = gr.ImageSlider(label="before | after", interactive=False, format="png", elem_id="result")
        with gr.Row():
            kind = gr.Radio(list(DOWNLOADS), value="PNG", label="Format", elem_id="format")
            download = gr.DownloadButton("Download", interactive=False, elem_id="download")

        settings = [name, file, yaw, pitch, roll, exposure]
        opened = {"outputs": [about, frame, buffers, basecolor, result, download], **DEVICE}
        for event, source in ((upload.upload, upload), (example.click, gr.State(None))):
            read = event(app.begin, queue=False).then(one_line(app.open), source, **opened)
            read.then(lambda: None, outputs=upload, queue=False)  # ready for the next, whether or not it was readable
            read.success(one_line(app.estimate), outputs=[buffers, basecolor], **DEVICE)
        frame.input(app.show, frame, [buffers, basecolor, result], **AT_ONCE)
        basecolor.select(app.pick, frame, color)
        edit = [frame, color, distance, parts, new, roughness, metallic]
        change.click(one_line(app.edit), edit, [buffers, basecolor])
        undo.click(app.reset, frame, [buffers, basecolor])
        show_ball = [one_line(app.ball), settings, ball]
        gr.on([page.load, *(setting.change for setting in (yaw, pitch, roll, exposure))], *show_ball, **AT_ONCE)
        file.upload(app.use_map, file, file).then(*show_ball, **AT_ONCE)
        name.input(lambda: gr.UploadButton(MAP, value=None), outputs=file).then(*show_ball, **AT_ONCE)
        begun = run.click(app.begin, queue=False)
        begun.then(one_line(app.relight), [frame, kind, *settings], [result, download], **DEVICE)
        stop.click(app.cancel, queue=False)
        kind.change(one_line(app.save), kind, download)
        page.unload(app.close)
    return page


def serve(app: App, host: str, port: int, max_upload_mb: float, block: bool = True) -> gr.Blocks:
    """Serve the page until interrupted, or until `close` if not `block`."""
    page = build(app)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from the network
    page.queue(max_size=32, api_open=False)
    try:
        page.launch(
            server_name=host, server_port=port, max_file_size=f"{max_upload_mb:g}mb", prevent_thread_lock=not block,
            share=False, quiet=True, theme=theme, css=CSS, footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot be served ({error}); give another") from error
    return page
