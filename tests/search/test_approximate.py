"""Approximate indexes over made-up clusters, beside exact search."""

from __future__ import annotations

import numpy as np
import pytest

from dinoeval.errors import ConfigError
from dinoeval.maths.neighbors import l2_normalize, load_faiss, nearest
from dinoeval.search.approximate import Approximate, extend, load, make, save, tune
from dinoeval.search.vectors import VectorFile, write_vectors


def clusters(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, dim), dtype=np.float32)
    return l2_normalize(centres[random.integers(0, 20, count)] + 0.5 * random.standard_normal((count, dim), dtype=np.float32))


@pytest.fixture
def rows(tmp_path) -> VectorFile:
    write_vectors(tmp_path / "rows", [clusters(1500)], 1500, 16)
    return VectorFile(tmp_path / "rows", 1500, 16)


def test_rows_are_a_file_of_faiss(tmp_path, rows):
    index = load_faiss().read_index(str(tmp_path / "rows"), load_faiss().IO_FLAG_MMAP_IFC)
    np.testing.assert_array_equal(index.reconstruct_n(0, 1500), clusters(1500))
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks(np.array([7, 3])))), clusters(1500)[[7, 3]])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_recall_told_is_the_recall(tmp_path, rows, kind):
    index = make(kind, rows)
    save(index, tmp_path / "index")
    tuned, told = tune(kind, index, rows)
    values = clusters(1500)
    cosines, found = Approximate(kind, load(tmp_path / "index"), rows, tuned.effort, tuned.rerank).search(values, 11)
    _, truth = nearest(values, [values], 11)
    shares = []
    for row in range(1500):  # one by one, without its own row
        wanted = set(truth[row].tolist()) - {row}
        shares.append(len(wanted & set(found[row].tolist())) / len(wanted))
    assert told["at"] == 10
    assert told["recall"] >= 0.95
    assert np.mean(shares) == pytest.approx(told["recall"], abs=0.02)
    there = found >= 0
    np.testing.assert_allclose(cosines[there], np.einsum("qd,qkd->qk", values, values[found])[there], atol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_added_rows_are_found(tmp_path, rows, kind):
    save(make(kind, rows), tmp_path / "index")
    more = clusters(30, seed=5)
    write_vectors(tmp_path / "more", [clusters(1500), more], 1530, 16)
    index = load(tmp_path / "index", mapped=False)
    extend(index, [more])
    _, found = Approximate(kind, index, VectorFile(tmp_path / "more", 1530, 16), 4096, 64).search(more, 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(1500, 1530))


def test_copies_of_one_image_do_not_spoil_the_recall(tmp_path):
    """Fifty times the same row: its ten nearest are any of the others."""
    values = np.concatenate((np.repeat(clusters(1), 50, axis=0), clusters(100, seed=1)))
    write_vectors(tmp_path / "rows", [values], 150, 16)
    rows = VectorFile(tmp_path / "rows", 150, 16)
    assert tune("hnsw", make("hnsw", rows), rows)[1]["recall"] == 1


def test_product_quantisation_of_few_images_is_refused(tmp_path):
    write_vectors(tmp_path / "rows", [clusters(255)], 255, 16)
    with pytest.raises(ConfigError, match="there are only 255 images"):
        make("pq", VectorFile(tmp_path / "rows", 255, 16))
