"""The table of architectures: every count, every constructor, options, weights; lazy packages."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import facejax
from facejax import models
from facejax.train.dry_run import count

NO_WINGS = {"analysis", "data", "formats", "interop", "metrics", "morphable", "nn", "ops", "train"}
PARTS = {
    "facejax.alignment.fab": {
        "Deblur", "DynamicFusion", "LandmarkNet", "ResidualBlock", "StructurePredictor",
    },
    "facejax.alignment.lab": {
        "Bottleneck", "Discriminator", "Fusion", "Hourglass", "LandmarkRegressor", "MessagePassing",
    },
    "facejax.reconstruction.asl2d": {"Critic"},  # its input is not published
    "facejax.reconstruction.prnet": {"ResidualBlock"},
    "facejax.alignment.pfld": {"Auxiliary", "Bottleneck", "Net"},
    "facejax.alignment.adaptive_wing": {"ConvBlock", "CoordConv", "Hourglass"},
    "facejax.alignment.dan": {"LaterStage", "StageNet"},
    "facejax.attributes.fsanet": {"CapsuleLayer", "Fusion", "MetricLayer", "NetVLAD", "StructureMapping"},
    "facejax.attributes.ssrnet": {"SeparableStreams", "SingleStageNet", "StageHead", "Streams"},
    "facejax.backbones.dla": {"BasicBlock", "Enlarge", "IDAUp", "Tree"},
    "facejax.backbones.hourglass": {"HourglassModule", "Residual"},
    "facejax.backbones.hrnet": {"HighResolutionModule"},
    "facejax.backbones.inception": {"AuxiliaryHead", "ConvRelu", "Mixed"},
    "facejax.backbones.iresnet": {"EmbeddingHead", "IBasicBlock"},
    "facejax.backbones.mobilefacenet": {"Bottleneck", "ConvBlock"},
    "facejax.backbones.mobilenet": {"InvertedResidual"},
    "facejax.backbones.resnet": {"ResidualBlock"},
    "facejax.backbones.vgg": {"Classifier"},
    "facejax.detection.cornernet": {"CornerModule", "Head"},
    "facejax.detection.dsfd": {
        "DilatedBlock", "Head", "Net", "Products", "ResNetMaps", "SplitBlock", "VGGMaps",
    },
    "facejax.detection.ssh": {"ContextModule", "DetectionModule", "Net"},
    "facejax.detection.retinaface": {"ContextModule", "RetinaFaceNet"},
    "facejax.detection.retinaface_mesh": {"ChebConv", "MeshDecoder", "MeshEncoder", "WithDecoder"},
    "facejax.detection.retinanet": {"FPN", "Head", "Net"},
    "facejax.detection.ssd": {"L2Norm", "Net", "ReducedVGG"},
    "facejax.detection.scrfd": {
        "GroupConv", "Head", "MobileTrunk", "Neck", "Output", "Residual", "ResidualTrunk", "Separable",
    },
    "facejax.detection.yolo5face": {"C3", "CSPTrunk", "Focus", "SPP", "ShuffleBlock", "ShuffleTrunk", "StemBlock"},
    "facejax.foundations.deformable": {"DeformablePSRoIPool", "DeformableRoIPool"},
    "facejax.foundations.transformer": {"FeedForward", "Layer", "Recurrent"},  # `Recurrent` is a baseline of ours
    "facejax.foundations.vib": {"VIBHead"},
    "facejax.generation.dystyle": {"Concatenation", "Expert", "LayerEditor"},  # `Concatenation` is a baseline of ours
    "facejax.generation.discofacegan": {"Autoencoder", "SmallNet"},
    "facejax.generation.stylegan": {"Epilogue", "Mapping", "Synthesis"},
    "facejax.generation.stylegan2": {"ModulatedConv", "StyledConv", "Synthesis"},
    "facejax.graph.gat": {"GATLayer"},
    "facejax.generation.byeglassesgan": {"Decoder", "Encoder"},
    "facejax.graph.graphsage": {
        "GCNAggregator", "LSTMAggregator", "MaxPoolAggregator", "MeanAggregator", "MeanPoolAggregator",
    },
    "facejax.quality.qan_pp": {"SharedPReLU"},
    "facejax.quality.ser_fiq": {"OnTop"},  # as wide as there are training people
    "facejax.recognition.groupface": {"GroupDecision"},
    "facejax.recipes.editing": {"Predictor"},  # of ours, for rendered faces
    "facejax.reconstruction.tddfa": {"Cascade", "FourConvolutions"},  # the paper's widths are not published
    "facejax.restoration.uid_deblur": {
        "BlurEncoder", "Content", "Decoder", "Encoder", "Generator", "PoolingBlock", "ReflectConv", "ResidualBlock",
    },
    "facejax.restoration.video_deblur": {"Blending", "Cell", "ResidualBlock"},
    "facejax.restoration.fsrnet": {"Bottleneck", "HourglassModule", "ResidualBlock"},
    "facejax.restoration.super_resolution": {"ResidualDenseBlock"},
}  # fmt: skip
"""Modules that are no architectures of their own."""


@pytest.mark.parametrize("name", models.MODELS)
def test_parameter_count(name):
    assert count(models.variable_shapes(name)["params"]) == models.model_info(name).parameters


def made_in(module):
    """Names of the Linen modules and of the constructors that a module defines in public."""
    for name, value in vars(module).items():
        target = getattr(value, "func", value)
        if name.startswith("_") or not (inspect.isclass(target) and issubclass(target, nn.Module)):
            continue
        if target.__module__ == module.__name__:
            yield name, target


def reached():
    """Objects that the table's rows and their parts make."""

    def visit(part):
        yield models._find(part.constructor)
        for value in part.options.values():
            if isinstance(value, models.Part):
                yield from visit(value)

    for model in models.MODELS.values():
        yield from visit(model)


