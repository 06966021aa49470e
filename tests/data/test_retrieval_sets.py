from __future__ import annotations

import pickle

import numpy as np
import pytest
from set_factories import revisited_set, synthetic_videos

from dinoeval.data.retrieval import open_retrieval
from dinoeval.errors import BadImage, DataError


@pytest.fixture
def root(tmp_path):
    return revisited_set(tmp_path / "sets", synthetic_videos(tmp_path / "videos", videos=2, frames=10), queries=2, near=1, far=3)


def change(root, **changes):
    """Replace values of the ground-truth file."""
    path = root / "roxford5k/gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **changes}))
    return path


def read_gnd(root):
    return pickle.loads((root / "roxford5k/gnd_roxford5k.pkl").read_bytes())["gnd"]


def test_retrieval_set_has_images_and_ground_truth(root):
    opened = open_retrieval(root, "roxford5k")
    assert (len(opened.database), len(opened.queries)) == (18, 2)
    assert opened.queries.paths == ("video0_00005.jpg", "video1_00005.jpg")
    query = opened.ground_truth[1]  # Rows 9 to 17 are frames 0 to 4 and 6 to 9 of its video.
    assert {name: rows.tolist() for name, rows in query.lists.items()} == {
        "easy": [13, 14],
        "junk": [11, 12, 15, 16],
        "hard": [9, 10, 17],
    }
    assert [rows.tolist() for rows in query.ground_truth("easy")] == [[13, 14], [11, 12, 15, 16, 9, 10, 17]]
    assert [rows.tolist() for rows in query.ground_truth("medium")] == [[13, 14, 9, 10, 17], [11, 12, 15, 16]]
    assert [rows.tolist() for rows in query.ground_truth("hard")] == [[9, 10, 17], [11, 12, 15, 16, 13, 14]]
    assert open_retrieval(root / "roxford5k", "roxford5k").database.paths == opened.database.paths


def test_cropped_queries_are_cut_to_their_boxes(root):
    opened = open_retrieval(root, "roxford5k")
    cropped = opened.cropped()
    assert cropped.open(0).size == (58, 44)  # 0.2 to 0.8 of 96 x 72: 19.2 to 76.8 and 14.4 to 57.6, each rounded
    np.testing.assert_array_equal(np.asarray(cropped.open(0)), np.asarray(opened.queries.open(0).crop((19, 14, 77, 58))))
    assert cropped.stamp != opened.queries.stamp  # The cache must tell their features apart.


@pytest.mark.parametrize(
    ("box", "mentioned"),
    [([10, 10, 10, 40], "no area"), ([30, 30, 10, 10], "no area"), ([], "no box"), ([1, 2, 3], "four numbers"), ([0, 0, np.nan, 1], "nan")],
)
def test_invalid_boxes_raise(root, box, mentioned):
    gnd = read_gnd(root)
    gnd[1]["bbx"] = box
    change(root, gnd=gnd)
    with pytest.raises(DataError, match=mentioned):
        open_retrieval(root, "roxford5k").cropped()


def test_box_outside_its_image_is_a_bad_image(root):
    gnd = read_gnd(root)
    gnd[0]["bbx"] = [200, 10, 260, 40]
    change(root, gnd=gnd)
    with pytest.raises(BadImage, match=r"200 10 260 40.*96 x 72"):
        open_retrieval(root, "roxford5k").cropped().open(0)


def test_missing_images_are_listed(root):
    (root / "roxford5k/jpg/video0_00003.jpg").unlink()
    (root / "roxford5k/jpg/video1_00005.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 20 images .*jpg: video0_00003\.jpg, video1_00005\.jpg"):
        open_retrieval(root, "roxford5k")


def test_original_oxford_and_paris_are_rejected(root, tmp_path):
    change(root, gnd=[{"bbx": [0, 0, 1, 1], "ok": [0], "junk": []}] * 2)
    with pytest.raises(DataError, match=r"original.*download gnd_roxford5k\.pkl"):
        open_retrieval(root, "roxford5k")
    old = tmp_path / "old"
    (old / "gt_files").mkdir(parents=True)
    with pytest.raises(DataError, match="original oxford5k"):
        open_retrieval(old, "roxford5k")
    (old / "paris6k").mkdir()
    (old / "paris6k/gnd_paris6k.pkl").touch()
    with pytest.raises(DataError, match="original paris6k"):
        open_retrieval(old, "rparis6k")


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ({"gnd": []}, "gnd must be a list.*2 queries"),
        ({"gnd": [[], []]}, "entry 0 must be a dict"),
        ({"gnd": [{"easy": [18], "hard": [], "junk": []}] * 2}, "from 0 to 17"),
        ({"gnd": [{"easy": [-1], "hard": [], "junk": []}] * 2}, "from 0 to 17"),
        ({"gnd": [{"easy": ["x"], "hard": [], "junk": []}] * 2}, "entry 0: easy"),
        ({"gnd": [{"easy": [0.5], "hard": [], "junk": []}] * 2}, "from 0 to 17"),
        ({"imlist": []}, "imlist must be a list"),
        ({"qimlist": ["../../../etc/x", "b"]}, "qimlist has names"),
        ({"qimlist": ["a" * 300, "b"]}, "qimlist has names"),
        ({"qimlist": np.array("a")}, "qimlist must be a list"),
        ({"qimlist": ["/etc/x", "b"]}, "qimlist has names"),
    ],
)
def test_invalid_ground_truth_raises(root, changes, mentioned):
    change(root, **changes)
    with pytest.raises(DataError, match=mentioned):
        open_retrieval(root, "roxford5k")


def test_absent_dataset_suggests_the_one_that_exists(root, tmp_path):
    with pytest.raises(DataError, match="--dataset roxford5k"):
        open_retrieval(root, "rparis6k")
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_retrieval(tmp_path / "nowhere", "rparis6k")


def test_ground_truth_must_be_a_dict(root):
    (root / "roxford5k/gnd_roxford5k.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl.*got a list"):
        open_retrieval(root, "roxford5k")
