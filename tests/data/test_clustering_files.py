import numpy as np
import pytest

from facejax.data.readers import learn_to_cluster as files
from facejax.data.synthetic import embeddings
from facejax.ops import knn, vectors


def test_written_files_are_read_back(tmp_path):
    features = vectors.unit_rows(np.random.default_rng(0).normal(size=(9, 256)), np.float32)
    features.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "a.npy", features)
    (tmp_path / "a.meta").write_text("".join(f"{i // 3}\n" for i in range(9)))
    near = knn.knn(features, 4)
    data = np.stack([near.ids.astype(np.float32), 1 - near.similarity], 1)
    data[0, :, 3] = -1, 1
    np.savez(tmp_path / "a.npz", data=data)
    np.testing.assert_array_equal(files.read_features(tmp_path / "a.bin"), features)
    np.testing.assert_array_equal(files.read_features(tmp_path / "a.npy"), features)
    np.testing.assert_array_equal(files.read_labels(tmp_path / "a.meta", 9), np.arange(9) // 3)
    found = files.read_neighbours(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.ids[1:], near.ids[1:])
    assert (found.ids[0, 3], found.similarity[0, 3]) == (0, 0)


def test_both_layouts_of_several_networks(tmp_path):
    """learn-to-cluster's folders, and CDP's, which hold one set each."""
    views = vectors.unit_rows(np.random.default_rng(0).normal(size=(12, 8)), np.float32).reshape(2, 6, 8)
    for folder in ("features", "labels", "unlabeled/set/features"):
        (tmp_path / folder).mkdir(parents=True)
    for name, view in zip(("a", "b"), views, strict=True):
        view.tofile(tmp_path / "features" / f"{name}.bin")
        view.tofile(tmp_path / "unlabeled" / "set" / "features" / f"{name}.bin")
    for labels in ("labels/a.meta", "unlabeled/set/meta.txt"):
        (tmp_path / labels).write_text("0\n0\n1\n1\n2\n2\n")
    for names in ("a,b", "unlabeled/set/a,unlabeled/set/b"):
        found = embeddings.Source("files", str(tmp_path), train=names, width=8).known(0)
        np.testing.assert_allclose(found.views, views, rtol=1e-6)
        np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 2, 2])
    (tmp_path / "features" / "b.bin").write_bytes(views[1, :4].tobytes())
    with pytest.raises(ValueError, match=r"b\.bin: 4 rows: expected 6 as in .*a\.bin"):
        embeddings.read(str(tmp_path), "a,b", 8)
    with pytest.raises(ValueError, match="192 bytes: expected rows of 7 float32"):
        embeddings.read(str(tmp_path), "a", 7)


def test_malformed_files_raise(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1234")
    (tmp_path / "a.meta").write_text("0\nx\n")
    (tmp_path / "c.meta").write_text("0\u20281\n2\n")
    (tmp_path / "b.meta").write_text("0\n")
    np.savez(tmp_path / "a.npz", data=np.full((3, 2, 2), 7.0))
    np.savez(tmp_path / "b.npz", other=np.zeros(3))
    for name, wrong in (("c", 0.5), ("d", np.nan)):
        np.savez(tmp_path / f"{name}.npz", data=np.full((3, 2, 2), [[wrong], [0.1]]))
        with pytest.raises(ValueError, match="ids that are no whole numbers"):
            files.read_neighbours(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="4 bytes: expected rows of 256 float32"):
        files.read_features(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="line 2: 'x': expected an integer"):
        files.read_labels(tmp_path / "a.meta")
    with pytest.raises(ValueError, match=r"line 1: .*: expected an integer"):
        files.read_labels(tmp_path / "c.meta")
    with pytest.raises(ValueError, match="1 labels for 9 features"):
        files.read_labels(tmp_path / "b.meta", 9)
    with pytest.raises(ValueError, match="ids from 7 to 7"):
        files.read_neighbours(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="expected one named data"):
        files.read_neighbours(tmp_path / "b.npz")


def test_simulated_identities():
    found = embeddings.hypersphere(30, 0, views=3)
    assert found.views.shape == (3, len(found.labels), 64)
    np.testing.assert_allclose(np.linalg.norm(found.views, axis=2), 1, rtol=1e-5)
    counts = np.bincount(found.labels)
    assert len(counts) == 30 and counts.min() >= 5 and counts.max() <= 40
    again = embeddings.hypersphere(30, 0, views=3)
    np.testing.assert_array_equal(found.views, again.views)
    centres = np.stack([found.features[found.labels == c].mean(0) for c in range(30)])
    own = np.sum(found.features * (centres / np.linalg.norm(centres, axis=1, keepdims=True))[found.labels], 1)
    assert np.corrcoef(own, found.quality)[0, 1] > 0.6


def arrays(folder, features, labels):
    np.save(folder / "embeddings.npy", features)
    np.save(folder / "labels.npy", labels)
    return embeddings.Source("arrays", str(folder))


def test_arrays_are_split_by_identity_and_checked(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    source = arrays(tmp_path, rows, np.arange(12) // 3)
    first, second = source.known(0), source.unseen(0, embeddings.HeldOut())
    assert source.columns() == 5 and embeddings.Source(width=9).columns() == 9
    assert len(first.labels) == len(second.labels) == 6 and not set(first.labels) & set(second.labels)
    with pytest.raises(ValueError, match=r"labels of shape \(11,\) for 12 embeddings"):
        arrays(tmp_path, rows, np.arange(11)).known(0)
    with pytest.raises(ValueError, match="features: row 7 is not finite"):
        arrays(tmp_path, np.where(np.arange(12)[:, None] == 7, np.nan, rows), np.arange(12)).known(0)
    with pytest.raises(ValueError, match="'web': expected hypersphere, files or arrays"):
        embeddings.Source("web")
