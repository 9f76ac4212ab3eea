import itertools

import numpy as np
import pytest

from experiments import cdp as experiment
from facejax.clustering import cdp
from facejax.data.synthetic import embeddings
from facejax.ops import components, knn
from facejax.train import app


@pytest.fixture(scope="module")
def world():
    people = embeddings.hypersphere(30, 0, views=4)
    return people, [knn.knn(view, 10) for view in people.views]


def test_no_committee_and_no_limit_are_plain_components(world):
    people, (base, *_) = world
    pairs = cdp.vote(base, [], 0.5, 0)
    labels = cdp.propagate(pairs, len(people.labels), max_size=10**9)
    graph = components.connected_components(pairs.a, pairs.b, len(people.labels))
    alone = np.bincount(graph)[graph] == 1
    assert (labels[alone] == -1).all() and (labels[~alone] >= 0).all()
    np.testing.assert_array_equal(labels[~alone][:, None] == labels[~alone], graph[~alone][:, None] == graph[~alone])


def test_a_stricter_committee_only_splits(world):
    people, (base, *committee) = world
    found = [cdp.vote(base, committee, 0.4, accept) for accept in range(4)]
    codes = [set(zip(p.a, p.b)) for p in found]
    assert all(b < a for a, b in itertools.pairwise(codes))
    loose, strict = (cdp.propagate(p, len(people.labels), max_size=10**9) for p in (found[0], found[3]))
    for c in range(strict.max() + 1):
        assert len(set(loose[strict == c])) == 1


def test_votes_are_counted_in_the_first_rows_lists():
    ids = np.array([[0, 1], [1, 2], [2, 1]])
    base = knn.Neighbours(ids, np.array([[1, 0.9], [1, 0.8], [1, 0.8]]))
    member = knn.Neighbours(np.array([[0, 2], [1, 0], [2, 1]]), base.similarity)
    found = cdp.vote(base, [member], 0.5, 1)
    assert list(zip(found.a, found.b)) == [(1, 2)]  # 2 lists 1 in both; 0 lists 1 in the base only
    with pytest.raises(ValueError, match="accept is 2: expected 0 to 1"):
        cdp.vote(base, [member], 0.5, 2)


def test_mediator_features_of_one_pair(world):
    people, near = world
    pairs = cdp.Pairs(np.array([3]), np.array([int(near[0].ids[3, 1])]), np.ones(1))
    features = cdp.mediator_features(people.views, near, pairs)[0]
    a, b = 3, int(pairs.b[0])
    expected = [b in n.ids[a] or a in n.ids[b] for n in near[1:]]
    expected += [float(v[a] @ v[b]) for v in people.views]
    expected += [len(set(n.ids[a]) & set(n.ids[b])) for n in near]  # a count, as in the authors' code
    assert max(expected) > 2
    np.testing.assert_allclose(features, expected, rtol=1e-5)


def test_large_components_are_split_at_the_weakest_links():
    a = np.array([0, 1, 2, 3, 4])
    pairs = cdp.Pairs(a, a + 1, np.array([0.9, 0.9, 0.5, 0.9, 0.9]))
    labels = cdp.propagate(pairs, 7, max_size=3)
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, -1])
    assert len(set(cdp.propagate(pairs, 7, max_size=6)[:6])) == 1
    tied = pairs._replace(score=np.ones(5))
    assert len(set(cdp.propagate(tied, 7, max_size=3, iterations=4)[:6])) == 1  # nothing to tell them apart


def test_order_of_rows_does_not_matter(world):
    people, (base, *committee) = world
    order = np.random.default_rng(0).permutation(len(people.labels))
    moved = [knn.knn(view[order], 10) for view in people.views]
    first = cdp.propagate(cdp.vote(base, committee, 0.4, 2), len(order), max_size=20)[order]
    second = cdp.propagate(cdp.vote(moved[0], moved[1:], 0.4, 2), len(order), max_size=20)
    np.testing.assert_array_equal(first[:, None] == first, second[:, None] == second)


def test_smoke():
    config = experiment.get_config()
    config.update_from_flattened_dict({"eval.people": 25, "data.labelled": 25, "train.steps": 50})
    _, report = app.run(config, experiment.build, quiet=True)
    assert 0.5 < report.metrics["pairwise_f"] <= 1
    assert report.metrics["discarded"] < 0.3


def test_presets_are_wired():
    for preset in experiment.PRESETS:
        experiment.build(experiment.get_config(preset))


def test_the_authors_files_as_their_preset_names_them(tmp_path):
    """Five networks, in the folders and with the names of the released data."""
    for group, seed in (("labeled/emore_l200k", 0), ("unlabeled/emore_u200k", 1)):
        people = embeddings.hypersphere(25, seed, views=5, width=256)
        (tmp_path / group / "features").mkdir(parents=True)
        for name, view in zip(("nas", "resnet50", "resnet101", "densenet121", "ir"), people.views, strict=True):
            view.tofile(tmp_path / group / "features" / f"{name}.bin")
        (tmp_path / group / "meta.txt").write_text("".join(f"{label}\n" for label in people.labels))
    for kind in ("vote", "mediator"):
        config = experiment.get_config("emore_u200k")
        config.update_from_flattened_dict({"data.path": str(tmp_path), "pairs.kind": kind, "train.steps": 50})
        _, report = app.run(config, experiment.build, quiet=True)
        assert 0.5 < report.metrics["pairwise_f"] <= 1, kind


def test_numbers_of_networks_are_checked_before_anything_is_read():
    config = experiment.get_config("emore_u200k")
    config.eval.test = "part1_test"
    with pytest.raises(ValueError, match=r"data\.train names 5 networks, eval.test 1: expected as many"):
        experiment.build(config)
    config = experiment.get_config("vote")
    config.pairs.accept = 4
    with pytest.raises(ValueError, match=r"pairs\.accept is 4: expected 0 to 3, the networks beside the base"):
        experiment.build(config)
