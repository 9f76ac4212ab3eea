"""Published SSR-Net and FSA-Net: recorded outputs, and files of other networks."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from experiments import fsanet as experiment
from facejax import models
from facejax.attributes.ssrnet import SSRNet
from facejax.evaluate import attributes
from facejax.interop import fsanet, ssrnet
from facejax.metrics import pose

FILES = {
    "conv": "fsanet_capsule_3_16_2_21_5",
    "variance": "fsanet_var_capsule_3_16_2_21_5",
    "none": "fsanet_noS_capsule_3_16_2_192_5",
}


@pytest.fixture(scope="module")
def weights(test_data):
    return test_data / "weights"


def shapes(net):
    return jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))


def test_recorded_angles(weights):
    """The three networks and their fusion, on noise, photographs and fifty faces of AFLW2000-3D."""
    reference = np.load(weights / "fsanet" / "300W_LP_reference.npz")
    config = experiment.get_config("aflw2000_published")
    config.eval.weights = str(weights / "fsanet")
    net = experiment.make_net(config)
    variables = experiment.published(config, net)
    inputs = {name: reference[f"{name}_input"] for name in ("random", "crops")}
    inputs["aflw2000_first50"] = reference["aflw2000_first50_input_uint8_bgr"].astype(np.float32)
    whole = np.concatenate(list(inputs.values()))[..., ::-1]
    found = np.asarray(jax.jit(lambda x: net.apply(variables, x, train=False))(whole))
    parts = dict(zip(inputs, np.split(found, np.cumsum([len(x) for x in inputs.values()])[:-1]), strict=True))
    for k, name in enumerate(FILES.values()):
        np.testing.assert_allclose(parts["random"][:, k], reference[f"{name}_random"], atol=1e-3)
        np.testing.assert_allclose(parts["crops"][:, k], reference[f"{name}_crops"], atol=1e-3)
        np.testing.assert_allclose(parts["aflw2000_first50"][:, k], reference[f"aflw2000_first50_{name}"], atol=1e-3)
    np.testing.assert_allclose(parts["crops"].mean(1), reference["fusion_crops"], atol=1e-3)
    truth = reference["aflw2000_first50_pose_yaw_pitch_roll"]
    found = {"number": parts["aflw2000_first50"].mean(1)}
    crops = reference["aflw2000_first50_input_uint8_bgr"][..., ::-1]
    report = attributes.pose_report(found, truth, lambda rows: crops[rows])
    recorded = np.mean([reference[f"aflw2000_first50_{name}"] for name in FILES.values()], 0)
    assert report.metrics["mae"] == pytest.approx(pose.pose_errors(recorded, truth).mean, abs=1e-3)
    assert report.metrics["mae"] < 7
    assert len(report.figures) == 2


def test_published_preset_reads_a_folder(weights, tmp_path):
    """Fifty pictures whose crops are the recorded ones: files, labels, crops, networks and report."""
    reference = np.load(weights / "fsanet" / "300W_LP_reference.npz")
    truth = reference["aflw2000_first50_pose_yaw_pitch_roll"]
    points = np.tile([[10.0, 54.0]], (2, 34))  # with the margin of 0.6, 64 pixels from the first on
    for i, image in enumerate(reference["aflw2000_first50_input_uint8_bgr"]):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.pad(image, ((0, 1), (0, 1), (0, 0))))
        yaw, pitch, roll = np.radians(truth[i])
        parameters = np.array([[pitch, yaw, roll, 0, 0, 0, 1]])
        scipy.io.savemat(tmp_path / f"{i:02}.mat", {"pt2d": points, "Pose_Para": parameters})
    config = experiment.get_config("aflw2000_published")
    config.data.test_path, config.eval.weights = str(tmp_path), str(weights / "fsanet")
    found = experiment.build(config).evaluate(None).metrics
    recorded = np.mean([reference[f"aflw2000_first50_{name}"] for name in FILES.values()], 0)
    expected = pose.pose_errors(recorded, truth)
    for name in ("yaw", "pitch", "roll", "geodesic"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-3)


@pytest.mark.parametrize(("prefix", "span"), [("morph2", 101.0), ("morph_gender", 1.0)])
def test_recorded_ages(weights, prefix, span):
    reference = np.load(weights / "ssrnet" / f"{prefix}_reference.npz")
    net = SSRNet(span=span)
    variables = ssrnet.load(weights / "ssrnet" / f"{prefix}_ssrnet_3_3_3_64_1.0_1.0.h5", shapes(net))
    images = np.concatenate([reference["random_input"], reference["crops_uint8_bgr"]])[..., ::-1]

    @jax.jit
    def run(x):
        return net.apply(variables, x, train=False), net.apply(variables, x, train=False, method="stages")

    found, stages = run(images)
    for start, stop, part in ((0, 4, "random"), (4, 18, "crops")):
        np.testing.assert_allclose(found[start:stop], reference[f"{part}_output"][:, 0], atol=1e-3)
        for k in range(3):
            np.testing.assert_allclose(stages.scores[k][start:stop], reference[f"{part}_p{k + 1}"], atol=1e-4)
            np.testing.assert_allclose(stages.shifts[k][start:stop], reference[f"{part}_local{k + 1}"], atol=1e-4)
            stretch = reference[f"{part}_delta{k + 1}"][:, 0]
            np.testing.assert_allclose(stages.stretches[k][start:stop], stretch, atol=1e-4)


def test_models_load_their_weights(weights):
    file = weights / "fsanet" / f"300W_LP_{FILES['none']}.h5"
    assert models.load_pretrained("fsanet_capsule_none", file)["params"]["aggregate"]["weights"].shape[1] == 192


def test_wrong_files_raise(weights, tmp_path):
    other = weights / "ssrnet" / "morph2_ssrnet_3_3_3_64_1.0_1.0.h5"
    with pytest.raises(
        ValueError, match=r"morph2.*not the weights of this FSA-Net: .*do not match the model in \d+ places"
    ):
        fsanet.load(other, models.variable_shapes("fsanet_capsule_conv"))
    with pytest.raises(ValueError, match=r"not the weights of this FSA-Net: .* gives \(3, 21, 16, 64\)"):
        fsanet.load(fsanet.file_of(weights / "fsanet", "conv"), models.variable_shapes("fsanet_capsule_none"))
    with pytest.raises(ValueError, match="not the weights of this SSR-Net"):
        ssrnet.load(fsanet.file_of(weights / "fsanet", "conv"), models.variable_shapes("ssrnet"))
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.h5: not the weights of this SSR-Net: .*not a readable Keras HDF5 file"):
        ssrnet.load(tmp_path / "x.h5", models.variable_shapes("ssrnet"))
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{FILES['conv']}.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="2 files fsanet_capsule_3_16_2_21_5"):
        fsanet.file_of(tmp_path, "conv")
