import numpy as np
import pytest

from facejax.clustering import baselines
from facejax.data.synthetic import embeddings
from facejax.metrics import clustering
from facejax.ops import knn
from facejax.ops.components import connected_components


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_finds_separated_identities(name):
    people = embeddings.hypersphere(8, 1, noise=0.2, drift=0.0, relatives=0.0)
    threshold = {"rank_order": 1.0}.get(name, 0.5)
    found = clustering.singletons(baselines.baseline(name, people.features, threshold, k=6, clusters=8))
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
        expected = connected_components(*np.array(pairs).reshape(-1, 2).T, 40)
        np.testing.assert_array_equal(baselines.rank_order(near, threshold), expected)


def test_unknown_baseline_raises():
    with pytest.raises(ValueError, match="baseline is 'ward': expected one of components, dbscan"):
        baselines.baseline("ward", np.eye(3), 0.5, k=2, clusters=2)
