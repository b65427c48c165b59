"""Where `--out` points to what is no file: devices, pipes and links are never replaced."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sirt_ray.cli.main import main
from sirt_ray.errors import DataError
from sirt_ray.report.command import write_report


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    path = tmp_path / "responses.jsonl"
    path.write_text('{"response": "The answer is 4.", "reference": "4"}\n')
    return path


def grade(responses: Path, out: Path | str) -> int:
    return main(["grade", "--benchmark", "gsm8k", str(responses), "--out", str(out)])


def test_a_device_is_written_to_and_stays_one(responses: Path, tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        null.write_text("")
    except OSError:  # Only root may make a device, and not in every container.
        null = Path(os.devnull)
    before = null.stat()
    assert grade(responses, null) == 0
    write_report(null, "a report")
    assert stat.S_ISCHR(null.stat().st_mode) and null.stat().st_ino == before.st_ino
    assert not list(null.parent.glob(".null*"))


def test_a_pipe_gets_the_rows(responses: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert grade(responses, pipe) == 0
    reader.join()
    assert json.loads(read[0])["verdict"] == "right"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("redirected", [False, True])
def test_standard_output_gets_the_rows_and_then_the_counts(
    responses: Path, tmp_path: Path, redirected: bool
) -> None:
    command = [sys.executable, "-m", "sirt_ray", "grade", "--benchmark", "gsm8k", str(responses)]
    command += ["--out", "/dev/stdout"]
    shown = tmp_path / "shown"
    if redirected:
        with shown.open("w") as file:
            subprocess.run(command, stdout=file, check=True)
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        shown.write_bytes(done.stdout)
    row, counts = map(json.loads, shown.read_text().splitlines())
    assert (row["verdict"], counts["right"]) == ("right", 1)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_neither_followed_nor_replaced(
    responses: Path, tmp_path: Path, exists: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if exists:
        target.write_text("another's")
    link.symlink_to(target)
    assert grade(responses, link) == 2
    assert f"--out {link}: is a symbolic link to {target}" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"cannot write the report to .*symbolic link"):
        write_report(link, "a report")
    assert link.is_symlink() and target.exists() == exists
    assert not exists or target.read_text() == "another's"


def test_bad_rows_leave_what_is_there(responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "graded.jsonl"
    assert grade(responses, out) == 0
    before = out.read_text()
    responses.write_text('{"response": "4"}\n')
    assert grade(responses, out) == 2
    assert out.read_text() == before and len(list(tmp_path.iterdir())) == 2
