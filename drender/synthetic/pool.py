"""Run jobs in worker processes that stop together, with errors of one line."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from drender.errors import InputError


def run(work: Callable[[Any], None], jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """Run `work` on every job in that many worker processes, and yield a job when it is done; all must be picklable.

    However the iteration ends, all processes have ended, and unfinished jobs have left through their context managers.
    InputError of a job, or if a process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the state of threaded libraries
    running = {}
    try:
        for i in range(min(processes, len(jobs))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_jobs, args=(work, jobs[i::processes], sender))
            process.start()
            sender.close()
            running[receiver] = process
        while running:
            for connection in wait(list(running)):
                try:
                    result = connection.recv()
                except EOFError:
                    process = running.pop(connection)
                    process.join()
                    if process.exitcode:
                        raise InputError(f"a worker process died ({_cause(process.exitcode)})") from None
                    continue
                if isinstance(result, InputError):
                    raise result
                yield result
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _run_jobs(work: Callable[[Any], None], jobs: Sequence[Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which terminates the workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    warnings.simplefilter("ignore")  # the parent warns once, of the same files
    try:
        for job in jobs:
            work(job)
            connection.send(job)
    except InputError as error:
        connection.send(error)
    except BrokenPipeError:
        pass  # the parent has exited


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, possibly out of memory; use fewer --processes"
    return f"signal {signal.Signals(-code).name}, see above" if code < 0 else f"exit code {code}, see above"
