"""Run a job over its clips on all devices: resume, skip finished clips, draw previews, collect failures.

Hosts that see the same folders share the clips by index: process I of N takes every N-th clip from the I-th on.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from drender.errors import InputError, oom_guard, say
from drender.files import remove_partial
from drender.locks import lock_folder
from drender.media.images import write_png
from drender.media.montage import contact_sheet, side_by_side, tile
from drender.sampling.inputs import ChunkedClip, Frame
from drender.sampling.jobs import Job, OnFailure
from drender.sampling.lights import Lights
from drender.sampling.outputs import ClipOutput
from drender.sampling.report import PageClip, write_page
from drender.sharding import check_process

SMALLER = "give fewer --frames, a smaller --size or --decode-chunk-size, --dtype bfloat16 or float16"
Load = Callable[[tuple[jax.Device, ...]], Any]


def execute(job: Job, load: Load, devices: Sequence[jax.Device], process: tuple[int, int] = (0, 1)) -> None:
    """Run a job: one device per clip, or several if there are fewer clips than devices.

    If there are several clips, an InputError of one does not stop the others.

    Args:
      load: return the job's renderers on some devices; called once per group of devices.
      process: index of this process, and number of processes that share the clips.
    Raises:
      InputError: the only clip failed, something that all clips share is wrong, or some of several clips failed.
    """
    check_process(process)
    failures = []

    def report_failure(error: InputError) -> None:
        failures.append(error)
        print(f"failed: {error}", file=sys.stderr, flush=True)

    clips = job.discover(report_failure)
    num_clips = len(clips) + len(failures)
    pending = []
    for clip in clips[process[0] :: process[1]]:
        finished = all(output.is_finished(with_video=job.run.video) for output in job.outputs(clip))
        if finished and not job.run.overwrite:
            say(f"{clip.name}: finished before, skipped")
        else:
            pending.append(clip)
    if pending or job.run.html:
        require_writable(job.run.output)
        with lock_folder(job.run.output, process):
            if process[1] == 1:
                remove_partial(job.run.output)
            run_clips(job, load, devices, pending, None if num_clips == 1 else report_failure)
            if job.run.html:
                write_job_page(job, clips)
    if failures:
        raise InputError(f"{len(failures)} of {num_clips} clips failed (see above)")


def require_writable(output: Path) -> None:
    """Make the folder if necessary; raise InputError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be created: {error.strerror}; give another") from error
    if not os.access(output, os.W_OK):
        raise InputError(f"--output {output} is not writable; give another")


# --- clips ---


def run_clips(
    job: Job, load: Load, devices: Sequence[jax.Device], clips: list[ChunkedClip], on_failure: OnFailure | None
) -> None:
    """Run clips on groups of devices, a thread for each group; `on_failure` takes InputErrors of single clips."""
    if not clips:
        return
    queue, stopped = iter(clips), threading.Event()
    groups = [tuple(group) for group in np.array_split(np.array(devices), min(len(clips), len(devices)))]

    def work(group: tuple[jax.Device, ...]) -> None:
        with oom_guard("give --dtype bfloat16 or float16"):
            renderers = load(group)
        # `next` on a list's iterator is atomic, so no two groups get the same clip.
        while not stopped.is_set() and (clip := next(queue, None)) is not None:
            try:
                # The output folder's lock does not keep out processes that share other numbers of clips, or that write
                # to a folder inside it.
                with oom_guard(SMALLER), contextlib.ExitStack() as locks:
                    for output in job.outputs(clip):
                        locks.enter_context(lock_folder(output.path))
                    run_clip(job, renderers, clip, len(groups) == 1, stopped)
            except InputError as error:
                if on_failure is None:
                    raise
                on_failure(InputError(f"{clip.name}: {error}"))

    if len(groups) == 1:
        work(groups[0])  # in the main thread, where Ctrl-C interrupts it immediately
        return
    with ThreadPoolExecutor(len(groups)) as pool:
        try:
            for future in [pool.submit(work, group) for group in groups]:
                future.result()
        finally:
            stopped.set()


def run_clip(job: Job, renderers: Any, clip: ChunkedClip, progress: bool, stopped: threading.Event) -> None:
    """Run the chunks of a clip that are not complete, then draw its previews."""
    start = time.perf_counter()
    outputs = job.outputs(clip)
    for output in outputs:
        output.remove_partial()
    if job.run.overwrite and all(output.is_finished() for output in outputs):
        for output in outputs:
            output.restart()
    for chunk in clip.chunks:
        if all(chunk.index in output.done for output in outputs):
            continue
        job.run_chunk(renderers, clip, chunk, outputs, progress, stopped)
        for output in outputs:
            output.complete(chunk)
        if stopped.is_set():
            return
    finish_clip(job, clip, outputs)
    where = ", ".join(str(output.path) for output in outputs)
    where += f"; {outputs[0].sheet} shows three frames" if job.run.video else ""
    say(f"{clip.name}: done in {time.perf_counter() - start:.1f} s, see {where}")


# --- previews ---


def finish_clip(job: Job, clip: ChunkedClip, outputs: list[ClipOutput]) -> None:
    """Draw the contact sheet (the first, middle and last frame) and the videos, and record the clip as finished."""
    frames, lights = clip.frames, job.lights_of(outputs)
    if job.run.video:
        rows = [frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})]
        images = [[image for output in outputs for image in preview(lights, clip, output, frame)] for frame in rows]
        write_png(outputs[0].sheet, contact_sheet(images))
    for output in outputs:
        video = (video_frame(lights, clip, outputs, output, frame) for frame in frames) if job.run.video else None
        output.finish(video, clip.fps, job.run.quality)


def video_frame(
    lights: Lights | None, clip: ChunkedClip, outputs: list[ClipOutput], output: ClipOutput, frame: Frame
) -> np.ndarray:
    """Return an output's images side by side; the second output's follow the RGB of the first."""
    images = preview(lights, clip, output, frame)
    if output is not outputs[0]:
        images.insert(0, outputs[0].read(*frame, "rgb"))
    return side_by_side([tile(image) for image in images])


def preview(lights: Lights | None, clip: ChunkedClip, output: ClipOutput, frame: Frame) -> list[np.ndarray]:
    """Return an output's images of a frame, relit ones with their environment in the corner."""
    chunk, i = frame
    images = {label: output.read(chunk, i, label) for label in output.labels}
    if lights is not None:
        for index, label in enumerate(lights.labels):
            if label in images:
                images[label] = lights.inset(images[label], index, chunk.start + i, clip.num_frames)
    return list(images.values())


def write_job_page(job: Job, clips: list[ChunkedClip]) -> None:
    """Write the HTML page of all finished clips, of this run or an earlier one."""
    shown = []
    for clip in clips:
        outputs = job.outputs(clip)
        if all(output.is_finished() for output in outputs):
            readers = job.source_readers(clip)
            for output in outputs:
                readers |= output.readers(clip.frames)
            lights = job.lights_of(outputs)
            thumbnails = lights.on_page(clip.num_frames) if lights else {}
            shown.append(PageClip(clip.name, clip.fps, len(clip.frames), readers, thumbnails))
    if shown:
        page = job.run.output / "index.html"
        write_page(page, job.title, shown, job.run.settings)
        size = tqdm.format_sizeof(page.stat().st_size, "B")
        say(f"{page}: a page to look at the results, {size}")
