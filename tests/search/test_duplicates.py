from __future__ import annotations

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.maths.neighbors import l2_normalize
from dinoeval.search import duplicates
from dinoeval.search.duplicates import linked
from dinoeval.search.threshold import choose_threshold, copies
from dinoeval.search.vectors import VectorFile, write_vectors


def on_disk(path, rows: np.ndarray) -> VectorFile:
    rows = l2_normalize(rows)
    write_vectors(path, [rows[:3], rows[3:]], *rows.shape)
    return VectorFile(path, *rows.shape)


def test_a_chain_is_one_group_and_a_loner_none(tmp_path):
    """Directions in degrees: 0, 10 and 20 are linked by steps of 10; 90 and 94; 200 alone."""
    angles = np.radians([0, 90, 10, 200, 20, 94])
    rows = on_disk(tmp_path / "rows", np.stack((np.cos(angles), np.sin(angles)), 1))
    groups, best = linked(rows, np.cos(np.radians(10.5)))
    assert [group.tolist() for group in groups] == [[1, 5], [0, 2, 4]]  # the surest first
    np.testing.assert_allclose(best[[0, 2, 4]], np.cos(np.radians(10)), atol=1e-6)
    np.testing.assert_allclose(best[[1, 5]], np.cos(np.radians(4)), atol=1e-6)
    assert best[3] == -np.inf


@pytest.mark.parametrize("count", [1, 7, 8, 9, 60])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6, 0.9, 1.1])
def test_groups_are_those_of_a_walk_over_all_pairs(tmp_path, monkeypatch, count, threshold):
    monkeypatch.setattr(duplicates, "_BLOCK", 8)
    monkeypatch.setattr(duplicates, "_PENDING", 5)
    values = l2_normalize(np.random.default_rng(count).standard_normal((count, 4)))
    groups, best = linked(on_disk(tmp_path / "rows", values), threshold)
    cosines = values @ values.T - 9 * np.eye(count, dtype=np.float32)
    expected, seen = set(), set()
    for start in range(count):
        reached, border = {start}, [start]
        while border:
            new = set(np.flatnonzero(cosines[border.pop()] >= threshold).tolist()) - reached
            reached |= new
            border += new
        if start not in seen and len(reached) > 1:
            expected.add(tuple(sorted(reached)))
        seen |= reached
    assert {tuple(group.tolist()) for group in groups} == expected
    nearest = cosines.max(1) if count > 1 else np.array([-9.0])
    np.testing.assert_allclose(best, np.where(nearest >= threshold, nearest, -np.inf), atol=1e-6)


def test_copies_are_as_people_make_them():
    picture = synthetic_images(1, (400, 200))[0]
    made = copies(picture)
    assert [one.size for one in made] == [(400, 200), (400, 200), (200, 100), (380, 190)]
    pixels = [np.asarray(one, np.int16) for one in (picture, *made)]
    lost = [np.abs(one - pixels[0]).mean() for one in pixels[1:3]]
    assert 0 < lost[0] < lost[1] < 20
    np.testing.assert_array_equal(pixels[4], pixels[0][5:195, 10:390])
    assert [one.size for one in copies(Image.new("RGB", (1, 3)))] == [(1, 3), (1, 3), (1, 1), (1, 3)]


def test_threshold_lies_between_copies_and_others_where_they_part():
    chosen = choose_threshold(np.array([0.99, 0.98, 1.0]), np.array([0.5, 0.9, 0.94]), images=1)
    assert (chosen.cosine, chosen.recall, chosen.alike) == (0.96, 1.0, 0.0)


def test_threshold_weighs_wrong_ones_more_than_missed_ones():
    """F0.25 by hand. At 0.9: recall 1, precision 1/1.5, so 0.68. At 0.99: recall 0.75, precision 1, so 0.981. At 0.995: 0.5, 1, 0.944."""
    chosen = choose_threshold(np.array([0.9, 0.99, 0.995, 1.0]), np.array([0.2, 0.3, 0.95, 0.97]), images=4)
    assert (chosen.cosine, chosen.recall, chosen.alike) == (0.98, 0.75, 0.0)


def test_threshold_stays_usable_where_most_images_have_duplicates():
    chosen = choose_threshold(np.linspace(0.99, 1, 50), np.concatenate((np.linspace(0.99, 1, 80), np.linspace(0.3, 0.8, 20))), images=50)
    assert chosen.recall > 0.9
    assert chosen.cosine > 0.8
