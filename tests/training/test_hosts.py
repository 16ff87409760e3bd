"""Processes that supervise a child, with children that only print and end."""

import os
import subprocess
import sys

import pytest

from drender.training import hosts

# The module by its path, because importing JAX takes longer than all else.
PARENT = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("hosts", {path!r})
spec.loader.exec_module(hosts := importlib.util.module_from_spec(spec))
if not hosts.is_child():
    sys.exit(hosts.supervise("start it again"))
print("trained", flush=True)
print("warning: a line", file=sys.stderr, flush=True)
{child}
"""
FATAL = """
print("E1130 02:26:45.853203    3574 coordination_service_agent.cc:289] Polled an error", file=sys.stderr)
print("F1130 02:26:45.853213    3574 client.h:80] Terminating process because", file=sys.stderr)
print("    @     0x7f549f50cd5b  std::_Function_handler<>::_M_invoke()", file=sys.stderr, flush=True)
os.abort()
"""
GLOO = """
with hosts.leave_lost_peers():
    raise ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer")
"""
LINE = "warning: a line\n"
LOST = LINE + "error: another process of this run was lost; start it again\n"


@pytest.mark.parametrize(
    ("child", "code", "errors"),
    [
        ("", 0, LINE),
        ("sys.exit(143)", 143, LINE),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, LINE),
        (FATAL, 2, LOST),
        (GLOO, 2, LOST),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", -15, LINE),
    ],
)
def test_a_parent_ends_as_its_child_or_with_one_line(child, code, errors):
    script = PARENT.format(child=child, path=hosts.__file__)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr, done.stdout) == (code, errors, "trained\n")


def test_other_errors_pass(monkeypatch):
    monkeypatch.setenv(hosts.CHILD, "1")
    with pytest.raises(ValueError, match="seed"), hosts.leave_lost_peers():
        raise ValueError("bad seed")


@pytest.mark.parametrize(
    ("environment", "number", "expected"),
    [
        ({}, None, False),
        ({}, 2, True),
        ({"SLURM_NTASKS": "1"}, None, False),
        ({"SLURM_NTASKS": "8"}, None, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, None, True),
        ({"JOB_COMPLETION_INDEX": "0"}, None, True),
    ],
)
def test_several_processes_are_known_by_option_or_launcher(monkeypatch, environment, number, expected):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.has_peers(number) is expected
