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
from dinoeval.data.subsets import hold_out, listed_rows, parse_subset, sample_rows, subset_rows
from dinoeval.errors import ConfigError, DataError

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))


def counts(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return np.bincount(labels[rows], minlength=labels.max() + 1).tolist()


def slow_quotas(sizes: list[int], count: int, limits: list[int]) -> list[int]:
    """The largest-remainder method in exact fractions, one image after another."""
    shares = [Fraction(size * count, sum(sizes)) for size in sizes]
    quotas = [min(int(share), limit) for share, limit in zip(shares, limits, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda label: -(shares[label] - int(shares[label])))
    while sum(quotas) < count and any(quota < limit for quota, limit in zip(quotas, limits, strict=True)):
        for label in by_remainder:
            if sum(quotas) < count and quotas[label] < limits[label]:
                quotas[label] += 1
    return quotas


@pytest.mark.parametrize(("text", "percent"), [("1pct", 1), ("10pct", 10), ("0.25pct", 0.25), (".5pct", 0.5), ("99.9pct", 99.9)])
def test_parse_subset_reads_percentages(text, percent):
    assert parse_subset(text) == percent


@pytest.mark.parametrize("text", ["0pct", "100pct", "250pct", "0.0pct"])
def test_parse_subset_raises_for_percentages_out_of_range(text):
    with pytest.raises(ConfigError, match=f"--train-subset .*got {float(text[:-3]):g}pct"):
        parse_subset(text)


@pytest.mark.parametrize("text", ["1percent.txt", "-1pct", "pct", "1 pct", "nanpct", "1e1pct", "", "."])
def test_parse_subset_raises_for_other_texts(text):
    with pytest.raises(ConfigError, match=f"--train-subset '{re.escape(text)}'.*<number>pct"):
        parse_subset(text)


def test_sample_rows_uses_the_largest_remainder_method():
    # 30% of 20 is 6. Shares: 10 * 0.3 = 3, 5 * 0.3 = 1.5, 4 * 0.3 = 1.2, 1 * 0.3 = 0.3. Rounded down they are 3, 1, 1, 0, which
    # leaves one image for class 1. Class 3 would get none, so it gets one in addition.
    labels = np.repeat([0, 1, 2, 3], [10, 5, 4, 1])
    assert counts(labels, sample_rows(labels, 30, seed=0)) == [3, 2, 1, 1]
    # 50% of 6 in classes of 3: 1.5 each, and the lower class gets the remaining image. A class without images gets none.
    assert counts(np.array([2, 0, 2, 0, 2, 0]), sample_rows(np.array([2, 0, 2, 0, 2, 0]), 50, seed=0)) == [2, 0, 1]
    # In binary floating point, 0.3% of 1,000 is less than 3.
    assert len(sample_rows(np.zeros(1000, np.int64), 0.3, seed=0)) == 3


@settings(max_examples=100, deadline=None)
@given(labels=label_lists, percent=st.floats(0.01, 99.99), seed=st.integers(0, 5))
def test_sample_rows_equals_slow_quotas(labels, percent, seed):
    rows = sample_rows(labels, percent, seed)
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == sample_rows(labels, percent, seed).tolist()
    sizes = np.bincount(labels).tolist()
    quotas = slow_quotas(sizes, int(len(labels) * Fraction(str(percent)) / 100), sizes)
    assert counts(labels, rows) == [max(quota, size > 0) for quota, size in zip(quotas, sizes, strict=True)]


def test_seeds_sample_different_images_with_equal_probability():
    labels = np.tile([0, 1], 20)
    drawn = np.stack([np.isin(np.arange(40), sample_rows(labels, 25, seed)) for seed in range(2000)])
    assert len(np.unique(drawn, axis=0)) > 1900
    # Each of 20 images per class is sampled 1 in 4 times: 500 of 2,000, with a standard deviation of 19.4.
    assert np.abs(drawn.sum(0) - 500).max() < 5 * 19.4


def test_subsets_of_imagenet_are_as_large_as_those_of_simclr():
    """1,000 classes of about the sizes in ImageNet, with its 1,281,167 images."""
    sizes = np.r_[np.full(895, 1300), np.linspace(942, 1299, 105).astype(int)]
    sizes[-1] += 1_281_167 - sizes.sum()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), sizes))
    for percent, total in ((1, 12_811), (10, 128_116)):
        rows = sample_rows(labels, percent, seed=0)
        assert len(rows) == total
        assert np.abs(np.bincount(labels[rows]) - sizes * percent / 100).max() < 1


def test_multi_label_subsets_ignore_the_labels():
    labels = np.zeros((30, 4), np.int8)
    rows = sample_rows(labels, 10, seed=3)
    assert (len(rows), rows.tolist()) == (3, sample_rows(labels, 10, seed=3).tolist())
    assert len(sample_rows(labels, 1, seed=0)) == 1
    kept, held = hold_out(labels, 0.2, seed=0)
    assert (len(held), sorted([*kept, *held])) == (6, list(range(30)))
    assert len({tuple(sample_rows(labels, 10, seed)) for seed in range(20)}) > 10


