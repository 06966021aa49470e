"""Programs that torchrun starts, in which not every process calls dinoeval."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dinoeval.testing import tiny_image_folder

PROGRAM = """
import os, sys, time
import torch.distributed as dist
import dinoeval
from dinoeval import distributed
from dinoeval.testing import tiny_backbone
distributed.JOIN_SECONDS = 5
rank, case, data = int(os.environ["RANK"]), *sys.argv[1:]
if case == "own group":
    dist.init_process_group("gloo")
evaluate = lambda: dinoeval.evaluate("knn", tiny_backbone(), data=data, k=3).metrics["top1@3"]
try:
    if case != "first":
        evaluate()
    if rank == (case == "second"):
        evaluate()
    else:
        time.sleep(8)
except dinoeval.DinoevalError as error:
    print("failed", rank, error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["first", "second", "own group"])
def test_a_call_of_one_process_ends_with_an_error(case, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    data = tiny_image_folder(tmp_path / "data")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, tmp_path / "program.py", case, data], capture_output=True, text=True, timeout=200, check=True)
    caller = int(case == "second")
    (message,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert message.startswith(f"failed {caller}")
    assert f"number {1 - caller} did not call" in message
