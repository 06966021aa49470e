from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from factories import class_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_splits
from dinoeval.data.subsets import fraction, hold_out, listed, parse_subset, subset_rows
from dinoeval.errors import ConfigError, DataError

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))


def counts(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return np.bincount(labels[rows], minlength=labels.max() + 1).tolist()


def slow_seats(sizes: list[int], count: int, most: list[int]) -> list[int]:
    """Largest remainder in exact fractions, one seat after another."""
    shares = [Fraction(size * count, sum(sizes)) for size in sizes]
    seats = [min(int(share), limit) for share, limit in zip(shares, most, strict=True)]
    by_loss = sorted(range(len(sizes)), key=lambda kind: -(shares[kind] - int(shares[kind])))
    while sum(seats) < count and any(seat < limit for seat, limit in zip(seats, most, strict=True)):
        for kind in by_loss:
            if sum(seats) < count and seats[kind] < most[kind]:
                seats[kind] += 1
    return seats


@pytest.mark.parametrize(("text", "percent"), [("1pct", 1), ("10pct", 10), ("0.25pct", 0.25), (".5pct", 0.5), ("99.9pct", 99.9)])
def test_percentages(text, percent):
    assert parse_subset(text) == percent


@pytest.mark.parametrize("text", ["0pct", "100pct", "250pct", "0.0pct"])
def test_percentages_out_of_range(text):
    with pytest.raises(ConfigError, match=f"more than 0 and less than 100 percent: {float(text[:-3]):g}pct"):
        parse_subset(text)


@pytest.mark.parametrize("text", ["1percent.txt", "-1pct", "pct", "1 pct", "nanpct", "1e1pct", "", "."])
def test_what_is_neither_a_percentage_nor_a_file(text):
    with pytest.raises(ConfigError, match=f"no subset '{re.escape(text)}': a subset is <number>pct"):
        parse_subset(text)


def test_a_class_gets_its_share_by_largest_remainder():
    # 30 % of 20 is 6. Shares: 10 * 0.3 = 3, 5 * 0.3 = 1.5, 4 * 0.3 = 1.2, 1 * 0.3 = 0.3: rounded down 3, 1, 1, 0, which leaves
    # one for class 1; class 3 would go without and gets one on top.
    labels = np.repeat([0, 1, 2, 3], [10, 5, 4, 1])
    assert counts(labels, fraction(labels, 30, seed=0)) == [3, 2, 1, 1]
    # 50 % of 6 in classes of 3: 1.5 each, and the earlier class has the one that is left. A number without images gets none.
    assert counts(np.array([2, 0, 2, 0, 2, 0]), fraction(np.array([2, 0, 2, 0, 2, 0]), 50, seed=0)) == [2, 0, 1]
    # In binary, 0.3 % of 1,000 is less than 3.
    assert len(fraction(np.zeros(1000, np.int64), 0.3, seed=0)) == 3


@settings(max_examples=100, deadline=None)
@given(labels=label_lists, percent=st.floats(0.01, 99.99), seed=st.integers(0, 5))
def test_fractions_of_any_set(labels, percent, seed):
    rows = fraction(labels, percent, seed)
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == fraction(labels, percent, seed).tolist()
    sizes = np.bincount(labels).tolist()
    seats = slow_seats(sizes, int(len(labels) * Fraction(str(percent)) / 100), sizes)
    assert counts(labels, rows) == [max(seat, size > 0) for seat, size in zip(seats, sizes, strict=True)]


def test_another_seed_draws_others_and_every_image_is_as_likely():
    labels = np.tile([0, 1], 20)
    drawn = np.stack([np.isin(np.arange(40), fraction(labels, 25, seed)) for seed in range(2000)])
    assert len(np.unique(drawn, axis=0)) > 1900
    # Each of 20 images a class is drawn 1 in 4 times: 500 of 2,000, with a deviation of 19.4.
    assert np.abs(drawn.sum(0) - 500).max() < 5 * 19.4


def test_imagenets_one_percent_has_as_many_images_as_simclrs_list():
    """1,000 classes of about ImageNet's sizes, with its 1,281,167 images."""
    sizes = np.r_[np.full(895, 1300), np.linspace(942, 1299, 105).astype(int)]
    sizes[-1] += 1_281_167 - sizes.sum()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), sizes))
    for percent, total in ((1, 12_811), (10, 128_116)):
        rows = fraction(labels, percent, seed=0)
        assert len(rows) == total
        assert np.abs(np.bincount(labels[rows]) - sizes * percent / 100).max() < 1