def test_hold_out_keeps_one_image_of_every_class():
    # A fifth is 1.4, 0.4 and 0.2 images: one of class 0; the remainders of 0 and 1 are equal, so class 0 gets the other too.
    labels = np.repeat([0, 1, 2], [7, 2, 1])
    kept, held = hold_out(labels, 0.2, seed=0)
    assert (counts(labels, held), counts(labels, kept)) == ([2, 0, 0], [5, 2, 1])
    # 8 of 10 are 5.6, 1.6 and 0.8, rounded down 5, 1, 0. Class 0 gives one more but keeps its last, so only 7 are held out.
    kept, held = hold_out(labels, 8, seed=0)
    assert (counts(labels, held), counts(labels, kept)) == ([6, 1, 0], [1, 1, 1])


@settings(max_examples=100, deadline=None)
@given(labels=label_lists, share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_hold_out_equals_slow_quotas(labels, share, seed):
    sizes = np.bincount(labels).tolist()
    limits = [max(0, size - 1) for size in sizes]
    count = max(1, int(len(labels) * Fraction(str(share))))
    if len(labels) == 1:
        with pytest.raises(ConfigError, match="1 of 1 images cannot be held out"):
            hold_out(labels, share, seed)
        return
    if not any(limits):
        with pytest.raises(DataError, match="every class has one image"):
            hold_out(labels, share, seed)
        return
    kept, held = hold_out(labels, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    assert counts(labels, held) == slow_quotas(sizes, count, limits)
    assert [part.tolist() for part in hold_out(labels, count, seed)] == [kept.tolist(), held.tolist()]


@pytest.mark.parametrize("part", [0, 10, -1, 0.0, 1.0, 1.5])
def test_hold_out_raises_when_nothing_is_kept_or_held_out(part):
    with pytest.raises(ConfigError, match=r"held out|hold out"):
        hold_out(np.tile([0, 1], 5), part, seed=0)


@pytest.mark.parametrize("draw", [lambda: sample_rows(np.zeros(9, np.int64), 50, -1), lambda: hold_out(np.zeros(9, np.int64), 3, -1)])
def test_negative_seeds_raise(draw):
    with pytest.raises(ConfigError, match=r"--seed .* 0, got -1"):
        draw()


@pytest.fixture
def train(tmp_path) -> ImageSet:
    """A training set with class0/0.png and so on, and one image per class with a name as in ImageNet."""
    folder = class_folders(tmp_path / "set", train=3, val=1)
    for label in range(3):
        (folder / f"train/class{label}/2.png").rename(folder / f"train/class{label}/n{label}_7.JPEG")
    return open_splits(str(folder))[0]


def write(tmp_path: Path, content: str) -> Path:
    (tmp_path / "list.txt").write_text(content)
    return tmp_path / "list.txt"


def test_list_names_images_by_file_name_or_path(train, tmp_path):
    path = write(tmp_path, "\ufeffn2_7.JPEG\r\n\n  class1/0.png \nn0_7.JPEG\n\n")
    rows = listed_rows(train, path)
    assert [train.paths[row] for row in rows] == ["class0/n0_7.JPEG", "class1/0.png", "class2/n2_7.JPEG"]
    assert train.subset(rows).labels.tolist() == [0, 1, 2]
    assert subset_rows(train, str(path), seed=0).tolist() == rows.tolist()
    assert subset_rows(train, "50pct", seed=0).tolist() == sample_rows(train.labels, 50, seed=0).tolist()


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ("n0_7.JPEG\nn9_7.JPEG\nclass0/9.png\n", r"2 names .*list\.txt .*class0/0\.png: n9_7\.JPEG, class0/9"),
        ("0.png\nn0_7.JPEG\n", r"1 names .*list\.txt .*several images .*: 0\.png"),
        ("n0_7.JPEG\nn1_7.JPEG\nn0_7.JPEG\n", r"1 names .*more than once .*list\.txt: n0_7\.JPEG"),
        ("n0_7.JPEG\nclass0/n0_7.JPEG\n", r"1 images .*list\.txt both .*: class0/n0_7\.JPEG"),
        ("".join(f"x{number}\n" for number in range(1234)), r"1,234 names .*: x0, x1, x2, x3, x4 and 1229 more"),
        (" \n\n", r"list\.txt has no image names"),
    ],
)
def test_invalid_lists_raise(train, tmp_path, content, mentioned):
    with pytest.raises(DataError, match=mentioned):
        listed_rows(train, write(tmp_path, content))


def test_lists_that_are_not_text_raise(train, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    for path in (tmp_path / "list.txt", tmp_path / "none.txt"):
        with pytest.raises(DataError, match=f"{path.name} cannot be read"):
            listed_rows(train, path)
