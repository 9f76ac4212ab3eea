import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import star_fc as experiment
from facejax.clustering import star_fc
from facejax.data.readers import learn_to_cluster
from facejax.data.synthetic import embeddings
from facejax.evaluate.clustering import spread
from facejax.ops import knn, vectors
from facejax.ops.components import connected_components
from facejax.ops.graph import make_graph, random_walk_normalization
from facejax.train import app, parallel


def cliques(*sizes, bridge=False):
    """Edges of cliques in both directions; a bridge joins the last of one to the first of the next."""
    pairs, first = [], 0
    for size in sizes:
        pairs += [(first + i, first + j) for i in range(size) for j in range(size) if i != j]
        if bridge and first + size < sum(sizes):
            pairs += [(first + size - 1, first + size), (first + size, first + size - 1)]
        first += size
    return star_fc.Edges(*np.array(pairs).T)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_intimacy_of_a_clique(size):
    found = star_fc.intimacy(cliques(size), size)
    np.testing.assert_allclose(found, (size - 2) / (size - 1), rtol=1e-6)


def test_intimacy_equals_its_definition():
    rng = np.random.default_rng(0)
    matrix = (rng.random((30, 30)) < 0.2) & ~np.eye(30, dtype=bool)
    matrix[7] = False
    edges = star_fc.Edges(*np.nonzero(matrix))
    degree, common = matrix.sum(1), matrix.astype(int) @ matrix.astype(int)
    expected = [
        0 if degree[j] == 0 else max(common[i, j] / degree[i], common[i, j] / degree[j]) for i, j in zip(*edges)
    ]
    np.testing.assert_allclose(star_fc.intimacy(edges, 30), expected, rtol=1e-6)


def test_a_bridge_is_cut_and_small_cliques_break_up_at_the_papers_threshold():
    edges = cliques(6, 7, bridge=True)
    sure = np.ones(len(edges.source))
    assert len(np.unique(star_fc.cluster(edges, sure, 13, score=0.7, shared=-1))) == 1
    found = star_fc.cluster(edges, sure, 13, score=0.7, shared=0.5)
    np.testing.assert_array_equal(found, [0] * 6 + [1] * 7)
    assert len(np.unique(star_fc.cluster(cliques(4), np.ones(12), 4, score=0.7, shared=0.72))) == 4
    assert len(np.unique(star_fc.cluster(cliques(5), np.ones(20), 5, score=0.7, shared=0.72))) == 1
    assert len(np.unique(star_fc.cluster(edges, 0 * sure, 13, score=0.7, shared=0.5))) == 13


def test_no_thresholds_are_components_of_the_neighbours():
    near = knn.knn(np.random.default_rng(0).normal(size=(60, 8)), 3)
    edges = star_fc.directed_edges(near)
    found = star_fc.cluster(edges, np.ones(len(edges.source)), 60, score=0.0, shared=-1.0)
    np.testing.assert_array_equal(found, connected_components(edges.source, edges.destination, 60))


