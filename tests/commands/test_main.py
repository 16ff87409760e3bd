"""The installed command: every job behind one name."""

import sys
import tomllib
from pathlib import Path

import pytest

from drender import cli
from drender.commands import main, sample
from drender.sampling.commands import COMMANDS

ROOT = Path(__file__).parents[2]


def call(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["drender", *words])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    return (stopped.value.code, *capsys.readouterr())


def test_help_lists_all_jobs_in_the_order_of_use(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--help")
    parser = cli.Parser()
    sample.add_commands(parser.add_commands())
    expected = [*parser.commands, *main.OTHERS]
    lines = [line.split()[0] for line in out.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    assert code == 0
    assert [line for line in lines if line in expected] == expected
    assert expected[:3] == ["relight", "inverse", "forward"]
    assert set(COMMANDS) < set(expected)


@pytest.mark.parametrize("name", main.OTHERS)
def test_other_commands_have_help_of_their_own(monkeypatch, capsys, name):
    code, out, _ = call(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert out.startswith(f"usage: drender {name}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("religt",), "unknown command 'religt'; did you mean 'relight'?; see drender --help"),
        (("convert", "--overwrit"), "unknown option '--overwrit'; did you mean '--overwrite'?; see drender convert"),
        (("train", "--config"), "see drender train --help"),
        (("info", "/nowhere"), "/nowhere does not exist"),
        (("app", "--frames", "0"), "--frames"),
        (("app", "--max-upload", "nan"), "--max-upload"),
        (("app", "--port", "99999"), "--port 99999: must be 1 to 65535"),
    ],
)
def test_errors_are_one_line_with_code_2(monkeypatch, capsys, words, message):
    code, _, err = call(monkeypatch, capsys, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_the_installed_script_is_the_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"drender": "drender.commands.main:run"}
