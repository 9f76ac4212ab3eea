import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ogmc as experiment
from facejax.clustering import ogmc
from facejax.metrics import clustering
from facejax.ops.vectors import unit_rows
from facejax.train import app

START = ogmc.Rules(fuse=0.7, strong=0.99, weak=1.12, robust=2)


def circle(*degrees):
    """Unit vectors in the plane: an angle a apart they lie 2 sin(a / 2) from each other."""
    angles = np.radians(degrees)
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)


def run(samples, rules=START, capacity=8, connections=3):
    state = ogmc.empty(capacity, samples.shape[1], len(samples), connections)
    return ogmc.observe_all(state, samples, rules)


def reference(samples, rules, connections):
    """The rules as plain lists: clusters in birth order, each with the founders that it lists."""
    clusters, founder_of = {}, []  # founder -> [members, linked founders]
    slots = []  # founders by slot, None where free
    samples = np.asarray(samples, np.float64)

    def mean(f):
        return samples[clusters[f][0]].mean(0)

    def robust(f):
        return len(clusters[f][0]) >= rules.robust

    def around(point, but=None):
        live = [f for f in slots if f is not None and f != but]
        return sorted(live, key=lambda f: (np.linalg.norm(mean(f) - point), slots.index(f)))

    def admitted(a, b):
        distance = np.linalg.norm(mean(a) - mean(b))
        if robust(a) and robust(b):
            return distance <= rules.strong
        return (robust(a) or robust(b)) and distance <= rules.weak

    for t, x in enumerate(samples):
        order = around(x)
        u = order[0] if order else None
        if u is None or np.linalg.norm(mean(u) - x) > rules.fuse:
            linked = [u] if u is not None and robust(u) and np.linalg.norm(mean(u) - x) <= rules.weak else []
            clusters[t] = [[t], linked[:connections]]
            founder_of.append(t)
            if None in slots:
                slots[slots.index(None)] = t
            else:
                slots.append(t)
            continue
        clusters[u][0].append(t)
        founder_of.append(u)
        again = True
        while again:
            again = False
            for m in around(mean(u), u):
                if np.linalg.norm(mean(u) - mean(m)) <= rules.fuse and not (robust(u) and robust(m)):
                    clusters[u][0] += clusters.pop(m)[0]
                    slots[slots.index(m)] = None
                    founder_of = [u if f == m else f for f in founder_of]
                    for f in clusters:
                        clusters[f][1] = [u if k == m else k for k in clusters[f][1]]
                    again = True
                    break
        clusters[u][1] = [m for m in around(mean(u), u) if admitted(u, m)][:connections]
        for f in clusters:
            if f != u:
                clusters[f][1] = [m for m in clusters[f][1] if m != u or admitted(u, f)]
    group = {f: f for f in clusters}
    for _ in clusters:
        for f, (_, linked) in clusters.items():
            for m in linked:
                group[f] = group[m] = min(group[f], group[m])
    return np.array(founder_of), np.array([group[f] for f in founder_of])


def test_a_sample_joins_within_the_threshold_and_the_mean_is_not_normalised():
    state = run(circle(0, 40))  # .684 apart
    np.testing.assert_allclose(state.mean[0], circle(0, 40).mean(0), rtol=1e-6)
    assert state.count.tolist() == [2] + [0] * 7
    assert np.linalg.norm(state.mean[0]) == pytest.approx(np.cos(np.radians(20)), rel=1e-5)
    assert run(circle(0, 42)).count.tolist()[:2] == [1, 1]  # .717 apart


def test_a_new_cluster_is_connected_to_a_near_robust_one():
    assert run(circle(0, 0, 60)).links[1].tolist() == [0, -1, -1]  # 1 apart
    assert (run(circle(0, 60)).links == -1).all()  # the first is not robust
    assert (run(circle(0, 0, 70)).links == -1).all()  # 1.147 apart


