import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import odc as experiment
from facejax.clustering import odc
from facejax.clustering.odc import Memory
from facejax.train import Options, app
from facejax.train.dry_run import dry_run
from facejax.train.parallel import make_executor


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def filled(seed=0, n=40, clusters=5, width=6):
    rng = np.random.default_rng(seed)
    features = unit(rng.normal(size=(n, width))).astype(np.float32)
    labels = rng.integers(0, clusters, n).astype(np.int32)
    return Memory(features, labels, rng.normal(size=(clusters, width)).astype(np.float32))


def oracle_update(memory, indices, features, momentum):
    """Row after row, so that the last of equal indices wins; every row starts from the old memory."""
    bank, labels = np.array(memory.features, np.float64), np.array(memory.labels)
    for i, x in zip(indices, features, strict=True):
        bank[i] = unit((1 - momentum) * np.float64(memory.features[i]) + momentum * unit(np.float64(x)))
    for i in indices:
        labels[i] = np.argmax([bank[i] @ c for c in np.float64(memory.centroids)])
    return bank, labels


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_samples_memory_equals_the_oracle(momentum):
    memory, rng = filled(), np.random.default_rng(1)
    indices, features = np.array([3, 17, 3, 39, 0, 17, 3]), 5 * rng.normal(size=(7, 6)).astype(np.float32)
    new, changed = jax.jit(odc.update_samples)(memory, indices, features, momentum)
    bank, labels = oracle_update(memory, indices, features, momentum)
    np.testing.assert_allclose(new.features, bank, atol=1e-6)
    np.testing.assert_array_equal(new.labels, labels)
    np.testing.assert_array_equal(changed, labels[indices] != memory.labels[indices])
    assert 0 < changed.sum() < 7 or momentum == 0
    np.testing.assert_array_equal(new.centroids, memory.centroids)
    if momentum == 1:
        np.testing.assert_allclose(new.features[3], unit(features[6]), atol=1e-6)


def test_rows_that_are_not_finite_leave_the_memory_as_it_was():
    """Pictures 3 and 9 have a good row, too; 17 has none, and 39 is new to neither."""
    memory, rng = filled(), np.random.default_rng(2)
    indices, features = np.array([3, 9, 17, 3, 9, 39]), rng.normal(size=(6, 6)).astype(np.float32)
    features[[1, 2, 3], [0, 1, 2]] = np.nan, np.inf, np.nan
    new, changed = jax.jit(odc.update_samples)(memory, indices, features, 0.3)
    good = [0, 4, 5]
    only, moved = jax.jit(odc.update_samples)(memory, indices[good], features[good], 0.3)
    chex.assert_trees_all_equal(new, only)
    assert np.isfinite(new.features).all() and not changed[2]
    np.testing.assert_array_equal(changed[np.array(good)], moved)


def test_first_feature_of_a_picture_is_taken_whole():
    memory = Memory.empty(4, 2, 2)
    assert (np.asarray(memory.labels) == -1).all()
    new = odc.remember(memory, jnp.array([2]), jnp.array([[3.0, 4.0]]), 0.1)
    np.testing.assert_allclose(new.features, [[0, 0], [0, 0], [0.6, 0.8], [0, 0]], atol=1e-6)
    zero = odc.remember(memory, jnp.array([1]), jnp.zeros((1, 2)), 1.0)
    np.testing.assert_array_equal(zero.features, 0)


def test_centroids_are_means_and_an_empty_one_stays():
    memory = filled()
    labels = np.where(memory.labels == 2, -1, memory.labels)
    new = jax.jit(odc.update_centroids)(memory.replace(labels=labels))
    for c in range(5):
        mean = memory.features[labels == c].mean(0) if c != 2 else memory.centroids[2]
        np.testing.assert_allclose(new.centroids[c], mean, atol=1e-6)
    np.testing.assert_array_equal(odc.cluster_sizes(new), [np.sum(labels == c) for c in range(5)])


