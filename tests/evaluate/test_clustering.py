import jax
import numpy as np
import pytest

from facejax.clustering.baselines import neighbour_components
from facejax.data.synthetic import embeddings
from facejax.evaluate import clustering
from facejax.ops import knn, vectors


def test_threshold_with_best_f_is_chosen():
    """With 45 neighbours every image has some of other identities: a low threshold joins all, a high one parts all."""
    people = embeddings.hypersphere(6, 0, noise=0.1, drift=0.0, relatives=0.0)
    near = knn.knn(people.features, 45)
    best, figure = clustering.choose(
        people.labels, lambda t: neighbour_components(near, t), np.array([-1.0, 0.7, 0.9999])
    )
    assert best == 0.7 and len(figure.axes) == 1


def test_identities_with_one_image_raise():
    with pytest.raises(ValueError, match="4 labelled images, all of different identities: expected two of one"):
        clustering.choose(np.arange(4), lambda t: np.zeros(4, int), [0.1, 0.2])


def test_graph_is_split_over_all_devices():
    graph = knn.affinity(knn.knn(np.random.default_rng(0).normal(size=(30, 4)), 4))
    assert clustering.spread(graph).source.shape[0] == jax.device_count() == 8


def test_stored_neighbours_of_whole_files(tmp_path):
    rng = np.random.default_rng(0)
    features = vectors.unit_rows(rng.normal(size=(40, 8)), np.float32)
    for folder in ("features", "labels", "knns/part"):
        (tmp_path / folder).mkdir(parents=True)
    features.tofile(tmp_path / "features/part.bin")
    (tmp_path / "labels/part.meta").write_text("".join(f"{i // 4}\n" for i in range(40)))
    near = knn.knn(features, 6)
    stored = np.stack([near.ids, np.float32(1) - near.similarity], 1)
    stored[:, :, [1, 2]] = stored[:, :, [2, 1]]  # the file's order is not relied on
    np.savez(tmp_path / "knns/part/faiss_k_6.npz", data=stored)
    source = embeddings.Source("files", str(tmp_path), train="part", width=8)
    people = source.known(0)
    graph = clustering.NeighbourGraph(k=4, method="stored")
    found = graph.neighbours_of(people)
    np.testing.assert_array_equal(found.ids, near.ids[:, :4])
    np.testing.assert_allclose(found.similarity, near.similarity[:, :4], atol=1e-6)
    part = embeddings.split(people, 0.5, 0)[0]
    np.testing.assert_array_equal(graph.neighbours_of(part).ids, knn.knn(part.features, 4).ids)
    with pytest.raises(ValueError, match=r"knns/part: no file with graph\.k 7 neighbours of a face"):
        clustering.NeighbourGraph(k=7, method="stored").neighbours_of(people)
    vectors.unit_rows(rng.normal(size=(40, 8)), np.float32).tofile(tmp_path / "features/part.bin")
    with pytest.raises(
        ValueError, match=r"faiss_k_6\.npz: face 0 and its neighbour \d+ have a cosine of .* its own feat"
    ):
        graph.neighbours_of(source.known(0))
    features[:20].tofile(tmp_path / "features/part.bin")
    (tmp_path / "labels/part.meta").write_text("".join(f"{i // 4}\n" for i in range(20)))
    with pytest.raises(ValueError, match=r"neighbours of 40 faces: expected 20 as of the features"):
        graph.neighbours_of(source.known(0))
