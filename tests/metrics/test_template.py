import numpy as np
import pytest
from sklearn.metrics import roc_curve

from facejax.metrics import template as t
from facejax.metrics import verification as v


def slow_templates(features, templates, media, pooling):
    out = []
    for template in np.unique(templates):
        means = []
        for medium in np.unique(media[templates == template]):
            mean = features[(templates == template) & (media == medium)].mean(0)
            means.append(mean / np.linalg.norm(mean) if pooling == "magface" else mean)
        pooled = np.sum(means, 0) if pooling == "arcface" else np.mean(means, 0)
        out.append(pooled / np.linalg.norm(pooled) if pooling == "arcface" else pooled)
    return np.array(out)


@pytest.mark.parametrize("pooling", ["arcface", "magface", "magface+"])
def test_pooling_equals_the_literal_loop(pooling):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 6))
    templates, media = rng.integers(0, 9, 80) * 7, rng.integers(0, 5, 80)
    result, ids = t.template_features(features, templates, media, pooling)
    np.testing.assert_array_equal(ids, np.unique(templates))
    np.testing.assert_allclose(result, slow_templates(features, templates, media, pooling))


def test_a_video_has_the_weight_of_one_photo():
    features = np.array([[4.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 1.0]])
    templates, media = np.array([5, 5, 5, 2]), np.array([1, 8, 8, 8])
    result, ids = t.template_features(features, templates, media)
    np.testing.assert_array_equal(ids, [2, 5])
    np.testing.assert_allclose(result, [[0, 1], [0.8, 0.6]])  # (4, 0) + mean (0, 3)
    np.testing.assert_allclose(t.template_features(features, templates, media, "magface")[0][1], [0.5, 0.5])
    np.testing.assert_allclose(t.template_features(features, templates, media, "magface+")[0][1], [2, 1.5])


def test_image_modes_by_hand():
    features, flipped, scores = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]), np.array([0.5])
    np.testing.assert_allclose(t.image_features(features, flipped, scores), [[1.5, 2]])  # N1 D1 F1
    np.testing.assert_allclose(t.image_features(features, flipped, keep_norm=False), [[0.6, 0.8]])  # N0 D0 F1
    np.testing.assert_allclose(t.image_features(features, None, scores, keep_norm=False), [[0.5, 0]])  # N0 D1 F0
    np.testing.assert_allclose(t.image_features(features), features)  # N1 D0 F0


@pytest.mark.parametrize("block", [1, 2**24])
def test_pair_scores_in_blocks(monkeypatch, block):
    monkeypatch.setattr(t, "BLOCK_ELEMENTS", block)
    features, ids = np.array([[1.0, 0], [0, 2], [-1, 0]]), np.array([3, 10, 12])
    np.testing.assert_allclose(t.pair_scores(features, ids, [3, 12, 10], [12, 12, 10]), [-1, 1, 4])
    np.testing.assert_allclose(t.pair_scores(features, ids, [3, 12, 10], [12, 12, 3], "angle"), [0, 1, 0.5])


