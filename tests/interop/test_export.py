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


def test_a_changed_number_is_noticed(tmp_path):
    path, weights = tmp_path / "net.stablehlo", np.float32([1.5, 2.5, 3.5])
    write_stablehlo(path, lambda x: x + weights, jnp.zeros(3))
    content = path.read_bytes()
    alone = jax.export.deserialize(bytearray(content)).call  # without facejax
    np.testing.assert_array_equal(alone(jnp.zeros(3)), weights)
    place = content.index(weights.tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match="a damaged file"):
        read_stablehlo(path)


def test_a_file_of_jax_itself_is_read(tmp_path):
    exported = jax.export.export(jax.jit(lambda x: 2 * x))(jnp.zeros(2))
    (tmp_path / "x").write_bytes(exported.serialize())
    np.testing.assert_array_equal(read_stablehlo(tmp_path / "x")(jnp.ones(2)), [2, 2])
