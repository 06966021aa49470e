"""Questions about many images that the processes of a run answer together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from factories import class_folders

from dinoeval.data.survey import survey
from dinoeval.errors import DataError

PROGRAM = """
import json, os, sys
from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_splits
from dinoeval.data.survey import survey
from dinoeval.errors import DataError
rank, asked, content = int(os.environ["RANK"]), [], ImageSet.content
def fail(row):
    if row == 1:
        raise DataError("image 1 cannot be read")
def counted(images, row, last=None):
    asked.append(row)
    return content(images, row, last)
answers = survey([4, 1, 3, 2], lambda row: row * row if row != 3 else None)
try:
    survey(range(4), fail)
    failure = ""
except DataError as error:
    failure = str(error)
after = survey(range(100), lambda row: f"{rank}" if row % 50 == rank else None)
ImageSet.content = counted
notes = open_splits(sys.argv[1])[1].notes
with open(f"{sys.argv[2]}/{rank}.json", "w") as file:
    json.dump([answers, failure, after, notes, len(asked)], file)
"""


@pytest.mark.slow
def test_processes_share_the_images_and_the_errors(tmp_path):
    """An error in one process is raised in all. Otherwise the others would wait for it, or take its next answer for this one."""
    data = class_folders(tmp_path / "data")
    (data / "val/class0/0.png").write_bytes((data / "train/class1/2.png").read_bytes())
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, tmp_path / "program.py", data, tmp_path], check=True, timeout=100)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one[:4] == other[:4]
    answers, failure, after, (note,), read = one
    assert answers == [[1, 1], [2, 4], [4, 16]]
    assert failure == "image 1 cannot be read"
    assert after == [[0, "0"], [1, "1"], [50, "0"], [51, "1"]]
    assert "1 of 9 images of val" in note
    assert "class0/0.png = class1/2.png" in note
    assert abs(read - other[4]) <= 2


def test_error_of_an_image_is_raised():
    def fail(row: int) -> None:
        if row == 70:
            raise DataError("image 70")

    with pytest.raises(DataError, match="image 70"):
        survey(range(100), fail)
