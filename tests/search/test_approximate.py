"""Approximate indexes of synthetic clusters, compared with exact search."""

from __future__ import annotations

import numpy as np
import pytest

from dinoeval.errors import ConfigError
from dinoeval.maths.neighbors import l2_normalize, load_faiss, nearest
from dinoeval.search.approximate import ApproximateIndex, add_vectors, read_index, train_index, tune, write_index
from dinoeval.search.vectors import VectorFile, write_vectors


def clusters(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = random.standard_normal((20, dim), dtype=np.float32)
    return l2_normalize(centers[random.integers(0, 20, count)] + 0.5 * random.standard_normal((count, dim), dtype=np.float32))


def write(path, values: np.ndarray) -> VectorFile:
    write_vectors(path, [values], *values.shape)
    return VectorFile(path, *values.shape)


@pytest.fixture
def vectors(tmp_path) -> VectorFile:
    return write(tmp_path / "vectors", clusters(1500))


def test_vector_file_is_a_faiss_index(tmp_path, vectors):
    faiss = load_faiss()
    index = faiss.read_index(str(tmp_path / "vectors"), faiss.IO_FLAG_MMAP_IFC)
    np.testing.assert_array_equal(index.reconstruct_n(0, 1500), clusters(1500))
    np.testing.assert_array_equal(np.concatenate(list(vectors.blocks(np.array([7, 3])))), clusters(1500)[[7, 3]])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_reported_recall_is_the_recall(tmp_path, vectors, kind):
    index = train_index(kind, vectors)
    write_index(index, tmp_path / "index")
    tuned, reported = tune(kind, index, vectors)
    values = clusters(1500)
    reopened = ApproximateIndex(kind, read_index(tmp_path / "index"), vectors, tuned.effort, tuned.rerank)
    cosines, found = reopened.search(values, 11)
    _, exact = nearest(values, [values], 11)
    recalls = []
    for row in range(1500):
        expected = set(exact[row].tolist()) - {row}
        recalls.append(len(expected & set(found[row].tolist())) / len(expected))
    assert reported["at"] == 10
    assert reported["recall"] >= 0.95
    assert np.mean(recalls) == pytest.approx(reported["recall"], abs=0.02)
    is_found = found >= 0
    np.testing.assert_allclose(cosines[is_found], np.einsum("qd,qkd->qk", values, values[found])[is_found], atol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_added_vectors_are_found(tmp_path, vectors, kind):
    write_index(train_index(kind, vectors), tmp_path / "index")
    more = clusters(30, seed=5)
    extended = write(tmp_path / "more", np.concatenate((clusters(1500), more)))
    index = read_index(tmp_path / "index", mapped=False)
    add_vectors(index, [more])
    _, found = ApproximateIndex(kind, index, extended, 4096, 64).search(more, 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(1500, 1530))


def test_recall_counts_any_copy_as_a_neighbor(tmp_path):
    """A vector occurs 50 times. Its ten nearest neighbors are any of the others."""
    vectors = write(tmp_path / "vectors", np.concatenate((np.repeat(clusters(1), 50, axis=0), clusters(100, seed=1))))
    assert tune("hnsw", train_index("hnsw", vectors), vectors)[1]["recall"] == 1


def test_product_quantization_refuses_few_images(tmp_path):
    vectors = write(tmp_path / "vectors", clusters(255))
    with pytest.raises(ConfigError, match=r"--index pq.*256.*255"):
        train_index("pq", vectors)
