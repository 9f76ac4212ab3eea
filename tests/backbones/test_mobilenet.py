import jax
import jax.numpy as jnp
import pytest

from facejax.backbones import mobilenet
from facejax.train.dry_run import count


@pytest.mark.parametrize(
    ("make", "parameters"), [(mobilenet.mobilenet_v1, 4_231_976), (mobilenet.mobilenet_v2, 3_504_872)]
)
def test_parameter_counts(make, parameters):
    """TF-slim's and torchvision's."""
    net = make()
    shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 224, 224, 3)), train=False), jax.random.key(0))
    assert count(shapes["params"]) == parameters