def test_two_robust_clusters_need_to_be_nearer():
    once = run(circle(0, 0, 60))
    assert ogmc.labels(once).identity.tolist() == [0, 0, 0]
    twice = run(circle(0, 0, 60, 60))  # 1 apart: within weak, beyond strong; the connection ends
    assert ogmc.labels(twice).identity.tolist() == [0, 0, 1, 1]
    assert (twice.links == -1).all()
    near = run(circle(0, 0, 50, 50))  # .845 apart
    assert near.links[:2].tolist() == [[-1, -1, -1], [0, -1, -1]]
    assert ogmc.labels(near).identity.tolist() == [0] * 4


def test_two_weak_clusters_never_connect():
    state = run(circle(0, 50, 51), START._replace(robust=3))
    assert ogmc.labels(state).cluster.tolist() == [0, 1, 1]
    assert (state.links == -1).all()


def test_clusters_within_reach_fuse_unless_both_are_robust():
    rules = START._replace(robust=3)
    samples = circle(0, 50, 25)  # 25 joins 0 (.433 each side, the lower slot); the mean at 12.5 is .62 from 50
    state = run(samples, rules)
    assert ogmc.labels(state).cluster.tolist() == [0, 0, 0]
    np.testing.assert_allclose(state.mean[0], samples.mean(0), rtol=1e-6)
    assert state.count.tolist() == [3] + [0] * 7
    both = run(circle(0, 50, 0, 50, 25), START)  # robust both when 25 comes
    assert ogmc.labels(both).cluster.tolist() == [0, 1, 0, 1, 0]
    assert ogmc.labels(both).identity.tolist() == [0] * 5


def test_fusion_takes_the_connections_along_and_frees_the_slot():
    # 100 is robust; -12 is beyond its reach, 46 is connected to it; 16 joins -12, which fuses with 46.
    rules = ogmc.Rules(fuse=0.75, strong=1.3, weak=1.3, robust=2)
    samples = circle(100, 100, -12, 46, 16)
    before, after = run(samples[:4], rules), run(samples, rules)
    assert before.links[2].tolist() == [0, -1, -1]
    assert after.count.tolist()[:3] == [2, 3, 0]
    assert ogmc.labels(after).cluster.tolist() == [0, 0, 2, 2, 2]
    assert ogmc.labels(after).identity.tolist() == [0] * 5  # the mean near 17 lies 1.28 from 100
    more = run(jnp.concatenate([samples, circle(200)]), rules)
    assert more.count.tolist()[:3] == [2, 3, 1]
    assert more.founder.tolist()[:3] == [0, 2, 5]


def test_a_cluster_lists_its_nearest_connections():
    wide = ogmc.Rules(fuse=0.1, strong=2.0, weak=2.0, robust=2)
    samples = circle(0, 10, 10, 30, 30, 60, 60, 0)
    state = run(samples, wide, connections=2)
    assert state.links[0].tolist() == [1, 2]
    assert run(samples, wide, connections=0).links.shape == (8, 0)


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    centres = unit_rows(rng.normal(size=(14, 6)), np.float32)
    labels = rng.integers(14, size=220)
    noise = 0.3 * rng.normal(size=(220, 6)) / np.sqrt(6) * rng.uniform(0.5, 3, (220, 1))
    return labels, unit_rows(centres[labels] + noise, np.float32)


@pytest.mark.parametrize("connections", [0, 1, 2, 5])
@pytest.mark.parametrize("thresholds", [(0.7, 0.99, 1.12, 5), (0.45, 0.8, 0.7, 3), (0.6, 0.5, 0.9, 8)])
def test_equals_plain_lists(stream, connections, thresholds):
    rules = ogmc.Rules(*thresholds)
    state = run(jnp.asarray(stream[1]), rules, 128, connections)
    found = ogmc.labels(state)
    cluster, identity = reference(stream[1], rules, connections)
    np.testing.assert_array_equal(found.cluster, cluster)
    assert clustering.pairwise(identity, found.identity).f == 1
    for slot in np.flatnonzero(np.asarray(state.count)):
        members = found.cluster == int(state.founder[slot])
        assert members.sum() == state.count[slot]
        np.testing.assert_allclose(state.mean[slot], stream[1][members].mean(0), atol=1e-6)
    assert np.linalg.norm(np.asarray(state.mean), axis=1).max() <= 1 + 1e-6