def test_class_weights():
    memory = Memory(jnp.zeros((5, 1)), jnp.array([0, 0, 0, 0, 1]), jnp.zeros((2, 1)))
    np.testing.assert_allclose(odc.class_weights(memory), [1 / 3, 2 / 3], rtol=1e-4)
    np.testing.assert_allclose(odc.class_weights(memory, 1.0), [0.2, 0.8], rtol=1e-4)
    np.testing.assert_array_equal(odc.class_weights(memory, 0.0), [0.5, 0.5])
    emptied = memory.replace(labels=jnp.zeros(5, jnp.int32))
    np.testing.assert_allclose(odc.class_weights(emptied)[1], 1 / (1 + (1e-5 / 5) ** 0.5), rtol=1e-4)


def test_small_clusters_by_hand():
    """The picture of cluster 2 goes to cluster 1, its best; cluster 0, two bunches, fills the place."""
    angles = np.radians([0, 1, 2, 3, 40, 41, 42, 90, 91, 92, 70])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([0] * 7 + [1] * 3 + [2], np.int32)
    centroids = np.stack([features[labels == c].mean(0) for c in range(3)])
    new = jax.jit(odc.handle_small_clusters, static_argnums=1)(
        Memory(features, labels, centroids), 2, jax.random.key(0)
    )
    np.testing.assert_array_equal(new.labels[7:], [1, 1, 1, 1])
    first, second = np.unique(new.labels[:4]), np.unique(new.labels[4:7])
    assert sorted([*first, *second]) == [0, 2]
    for c in (0, 2):
        np.testing.assert_allclose(new.centroids[c], features[new.labels == c].mean(0), atol=1e-6)
    np.testing.assert_array_equal(new.centroids[1], centroids[1])  # waits for the next update of all
    memory = jax.tree.map(jnp.asarray, Memory(features, labels, centroids))
    chex.assert_trees_all_equal(odc.handle_small_clusters(memory, 1, jax.random.key(0)), memory)


@pytest.mark.parametrize("seed", range(4))
def test_small_clusters_leave_none_empty_and_lose_no_picture(seed):
    memory = filled(seed, 60, 8)
    labels = np.where(memory.labels > 4, seed % 2 * 5, memory.labels)  # two or three clusters are empty
    labels[:2], labels[59] = 6, -1
    new = jax.jit(odc.handle_small_clusters, static_argnums=1)(memory.replace(labels=labels), 4, jax.random.key(seed))
    sizes = np.asarray(odc.cluster_sizes(new))
    assert sizes.min() >= 1
    assert sizes.sum() == 59
    assert new.labels[59] == -1
    old = np.bincount(labels[labels >= 0], minlength=8)
    large = np.flatnonzero(old >= 4)
    scores = memory.features @ memory.centroids[large].T
    moved = np.isin(labels, np.flatnonzero((old < 4) & (old > 0)))
    target = large[scores.argmax(1)]
    emptied = np.flatnonzero(old < 4)
    assert all(n == t or n in emptied for n, t in zip(np.asarray(new.labels)[moved], target[moved], strict=True))
    kept = ~moved & (labels >= 0)
    assert all(n == o or n in emptied for n, o in zip(np.asarray(new.labels)[kept], labels[kept], strict=True))


def test_split_by_two_means_or_at_random():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(3, 0.1, (9, 2)), rng.normal(-3, 0.1, (6, 2))]).astype(np.float32)
    member = np.arange(15) % 4 != 3
    part = np.asarray(odc.split(features, member, jax.random.key(1)))
    assert not part[~member].any()
    assert len(np.unique(part[:9][member[:9]])) == len(np.unique(part[9:][member[9:]])) == 1
    assert part[0] != part[9]
    equal = np.asarray(odc.split(np.ones((15, 2), np.float32), member, jax.random.key(1)))
    assert equal.sum() == member.sum() // 2
    assert not equal[~member].any()
    two = np.asarray(odc.split(np.ones((15, 2), np.float32), np.arange(15) < 2, jax.random.key(1)))
    assert two.sum() == 1