def test_several_labels_an_image_are_drawn_from_all_alike():
    labels = np.zeros((30, 4), np.int8)
    rows = fraction(labels, 10, seed=3)
    assert (len(rows), rows.tolist()) == (3, fraction(labels, 10, seed=3).tolist())
    assert len(fraction(labels, 1, seed=0)) == 1
    kept, held = hold_out(labels, 0.2, seed=0)
    assert (len(held), sorted([*kept, *held])) == (6, list(range(30)))
    assert len({tuple(fraction(labels, 10, seed)) for seed in range(20)}) > 10


def test_held_out_images_leave_every_class_one():
    labels = np.repeat([0, 1, 2], [7, 2, 1])  # a fifth: 1.4, 0.4, 0.2: one for class 0, and one that 0 and 1 lost most by, 0 first
    kept, held = hold_out(labels, 0.2, seed=0)
    assert (counts(labels, held), counts(labels, kept)) == ([2, 0, 0], [5, 2, 1])
    # 8 of 10: 5.6, 1.6, 0.8: rounded down 5, 1, 0; class 0 takes one more and then keeps its last, so only 7 can be held.
    kept, held = hold_out(labels, 8, seed=0)
    assert (counts(labels, held), counts(labels, kept)) == ([6, 1, 0], [1, 1, 1])


@settings(max_examples=100, deadline=None)
@given(labels=label_lists, share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_held_out_parts_of_any_set(labels, share, seed):
    sizes = np.bincount(labels).tolist()
    most = [max(0, size - 1) for size in sizes]
    count = max(1, int(len(labels) * Fraction(str(share))))
    if len(labels) == 1:
        with pytest.raises(ConfigError, match="1 of 1 images cannot be held out"):
            hold_out(labels, share, seed)
        return
    if not any(most):
        with pytest.raises(DataError, match="every class has one image"):
            hold_out(labels, share, seed)
        return
    kept, held = hold_out(labels, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    assert counts(labels, held) == slow_seats(sizes, count, most)
    assert [part.tolist() for part in hold_out(labels, count, seed)] == [kept.tolist(), held.tolist()]


@pytest.mark.parametrize("part", [0, 10, -1, 0.0, 1.0, 1.5])
def test_parts_that_leave_nothing_to_keep_or_to_hold(part):
    with pytest.raises(ConfigError, match=r"held out|hold out"):
        hold_out(np.tile([0, 1], 5), part, seed=0)


@pytest.mark.parametrize("draw", [lambda: fraction(np.zeros(9, np.int64), 50, -1), lambda: hold_out(np.zeros(9, np.int64), 3, -1)])
def test_seeds_count_from_0(draw):
    with pytest.raises(ConfigError, match="seed must be 0 or more: -1"):
        draw()


@pytest.fixture
def train(tmp_path) -> ImageSet:
    """class0/0.png ... class2/2.png, and pictures named as ImageNet's are."""
    folder = class_folders(tmp_path / "set", train=3, val=1)
    for label in range(3):
        (folder / f"train/class{label}/2.png").rename(folder / f"train/class{label}/n{label}_7.JPEG")
    return open_splits(str(folder))[0]


def write(tmp_path: Path, content: str) -> Path:
    (tmp_path / "list.txt").write_text(content)
    return tmp_path / "list.txt"


def test_a_list_names_images_by_base_name_or_by_path(train, tmp_path):
    path = write(tmp_path, "\ufeffn2_7.JPEG\r\n\n  class1/0.png \nn0_7.JPEG\n\n")
    rows = listed(train, path)
    assert [train.paths[row] for row in rows] == ["class0/n0_7.JPEG", "class1/0.png", "class2/n2_7.JPEG"]
    assert train.subset(rows).labels.tolist() == [0, 1, 2]
    assert subset_rows(train, str(path), seed=0).tolist() == rows.tolist()
    assert subset_rows(train, "50pct", seed=0).tolist() == fraction(train.labels, 50, seed=0).tolist()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("n0_7.JPEG\nn9_7.JPEG\nclass0/9.png\n", r"2 names in the list .* are of no image in .* like class0/0.png: n9_7.JPEG, class0/9"),
        ("0.png\nn0_7.JPEG\n", r"1 names in the list .* are of several images in .*named like class0/0.png: 0.png"),
        ("n0_7.JPEG\nn1_7.JPEG\nn0_7.JPEG\n", r"1 names are more than once in the list .*: n0_7.JPEG"),
        ("n0_7.JPEG\nclass0/n0_7.JPEG\n", "1 images are in the list .* both by base name and by path: class0/n0_7.JPEG"),
        ("".join(f"x{number}\n" for number in range(1234)), "1,234 names in the list .*: x0, x1, x2, x3, x4 and 1229 more"),
        (" \n\n", "names no image"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(train, tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        listed(train, write(tmp_path, content))


def test_a_list_that_is_no_text(train, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    for path in (tmp_path / "list.txt", tmp_path / "none.txt"):
        with pytest.raises(DataError, match="cannot be read"):
            listed(train, path)
