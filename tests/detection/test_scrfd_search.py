import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.detection import scrfd, scrfd_search
from facejax.detection.scrfd_search import Candidates, Space
from facejax.train.dry_run import flops


def one(bottleneck=False, widths=(24, 48, 48, 80), depths=(3, 5, 3, 2), neck=24, head=64, head_depth=2):
    return Candidates(*(np.array([x]) for x in (bottleneck, widths, depths, neck, head, head_depth)))


def traced(net, size):
    images = jnp.zeros((1, *size, 3))
    variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))
    return flops(jax.make_jaxpr(lambda v, x: net.apply(v, x, train=False))(variables, images).jaxpr) / 2


@pytest.mark.parametrize(
    ("candidate", "points", "pool"),
    [
        (one(), 0, True),
        (one(True, (8, 8, 16, 24), (2, 1, 1, 2), 16, 24, 1), 5, True),
        (one(False, (8, 8, 16, 16), (1, 2, 1, 1), 8, 16, 3), 5, False),
    ],
)
def test_costs_equal_the_operations_of_the_network(candidate, points, pool):
    size = (64, 96)
    net = candidate.net(0, pool=pool, points=points)
    found = scrfd_search.costs(candidate, size, points=points, pool=pool)
    assert found.sum() == traced(net, size)


def test_published_costs():
    """The sheet's multiply-adds of the published networks at 480 x 640."""
    size = (480, 640)
    assert round(scrfd_search.costs(one(), size).sum() / 1e9, 3) == 2.499
    ten = one(False, (56, 88, 88, 224), (3, 4, 2, 3), 56, 80, 3)
    assert round(scrfd_search.costs(ten, size).sum() / 1e9, 3) == 9.915
    most = one(True, (56, 56, 144, 184), (17, 16, 2, 8), 128, 256, 2)
    assert round(scrfd_search.costs(most, size).sum() / 1e9, 3) == 33.657
    images = jnp.zeros((1, 32, 32, 3))
    shapes = [
        jax.eval_shape(lambda k, n=n: n.init(k, images, train=False), jax.random.key(0))
        for n in (one().net(0, norm_groups=16), scrfd.scrfd_2_5g())
    ]
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])


def test_draws_cost_the_budget():
    size, template, space = (480, 640), one(), Space()
    budget = scrfd_search.costs(template, size).sum()

    def cost(candidates):
        return scrfd_search.costs(candidates, size)

    trunks = scrfd_search.draw_trunks(np.random.default_rng(0), 20, budget, cost, template, space)
    total = cost(trunks).sum(1)
    assert len(trunks) == 20 and (np.abs(total / budget - 1) <= 0.02).all()
    assert set(trunks.neck) == {24} and set(trunks.head) == {64} and set(trunks.head_depth) == {2}
    assert (trunks.widths % 8 == 0).all() and trunks.depths.min() >= 1 and trunks.depths.max() <= 10
    assert trunks.bottleneck.any() and not trunks.bottleneck.all()
    growth = trunks.widths[:, 1:] / trunks.widths[:, :-1]
    assert growth.min() >= 1 and growth.max() <= 4

    whole = scrfd_search.draw_whole(np.random.default_rng(1), 10, budget, cost, template, space)
    assert (np.abs(cost(whole).sum(1) / budget - 1) <= 0.02).all()
    shares = scrfd_search.over_stem(cost(template)) / scrfd_search.over_stem(cost(whole))
    assert np.abs(shares - 1).max() <= 0.1
    assert len(set(whole.neck)) > 1 and len(set(whole.head)) > 1
    anything = scrfd_search.draw_any(np.random.default_rng(2), 10, budget, cost, space)
    assert (np.abs(cost(anything).sum(1) / budget - 1) <= 0.02).all() and len(set(anything.neck)) > 1
    again = scrfd_search.draw_whole(np.random.default_rng(1), 10, budget, cost, template, space)
    np.testing.assert_array_equal(again.widths, whole.widths)


def test_a_budget_that_nothing_costs():
    with pytest.raises(ValueError, match=r"search: 0 of 10000000 draws cost 1 multiply-adds, not 1"):
        scrfd_search.draw_trunks(
            np.random.default_rng(0), 1, 1, lambda c: np.full((len(c), 7), 1e9), one(), Space(base=(8, 8))
        )