def test_kmeans_equals_lloyd_in_numpy_and_ends_where_scikit_learn_stays():
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    features = rng.normal(size=(70, 3)).astype(np.float32)
    where = np.arange(70) % 7 != 0
    drawn = np.asarray(jax.random.uniform(jax.random.key(2), (70,)))
    start = features[np.argsort(-np.where(where, drawn, -1), kind="stable")[:4]]
    rows = features[where].astype(np.float64)
    expected = start.astype(np.float64)
    for _ in range(3):
        nearest = ((rows[:, None] - expected) ** 2).sum(2).argmin(1)
        expected = np.stack([rows[nearest == c].mean(0) for c in range(4)])
    centroids, labels = odc.kmeans(features, 4, jax.random.key(2), iterations=3, where=where, chunk=16)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)
    np.testing.assert_array_equal(labels[~where], -1)
    np.testing.assert_array_equal(labels[where], ((rows[:, None] - expected) ** 2).sum(2).argmin(1))
    settled, _ = odc.kmeans(features, 4, jax.random.key(2), iterations=60, where=where)
    again = KMeans(4, init=np.asarray(settled), n_init=1).fit(features[where])
    np.testing.assert_allclose(again.cluster_centers_, settled, atol=1e-5)


def test_first_clusters_leave_out_pictures_without_features():
    memory = Memory.empty(50, 6, 3, 2)
    features = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    memory = odc.remember(memory, jnp.arange(48), features)
    memory = odc.cluster_all(memory, jax.random.key(0), min_cluster=2)
    assert np.asarray(odc.cluster_sizes(memory)).min() >= 1
    np.testing.assert_array_equal(np.asarray(memory.labels) < 0, np.arange(50) >= 48)


