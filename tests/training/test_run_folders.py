"""Run folders under real faults: two runs at once, killed runs, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import synthetic_images

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.files import streamed, temporary_path, write_whole
from dinoeval.training.checkpointing import LOCK, LOG, OWNER, RunFolder

SETTINGS = {"seed": 0}
HOLD = (
    "import sys, time; from dinoeval.training.checkpointing import RunFolder\n"
    "with RunFolder(sys.argv[1], {'seed': 0}): print('locked', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """A process that runs in the folder `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_second_run_names_the_process_of_the_first(tmp_path, holder):
    with pytest.raises(ConfigError, match=rf"process {holder.pid} .*{tmp_path / 'run'}.*--out"), RunFolder(tmp_path / "run", SETTINGS):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        assert (folder.path / OWNER).read_text() == str(os.getpid())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_run_that_may_wait_begins_after_the_first(tmp_path, holder, caplog):
    holder.terminate()
    with caplog.at_level("INFO", logger="dinoeval"), RunFolder(tmp_path / "run", SETTINGS, wait=True):
        assert (tmp_path / "run" / OWNER).exists()


def test_run_waits_for_the_workers_of_a_killed_run(tmp_path):
    """Data-loading processes are forked, so they hold the lock until they notice that their parent is gone."""
    code = HOLD.replace("time.sleep(60)", "os.fork() and os._exit(0); time.sleep(2)").replace("import sys", "import os, sys")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    with RunFolder(tmp_path, SETTINGS):
        pass


def test_folder_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, SETTINGS):
            raise ZeroDivisionError
    with RunFolder(tmp_path, SETTINGS):
        pass


def test_file_in_place_of_the_folder_is_one_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DinoevalError, match=f"{tmp_path / 'run'} cannot be written"), RunFolder(tmp_path / "run", SETTINGS):
        pass


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path, holder):
    ours = temporary_path(tmp_path / "checkpoint.pth").name
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine = ours.split(".")[1].split("-")[1]
    left = [f".{dead.pid}-{machine}.checkpoint.pth", f".{dead.pid}-{machine}.log.txt"]
    kept = [
        *(ours, f".{holder.pid}-{machine}.checkpoint.pth", f".{dead.pid}-{'0' * 6}.checkpoint.pth"),
        *(".hidden", f".{dead.pid}.notes.md", "checkpoint0004.pth"),
    ]
    for name in left + kept:
        (tmp_path / name).write_text("")
    RunFolder(tmp_path, SETTINGS).resume(epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(kept)


def test_write_removes_what_a_killed_write_left(tmp_path):
    code = "import os, sys; from dinoeval.files import write_whole; write_whole(sys.argv[1], lambda file: (file.touch(), os._exit(0)))"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.json")], check=True)
        assert len(list(tmp_path.iterdir())) == 1
    code = "import sys; from dinoeval.files import write_whole; write_whole(sys.argv[1], lambda file: file.touch())"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.json")], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def command(folder: Path, epochs: int = 3) -> list[str]:
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        for number, image in enumerate(synthetic_images(8, (16, 16))):
            image.save(images / f"{number}.png")
    sizes = {"batch-size": 4, "epochs": epochs, "warmup-epochs": 0, "out-dim": 32, "hidden-dim": 32, "global-crop": 16, "local-crops": 0}
    options = {"data": images, "arch": "vit_xs4_16", "out": folder / "run", "workers": 0, "save-every": 0, **sizes}
    return ["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def epochs_in_log(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "run" / LOG).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 2, 3, 4])
def test_log_is_complete_after_a_kill_between_two_files(tmp_path, files):
    """The process ends right after the n-th file appeared under its name."""
    code = (
        "import os, sys; from dinoeval.cli import main; left = int(sys.argv[1])\n"
        "def exit_after(event, args):\n"
        "    global left\n"
        "    if event == 'os.rename':\n"
        "        left -= 1\n"
        "    elif left == 0:\n"
        "        os._exit(9)\n"
        "sys.addaudithook(exit_after); main(sys.argv[2:])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(files), *command(tmp_path)], check=False, capture_output=True).returncode == 9
    done = subprocess.run([sys.executable, "-m", "dinoeval", *command(tmp_path)], check=False, capture_output=True, text=True)
    assert (done.returncode, epochs_in_log(tmp_path)) == (0, [0, 1, 2]), done.stderr


@pytest.mark.slow
def test_two_commands_with_one_folder_do_not_mix_their_logs(tmp_path):
    words = [sys.executable, "-m", "dinoeval", *command(tmp_path, epochs=30)]
    runs = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) in ([0, 2], [0, 0])  # the second may begin after the end of the first
    assert "Traceback" not in "".join(errors)
    if 2 in codes:
        assert f"process {runs[codes.index(0)].pid} is running" in errors[codes.index(2)]
    assert epochs_in_log(tmp_path) == list(range(30))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 300_000])
def test_full_disk_ends_training_with_one_paragraph(tmp_path, limit):
    """A limit on the size of files stands for a full disk; the teacher alone has 1.3 MB."""
    code = (
        "import resource, sys; from dinoeval.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); main(sys.argv[2:])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(limit), *command(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("checkpoint.pth cannot be written: File too large")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK, LOG]


def test_write_whole_reports_the_reason_of_the_system():
    """/dev/full fails every write as a full disk does. torch.save alone says `unexpected pos 576 vs 534`."""
    for write in (lambda file: file.write_bytes(b"x"), streamed(lambda file: torch.save({"x": torch.zeros(10**5)}, file))):
        with pytest.raises(DinoevalError, match="/dev/full cannot be written: No space left"):
            write_whole("/dev/full", write)