@pytest.fixture(scope="module")
def small():
    """A net with its variables, 20 nodes, 50 edges of their graph and 33 to score."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(vectors.unit_rows(rng.normal(size=(20, 6))))
    graph = random_walk_normalization(make_graph(rng.integers(0, 20, 50), rng.integers(0, 20, 50), 20))
    net = star_fc.EdgeNet(8)
    edges = star_fc.Edges(rng.integers(0, 20, 33), rng.integers(0, 20, 33))
    variables = net.init(jax.random.key(0), features, graph, *edges)
    shake = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return net, jax.tree.map(shake, variables), features, graph, edges


def dense(params, features, graph, edges):
    """The net with matrices: one convolution, then a layer on two joined vectors, PReLU, a layer."""
    adjacency = jnp.zeros((20, 20)).at[graph.destination, graph.source].add(graph.weight)
    joined = jnp.concatenate([features, adjacency @ features], 1)
    layer = params["convolution"]["Dense_0"]
    hidden = nn.relu(joined @ layer["kernel"] + layer["bias"])
    pairs = jnp.concatenate([hidden[edges.source], hidden[edges.destination]], 1)
    kernel = jnp.concatenate([params["first"]["kernel"], params["second"]["kernel"]])
    (slope,) = jax.tree.leaves(params["slope"])
    first = pairs @ kernel + params["first"]["bias"]
    return jnp.where(first > 0, first, slope * first) @ params["output"]["kernel"] + params["output"]["bias"]


def test_equals_matrices_with_gradients(small):
    net, variables, features, graph, edges = small
    ours = lambda v, x: net.apply(v, x, graph, *edges)  # noqa: E731
    theirs = lambda v, x: dense(v["params"], x, graph, edges)  # noqa: E731
    np.testing.assert_allclose(ours(variables, features), theirs(variables, features), rtol=1e-4, atol=1e-5)
    found, expected = (
        jax.grad(lambda v, x, f=f: jnp.sum(f(v, x) ** 2), (0, 1))(variables, features) for f in (ours, theirs)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_head_tells_first_from_second_and_chunks_do_not_matter(small):
    net, variables, features, graph, edges = small
    whole = jax.nn.softmax(net.apply(variables, features, graph, *edges))[:, 1]
    for chunk in (0, 7):
        ends = net.apply(variables, features, graph, chunk=chunk, method=net.ends)
        found = star_fc.edge_probabilities(net, variables, ends, edges, chunk=10)
        np.testing.assert_allclose(found, whole, rtol=1e-5)
    turned = jax.nn.softmax(net.apply(variables, features, graph, *edges[::-1]))[:, 1]
    assert np.abs(whole - turned).max() > 1e-3


def test_eight_devices_score_edges_as_one_does(small):
    """Each device spreads to its own run of nodes: 20 do not divide by 8."""
    net, variables, _, _, edges = small
    assert jax.device_count() == 8
    features = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    graph = knn.affinity(knn.knn(features, 5))
    cut = spread(graph)
    assert cut.source.shape[0] == 8 and len(cut.source.sharding.device_set) == 8
    found = []
    for variables_here, graph_here in ((variables, graph), (parallel.replicate(variables), cut)):
        ends = net.apply(variables_here, jnp.asarray(features), graph_here, chunk=7, method=net.ends)
        found.append(star_fc.edge_probabilities(net, variables_here, ends, edges, chunk=10))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_nodes_without_neighbours_and_duplicates_are_clusters():
    """A zero row and strangers are alone; rows given five times are one person."""
    rows = np.eye(8, dtype=np.float32)[[0] * 5 + [1] * 5 + [2, 3]]
    rows = np.append(rows, np.zeros((1, 8), np.float32), 0)
    near = knn.knn(rows, 5)
    edges = star_fc.directed_edges(near)
    same = near.similarity[:, 1:].ravel()
    found = star_fc.cluster(edges, same, 13, score=0.5, shared=0.72)
    assert len(np.unique(found)) == 5 and len(np.unique(found[:5])) == len(np.unique(found[5:10])) == 1
    graph = knn.affinity(near)
    totals = np.bincount(np.asarray(graph.destination), np.asarray(graph.weight), 13)
    np.testing.assert_allclose(totals, 1, rtol=1e-6)
    none = star_fc.Edges(np.zeros(0, int), np.zeros(0, int))
    assert len(np.unique(star_fc.cluster(none, np.zeros(0), 3, score=0.5, shared=0.72))) == 3


def test_sampled_people_are_neighbours():
    angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    centres = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = star_fc.sample_people(centres, np.random.default_rng(0), nearest=11, chosen=7)
    assert len(found) == 7
    gaps = (found[:, None] - found) % 100
    assert np.minimum(gaps, 100 - gaps).max() <= 10


SMALL = {
    "data.labelled": 40, "eval.people": 12, "graph.k": 6, "model.hidden": 8, "sample.nodes": 96, "sample.edges": 64,
    "sample.nearest": 10, "sample.people": 8, "train.steps": 4, "train.log_every": 2, "train.devices": 1,
}  # fmt: skip


def test_smoke():
    config = experiment.get_config()
    config.update_from_flattened_dict(SMALL)
    _, report = app.run(config, experiment.build, quiet=True)
    assert 0 < report.metrics["pairwise_f"] <= 1


def test_arrays_have_their_own_width(tmp_path):
    people = embeddings.hypersphere(52, 0, width=21)
    np.save(tmp_path / "embeddings.npy", people.features)
    np.save(tmp_path / "labels.npy", people.labels)
    config = experiment.get_config()
    config.update_from_flattened_dict({**SMALL, "data.source": "arrays", "data.path": str(tmp_path)})
    wired = experiment.build(config)
    assert wired.batch["features"].shape[1:] == (96, 21)
    state, report = app.run(config, experiment.build, quiet=True)
    assert {x.shape[0] for x in jax.tree.leaves(state.params)} & {2 * 21}
    assert 0 < report.metrics["pairwise_f"] <= 1


def test_features_without_labels_are_clustered(tmp_path):
    for folder in ("features", "labels"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("known", "new")):
        people = embeddings.hypersphere(12, number, width=16)
        people.features.tofile(tmp_path / "features" / f"{name}.bin")
        np.savetxt(tmp_path / "labels" / f"{name}.meta", people.labels, "%d")
    config = experiment.get_config("files")
    files = {"data.path": str(tmp_path), "data.width": 16, "data.train": "known", "eval.test": "new", "graph.k": 6}
    config.update_from_flattened_dict({**files, "method": "components"})
    _, labelled = app.run(config, experiment.build, quiet=True, save_arrays=tmp_path / "labelled")
    row = labelled.tables["Held-out images"][0]
    assert row["people"] == 12 and row["images"] == len(people.labels)
    (tmp_path / "labels" / "new.meta").unlink()
    _, report = app.run(config, experiment.build, quiet=True, save_arrays=tmp_path / "new")
    assert report.metrics["images"] == len(people.labels) and "pairwise_f" not in report.metrics
    written = learn_to_cluster.read_labels(tmp_path / "new" / "clusters.txt", len(people.labels))
    np.testing.assert_array_equal(written, np.load(tmp_path / "labelled" / "clusters.npy"))
    assert len(np.unique(written)) == report.metrics["clusters"] == labelled.metrics["clusters"]
    (tmp_path / "labels" / "known.meta").unlink()
    with pytest.raises(ValueError, match=r"known\.meta"):
        app.run(config, experiment.build, quiet=True)


def sampler(learnt, **changes):
    options = {"nodes": 96, "edges": 64, "nearest": 10, "people": 8, "k": 6, **changes}
    return star_fc.subgraph_sampler(learnt.features, learnt.labels, **options)


def test_sub_graphs_have_true_labels_and_static_sizes():
    learnt = embeddings.hypersphere(32, 0, width=32)
    draw = sampler(learnt)
    parts = [draw(np.random.default_rng(i)) for i in range(2)]
    for part in parts:
        shapes = {name: value.shape for name, value in part.items()}
        assert shapes["features"] == (96, 32) and shapes["source"] == (96 * 11,) and shapes["same"] == (64,)
        totals = np.bincount(part["destination"], part["weight"], 96)
        np.testing.assert_allclose(totals, 1, rtol=1e-5)
        place = {row.tobytes(): label for row, label in zip(learnt.features, learnt.labels)}
        labels = np.array([place[row.tobytes()] for row in part["features"]])
        np.testing.assert_array_equal(part["same"], labels[part["first"]] == labels[part["second"]])
    assert not np.array_equal(parts[0]["features"], parts[1]["features"])


def test_too_few_faces_raise():
    learnt = embeddings.hypersphere(32, 0, width=32)
    with pytest.raises(ValueError, match="expected at most"):
        sampler(learnt, nodes=100_000)
    with pytest.raises(ValueError, match="k is 97: expected 1 to 96, the number of rows"):
        sampler(learnt, k=97)(np.random.default_rng(0))
