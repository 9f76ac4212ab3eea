import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.evaluate import embed
from facejax.evaluate.embedder import Backbone, embedding_function

RUN = {"weights": "some"}


def mean(images):
    return images.reshape(len(images), -1, 3).mean(1)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "faces"
    for name, grey in (("b/s10", 10), ("b/s2", 2), ("a", 1), ("b/.hidden", 9), (".git/x", 9)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{root / name}.png", np.full((8, 8, 3), grey, np.uint8))
    (root / "b" / "notes.txt").write_text("")
    (root / "b" / "s3.jpg").write_bytes(b"no image")
    return root


def test_embeddings_with_names(folder, tmp_path):
    assert embed.embed_folder(folder, tmp_path / "out", mean, 4, RUN) == (3, 1)
    assert (tmp_path / "out" / "names.txt").read_text() == "a.png\nb/s2.png\nb/s10.png\n"
    np.testing.assert_allclose(np.load(tmp_path / "out" / "embeddings.npy"), np.outer([1, 2, 10], np.ones(3)))
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("b/s3.jpg: an image of 8 bytes does not decode")
    assert not (tmp_path / "out" / "parts").exists()
    with pytest.raises(ValueError, match=r"out holds embeddings\.npy: choose another folder"):
        embed.embed_folder(folder, tmp_path / "out", mean, 4, RUN)


def test_a_stopped_run_goes_on(folder, tmp_path, monkeypatch):
    """With parts of one image, the third of which stops the run."""
    monkeypatch.setattr(embed, "PART", 1)
    calls = []

    def stopping(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean(images)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        embed.embed_folder(folder, out, stopping, 4, RUN)
    with pytest.raises(ValueError, match="out is a run of other weights: choose another folder"):
        embed.embed_folder(folder, out, mean, 4, {"weights": "others"})
    assert embed.embed_folder(folder, out, stopping, 4, RUN) == (3, 1)
    assert calls == [1, 1, 1, 1]  # the first image is not embedded again
    assert np.load(out / "embeddings.npy")[:, 0].tolist() == [1, 2, 10]


def test_other_images_and_other_files_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="none: no images, expected a folder of them"):
        embed.embed_folder(tmp_path / "none", tmp_path / "out", mean, 4, RUN)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"out holds files but no run\.json"):
        embed.embed_folder(folder, tmp_path / "out", mean, 4, RUN)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps({"images": "other", **RUN}))
    with pytest.raises(ValueError, match="out is a run of other images"):
        embed.embed_folder(folder, tmp_path / "out", mean, 4, RUN)


def test_the_command_says_what_is_wrong_in_one_line(folder, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    for words, message in (
        (["--weights", str(tmp_path / "w.pt")], r"w\.pt: not a readable PyTorch checkpoint: the file is empty"),
        (["--weights", "none.pt"], r"none\.pt"),
        (["--weights", "none.pt", "--batch_size", "0"], "expected 1 or more"),
    ):
        with pytest.raises(SystemExit, match=rf"^facejax\.evaluate\.embed: .*{message}"):
            embed.main([str(folder), "--out", str(tmp_path / "out"), *words])


def test_one_compilation_embeds_several_sets():
    net = Backbone("tiny", 4).make()
    variables = net.init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), train=False)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    run = embedding_function(net, variables, 8, flip=False)
    whole, part = run(images), run(images[:3])
    np.testing.assert_allclose(whole[:3], part, rtol=1e-5)
    expected = net.apply(variables, (jnp.float32(images) - 127.5) / 127.5, train=False)
    np.testing.assert_allclose(whole, expected, rtol=2e-3, atol=2e-3)
    flipped = embedding_function(net, variables, 8, flip=True)(images)
    both = expected + net.apply(variables, (jnp.float32(images[:, :, ::-1]) - 127.5) / 127.5, train=False)
    np.testing.assert_allclose(flipped, both / np.linalg.norm(both, axis=1, keepdims=True), rtol=2e-3, atol=2e-3)
