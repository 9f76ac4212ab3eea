import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from facejax.ops import components, knn, vectors


def brute(features, k):
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, 2)
    ids = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return ids, np.clip(np.take_along_axis(cosine, ids, 1), 0, 1)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("k", "block"), [(1, 64), (7, 96), (3, 512), (40, 8192), (200, 64)])
def test_exact_equals_brute_force(features, k, block, backend, monkeypatch):
    """On the host (NumPy) and on the device."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = knn.knn(features, k, block=block)
    ids, similarity = brute(features, k)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    assert (found.ids == ids).mean() > 0.999
    assert (found.ids[:, 0] == np.arange(500)).all()


def test_two_stage_top_k_is_exact():
    values = jnp.asarray(np.random.default_rng(1).normal(size=(5, 1024)).astype(np.float32))
    top, index = knn._top(values, 20)
    np.testing.assert_array_equal(top, -np.sort(-np.asarray(values), axis=1)[:, :20])
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(values), np.asarray(index), 1), top)


def test_result_is_independent_of_the_row_order():
    """Rows sorted by cluster, so the best candidates come late, and a hub close to all rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 6)).repeat(30, 0) + 0.05 * rng.normal(size=(600, 6))
    rows[-1] = rows[:-1].mean(0)
    found, (ids, similarity) = knn.knn(rows, 30, block=100), brute(rows, 30)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found.ids, ids)]) > 29.9


def test_approximate_recall(features):
    found, (ids, _) = knn.knn(features, 10, method="approximate"), brute(features, 10)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found.ids, ids)]) > 9


def test_faiss_equals_exact(features):
    pytest.importorskip("faiss")
    a, b = knn.knn(features, 5), knn.knn(features, 5, method="faiss")
    np.testing.assert_allclose(a.similarity, b.similarity, atol=1e-6)
    assert (a.ids == b.ids).mean() > 0.999


def test_duplicates_have_themselves_as_first_neighbour():
    found = knn.knn(np.ones((50, 4)), 3)
    assert (found.ids[:, 0] == np.arange(50)).all()
    assert (found.similarity == 1).all()
    assert all(len(set(row)) == 3 for row in found.ids)


def test_invalid_input_raises(features):
    with pytest.raises(ValueError, match="k is 501: expected 1 to 500"):
        knn.knn(features, 501)
    with pytest.raises(ValueError, match="row 3 is not finite"):
        knn.knn(np.where(np.arange(500)[:, None] == 3, np.nan, features), 2)
    with pytest.raises(ValueError, match=r"features are \(0, 4\)"):
        knn.knn(np.zeros((0, 4)), 1)
    with pytest.raises(ValueError, match="expected exact, approximate or faiss"):
        knn.knn(features, 2, method="hnsw")


def test_affinity_is_row_stochastic_and_symmetrised_by_the_maximum(features):
    found = knn.knn(features, 6)
    graph = knn.affinity(found, 0.5)
    dense = np.zeros((500, 500))
    dense[np.asarray(graph.destination), np.asarray(graph.source)] = graph.weight
    np.testing.assert_allclose(dense.sum(1), 1, rtol=1e-5)
    raw = np.zeros((500, 500))
    raw[np.arange(500)[:, None], found.ids] = found.similarity
    np.fill_diagonal(raw, 0)
    raw = np.where(raw >= 0.5, raw, 0)
    raw = np.maximum(raw, raw.T) + np.eye(500)
    np.testing.assert_allclose(dense, raw / raw.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    assert (np.diff(np.asarray(graph.destination)) >= 0).all()


def test_components_equal_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, (2, 40))
    matrix = scipy.sparse.coo_matrix((np.ones(40), (a, b)), (60, 60))
    expected = scipy.sparse.csgraph.connected_components(matrix, directed=False)[1]
    np.testing.assert_array_equal(components.connected_components(a, b, 60), expected)
    assert len(set(components.connected_components(np.zeros(0, int), np.zeros(0, int), 4))) == 4


@pytest.mark.parametrize("block", [150, 8192])
def test_many_equal_rows_are_exact_and_take_little_memory(block, monkeypatch):
    """400 of 1,000 rows are equal; the pools of candidates stay narrow."""
    monkeypatch.setattr(knn, "CROWD", 2)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 8)).astype(np.float32)
    rows[rng.permutation(1000)[:400]] = rows[0]
    widest, full = [], np.full

    def watched(shape, *rest):
        widest.append(shape[-1])
        return full(shape, *rest)

    monkeypatch.setattr(knn.np, "full", watched)
    found, (_, similarity) = knn.knn(rows, 5, block=block), brute(rows, 5)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    assert all(len(set(ids)) == 5 for ids in found.ids)
    unit = vectors.unit_rows(rows)
    np.testing.assert_allclose(np.einsum("nd,nkd->nk", unit, unit[found.ids]).clip(0), found.similarity, atol=1e-5)
    assert max(widest) <= 5 + 256