def test_every_constructor_has_a_count():
    found = list(reached())
    classes = {getattr(make, "func", make) for make in found}
    wings = [found.name for found in pkgutil.iter_modules(facejax.__path__) if found.ispkg]
    for wing in set(wings) - NO_WINGS:
        package = importlib.import_module(f"facejax.{wing}")
        for place in pkgutil.walk_packages(package.__path__, f"facejax.{wing}."):
            module = importlib.import_module(place.name)
            for name, target in made_in(module):
                value = getattr(module, name)
                known = any(value is make for make in found) or (inspect.isclass(value) and target in classes)
                assert known or name in PARTS.get(place.name, ()), f"{place.name}.{name} has no row in facejax.models"


def test_list():
    assert facejax.list_models("iresnet*") == ["iresnet100", "iresnet18", "iresnet200", "iresnet34", "iresnet50"]
    assert facejax.list_models() == sorted(models.MODELS)
    assert facejax.list_models("nothing") == []


def test_num_features_is_the_width_of_every_embedding():
    net = facejax.create_model("iresnet50", num_features=64)
    assert net.embedding_size == 64
    shapes = models.variable_shapes("magface_iresnet50", num_features=32)["params"]
    assert shapes["scale"].shape == (32,)
    assert shapes["backbone"]["fc"]["kernel"].shape == (25_088, 32)
    assert facejax.create_model("da_net", num_features=8).features == 8
    assert facejax.create_model("odc_resnet50", num_features=16).neck.width == 16
    for name, model in models.MODELS.items():
        if model.num_features:
            facejax.create_model(name, num_features=4)


@pytest.mark.parametrize("dtype", ["bfloat16", np.float16, jnp.float32])
def test_types_of_computation(dtype):
    assert facejax.create_model("iresnet18", dtype=dtype).dtype == dtype


