from __future__ import annotations

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.maths.neighbors import l2_normalize
from dinoeval.search import duplicates
from dinoeval.search.duplicates import link_duplicates
from dinoeval.search.threshold import choose_threshold, make_copies
from dinoeval.search.vectors import VectorFile, write_vectors


def write(path, values: np.ndarray) -> VectorFile:
    values = l2_normalize(values)
    write_vectors(path, [values[:3], values[3:]], *values.shape)
    return VectorFile(path, *values.shape)


def test_linked_images_form_one_group_singletons_none(tmp_path):
    """The directions 0, 10 and 20 degrees are linked in steps of 10; 90 and 94 are linked; 200 is not."""
    angles = np.radians([0, 90, 10, 200, 20, 94])
    vectors = write(tmp_path / "vectors", np.stack((np.cos(angles), np.sin(angles)), 1))
    groups, best = link_duplicates(vectors, np.cos(np.radians(10.5)))
    assert [group.tolist() for group in groups] == [[1, 5], [0, 2, 4]]  # the most similar pair first
    np.testing.assert_allclose(best[[0, 2, 4]], np.cos(np.radians(10)), atol=1e-6)
    np.testing.assert_allclose(best[[1, 5]], np.cos(np.radians(4)), atol=1e-6)
    assert best[3] == -np.inf


@pytest.mark.parametrize("count", [1, 7, 8, 9, 60])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6, 0.9, 1.1])
def test_groups_equal_a_walk_over_all_pairs(tmp_path, monkeypatch, count, threshold):
    monkeypatch.setattr(duplicates, "_BLOCK", 8)
    monkeypatch.setattr(duplicates, "_PENDING", 5)
    values = l2_normalize(np.random.default_rng(count).standard_normal((count, 4)))
    groups, best = link_duplicates(write(tmp_path / "vectors", values), threshold)
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


def test_copies_are_reencoded_downscaled_and_cropped():
    image = synthetic_images(1, (400, 200))[0]
    copies = make_copies(image)
    assert [copy.size for copy in copies] == [(400, 200), (400, 200), (200, 100), (380, 190)]
    pixels = [np.asarray(one, np.int16) for one in (image, *copies)]
    errors = [np.abs(one - pixels[0]).mean() for one in pixels[1:3]]
    assert 0 < errors[0] < errors[1] < 20
    np.testing.assert_array_equal(pixels[4], pixels[0][5:195, 10:390])
    assert [copy.size for copy in make_copies(Image.new("RGB", (1, 3)))] == [(1, 3), (1, 3), (1, 1), (1, 3)]


def test_threshold_is_midway_between_copies_and_others():
    chosen = choose_threshold(np.array([0.99, 0.98, 1.0]), np.array([0.5, 0.9, 0.94]), images=1)
    assert (chosen.cosine, chosen.recall, chosen.alike) == (0.96, 1.0, 0.0)


def test_threshold_prefers_missed_over_false_duplicates():
    """F0.25 at 0.9: recall 1, precision 1/1.5, 0.68. At 0.99: recall 0.75, precision 1, 0.981. At 0.995: 0.5, 1, 0.944."""
    chosen = choose_threshold(np.array([0.9, 0.99, 0.995, 1.0]), np.array([0.2, 0.3, 0.95, 0.97]), images=4)
    assert (chosen.cosine, chosen.recall, chosen.alike) == (0.98, 0.75, 0.0)


def test_threshold_is_usable_if_most_images_have_duplicates():
    chosen = choose_threshold(np.linspace(0.99, 1, 50), np.concatenate((np.linspace(0.99, 1, 80), np.linspace(0.3, 0.8, 20))), images=50)
    assert chosen.recall > 0.9
    assert chosen.cosine > 0.8
