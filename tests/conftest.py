"""Eight simulated devices, quick compilation and a shared compilation cache for every test and its subprocesses.

Of several workers (`pytest -n 2`) one gets all tests of a file, so that a module's fixtures are made once; notebooks,
which take longest, go one by one and first, so that no worker is left alone with them.
"""

import gc
import os
import pathlib

home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
CACHE, CACHE_BYTES = home / "facejax" / "tests", 4 << 30
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # JAX's keys tell versions and processors apart.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
from absl import flags

pytest_plugins = ["tests.cost", "tests.selection"]
flags.FLAGS.mark_as_parsed()  # Grain reads absl flags.
gc.freeze()
gc.set_threshold(50_000)  # Tracing makes many objects: the default threshold takes a third of its time.


def pytest_configure(config):
    """Drops the compiled programs unused for longest; JAX's own limit reads the whole folder at every write."""
    if not hasattr(config, "workerinput"):
        files = sorted((file.stat().st_atime, file.stat().st_size, file) for file in CACHE.glob("*-cache"))
        excess = sum(size for _, size, _ in files) - CACHE_BYTES
        for _, size, file in files:
            if excess > 0:
                file.unlink(missing_ok=True)
                excess -= size


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class FilesAndNotebooks(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_colabs" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return FilesAndNotebooks(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem != "test_colabs")


@pytest.fixture(scope="module", autouse=True)
def _compiled_functions_are_let_go():
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Folder of real data and published weights: $FACEJAX_TEST_DATA or ../shared/data beside the checkout."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("FACEJAX_TEST_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no test data at {root}: set FACEJAX_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def picture_folder():
    """(root, {"folder": pictures [N, H, W, 3]}) -> root with root/folder/0.png and so on, cut to 0..255."""
    from facejax.data.synthetic.faces import png

    def write(root: pathlib.Path, pictures):
        for name, images in pictures.items():
            (root / name).mkdir(parents=True)
            for i, image in enumerate(images):
                (root / name / f"{i}.png").write_bytes(png(np.clip(image, 0, 255).astype(np.uint8)))
        return root

    return write


@pytest.fixture(scope="session")
def turned_jpeg():
    """(image [H, W, 3], EXIF orientation) -> JPEG bytes that store the image as it is."""
    import io

    from PIL import Image

    def encode(image, orientation):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.fromarray(image).save(file, "JPEG", quality=95, exif=exif)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory, picture_folder):
    """(name, numbers of pictures) -> a folder of as many people with so many noisy pictures each."""

    def make(name, pictures):
        rng, people = np.random.default_rng(0), {}
        for person, count in enumerate(pictures):
            base = rng.integers(0, 255, (4, 4, 3)).repeat(6, 0).repeat(6, 1)
            people[f"p{person}"] = base + rng.normal(size=(count, 24, 24, 3)) * 8
        return picture_folder(tmp_path_factory.mktemp(name), people)

    return make


@pytest.fixture(scope="session")
def photographs(people_folder):
    """A folder of eight people with four pictures each."""
    return people_folder("photographs", [4] * 8)


@pytest.fixture
def pack(photographs, tmp_path):
    """A verification pack mine.bin of twenty pairs of the photographs."""
    from facejax.data.readers.verification import VerificationPack, write_pack

    images = [(photographs / f"p{i // 2 % 8}" / f"{i % 4}.png").read_bytes() for i in range(40)]
    write_pack(tmp_path / "mine.bin", VerificationPack(images, np.arange(20) % 2 == 0))
    return tmp_path / "mine.bin"


