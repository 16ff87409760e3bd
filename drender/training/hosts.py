"""End a run of several processes with one line when one of them is lost, instead of XLA's abort and its stack trace.

XLA aborts a process whose coordinator is gone, and Python cannot catch that. So every process trains in a child, whose
standard error its parent reads.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

# Lines of XLA's coordination service, which follow the loss of a process.
LOSS = re.compile(r"^[IWEF]\d{4} .*(preemption_sync_manager|coordination_service|client\.h|distributed/)")
# Errors of collective operations whose peer is gone.
PEER_ERROR = re.compile(r"Gloo|NCCL|Connection (reset|closed|refused)|UNAVAILABLE|peer", re.IGNORECASE)
LOST = 75  # exit code of a child that has lost a peer
CHILD = "DRENDER_TRAINS_IN_CHILD"


def has_peers(num_processes: int | None) -> bool:
    """Whether this process is one of several: by the given number, or in SLURM, Open MPI or Kubernetes."""
    environment = os.environ
    if num_processes is None and "JOB_COMPLETION_INDEX" in environment:
        return True
    counts = [num_processes, environment.get("SLURM_NTASKS"), environment.get("OMPI_COMM_WORLD_SIZE")]
    return max(int(count or 1) for count in counts) > 1


def is_child() -> bool:
    """Whether this process was started by `supervise`."""
    return CHILD in os.environ


def supervise(remedy: str) -> int:
    """Run this process's command in a child; pass on its output, signals and exit code.

    Args:
      remedy: what to do after the loss of another process.
    Returns:
      the child's exit code, or 2 after the loss of another process.
    """
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {CHILD: "1"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that Ctrl-C reaches it once, through this process
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    lost = False
    for line in child.stderr:
        lost = lost or LOSS.match(line) is not None
        if not lost:
            print(line, end="", file=sys.stderr, flush=True)
    code = child.wait()
    if code == LOST or (lost and code):
        print(f"error: another process of this run was lost; {remedy}", file=sys.stderr, flush=True)
        return 2
    if code < 0:  # die as the child did
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


@contextlib.contextmanager
def leave_lost_peers() -> Iterator[None]:
    """End this child at once if a collective operation fails, because a regular end would wait for the lost process."""
    try:
        yield
    except Exception as error:
        if not is_child() or not PEER_ERROR.search(str(error)):
            raise
        sys.stdout.flush()
        os._exit(LOST)
