"""How scripts end: signals, closed pipes, full disks; and what they print of hostile names."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import drender
from drender import cli

ROOT = Path(drender.__file__).parents[1]
WRITE = """
import os, pathlib, sys, time
from drender import cli
from drender.files import atomic_dir, atomic_write
from drender.locks import lock_folder

def main():
    out = pathlib.Path(sys.argv[1])
    with lock_folder(out), atomic_dir(out / "c", False, lambda _: False) as folder, atomic_write(out / "a") as file:
        file.touch(), (folder / "b").touch()
        print("writing", flush=True)
        time.sleep(60)

cli.run(main)
"""


def script(text: str, *arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stderr=subprocess.PIPE, env=environment, text=True, **options
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_no_temporary_files(tmp_path, number):
    with script(WRITE, str(tmp_path / "out"), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(os.listdir(tmp_path / "out")) == 4  # two locks, a temporary file and a temporary folder
        process.send_signal(number)
        message = process.stderr.read()
    assert process.returncode == 128 + number
    assert message.endswith("rerun the same command to resume\n") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nohup_stays_in_force():
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport os\nfrom drender import cli\n"
    with script(ignored + "cli.run(lambda: os.kill(os.getpid(), signal.SIGHUP))") as process:
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_interrupted_import_prints_no_traceback(tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for name in ("sample.py", "train.py", "convert_weights.py"):
        text = f"import runpy, sys; sys.path[:0] = [{str(tmp_path)!r}]; runpy.run_path({str(ROOT / name)!r})"
        with script(text) as process:
            assert process.stderr.read() == "interrupted\n"
        assert process.returncode in (-signal.SIGINT, 130)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("flush", [True, False])
def test_full_standard_output_is_one_line(flush):
    text = f"from drender import cli\ncli.run(lambda: print('a line', flush={flush}))"
    with open("/dev/full", "w") as full, script(text, stdout=full) as process:
        assert process.stderr.read() == "error: standard output cannot be written (No space left on device)\n"
    assert process.returncode == 1


def test_closed_pipe_is_not_taken_for_a_full_disk(tmp_path):
    """As in `convert_weights.py … | head -1`."""
    with script(WRITE.replace("time.sleep", "print"), str(tmp_path / "out"), stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\x07b", "a\x9bb", "a\rb", "a\u202eb", "a\udcffb"])
def test_control_characters_are_escaped(capsys, name):
    def main():
        print(f"{name}: é done\n\ttwo")
        warnings.simplefilter("always")
        warnings.warn(f"{name}: é two\nlines", stacklevel=1)

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 0
    out, err = capsys.readouterr()
    escaped = name.encode("unicode_escape", "surrogatepass").decode()
    assert out == f"{escaped}: é done\n\ttwo\n" and err == f"warning: {escaped}: é two\\nlines\n"
    with pytest.raises(SystemExit):
        cli.Parser(prog="p").error(f"{name} is unknown")
    assert capsys.readouterr().err == f"error: {escaped} is unknown; see p --help\n"


def test_home_directory_replaces_a_tilde_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    parser = cli.Parser()
    parser.add_argument("--output", type=cli.path)
    assert parser.parse_args(["--output=~/clips"]).output == "/home/ann/clips"
    assert parser.parse_args(["--output=owner/na~me"]).output == "owner/na~me"