def test_full_size_parameters():
    """ResNet-50 without its dense layer 23,508,032; neck 1,180,416; head 2,570,000: 27.26 M."""
    config = experiment.get_config("imagenet_r50")
    costs = dry_run(experiment.build(config), Options(**config.train))
    assert costs["parameters by part"] == {"trunk": 23_508_032 + 1_180_416, "head": 2_570_000}
    assert costs["batch per device"] == 64
    held = 1_281_167 * (256 + 1) * 4 + 10_000 * 256 * 4
    assert costs["state bytes per device"] > held
    assert config.train.steps == 441 * (1_281_167 // 512)


def test_neck_initialisation_and_features():
    neck = odc.Neck()
    variables = neck.init(jax.random.key(0), jnp.ones((2, 2048)), train=False)
    assert set(variables["params"]) == {"fc0", "fc1"}  # the batch norm has no parameters
    np.testing.assert_allclose(variables["params"]["fc0"]["kernel"].std(), (2 / 2048) ** 0.5, rtol=0.02)
    x = jax.random.normal(jax.random.key(1), (8, 2048))
    y, updated = neck.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
    assert y.shape == (8, 256)
    assert (y >= 0).all()
    hidden = x @ variables["params"]["fc0"]["kernel"]
    mean = updated["batch_stats"]["bn0"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.001 * hidden.mean(0), atol=1e-5)
    head = odc.head_init(jax.random.key(0), 256, 10_000)
    np.testing.assert_allclose(head["kernel"].std(), 0.01, rtol=0.01)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, picture_folder):
    """Train and val of six classes, eight noisy pictures each."""
    rng = np.random.default_rng(0)
    bases = rng.integers(0, 255, (6, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    classes = {
        f"{part}/c{name}": base + rng.normal(size=(8, 32, 32, 3)) * 20
        for part in ("train", "val")
        for name, base in enumerate(bases)
    }
    return picture_folder(tmp_path_factory.mktemp("pictures"), classes)


def smoke(path, preset="synthetic", **changes):
    config = experiment.get_config(preset)
    config.update_from_flattened_dict(
        {
            "data.source": "path", "data.path": str(path), "data.images": 48, "data.image_size": 32, "data.gray": 0.1,
            "model.hidden": 16, "model.width": 8, "model.dropout": 0.0, "memory.clusters": 6, "memory.min_cluster": 2,
            "memory.centroids_every": 2, "optim.schedule.peak": 0.02, "train.steps": 8, "train.batch_size": 16,
            "train.log_every": 2, "eval.batch_size": 16, "eval.shots": (1,),
            **changes,
        }
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def on_one_device(pictures):
    """States after every step on one device, and the batches."""
    wired = experiment.build(smoke(pictures))
    iterator = wired.train_data()
    batches = [next(iterator) for _ in range(6)]
    return wired, batches, steps(wired, batches, "shard_map", 1)


def steps(wired, batches, kind, devices):
    executor = make_executor(wired, kind, devices)
    state, found = executor.init(0), []
    for batch in batches:
        state, metrics = executor.step(state, executor.put(batch))
        found.append(jax.tree.map(np.asarray, (executor.local(executor.canonical(state)).replace(rng=None), metrics)))
    return found


def test_the_first_epoch_fills_and_changes_no_weight(on_one_device):
    wired, batches, found = on_one_device
    first = jax.tree.map(np.asarray, make_executor(wired, "shard_map", 1).init(0).params)
    for done, (state, metrics) in enumerate(found[:3], 1):
        chex.assert_trees_all_close(state.params, first, rtol=1e-5, atol=1e-7)
        seen = np.isin(np.arange(48), np.concatenate([b["index"] for b in batches[:done]]))
        memory = state.model_state["memory"]
        np.testing.assert_array_equal(np.linalg.norm(memory.features, axis=1) > 0.5, seen)
        assert (memory.labels == -1).all()
        assert metrics["loss"].count == 0
    state, metrics = found[3]
    assert np.bincount(state.model_state["memory"].labels, minlength=6).min() >= 1
    np.testing.assert_allclose(metrics["loss"].total / metrics["loss"].count, np.log(6), rtol=0.05)
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params["trunk"], first["trunk"]))
    assert moved > 1e-4
    assert set(np.flatnonzero(found[4][0].model_state["memory"].features[:, 0])) <= set(range(48))


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_eight_devices_equal_one(on_one_device, kind):
    """Statistics, weights of the loss and the memory are those of the whole batch."""
    wired, batches, found = on_one_device
    for (state, _), (other, _) in zip(found, steps(wired, batches, kind, 8), strict=True):
        np.testing.assert_array_equal(other.model_state["memory"].labels, state.model_state["memory"].labels)
        chex.assert_trees_all_close(other.params, state.params, rtol=1e-3, atol=2e-5)
        chex.assert_trees_all_close(other.model_state, state.model_state, rtol=1e-3, atol=2e-5)


def test_smoke_and_the_periodic_clustering(pictures, tmp_path):
    config = smoke(pictures, "deep_clustering", **{"train.steps": 11, "train.devices": 1})
    state, report = app.run(config, experiment.build, workdir=tmp_path, quiet=True)
    assert 0 <= report.metrics["probe_accuracy"] <= 100
    assert report.metrics["memory_clusters"] == 6
    assert report.arrays["labels"].shape == (48,)
    assert (tmp_path / "report.html").stat().st_size > 20_000
    momenta = jax.tree.leaves(state.opt_state.inner_states["head"])
    assert all(x.ndim == 0 for x in momenta)  # the head has no momentum


def test_bad_input_raises(pictures):
    memory = filled()
    with pytest.raises(ValueError, match=r"indices \(3,\) and features \(3, 5\): expected \[N\] and \[N, 6\]"):
        odc.remember(memory, jnp.arange(3), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="a memory of 10 pictures for 4 clusters of at least 3"):
        Memory.empty(10, 4, 2, 3)
    with pytest.raises(ValueError, match="5 clusters of 3 rows"):
        odc.kmeans(jnp.ones((3, 2)), 5, jax.random.key(0))
    with pytest.raises(ValueError, match=r"train\.steps is 3: expected more than the 3 that fill the memory"):
        experiment.build(smoke(pictures, **{"train.steps": 3}))
    with pytest.raises(ValueError, match=r"data\.images is 50, but there are 48 training images"):
        experiment.build(smoke(pictures, **{"data.images": 50})).train_data()
    with pytest.raises(ValueError, match=r"model\.name is 'r50': expected one of tiny, resnet50"):
        experiment.build(smoke(pictures, **{"model.name": "r50"}))
