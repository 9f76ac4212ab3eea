import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax import models
from facejax.interop import folder as folders

SMALL = {"num_features": 6, "widths": (4, 4, 4, 4)}


def random(shapes):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.4), shapes["params"])
    return {**jax.tree.map(lambda leaf: np.float32(rng.uniform(0.5, 2, leaf.shape)), shapes), "params": params}


@pytest.fixture(scope="module")
def variables():
    return random(models.variable_shapes("iresnet18", **SMALL))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, 112, 112, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def embeddings(variables, images):
    net = facejax.create_model("iresnet18", **SMALL)
    return np.asarray(jax.jit(lambda x: net.apply(variables, x, train=False))(images))


@pytest.fixture
def written(variables, tmp_path):
    facejax.save_pretrained("iresnet18", variables, tmp_path / "mine", dtype=jnp.float32, **SMALL)
    return tmp_path / "mine"


def test_a_folder_gives_the_model_back(written, variables, images, embeddings):
    net, found = facejax.from_pretrained(written)
    assert net == facejax.create_model("iresnet18", dtype="float32", **SMALL)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    again = facejax.load_pretrained("iresnet18", written)
    np.testing.assert_array_equal(jax.jit(lambda x: net.apply(again, x, train=False))(images), embeddings)


def test_the_card_says_what_it_is(written, variables, tmp_path):
    card = (written / "README.md").read_text()
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    for text in (
        "library_name: facejax",
        "# iresnet18",
        "IResNet-18, the face embedder of ArcFace",
        f"| parameters | {count:,} ",
        "| widths | `[4, 4, 4, 4]` |",
        'facejax.from_pretrained("FOLDER")',
        "not stated by whoever",
        "arXiv:1801.07698",
        "| claim | metric |",
    ):
        assert text in card, text
    assert "license:" not in card
    facejax.save_pretrained("iresnet18", variables, tmp_path / "free", license="mit", **SMALL)
    assert "license: mit\n---" in (tmp_path / "free" / "README.md").read_text()
    assert json.loads((written / "config.json").read_text())["options"] == {
        "dtype": "float32", "num_features": 6, "widths": [4, 4, 4, 4],
    }  # fmt: skip


def test_every_model_has_a_card():
    for name, model in models.MODELS.items():
        config = {"architecture": name, "options": {}, "input_shape": [1], "parameters": 1, "facejax_version": "0"}
        card = folders.model_card(
            config, model.about, model.source, detector=False, page=models._page(model.constructor)
        )
        assert "](../" not in card and "](docs" not in card, name


def test_nothing_is_written_over(written, variables):
    before = {file.name: file.read_bytes() for file in written.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "README.md"}
    with pytest.raises(FileExistsError, match=r"config\.json exists: expected a folder without it$"):
        facejax.save_pretrained("iresnet18", variables, written, **SMALL)
    (written / "config.json").unlink()
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists"):
        facejax.save_pretrained("iresnet18", variables, written, **SMALL)
    assert (written / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_what_cannot_be_written(variables, tmp_path):
    with pytest.raises(ValueError, match=r"^option norm is a \w+: expected numbers, names, types or lists of them$"):
        folders.jsonable("norm", object())
    without = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "fc"}}
    with pytest.raises(ValueError, match=r"^iresnet18: the variables are not those of the model: .*fc"):
        facejax.save_pretrained("iresnet18", without, tmp_path / "a", **SMALL)
    with pytest.raises(ValueError, match=r"^iresnet18: .*unused: params/other, because the model has no params/other"):
        facejax.save_pretrained(
            "iresnet18", {**variables, "params": {**variables["params"], "other": np.ones(3)}}, tmp_path / "a", **SMALL
        )
    with pytest.raises(ValueError, match=r"^iresnet18: .*shape: params/fc/kernel gives \(196, 6\)"):
        facejax.save_pretrained("iresnet18", variables, tmp_path / "a", **{**SMALL, "num_features": 5})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"library_name": "timm"}, r"config\.json: library_name is 'timm', expected 'facejax'$"),
        ({"options": [1]}, r"expected the name 'architecture' and the mapping 'options'$"),
        ({"architecture": "iresnet5"}, r"config\.json describes no model: there is no model 'iresnet5'"),
        ({"options": {"depth": 3}}, r"describes no model: iresnet18 has no option 'depth'"),
        ({"options": {**SMALL, "widths": "abcd"}}, "describes no model"),
        ({"options": {**SMALL, "num_features": 7}}, r"model\.safetensors: .*shape: params/fc/kernel"),
        ({"architecture": "iresnet34"}, r"iresnet34: the variables are not those of the model: .*layer1_2"),
    ],
)
def test_a_changed_configuration(written, change, sentence):
    config = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=sentence):
        facejax.from_pretrained(written)


def test_damaged_folders(written, tmp_path):
    with pytest.raises(ValueError, match=r"mine: holds iresnet18, expected iresnet50$"):
        facejax.load_pretrained("iresnet50", written)
    data = (written / "model.safetensors").read_bytes()
    (written / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        facejax.from_pretrained(written)
    (written / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        facejax.from_pretrained(written)
    (written / "config.json").write_text(" " * (1 << 21))
    with pytest.raises(ValueError, match=r"config\.json: over 1048576 bytes"):
        facejax.from_pretrained(written)
    with pytest.raises(FileNotFoundError):
        facejax.from_pretrained(tmp_path / "none")


RUN = """
import sys, jax, numpy as np
run = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
for size in (1, 3):
    found = run(np.load(sys.argv[2])[:1].repeat(size, 0))
    assert len(found) == size
found = run(np.load(sys.argv[2]))
np.savez(sys.argv[3], **(found if isinstance(found, dict) else {"out": found}))
assert not [name for name in sys.modules if name.startswith(("facejax", "flax"))]
"""


def elsewhere(tmp_path, file, inputs):
    """What the file returns in a process without facejax and flax, for the inputs and for batches of 1 and 3."""
    np.save(tmp_path / "in.npy", inputs)
    paths = [str(tmp_path / name) for name in (file, "in.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", RUN, *paths], check=True, cwd=tmp_path)
    return np.load(tmp_path / "out.npz")


def test_stablehlo_runs_without_facejax_on_any_number_of_images(variables, images, embeddings, tmp_path):
    facejax.export_stablehlo("iresnet18", variables, tmp_path / "net.stablehlo", **SMALL)
    found = elsewhere(tmp_path, "net.stablehlo", images)["out"]
    np.testing.assert_allclose(found, embeddings, rtol=1e-5, atol=1e-5 * np.abs(embeddings).max())
    with pytest.raises(FileExistsError, match=r"net\.stablehlo exists: expected a new file$"):
        facejax.export_stablehlo("iresnet18", variables, tmp_path / "net.stablehlo", **SMALL)
    with pytest.raises(ValueError, match=r"^gcn_cora: its inputs are sparse_graph, whose number cannot vary"):
        facejax.export_stablehlo("gcn_cora", {}, tmp_path / "gcn")
