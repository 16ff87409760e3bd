"""Jobs in several processes of their own, stopped together and at once, with errors in one line."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from drender.errors import InputError


def run(start: Callable[[], Callable[[Any], None]], jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """Does every job once, and yields it when it is done.

    Args:
      start: called once in every process; returns the function that does a job. It must be picklable, as the jobs are.
    Raises:
      InputError: that of a job, or that a process died.
    However this ends, no process is left, and a job that was being done has left through its context managers.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the state of libraries that run threads
    running = {}
    try:
        for i in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(start, jobs[i::processes], theirs))
            process.start()
            theirs.close()
            running[ours] = process
        while running:
            for connection in wait(list(running)):
                try:
                    kind, value = connection.recv()
                except EOFError:
                    process = running.pop(connection)
                    process.join()
                    if process.exitcode:
                        raise InputError(f"a process died ({_cause(process.exitcode)})") from None
                    continue
                if kind == "error":
                    raise InputError(value)
                yield value
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _work(start: Callable[[], Callable[[Any], None]], jobs: Sequence[Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and says when to stop
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        do = start()
        for job in jobs:
            do(job)
            connection.send(("done", job))
    except InputError as error:
        connection.send(("error", str(error)))
    except BrokenPipeError:
        pass  # the parent is gone


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, perhaps for memory: use fewer --processes"
    return f"signal {signal.Signals(-code).name}, see above" if code < 0 else f"exit code {code}, see above"
