import jax
import numpy as np
import pytest

from facejax.clustering.baselines import neighbour_components
from facejax.data.synthetic import embeddings
from facejax.evaluate import clustering
from facejax.ops import knn


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
