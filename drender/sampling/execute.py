"""Goes through a run's clips on all devices, skips what is finished, and says at the end which failed.

Several hosts that see the same folders share the clips by number: process I of N has every N-th from the I-th on.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from drender.errors import InputError, oom_guard
from drender.sampling.jobs import Job
from drender.sampling.report import write_page
from drender.sharding import check_process

SMALLER = "give fewer --frames, a smaller --size or --decode-chunk-size, --dtype bfloat16 or float16"


def execute(
    run: Job,
    load: Callable[[tuple[jax.Device, ...]], Any],
    devices: list[jax.Device],
    process: tuple[int, int] = (0, 1),
) -> None:
    """Processes every clip that is not finished: a device each, or, if there are fewer clips, some devices each.

    Of several clips, one with an InputError does not stop the others.

    Args:
      load: gives the renderers on some devices; called once for all that are needed.
      process: which of how many processes that share the clips this is.
    Raises:
      InputError: of the only clip, or of what all share; of several clips, one that counts those that failed.
    """
    check_process(process)
    failures = []

    def failed(error: InputError) -> None:
        failures.append(error)
        print(f"failed: {error}", file=sys.stderr, flush=True)

    clips = []
    found = run.clips(failed)
    for clip in found[process[0] :: process[1]]:
        if all(folder.finished and (folder.video.exists() or not run.video) for folder in run.folders(clip)):
            print(f"{clip.name}: finished before, skipped", flush=True)
        else:
            clips.append(clip)
    total = len(found) + len(failures)
    queue, stopped = iter(clips), threading.Event()
    teams = [tuple(team) for team in np.array_split(np.array(devices), min(len(clips), len(devices)))] if clips else []

    def work(team: tuple[jax.Device, ...]) -> None:
        with oom_guard("give --dtype bfloat16 or float16"):
            renderers = load(team)
        for renderer in renderers if isinstance(renderers, tuple) else (renderers,):
            renderer.stopped = stopped
        # `next` on a list's iterator is atomic: each clip goes to one team.
        while not stopped.is_set() and (clip := next(queue, None)) is not None:
            try:
                with oom_guard(SMALLER):
                    _process(run, renderers, clip, len(teams) == 1, stopped)
            except InputError as error:
                if total == 1:
                    raise
                failed(InputError(f"{clip.name}: {error}"))

    if clips:
        _writable(run.output)
    if len(teams) == 1:
        work(teams[0])  # in this thread, which an interruption stops at once
    elif teams:
        with ThreadPoolExecutor(len(teams)) as pool:
            try:
                for working in [pool.submit(work, team) for team in teams]:
                    working.result()
            finally:
                stopped.set()
    if run.html:
        _write_page(run, found)
    if failures:
        raise InputError(f"{len(failures)} of {total} clips failed, as said above; mend them and run again")


def _process(run: Job, renderers: Any, clip, progress: bool, stopped: threading.Event) -> None:
    began = time.perf_counter()
    for _ in run.process(renderers, clip, progress):
        if stopped.is_set():
            return
    where = ", ".join(str(folder.path) for folder in run.folders(clip))
    where += f"; {run.sheet(clip.name)} shows some of it" if run.video else ""
    print(f"{clip.name}: done in {time.perf_counter() - began:.1f} s, see {where}", flush=True)


def _write_page(run: Job, clips: list) -> None:
    """Writes the page of all clips that are finished, by this run or one before."""
    shown = [run.page_clip(clip) for clip in clips if all(folder.finished for folder in run.folders(clip))]
    if shown:
        page = run.output / "index.html"
        write_page(page, run.title, shown, run.settings)
        print(f"{page}: a page to look at the results, {tqdm.format_sizeof(page.stat().st_size, 'B')}", flush=True)


def _writable(output: Path) -> None:
    """Makes the folder if need be; InputError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made: {error.strerror}; give another") from error
    if not os.access(output, os.W_OK):
        raise InputError(f"--output {output} cannot be written to; give another")
