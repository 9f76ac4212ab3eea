import numpy as np
import pytest

from benchmarks import graph_inference as benchmark
from facejax.ops import knn
from facejax.ops.graph import propagate


@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_runs_of_nodes_give_what_the_whole_graph_gives(monkeypatch, rows):
    monkeypatch.setattr(benchmark, "ROWS", rows)
    features, near = benchmark.random_people(100, 5)
    graph = knn.affinity(near)
    own, aggregated = benchmark.forward(lambda scale, *found: tuple(scale * x for x in found), 2.0, features, graph)
    np.testing.assert_allclose(own, 2 * features, rtol=1e-6)
    np.testing.assert_allclose(aggregated, 2 * propagate(graph, features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", benchmark.SYSTEMS)
def test_a_line_of_the_table(name):
    row = benchmark.measure(name, 200, 5)
    assert 200 * 5 < row["edges"] <= 200 * 9 and row["peak MiB"] > 100


def test_memory_and_time_by_count():
    """A million nodes, two neighbours each: 3 and 1 edges a node, 256 numbers of 4 bytes."""
    one, eight = (benchmark.count(10**6, 2, devices) for devices in (1, 8))
    assert one["features GB"] == eight["features GB"] == pytest.approx(1.024)
    assert one["graph GB"] == pytest.approx(0.036) and eight["graph GB"] == pytest.approx(0.0045)
    assert one["neighbours s"] == pytest.approx(8 * eight["neighbours s"])
