"""Networks of keras.applications with random weights, saved in both of Keras's HDF5 layouts, against ours."""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="needs the parity extra")
if keras.backend.backend() != "jax":
    pytest.skip("keras has another backend than JAX", allow_module_level=True)

from facejax import models
from facejax.interop import keras_applications, torchvision
from tests.parity.networks import assert_near

pytestmark = pytest.mark.parity
ROWS = {
    "mobilenet_v1_025": ("MobileNet", {"alpha": 0.25}, (64, 96)),
    "mobilenet_v2_035": ("MobileNetV2", {"alpha": 0.35}, (96, 64)),
    "resnet50_keras": ("ResNet50", {}, (64, 96)),
}


def randomize(net):
    rng = np.random.default_rng(0)
    for weight in net.weights:
        kind = weight.path.rpartition("/")[2]
        if kind in ("moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif kind in ("kernel", "depthwise_kernel"):
            fan = np.prod(weight.shape[:2]) if "depthwise" in weight.path or "_dw_" in weight.path else 0
            weight.assign(rng.normal(size=weight.shape) * (2 / (fan or np.prod(weight.shape[:-1]))) ** 0.5)
        else:
            weight.assign(rng.normal(size=weight.shape) * 0.1)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_outputs(name, whole, tmp_path):
    make, options, size = ROWS[name]
    theirs = getattr(keras.applications, make)(
        weights=None, input_shape=(*size, 3), classes=5, classifier_activation=None, **options
    )
    randomize(theirs)
    file = tmp_path / ("net.h5" if whole else "net.weights.h5")
    theirs.save(file) if whole else theirs.save_weights(file)
    ours = models.create_model(name, num_classes=5)
    shapes = models.variable_shapes(name, num_classes=5)
    variables = keras_applications.load(file, shapes)
    images = np.float32(np.random.default_rng(1).normal(size=(2, *size, 3)))
    seen = images[..., ::-1] if name.startswith("resnet") else images
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images)
    assert_near(found, theirs(seen, training=False), 1e-4)
    if whole:
        jax.tree.map(np.testing.assert_array_equal, torchvision.load(file, shapes), variables)


def test_vgg(tmp_path):
    """The trunk; with its dense layers a file has half a gigabyte."""
    theirs = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 64, 3))
    randomize(theirs)
    theirs.save_weights(tmp_path / "vgg.weights.h5")
    ours = models.create_model("vgg16_trunk")
    variables = keras_applications.load(tmp_path / "vgg.weights.h5", models.variable_shapes("vgg16_trunk"))
    images = np.float32(np.random.default_rng(1).normal(size=(1, 32, 64, 3)))
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False, features=True))(variables, images)
    assert_near(found["pool5"], theirs(images[..., ::-1], training=False), 1e-4)
