import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.iresnet import IResNet
from facejax.interop.export import read_stablehlo, write_stablehlo


def test_exported_net_gives_the_same_embeddings(tmp_path):
    net = IResNet((1, 1, 1, 1), (4, 4, 4, 4), 6)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(lambda: net.init(jax.random.key(1), images, train=False))()
    write_stablehlo(tmp_path / "net.stablehlo", lambda x: net.apply(variables, x, train=False), images)
    again = read_stablehlo(tmp_path / "net.stablehlo")(images)
    np.testing.assert_allclose(
        again, jax.jit(lambda: net.apply(variables, images, train=False))(), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(Exception, match=r"shape|mismatch"):
        read_stablehlo(tmp_path / "net.stablehlo")(jnp.zeros((2, 8, 8, 3)))


def test_other_files_raise(tmp_path):
    (tmp_path / "x").write_bytes(b"no export")
    with pytest.raises(ValueError, match="not a readable StableHLO export"):
        read_stablehlo(tmp_path / "x")
