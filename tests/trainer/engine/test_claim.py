"""A run's folder is one process's; what that leaves behind, killed or not, is in nobody's way."""

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

import trainer.engine.claim
import trainer.run
from trainer.engine.claim import LOCK_NAME, claimed
from trainer.run import main

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from trainer.engine.claim import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(100)
"""


@contextmanager
def another_process(folder):
    """Claims the folder; is killed in the end."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_folder_that_another_process_trains_in_is_refused(
    one_epoch, tmp_path, capsys, monkeypatch, is_resumed
):
    """Before data are read, which may take minutes; nothing there changes."""
    monkeypatch.setattr(trainer.run, "read_splits", lambda _: pytest.fail("data were read"))
    folder = tmp_path / "run"
    if is_resumed:
        folder.mkdir()
        (folder / "recipe.json").write_bytes((one_epoch / "recipe.json").read_bytes())
    with another_process(folder) as process:
        before = sorted(folder.iterdir())
        assert main(["--resume" if is_resumed else "--out", str(folder)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {folder} is being trained by process {process.pid}: wait")
        assert sorted(folder.iterdir()) == before
    assert (folder / LOCK_NAME).is_file(), "it was killed"
    with claimed(folder):
        pass
    assert not (folder / LOCK_NAME).exists()


def test_a_run_that_has_begun_and_ended_meanwhile_is_not_written_over(tmp_path, capsys):
    folder = tmp_path / "run"

    @contextmanager
    def late(path):
        path.mkdir()
        (path / "recipe.json").write_text("another's")
        with claimed(path):
            yield

    with patch.object(trainer.run, "claimed", late):
        assert main(["--out", str(folder)]) == 2
    assert f"{folder} holds a run" in capsys.readouterr().err
    assert (folder / "recipe.json").read_text() == "another's"


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_new_folder_stays_if_something_is_in_it(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        monkeypatch.setattr(trainer.engine.claim, "fcntl", None)
    for name, is_written in (("empty", False), ("written", True)):
        folder = tmp_path / "runs" / name
        with claimed(folder):
            if is_written:
                (folder / "recipe.json").touch()
        assert folder.exists() == is_written
        assert not (folder / LOCK_NAME).exists()
    (tmp_path / "mine").mkdir()
    with claimed(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir(), "it was there before"