def test_num_classes_is_the_number_of_classes():
    shapes = models.variable_shapes("resnet18", num_classes=5)["params"]
    assert shapes["fc"]["kernel"].shape == (512, 5)
    assert facejax.create_model("gat_cora", num_classes=2, dropout=0.1).num_classes == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: facejax.create_model("iresnet5"),
            r"there is no model 'iresnet5': the nearest are iresnet50, resnet50, resnet152$",
        ),
        (lambda: facejax.model_info("zzz"), r"there is no model 'zzz': facejax\.list_models\(\) returns all names$"),
        (
            lambda: facejax.create_model("iresnet50", num_classes=3),
            r"iresnet50 has no option 'num_classes'; options: axis_name, .*, remat, widths$",
        ),
        (
            lambda: facejax.create_model("iresnet50", embedding_size=3),
            r"iresnet50 has no option 'embedding_size'; options: axis_name, .*, remat, widths$",
        ),
        (
            lambda: facejax.create_model("resnet18", num_features=3),
            r"resnet18 has no option 'num_features'; options: .*, num_classes, .*, widths$",
        ),
        (
            lambda: facejax.create_model("magface_iresnet50", num_features=3, backbone=None),
            "num_features cannot be set together with backbone, which contains it$",
        ),
        (
            lambda: facejax.load_pretrained("zfnet", "x"),
            r"no converter of published weights for zfnet; models with a converter: asl2d_resnet50, .*, yolo5face_s6$",
        ),
        *(
            (
                lambda value=value: facejax.create_model("iresnet18", num_features=value),
                rf"^iresnet18: num_features is {value!r}, expected an integer of at least 1$",
            )
            for value in (-1, 0, 2.5, None)
        ),
        (
            lambda: facejax.create_model("vgg16", num_classes=-3),
            "^vgg16: num_classes is -3, expected an integer of at least 0$",
        ),
        *(
            (
                lambda value=value: facejax.create_model("iresnet18", dtype=value),
                rf"^iresnet18: dtype is {value!r}, expected a floating-point type such as 'bfloat16'$",
            )
            for value in ("float17", "int8", None, 7)
        ),
    ],
)
def test_errors(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_weights_of_arcface_torch_round_trip(monkeypatch, tmp_path):
    from facejax.interop import arcface_torch

    rng, options = np.random.default_rng(0), {"num_features": 8, "widths": (8, 8, 8, 8)}
    shapes = models.variable_shapes("iresnet18", **options)
    kernels = {"conv1.weight": (8, 3, 3, 3), "fc.weight": (8, 392), "fc.bias": (8,), "prelu.weight": (8,)}
    norms = ["bn1", "bn2", "features"]
    for layer in range(1, 5):
        for block in range(2):
            place = f"layer{layer}.{block}."
            kernels |= {f"{place}conv{i}.weight": (8, 8, 3, 3) for i in (1, 2)} | {f"{place}prelu.weight": (8,)}
            norms += [f"{place}bn{i}" for i in (1, 2, 3)]
        kernels[f"layer{layer}.0.downsample.0.weight"] = (8, 8, 1, 1)
        norms.append(f"layer{layer}.0.downsample.1")
    kernels |= {f"{n}.{part}": (8,) for n in norms for part in ("weight", "bias", "running_mean", "running_var")}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in kernels.items()}
    tensors["features.weight"] = np.ones(8, np.float32)
    monkeypatch.setattr(arcface_torch, "read_weights", lambda path, key: {"net": tensors}[key])
    (tmp_path / "file.pth").touch()
    variables = facejax.load_pretrained("iresnet18", tmp_path / "file.pth", "net", **options)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("name", "file"), [("mobilefacenet_1x_linear", "mobilefacenet/068.ckpt"), ("gat_cora", "gat_cora/mod_cora.ckpt")]
)
def test_published_weights(name, file, test_data):
    found = facejax.load_pretrained(name, test_data / "weights" / file)
    assert count(found["params"]) == models.model_info(name).parameters


@pytest.mark.parametrize("name", ["iresnet50", "resnet18", "gat_cora"])
def test_weights_that_are_not_there(name, tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        sentence = rf"^there is no file {path}: expected published weights of {name}$"
        with pytest.raises(FileNotFoundError, match=sentence):
            facejax.load_pretrained(name, path)


def test_a_key_of_a_file_without_keys(tmp_path):
    (tmp_path / "ssrnet.h5").touch()
    with pytest.raises(ValueError, match=r"^ssrnet\w*: key is 'net', but the published file is no dict of PyTorch$"):
        facejax.load_pretrained(models.list_models("ssrnet*")[0], tmp_path / "ssrnet.h5", key="net")


def fresh(code):
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_quick_and_without_jax():
    start = time.monotonic()
    seconds, heavy = fresh(
        "import time, sys; start = time.monotonic(); import facejax; facejax.list_models(); "
        "print(time.monotonic() - start, [m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    ).split(" ", 1)
    assert time.monotonic() - start < 30
    assert heavy == "[]"
    assert float(seconds) < 0.3


def test_packages_and_modules_are_attributes():
    code = (
        "import facejax, sys; assert 'facejax.recognition' not in sys.modules; "
        "assert 'recognition' in dir(facejax) and 'arcface' in facejax.recognition.__all__; "
        "assert 'facejax.recognition.arcface' not in sys.modules; "
        "facejax.recognition.arcface.margin_logits; facejax.data.synthetic.faces; facejax.train.optim.schedule; "
        "assert 'facejax.recognition.vpl' not in sys.modules"
    )
    assert fresh(code) == ""
    with pytest.raises(AttributeError, match=r"module 'facejax\.graph' has no attribute 'gnn'"):
        facejax.graph.gnn  # noqa: B018


def test_star_imports():
    namespace = {}
    exec("from facejax import *\nfrom facejax.graph import *", namespace)
    assert namespace["create_model"] is facejax.create_model
    assert namespace["gat"] is importlib.import_module("facejax.graph.gat")


def test_the_trainer_is_imported_without_pytorch():
    heavy = "('torch', 'tensorboardX', 'matplotlib', 'sklearn', 'tensorflow')"
    assert fresh(f"import sys, facejax.train.app; print([m for m in {heavy} if m in sys.modules])") == "[]"
