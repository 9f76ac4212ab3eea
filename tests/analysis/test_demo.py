import flax
import jax
import numpy as np
import pytest

from facejax.analysis import demo
from facejax.data import landmark_images, scene_faces


@pytest.fixture(scope="module")
def random_variables():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape.shape).astype(np.float32), {name: demo.shapes(name) for name in demo.NETS}
    )


def test_untrained_networks_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "asset", lambda: tmp_path / "none.msgpack")
    demo.variables.cache_clear()
    with pytest.raises(ValueError, match=r"not trained yet: python -m experiments\.analysis_demo"):
        demo.parts()


@pytest.mark.skipif(not demo.asset().is_file(), reason="the demo networks are not trained")
def test_asset_is_small_and_fits():
    size = demo.asset().stat().st_size
    assert size <= demo.MOST_BYTES
    kept = demo.variables()
    assert kept.keys() == demo.NETS.keys()
    leaves = jax.tree.leaves(kept)
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves)
    assert 2 * sum(leaf.size for leaf in leaves) < size  # half precision


def test_written_networks_come_back(random_variables, tmp_path):
    file = tmp_path / "demo.msgpack"
    size = demo.write(file, random_variables)
    assert size == file.stat().st_size and [f.name for f in tmp_path.iterdir()] == ["demo.msgpack"]
    for a, b in zip(jax.tree.leaves(demo.read(file)), jax.tree.leaves(random_variables), strict=True):
        np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32))


def test_only_whole_files_are_written(random_variables, tmp_path, monkeypatch):
    file = tmp_path / "demo.msgpack"
    with pytest.raises(ValueError, match="networks pose: expected detector, recogniser"):
        demo.write(file, {"pose": random_variables["pose"]})
    large = {**random_variables, "pose": jax.tree.map(lambda x: x + 1e6, random_variables["pose"])}
    with pytest.raises(ValueError, match="too large for half precision"):
        demo.write(file, large)
    monkeypatch.setattr(demo, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="bytes: expected at most 1000"):
        demo.write(file, random_variables)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(random_variables, tmp_path):
    file = tmp_path / "demo.msgpack"
    demo.write(file, random_variables)
    whole = file.read_bytes()
    kept = flax.serialization.msgpack_restore(whole)
    wrong = {**kept, "age": kept["pose"]}
    for content in (whole[:1000], b"", b"text", flax.serialization.msgpack_serialize(wrong)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"demo\.msgpack: (no file of the demo networks|other networks)"):
            demo.read(file)


def test_squares_are_those_of_training():
    boxes = np.float32([[10.0, 20.0, 50.0, 70.0], [-5.0, 3.0, 90.0, 40.0]])
    rule = demo.FaceSquare(128, 1.3)
    found = rule(boxes, None, (100, 100))
    corners = np.float64([[-0.5, -0.5], [127.5, -0.5], [127.5, 127.5], [63.5, 63.5]])
    for box, matrix, rect in zip(boxes, found.matrices, found.rects, strict=True):
        region = scene_faces.square(box, 1.3)
        trained = landmark_images.region_matrix(region, 0.0, 128)
        photograph = corners @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(photograph @ trained[:, :2].T + trained[:, 2], corners, atol=1e-4)
        np.testing.assert_allclose(photograph[0] + 0.5, rect[:2], atol=1e-4)  # edges, in continuous pixels
        np.testing.assert_allclose(photograph[2] + 0.5, rect[2:], atol=1e-4)
    placed = demo.placed({"landmarks": np.tile(np.float64([[[0.5, 0.5], [0.0, 1.0]]]), (2, 1, 1))}, found)["landmarks"]
    np.testing.assert_allclose(placed[0], [[30.0, 45.0], [-2.5, 77.5]], atol=1e-5)


def test_crops_shrink_by_their_mean():
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3)).astype(np.uint8)
    small = demo.shrunk(56)(images)
    assert small.shape == (2, 56, 56, 3) and np.abs(small).max() <= 1
    flat = demo.shrunk(48)(np.full((1, 112, 112, 3), 255, np.uint8))
    np.testing.assert_allclose(flat, 1.0, atol=1e-6)


def test_every_network_has_its_place(random_variables, monkeypatch):
    monkeypatch.setattr(demo, "variables", lambda: random_variables)
    found = demo.networks()
    assert list(found) == list(demo.NETS)
    for name, network in found.items():
        side = network.rule.side if network.rule else demo.SIZE
        images = jax.ShapeDtypeStruct((3, side, side, 3), np.uint8)
        seen = jax.eval_shape(network.preprocess, images)
        assert seen.shape[1] == demo.NETS[name][1]
        out = jax.eval_shape(lambda v, x, net=network.module: net.apply(v, x, train=False), network.variables, seen)
        assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(out))
