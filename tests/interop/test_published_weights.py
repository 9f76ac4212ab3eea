"""Published MobileFaceNet weights: recorded embeddings, and verification on the AT&T faces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.backbones.mobilefacenet import mobilefacenet_1x
from facejax.data import readers, transforms
from facejax.interop import arcface_torch
from facejax.metrics import verification


@pytest.fixture(scope="module")
def embedder(test_data):
    net = mobilefacenet_1x(last="linear")
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 112, 96, 3)), train=False), jax.random.key(0))
    variables = arcface_torch.load(test_data / "weights" / "mobilefacenet" / "068.ckpt", template)
    return jax.jit(lambda images: net.apply(variables, images, train=False))


def test_recorded_embeddings(embedder, test_data):
    reference = np.load(test_data / "weights" / "mobilefacenet" / "reference.npz")
    images = reference["random_input"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(embedder(images), reference["random_embedding"], atol=1e-4)
    crops = (reference["crops_uint8_rgb"].astype(np.float32) - 127.5) / 128
    np.testing.assert_allclose(embedder(crops), reference["crops_embedding"], atol=1e-4)
    np.testing.assert_allclose(embedder(crops[:, :, ::-1]), reference["crops_embedding_flipped"], atol=1e-4)


def test_att_faces(embedder, test_data):
    source = readers.read(test_data / "faces" / "att_faces")
    examples = [source[i] for i in range(len(source))]
    crops = np.stack([transforms.resize(transforms.decode(e["image"]), 112, 96) for e in examples])
    images = (crops.astype(np.float32) - 127.5) / 128
    parts = [np.concatenate([embedder(x[i : i + 80]) for i in range(0, 400, 80)]) for x in (images, images[:, :, ::-1])]
    features, labels = np.concatenate(parts, 1), np.array([e["label"] for e in examples])
    rates = verification.all_pairs_tar(features, labels, [1e-1, 1e-2, 1e-3])
    np.testing.assert_allclose(rates, [0.961, 0.917, 0.823], atol=0.005)
    assert abs(verification.leave_one_out_rank1(features, labels) - 0.990) < 0.005