def test_whole_protocol_equals_the_official_steps():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(12, 8))
    templates = rng.integers(0, 24, 200)
    features = centres[templates // 2] + 1.5 * rng.normal(size=(200, 8))
    media = rng.integers(0, 3, 200)
    pooled, ids = t.template_features(features, templates, media)
    first, second = (x.ravel() for x in np.meshgrid(ids[::2], ids[1::2]))
    scores, same = t.pair_scores(pooled, ids, first, second), first // 2 == second // 2
    far, tar, _ = roc_curve(same, scores)
    far, tar = np.flipud(far), np.flipud(tar)
    expected = [tar[min((abs(f - target), i) for i, f in enumerate(far))[1]] for target in (1e-3, 1e-2, 1e-1)]
    np.testing.assert_allclose(v.tar_at_far(scores, same, [1e-3, 1e-2, 1e-1], "ijb"), expected)


@pytest.mark.parametrize("block", [1, 2**24])
def test_identification_by_hand(monkeypatch, block):
    monkeypatch.setattr(t, "BLOCK_ELEMENTS", block)
    gallery, subjects = np.eye(3)[::-1], np.array([9, 7, 4])  # subject 9 is axis 2, 7 is 1, 4 is 0
    probes = np.array(
        [
            [0.9, 0.1, 0.0],  # 4: first, 0.9
            [0.8, 0.6, 0.0],  # 7: second
            [0.5, 0.5, 0.2],  # 4: ties with 7, so not first
            [0.0, 0.2, 0.4],  # 9: first, 0.4
            [0.3, 0.7, 0.1],  # without mate: 0.7
            [0.4, 0.3, 0.0],  # without mate: 0.4
        ]
    )
    result = t.identify(probes, [4, 7, 4, 9, 1, 2], gallery, subjects, [0.0, 0.5, 1.0], ranks=(1, 2, 3))
    np.testing.assert_array_equal(result.hits, [2, 4, 4])
    assert result.mated == 4
    np.testing.assert_allclose(result.thresholds, [0.7, 0.7, 0.4])
    np.testing.assert_allclose(result.tpir, [0.25, 0.25, 0.25])  # 0.4 is not above 0.4
    closed = t.identify(probes[:4], [4, 7, 4, 9], gallery, subjects, [])
    np.testing.assert_array_equal(closed.hits, [2, 4, 4])
    assert closed.tpir.shape == (0,)


def test_identification_equals_the_literal_loop():
    rng = np.random.default_rng(2)
    gallery, subjects = rng.normal(size=(15, 4)), rng.permutation(15)
    probe_subjects = rng.integers(0, 25, 120)
    probes = rng.normal(size=(120, 4))
    known = probe_subjects < 15
    probes[known] += 1.5 * gallery[np.argsort(subjects)][probe_subjects[known]]
    fars = [0.01, 0.1, 0.37]
    similarity = probes @ gallery.T
    mate, others, alarms = [], [], []
    for row, subject in zip(similarity, probe_subjects):
        if subject in subjects:
            mate.append(row[subjects == subject][0])
            others.append(row[subjects != subject])
        else:
            alarms.append(row.max())
    mate, others, alarms = np.array(mate), np.array(others), np.sort(alarms)[::-1]
    result = t.identify(probes, probe_subjects, gallery, subjects, fars)
    for rank, hits in zip((1, 5, 10), result.hits):
        assert hits == np.sum((others >= mate[:, None]).sum(1) < rank)
    for far, tpir in zip(fars, result.tpir):
        threshold = alarms[max(int(len(alarms) * far) - 1, 0)]
        assert tpir == np.mean((mate > others.max(1)) & (mate > threshold))


def write(path, text):
    path.write_text(text)
    return path


def test_readers(tmp_path):
    names, templates, media = t.read_template_media(write(tmp_path / "a", "1.jpg 1 69544\n2.jpg 11 -3\n"))
    assert names == ["1.jpg", "2.jpg"]
    np.testing.assert_array_equal([templates, media], [[1, 11], [69544, -3]])
    first, second, same = t.read_template_pairs(write(tmp_path / "b", "1 11065 1\n2 3 0\n"))
    np.testing.assert_array_equal([first, second], [[1, 2], [11065, 3]])
    np.testing.assert_array_equal(same, [True, False])
    line = "1.jpg 46.060 62.026 87.785 60.323 68.851 77.656 52.162 99.875 86.450 98.648 0.999\n"
    names, points, scores = t.read_landmarks(write(tmp_path / "c", line))
    assert points.shape == (1, 5, 2) and points[0, 4].tolist() == pytest.approx([86.45, 98.648])
    assert scores == pytest.approx([0.999])
    text = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n7,3,img/1.jpg\n2,5,img/2.jpg\n7,3,img/3.jpg\n"
    np.testing.assert_array_equal(t.read_template_subjects(write(tmp_path / "d", text)), [[2, 7], [5, 3]])


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (t.read_template_media, "1.jpg 1 2\n2.jpg 1\n", "file, line 2: 2 fields; expected 3"),
        (t.read_template_media, "1.jpg 1 2\n2.jpg 1 x\n", "file, line 2: '1 x'; expected finite numbers"),
        (t.read_template_media, "1.jpg 1 99999999999999999999\n", "line 1: .*of type int64"),
        (t.read_template_media, "", "file: no lines"),
        (t.read_template_pairs, "1 2 1\n1 2\n", "file: .*row 2"),
        (t.read_template_pairs, "1 2 1\n1 2 3\n", "file, pair 2: label 3; expected 0 or 1"),
        (t.read_template_pairs, "1 2\n", "file: 2 columns, 1 lines; expected template, template, label"),
        (t.read_landmarks, "a" + " 1" * 10 + " nan\n", "file, line 1: .*expected finite numbers"),
        (t.read_template_subjects, "T,S\n1,2\n1,3\n", "file: template 1 has two subjects"),
        (t.read_template_subjects, "T,S\n1,x\n", "file, line 2: '1 x'"),
        (t.read_template_subjects, "T,S\n1\n", "file, line 2"),
        (t.read_template_subjects, "T,S\n", "no lines after the heading"),
    ],
)
def test_invalid_files_raise(tmp_path, reader, text, message):
    with pytest.raises(ValueError, match=message):
        reader(write(tmp_path / "file", text))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t.image_features(np.ones((2, 3)), np.ones((2, 2))), r"flipped: shape \(2, 2\); expected \(2, 3\)"),
        (lambda: t.template_features(np.full((2, 3), np.nan), [1, 1], [1, 1]), "expected .N, D., finite"),
        (lambda: t.template_features(np.ones((2, 3)), [1], [1, 1]), "templates: shape"),
        (lambda: t.template_features(np.ones((2, 3)), [1, 1], [1, 1], "mean"), "expected 'arcface', 'magface'"),
        (lambda: t.pair_scores(np.ones((2, 3)), np.array([1, 5]), [1], [4]), "template 4 has no images"),
        (lambda: t.pair_scores(np.ones((2, 3)), np.array([1, 5]), [1, 1], [5, 6]), "template 6 has no images"),
        (lambda: t.identify(np.eye(2), [1, 2], np.eye(2), [1, 1], [0.1]), "templates of distinct subjects"),
        (lambda: t.identify(np.eye(2), [1, 2], np.eye(2), [1, 2], [0.1]), "expected some without"),
        (lambda: t.identify(np.eye(2), [3, 4], np.eye(2), [1, 2], []), "none of the 2 has its subject"),
        (lambda: t.identify(np.full((2, 2), np.inf), [1, 2], np.eye(2), [1, 2], []), "not finite"),
    ],
)
def test_invalid_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