def test_limits_of_the_rules(stream):
    x = jnp.asarray(stream[1])
    everything = ogmc.labels(run(x, ogmc.Rules(fuse=9.0), 64))
    assert (everything.cluster == 0).all()
    for rules in (ogmc.Rules(robust=10**9), ogmc.Rules(strong=0.0, weak=0.0)):
        found = ogmc.labels(run(x, rules, 64))
        assert clustering.pairwise(found.cluster, found.identity).f == 1


def test_order_does_not_matter_for_distant_identities():
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat(np.arange(6), 8))
    x = unit_rows(np.eye(6, dtype=np.float32)[labels] + 0.05 * rng.normal(size=(48, 6)).astype(np.float32))
    for order in (np.arange(48), rng.permutation(48), np.argsort(labels)):
        found = ogmc.labels(run(jnp.asarray(x[order])))
        assert clustering.pairwise(labels[order], found.identity).f == 1


def test_a_stream_in_parts_equals_the_whole(stream):
    x, rules = jnp.asarray(stream[1]), ogmc.Rules()
    state = ogmc.empty(64, 6, 220)
    for part in (x[:100], x[100:]):
        state = ogmc.observe_all(state, part, rules)
    jax.tree.map(np.testing.assert_array_equal, state, run(x, rules, 64, 5))


def test_overflow_and_bad_sizes_raise(stream):
    with pytest.raises(ValueError, match="sample 2 would begin a cluster, but all 2 slots are in use"):
        ogmc.labels(run(circle(0, 90, 180, 0, 270), capacity=2, connections=1))
    with pytest.raises(ValueError, match="2 samples, but the state keeps track of 1"):
        ogmc.labels(ogmc.observe_all(ogmc.empty(2, 2, 1, 1), circle(0, 1)))
    with pytest.raises(ValueError, match="ogmc: capacity 3, width 2, samples 9, connections 5: expected"):
        ogmc.empty(3, 2, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_row_is_refused_and_named(stream, value):
    bad = np.where(np.arange(220)[:, None] == 7, value, stream[1]).astype(np.float32)
    with pytest.raises(ValueError, match="features: row 7 is not finite"):
        run(jnp.asarray(bad), ogmc.Rules(), 64, 5)


def test_smoke():
    config = experiment.get_config()
    config.update_from_flattened_dict({"data.people": 20, "eval.orders": 3})
    _, report = app.run(config, experiment.build, quiet=True)
    config.rules.connections = 0
    _, without = app.run(config, experiment.build, quiet=True)
    assert report.metrics["pairwise_recall"] > without.metrics["pairwise_recall"] + 0.3
    assert report.metrics["pairwise_f"] > without.metrics["pairwise_f"] + 0.1


def test_files(tmp_path, stream):
    labels, features = stream
    for folder in ("features", "labels"):
        (tmp_path / folder).mkdir()
    features.tofile(tmp_path / "features" / "some.bin")
    (tmp_path / "labels" / "some.meta").write_text("".join(f"{i}\n" for i in labels))
    config = experiment.get_config("ms1m_part1")
    config.update_from_flattened_dict(
        {"data.path": str(tmp_path), "data.name": "some", "data.width": 6, "rules.capacity": 64}
    )
    _, report = app.run(config, experiment.build, quiet=True)
    assert 0 < report.metrics["pairwise_f"] <= 1
    (tmp_path / "labels" / "some.meta").write_text("0\n" * 219)
    with pytest.raises(ValueError, match=r"some\.meta: 219 labels for 220 features"):
        app.run(config, experiment.build, quiet=True)
    np.where(np.arange(220)[:, None] == 3, np.nan, features).astype(np.float32).tofile(tmp_path / "features/some.bin")
    with pytest.raises(ValueError, match="features: row 3 is not finite"):
        app.run(config, experiment.build, quiet=True)


def test_duplicates_are_one_cluster_and_distant_samples_their_own():
    state = run(circle(0, 0, 0, 0, 0, 0, 90, 180), START)
    assert ogmc.labels(state).cluster.tolist() == [0] * 6 + [6, 7]
    assert ogmc.labels(state).identity.tolist() == [0] * 6 + [1, 2]