@pytest.fixture(scope="session")
def coloured(tmp_path_factory, picture_folder):
    """Names of two splits -> a folder split/class/picture of four classes of noise around a colour, not square."""

    def make(*splits):
        rng, classes = np.random.default_rng(0), {}
        for split, number in zip(splits, (6, 2), strict=True):
            for c in range(4):
                classes[f"{split}/c{c}"] = 60 * c + rng.normal(size=(number, 20, 28, 3)) * 20
        return picture_folder(tmp_path_factory.mktemp("coloured"), classes)

    return make


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory):
    """A folder laid out as COCO's: eight images of noise with a person in each, in both splits."""
    import json

    from facejax.data.synthetic.faces import png

    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(1, 9):
            (root / "images" / split / f"{i}.png").write_bytes(png(rng.integers(0, 255, (90, 120, 3)).astype(np.uint8)))
            images.append({"id": i, "file_name": f"{i}.png", "width": 120, "height": 90})
            points = np.concatenate([rng.integers(10, 70, (17, 2)), np.full((17, 1), 2)], 1)
            box = [5, 5, 70, 70]
            annotations.append({
                "id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 4000.0, "bbox": box,
                "keypoints": points.ravel().tolist(), "num_keypoints": 17,
            })  # fmt: skip
        found = {"images": images, "annotations": annotations}
        (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(found))
    return root


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory):
    """RetinaFace's annotations of WIDER FACE: per split 12 images of noise with bright squares as faces."""
    from facejax.data.synthetic.faces import png

    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split / "images" / "0--Event").mkdir(parents=True)
        lines = []
        for i in range(12):
            image, name = rng.integers(0, 120, (60, 80, 3)), f"0--Event/{i}.jpg"
            lines.append(f"# {name}")
            for _ in range(1 + i % 3):
                side = int(rng.integers(12, 30))
                x, y = (int(rng.integers(0, n - side)) for n in (80, 60))
                image[y : y + side, x : x + side] += 120
                places = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
                points = " ".join(f"{x + u * side:.1f} {y + v * side:.1f} 0.0" for u, v in places)
                lines.append(f"{x} {y} {side} {side} {points} 0.9")
            (root / split / "images" / name).write_bytes(png(image.astype(np.uint8)))
        (root / split / "label.txt").write_text("\n".join(lines) + "\n")
    return root


FEW = {"train": 40, "test": 12}
"""People of the face world's `landmarks` and `attributes` in tests."""


@pytest.fixture(scope="session", autouse=True)
def _few_people_with_landmarks():
    import dataclasses

    from facejax.data.synthetic import faces

    with pytest.MonkeyPatch.context() as patch:
        for name in ("landmarks", "attributes"):
            patch.setitem(faces.TASKS, name, dataclasses.replace(faces.TASKS[name], **FEW))
        yield


SMALL_WORLD = {
    "recognition": {"train": 8, "test": 2, "per_person": 8},
    "recognition_other": {"train": 8, "test": 2, "per_person": 8},
    "recognition_faulty": {"train": 6, "per_person": 2},
    "quality_clean": {"train": 8, "per_person": 8},
    "quality": {"train": 6, "test": 6, "per_person": 2},
    "magnitude": {"train": 6, "test": 1, "per_person": 2},
    "hopeless": {"train": 6, "test": 1, "per_person": 2},
    "sets": {"train": 6, "test": 6, "per_person": 2},
}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Folder of prepared data of a face world of a few people, shared by the tests of all modules in this process."""
    import dataclasses

    from facejax.data.synthetic import faces

    with pytest.MonkeyPatch.context() as patch:
        for name, changes in SMALL_WORLD.items():
            patch.setitem(faces.TASKS, name, dataclasses.replace(faces.TASKS[name], **changes))
        yield tmp_path_factory.getbasetemp() / "quality_world"


@pytest.fixture(scope="session")
def face_examples():
    """Twelve examples of the face world's "reconstruction" with images of noise and weak perspective, and the vectors
    [12, 62] that they were made of.
    """
    import jax.numpy as jnp

    from facejax.data.synthetic.faces import png
    from facejax.morphable import crops, parameters
    from facejax.morphable.procedural import procedural
    from facejax.ops import rotation

    rng, count, size, model = np.random.default_rng(0), 12, 64, procedural()
    strengths = np.where(rng.random((count, 12)) < 0.2, rng.random((count, 12)), 0)
    identity = np.clip(rng.normal(size=(count, 48)), -2, 2)
    identity[:, 40:] = 0
    expression = (strengths @ np.stack(list(model.expressions.values())))[:, :10]
    pose = parameters.compose(
        jnp.asarray(rng.uniform(18, 24, count)),
        rotation.from_euler(jnp.asarray(rng.normal(size=(count, 3)) * [0.2, 0.7, 0.2])),
        jnp.asarray(np.c_[rng.uniform(28, 36, (count, 2)), np.zeros(count)]),
    )
    form = (jnp.asarray(identity[:, :40]), jnp.asarray(expression))
    vectors = parameters.join(parameters.Parameters(pose, *form))
    face = parameters.at_vertices(parameters.linear_face(model), model.landmarks68)
    marks = np.asarray(crops.to_image(parameters.reconstruct(face, vectors), size))[..., :2]
    examples = [
        {
            "image": png(rng.integers(0, 255, (size, size, 3)).astype(np.uint8)),
            "person": i // 2,
            "identity": identity[i],
            "expression": strengths[i],
            "landmarks68": marks[i],
            "visible68": np.ones(68, bool),
            "pose": np.array([0.0, 0.1 * i, 0.0]),
        }
        for i in range(count)
    ]
    return examples, np.asarray(vectors)
