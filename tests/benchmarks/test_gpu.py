"""gpu.py: parts that fail or take too long are reported, and only they are repeated."""

import contextlib
import fcntl
import subprocess
import time

import gpu
import pytest

from drender.errors import InputError

HEADER = "# H200, full networks\n\njax 0.12.0, Python 3.12.1, commit abc.\n"


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Stand in for the process that prints the platform and the report's first lines."""
    found = {"lines": f"gpu\n{HEADER}", "error": ""}

    def run(*args, **_):
        return subprocess.CompletedProcess(args, bool(found["error"]), found["lines"], found["error"])

    monkeypatch.setattr(gpu.subprocess, "run", run)
    return found


def run(monkeypatch, output, **scripts: str) -> tuple[int, str]:
    """Run parts that are lines of Python; return the exit status and the report."""
    monkeypatch.setattr(gpu, "commands", lambda *_: {name: ["-c", script] for name, script in scripts.items()})
    return gpu.run_parts("full", output), (output / "report.md").read_text()


def test_failed_parts_are_reported_and_only_they_are_repeated(monkeypatch, tmp_path):
    good, wrong, dead = "print('41.9', 'dB')", "raise SystemExit('traceback\\n' + 'no' + ' memory')", "exit(3)"
    status, text = run(monkeypatch, tmp_path / "out", goldens=good, speed=wrong, training=dead)
    assert status == 1 and text.startswith(HEADER) and text.count("41.9 dB") == 1
    assert "**failed: no memory; see speed.log**" in text and "**failed: exit status 3; see training.log**" in text

    status, text = run(monkeypatch, tmp_path / "out", goldens=wrong, speed=good, training=good)
    assert status == 0 and text.count("41.9 dB") == 3 and "failed" not in text


def test_a_part_at_its_limit_keeps_what_it_printed_and_ends_with_its_workers(monkeypatch, tmp_path):
    ready, lock = tmp_path / "ready", tmp_path / "lock"
    worker = f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
    worker += f"open({str(ready)!r}, 'w'); time.sleep(60)"
    slow = "import subprocess, sys; print('41.9', 'dB', flush=True)\n"
    slow += f"subprocess.run([sys.executable, '-c', {worker!r}])"

    class Popen(subprocess.Popen):
        def wait(self, timeout=None):
            while timeout and not ready.exists():
                time.sleep(0.05)
            return super().wait(timeout and 0)

    monkeypatch.setattr(gpu.subprocess, "Popen", Popen)
    status, text = run(monkeypatch, tmp_path / "out", speed=slow)
    limit = gpu.LIMITS["speed"]
    assert status == 1 and f"**failed: stopped after {limit} s; see speed.log**" in text and "41.9 dB\n" in text
    with lock.open("w") as file:
        for _ in range(100):  # killed processes end a moment later
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.05)
    pytest.fail("the worker still runs")


def test_a_device_that_is_no_gpu_is_refused_unless_tiny(device, monkeypatch, tmp_path):
    device["lines"] = "cpu\n# cpu\n"
    with pytest.raises(InputError, match=r"no GPU; .*--tiny"):
        gpu.describe("full", tmp_path / "out")
    assert gpu.describe("tiny", tmp_path / "out") == "# cpu\n"
    device["error"] = "Traceback\nRuntimeError: CUDA_ERROR_NO_DEVICE\n"
    with pytest.raises(InputError, match="no device: RuntimeError: CUDA_ERROR_NO_DEVICE"):
        gpu.describe("tiny", tmp_path / "out")


def test_other_results_are_not_overwritten(device, monkeypatch, tmp_path):
    output = tmp_path / "out"
    run(monkeypatch, output, goldens="print(1)")
    device["lines"] = f"gpu\n{HEADER.replace('abc', 'abd')}"
    with pytest.raises(InputError, match="other results"):
        gpu.describe("full", output)
    (tmp_path / "photos").mkdir()
    assert gpu.describe("full", tmp_path / "photos").startswith("# H200")
    (tmp_path / "photos/a.png").touch()
    (tmp_path / "file").touch()
    for other in ("photos", "file"):
        with pytest.raises(InputError, match=other):
            gpu.describe("full", tmp_path / other)
