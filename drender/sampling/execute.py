"""Run a job over its clips on all devices: skip finished clips, and collect failures.

Hosts that see the same folders share the clips by index: process I of N takes every N-th clip from the I-th on.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from drender.errors import Failures, InputError, OnFailure, oom_guard, say
from drender.sampling.base import Job
from drender.sampling.inputs import ChunkedClip
from drender.sharding import check_process

SMALLER = "give fewer --frames, a smaller --size or --decode-chunk-size, --dtype bfloat16 or float16"
Load = Callable[[tuple[jax.Device, ...]], Any]


def execute(job: Job, load: Load, devices: Sequence[jax.Device], process: tuple[int, int] = (0, 1)) -> None:
    """Run a job: one device per clip, or several if there are fewer clips than devices.

    If there are several clips, an InputError of one does not stop the others, and is raised at the end.

    Args:
      load: return the job's renderers on some devices; called once per group of devices.
      process: index of this process, and number of processes that share the clips.
    """
    check_process(process)
    failures = Failures()
    clips = job.discover(failures.add)
    num_clips = len(clips) + len(failures)
    pending = []
    for clip in clips[process[0] :: process[1]]:
        if job.is_finished(clip) and not job.run.overwrite:
            say(f"{clip.name}: finished before, skipped")
        else:
            pending.append(clip)
    if pending or job.run.html:
        with job.hold(clips, process):
            run_clips(job, load, devices, pending, None if num_clips == 1 else failures.add)
    failures.raise_if_any(num_clips)


def run_clips(
    job: Job, load: Load, devices: Sequence[jax.Device], clips: list[ChunkedClip], on_failure: OnFailure | None
) -> None:
    """Run clips on groups of devices, a thread for each group; `on_failure` takes InputErrors of single clips."""
    if not clips:
        return
    queue, stop = iter(clips), threading.Event()
    groups = [tuple(group) for group in np.array_split(np.array(devices), min(len(clips), len(devices)))]

    def work(group: tuple[jax.Device, ...]) -> None:
        with oom_guard("give --dtype bfloat16 or float16"):
            renderers = load(group)
        # `next` on a list's iterator is atomic, so no two groups get the same clip.
        while not stop.is_set() and (clip := next(queue, None)) is not None:
            start = time.perf_counter()
            try:
                # The run's lock does not keep out processes that share other numbers of clips, or that write to a
                # folder inside it.
                with oom_guard(SMALLER), contextlib.ExitStack() as locks:
                    for lock in job.locks(clip):
                        locks.enter_context(lock)
                    written = job.run_clip(renderers, clip, progress=len(groups) == 1, stop=stop)
                say(f"{clip.name}: done in {time.perf_counter() - start:.1f} s, see {written}")
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
            stop.set()
