import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import clustering_common as common
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering
from facejax.ops import knn


def test_the_threshold_with_the_best_f_is_chosen():
    """Everybody has strangers among the neighbours: no threshold joins all, a high one parts all."""
    people = embeddings.hypersphere(6, 0, noise=0.1, drift=0.0, relatives=0.0)
    near = knn.knn(people.features, 45)
    best, figure = common.choose(
        people.labels, lambda t: common.neighbour_components(near, t), np.array([-1.0, 0.7, 0.9999])
    )
    assert best == 0.7 and len(figure.axes) == 1


def test_people_with_a_single_image_give_no_threshold():
    with pytest.raises(ValueError, match="4 labelled images, all of different people: expected two of some person"):
        common.choose(np.arange(4), lambda t: np.zeros(4, int), [0.1, 0.2])


@pytest.mark.parametrize("name", common.BASELINES)
def test_every_baseline_finds_separated_people(name):
    people = embeddings.hypersphere(8, 1, noise=0.2, drift=0.0, relatives=0.0)
    threshold = {"rank_order": 1.0}.get(name, 0.5)
    found = clustering.singletons(common.baseline(name, people.features, threshold, k=6, clusters=8))
    assert clustering.pairwise(people.labels, found).f > (0.7 if "kmeans" in name or name == "rank_order" else 0.95)


def test_rank_order_equals_its_definition():
    rng = np.random.default_rng(0)
    near = knn.knn(rng.normal(size=(40, 4)), 6)
    lists = [row.tolist() for row in near.ids]

    def missing(a, b, upto):
        return sum(lists[a][i] not in lists[b] for i in range(upto + 1))

    for threshold in (0.6, 1.5):
        pairs = []
        for a in range(40):
            for b in lists[a][1:]:
                forward, backward = lists[a].index(b), lists[b].index(a) if a in lists[b] else 6
                total = missing(a, b, forward) + missing(b, a, min(backward, 5))
                if total / min(forward, backward) < threshold:
                    pairs.append((a, b))
        expected = common.connected_components(*np.array(pairs).reshape(-1, 2).T, 40)
        np.testing.assert_array_equal(common.rank_order(near, threshold), expected)


def test_an_unknown_baseline_is_said():
    with pytest.raises(ValueError, match="baseline is 'ward': expected one of components, dbscan"):
        common.baseline("ward", np.eye(3), 0.5, k=2, clusters=2)


def test_graphs_are_spread_over_all_devices():
    graph = knn.affinity(knn.knn(np.random.default_rng(0).normal(size=(30, 4)), 4))
    assert common.spread(graph).source.shape[0] == jax.device_count() == 8


def write(folder, features, labels):
    np.save(folder / "embeddings.npy", features)
    np.save(folder / "labels.npy", labels)
    return ConfigDict({**embeddings.SETTINGS, "source": "arrays", "path": str(folder)})


def test_bad_embeddings_are_said(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    first, second = embeddings.load(write(tmp_path, rows, np.arange(12) // 3), 0)
    assert len(first.labels) == len(second.labels) == 6 and not set(first.labels) & set(second.labels)
    with pytest.raises(ValueError, match=r"labels are \(11,\) for 12 embeddings"):
        embeddings.load(write(tmp_path, rows, np.arange(11)), 0)
    with pytest.raises(ValueError, match="features: row 7 is not finite"):
        embeddings.load(write(tmp_path, np.where(np.arange(12)[:, None] == 7, np.nan, rows), np.arange(12)), 0)
    with pytest.raises(ValueError, match="'web': expected hypersphere, files or arrays"):
        embeddings.load(ConfigDict({**embeddings.SETTINGS, "source": "web"}), 0)
