"""Blocks whose insides the backward pass computes anew."""

import chex
import jax
import jax.numpy as jnp
import pytest

from facejax.backbones.hrnet import HRNet
from facejax.backbones.iresnet import IResNet
from facejax.backbones.resnet import ResNet
from facejax.evaluate.embedder import Backbone
from facejax.foundations.transformer import Transformer
from facejax.train.dry_run import flops, peak_bytes

TOKENS = jnp.array([[3, 4, 5, 1], [6, 2, 0, 0]])
IMAGES = (jax.random.normal(jax.random.key(0), (2, 32, 32, 3)),)
NETS = {
    "iresnet": (lambda **o: IResNet((2, 2), (8, 8), 8, dropout=0.5, **o), IMAGES),
    "resnet": (lambda **o: ResNet((2, 2, 1, 1), False, 4, (8, 8, 8, 8), **o), IMAGES),
    "hrnet": (lambda **o: HRNet(4, (1, 1, 1), 1, 4, 1, 4, **o), (jnp.tile(IMAGES[0], (1, 2, 2, 1)),)),
    "transformer": (lambda **o: Transformer(16, 8, 2, 16, 2, dropout=0.5, **o), (TOKENS, TOKENS)),
}


@pytest.mark.parametrize("name", NETS)
def test_remat_changes_memory_alone(name):
    make, inputs = NETS[name]
    plain, remat = make(), make(remat=True)
    variables = plain.init(jax.random.key(1), *inputs, train=False)
    chex.assert_trees_all_equal(variables, remat.init(jax.random.key(1), *inputs, train=False))

    def step(net):
        def loss(params):
            found, updated = net.apply(
                {**variables, "params": params}, *inputs, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )  # fmt: skip
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(found)), updated

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    (value, updated), gradient = step(plain)(variables["params"])
    (value_remat, updated_remat), gradient_remat = step(remat)(variables["params"])
    chex.assert_trees_all_close((value, updated), (value_remat, updated_remat), rtol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
    chex.assert_trees_all_close(gradient, gradient_remat, atol=1e-5 * scale)
    jaxprs = [jax.make_jaxpr(step(net))(variables["params"]).jaxpr for net in (plain, remat)]
    work, memory = ([f(j) for j in jaxprs] for f in (flops, peak_bytes))
    assert work[0] < work[1] < 1.35 * work[0]
    assert memory[1] < memory[0]


def test_remat_more_than_halves_the_memory_of_a_published_network():
    def planned(remat):
        net = Backbone("iresnet50", dtype="bfloat16", remat=remat).make()
        images = jnp.zeros((2, 112, 112, 3))
        variables = jax.eval_shape(lambda key: net.init(key, images, train=False), jax.random.key(0))

        def loss(params, stats, images):
            found, updated = net.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            return found.sum(), updated

        traced = jax.make_jaxpr(jax.grad(loss, has_aux=True))(
            variables["params"], variables["batch_stats"], jax.ShapeDtypeStruct((128, 112, 112, 3), jnp.float32)
        )
        return flops(traced.jaxpr), peak_bytes(traced.jaxpr)

    (work, memory), (work_remat, memory_remat) = planned(False), planned(True)
    assert memory_remat < 0.45 * memory
    assert work_remat < 1.35 * work


def test_remat_of_mobilefacenet_is_refused():
    with pytest.raises(ValueError, match="expected an IResNet"):
        Backbone("mobilefacenet", remat=True).make()
