"""How a command ends, whatever ends it."""

import subprocess
import sys
from argparse import _SubParsersAction
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from sirt_ray import exit_codes
from sirt_ray.cli import main


class TestErrorsThatNobodyHasThoughtOf:
    def broken(self) -> int:
        raise KeyError("sk-very-secret is no stage")

    def test_they_say_so_and_leave_their_trace_without_secrets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MY_KEY", "sk-very-secret")
        monkeypatch.setattr(exit_codes.tempfile, "tempdir", str(tmp_path))
        assert exit_codes.run_command(self.broken, False, "stopped") == 1
        told = capsys.readouterr().err
        (trace,) = tmp_path.glob("sirt-error-*.log")
        assert "a bug of sirt-ray: KeyError" in told and "sirt doctor --json" in told
        assert str(trace) in told and "Traceback" not in told
        written = trace.read_text()
        assert "in broken" in written and "'sirt-ray'" in written
        assert "very-secret" not in told + written

    def test_with_debug_they_are_raised(self) -> None:
        with pytest.raises(KeyError):
            exit_codes.run_command(self.broken, True, "stopped")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "a"), "a cannot be written: No space left"),
        (OSError(13, "Permission denied", "a"), "a cannot be used: Permission denied. Give"),
        (OSError(24, "Too many open files", "a"), "a cannot be opened: Too many open files. Raise"),
        (OSError(36, "File name too long", "a"), "a cannot be used: File name too long. Choose"),
        (OSError(5, "Input/output error", "a"), "a cannot be used: Input/output error. Choose"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
def test_what_the_machine_refuses_is_no_bug(
    error: OSError, said: str, elsewhere: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> int:
        raise RayTaskError("write", "Traceback ...", error) if elsewhere else error

    assert exit_codes.run_command(refused, False, "stopped") == 1
    assert f"error: {said}" in capsys.readouterr().err


def test_a_file_where_a_folder_must_be_is_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert exit_codes.run_command(lambda path=path: path.mkdir() or 0, False, "") == 2
        assert f"error: {path} cannot be used as a folder" in capsys.readouterr().err


def test_a_reader_that_has_ended_is_no_bug() -> None:
    script = (
        "from sirt_ray.exit_codes import run_command\n"
        "run_command(lambda: print('a' * 10**6), False, '')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout and command.stderr
        command.stdout.close()
        told = command.stderr.read()
    assert told.startswith("error: the program that reads this command's output has ended. Run")
    assert told.count("\n") == 1


def test_every_command_can_be_debugged() -> None:
    (commands,) = (
        action for action in main._parser()._actions if isinstance(action, _SubParsersAction)
    )
    for name, command in commands.choices.items():
        inner = [a for a in command._actions if isinstance(a, _SubParsersAction)]
        for parser in [p for a in inner for p in a.choices.values()] or [command]:
            assert "--debug" in parser.format_help(), name


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_codes.run_command(interrupted, True, "stopped; the same command continues") == 130
    assert "the same command continues" in capsys.readouterr().err
