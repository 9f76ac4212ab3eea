"""Table of all published architectures: description, parameter count, constructor, and converter of weights.

A name selects the published settings. Options have uniform names, independent of the fields of the module:
`num_features` is the embedding dimension, `num_classes` the number of classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Part:
    """A module within a module.

    Attributes:
      constructor: "package.module:name".
      options: its settings.
      bind: pass the constructor with its settings bound (a partial) instead of a module.
    """

    constructor: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bind: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
    """A published architecture.

    Attributes:
      constructor: "package.module:name" of a function or class that makes the Linen module.
      parameters: number of parameters with the published settings.
      input_shape: of one sample, without the batch axis: pixels and channels, features, or tokens.
      source: origin of the number in `parameters`.
      about: one-line description.
      options: published settings that differ from the constructor's defaults.
      num_features: the constructor's field for the embedding dimension; "part.field" for a field of a part.
      converter: "package.module:function" of (path, shapes of variables) -> variables, for published weights.
      inputs: kind of call arguments, a key of `INPUTS`.
      detector: constructor of the detector around the module, with its published settings of use; None of others.
    """

    constructor: str
    parameters: int
    input_shape: tuple[int, ...]
    source: str
    about: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_features: str = ""
    converter: str = ""
    inputs: str = "array"
    detector: Part | None = None


def list_models(pattern: str = "*") -> list[str]:
    """Names of all published architectures that match a shell pattern such as "iresnet*", sorted."""
    return fnmatch.filter(sorted(MODELS), pattern)


def model_info(name: str) -> Model:
    """The table's row for an architecture. Raises ValueError, with the nearest names, if the name is unknown."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 3) or list_models(f"*{name}*")[:3]
        hint = f"the nearest are {', '.join(near)}" if near else "facejax.list_models() returns all names"
        raise ValueError(f"there is no model {name!r}: {hint}")
    return MODELS[name]


def create_model(name: str, **options: Any) -> nn.Module:
    """The Linen module of an architecture.

    Args:
      name: one of `list_models()`.
      **options: changes to the published settings: `num_features`, `num_classes` and the fields of the constructor.

    Raises:
      ValueError: unknown architecture, unknown option, or a width or `dtype` that cannot be.
    """
    model = model_info(name)
    make = _find(model.constructor)
    part, _, field = model.num_features.rpartition(".")
    allowed = [option for option in inspect.signature(make).parameters if option not in (field, "parent", "name")]
    allowed += ["num_features"] if field else []
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} has no option {option!r}; options: {', '.join(sorted(allowed))}")
    _check(name, options)
    settings = {**model.options, **options}
    if "num_features" in settings:
        width = {field: settings.pop("num_features")}
        if part in options:
            raise ValueError(f"{name}: num_features cannot be set together with {part}, which contains it")
        settings |= {part: _with(model.options[part], width)} if part else width
    return make(**{key: _made(value) for key, value in settings.items()})


def variable_shapes(name: str, **options: Any) -> Any:
    """Shapes and types of a model's variables at its published input shape; arguments as in `create_model`."""
    import jax

    from facejax import programs

    net = create_model(name, **options)
    model = MODELS[name]

    def init(key: jax.Array) -> Any:
        keys = {"params": key, "dropout": key, "latent": key}
        return net.init(keys, *INPUTS[model.inputs](*model.input_shape), **_evaluation(net))

    return programs.kept_shapes(lambda: jax.eval_shape(init, jax.random.key(0)), _key(name, options))


def _evaluation(net: nn.Module) -> dict[str, bool]:
    """The arguments that switch training off."""
    return {"train": False} if "train" in inspect.signature(type(net).__call__).parameters else {}


def load_pretrained(name: str, path: str | os.PathLike[str], key: str | None = None, **options: Any) -> Any:
    """Variables in the model's layout from a file of published weights; of a detector, a `facejax.predictor.Predictor`.

    Args:
      name: one of `list_models()`.
      path: the file as its authors publish it, see the `converter` of `model_info(name)`; or a folder of
        `save_pretrained`.
      key: of the state dict in a PyTorch file that holds several, such as "state_dict_ema".
      **options: as in `create_model`, for weights of other settings; and settings of the detector, such as `lowest`.
        Those of a folder need not be given again.

    Returns:
      The variables; or the detector as a function of images, with its `variables`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the model has no converter, or one without keys, or the file does not match the model.
    """
    model = model_info(name)
    if os.path.isfile(os.path.join(path, "config.json")):
        found, options, variables = _read_folder(path, options)
        if found != name:
            raise ValueError(f"{os.fspath(path)}: holds {found}, expected {name}")
        return variables if model.detector is None else _predictor(name, variables, options)
    converter = model.converter
    if not converter:
        known = ", ".join(known for known in list_models() if MODELS[known].converter)
        raise ValueError(f"there is no converter of published weights for {name}; models with a converter: {known}")
    if not any(map(os.path.isfile, (path, f"{os.fspath(path)}.index"))):  # a TensorFlow checkpoint has files PATH.*
        raise FileNotFoundError(f"there is no file {os.fspath(path)}: expected published weights of {name}")
    load = _find(converter)
    if key is not None and "key" not in inspect.signature(load).parameters:
        raise ValueError(f"{name}: key is {key!r}, but the published file is no dict of PyTorch")
    chosen = {} if key is None else {"key": key}
    variables = load(path, variable_shapes(name, **_split(model, options)[0]), **chosen)
    return variables if model.detector is None else _predictor(name, variables, options)


def save_pretrained(
    name: str, variables: Any, folder: str | os.PathLike[str], *, license: str | None = None, **options: Any
) -> None:
    """Writes config.json, model.safetensors and a model card, README.md, as the Hugging Face Hub expects them.

    `load_pretrained(name, folder)` and `from_pretrained(folder)` read the folder; `huggingface_hub.upload_folder`
    publishes it. The card quotes the system's page where facejax runs from its repository.

    Args:
      name: one of `list_models()`.
      variables: of the model; what only training needs may be missing.
      folder: made if there is none.
      license: of the weights, an SPDX identifier for the card.
      **options: that the model was made with, as in `create_model`, and settings of its detector.

    Raises:
      FileExistsError: the folder has one of the files.
      ValueError: an option that JSON cannot hold, or variables that are not the model's.
    """
    import facejax
    from facejax.interop import folder as folders
    from facejax.interop.names import flat

    model = model_info(name)
    kept = {option: folders.jsonable(option, value) for option, value in sorted(options.items())}
    settings = _split(model, options)[0]
    template = variable_shapes(name, **settings)
    try:
        fitted = folders.fitted(flat(variables), template)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    _check_complete(name, fitted, settings)
    config = {
        "library_name": "facejax",
        "facejax_version": facejax.__version__,
        "architecture": name,
        "options": kept,
        "input_shape": list(model.input_shape),
        "parameters": sum(leaf.size for leaf in flat(fitted["params"]).values()),
    }
    detector = model.detector is not None
    card = folders.model_card(
        config, model.about, model.source, detector=detector, page=_page(model.constructor), license=license
    )
    folders.write_folder(folder, config, fitted, card)


def from_pretrained(folder: str | os.PathLike[str]) -> tuple[nn.Module, Any]:
    """The model and its variables from a folder of `save_pretrained`.

    Raises:
      FileNotFoundError: the folder lacks a file.
      ValueError: another library's folder, an unknown model or option, or weights of another model.
    """
    name, options, variables = _read_folder(folder, {})
    return create_model(name, **_split(MODELS[name], options)[0]), variables


def export_stablehlo(
    name: str,
    variables: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    input_shape: Sequence[int] | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    **options: Any,
) -> None:
    """Writes a model in evaluation, weights included, as StableHLO: `jax.export.deserialize` runs it without facejax.

    The function takes the model's arguments, float32 [N, H, W, C] of an image model. That of a detector takes uint8 RGB
    [N, H, W, 3] and returns "boxes", "scores", "points", "labels" and "mask", as `Detections`.

    Args:
      name: one of `list_models()`.
      variables: of the model.
      path: the file, usually with the suffix .stablehlo; an existing one is not written over.
      batch: number of samples; None: any, which only models of one array can have.
      input_shape: of one sample; None: the published one.
      platforms: platforms that can run the file.
      **options: that the model was made with, and settings of its detector.

    Raises:
      FileExistsError: the file exists.
      ValueError: variables that are not the model's, or inputs whose number cannot vary.
    """
    import jax

    from facejax.interop.export import write_stablehlo

    if os.path.exists(path):
        raise FileExistsError(f"{os.fspath(path)} exists: expected a new file")
    model = model_info(name)
    if model.inputs != "array" and batch != 1:
        raise ValueError(f"{name}: its inputs are {model.inputs}, whose number cannot vary: expected batch=1")
    settings, used = _split(model, options)
    net = create_model(name, **settings)
    _check_complete(name, variables, settings)
    shape = model.input_shape if input_shape is None else tuple(input_shape)
    arguments = jax.eval_shape(lambda: INPUTS[model.inputs](*shape))
    if model.inputs == "array":
        (count,) = jax.export.symbolic_shape("batch") if batch is None else (batch,)
        kind = "float32" if model.detector is None else "uint8"
        arguments = (jax.ShapeDtypeStruct((count, *shape), kind),)

    def apply(*inputs: Any) -> Any:
        return net.apply(variables, *inputs, **_evaluation(net))

    def detect(images: Any) -> dict[str, Any]:
        detector = _made(_with(model.detector, {"net": net, **used}))
        found = detector.decode(apply(detector.preprocess(images)), images.shape[1:3])
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}

    write_stablehlo(path, apply if model.detector is None else detect, *arguments, platforms=platforms)


def _split(model: Model, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the network, and settings of the detector."""
    fields = set()
    if model.detector is not None:
        make = _find(model.detector.constructor)
        fields = {field.name for field in dataclasses.fields(getattr(make, "func", make))} - {"net"}
    parts = ({}, {})
    for option, value in options.items():
        parts[option in fields][option] = value
    return parts


def _predictor(name: str, variables: Any, options: Mapping[str, Any]) -> Any:
    from facejax.predictor import Predictor

    model = MODELS[name]
    settings, used = _split(model, options)
    detector = _made(_with(model.detector, {"net": create_model(name, **settings), **used}))
    return Predictor(detector, variables, key=_key(name, options))


def _key(name: str, options: Mapping[str, Any]) -> str:
    """Of a model with options, for `facejax.programs`.

    "" of a model that is no part of the library, and where an option, such as a function, has no written form.
    """
    model = MODELS[name]
    try:
        return json.dumps([str(model), options], sort_keys=True) if model.constructor.startswith("facejax.") else ""
    except TypeError:
        return ""


def _read_folder(folder: str | os.PathLike[str], changes: Mapping[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """Name, options and variables of a folder; `changes` go before the folder's options."""
    from facejax.interop import folder as folders

    config = folders.read_config(folder)
    name, options = config["architecture"], {**config["options"], **changes}
    try:
        settings = _split(model_info(name), options)[0]
        template = variable_shapes(name, **settings)
    except Exception as error:  # options of other types raise various exceptions
        raise ValueError(f"{os.fspath(folder)}: config.json describes no model: {error}") from error
    variables = folders.read_variables(folder, template)
    _check_complete(name, variables, settings)
    return name, options, variables


def _check_complete(name: str, variables: Any, settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless the variables suffice for evaluation."""
    import jax

    model, net = MODELS[name], create_model(name, **settings)
    inputs = INPUTS[model.inputs](*model.input_shape)
    try:
        jax.eval_shape(lambda variables: net.apply(variables, *inputs, **_evaluation(net)), variables)
    except Exception as error:  # Flax raises various exceptions
        raise ValueError(f"{name}: the variables are not those of the model: {error}") from error


def _page(constructor: str) -> str:
    """Text of the page in docs/systems about a constructor; "" where facejax does not run from its repository."""
    import pathlib

    pages = pathlib.Path(__file__).resolve().parents[1] / "docs" / "systems"
    place = constructor.partition(":")[0].replace(".", "/")
    own = pages / f"{place.partition('/')[2]}.md"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    texts = (page.read_text(encoding="utf-8") for page in sorted(pages.rglob("*.md")))
    return next((text for text in texts if f"`{place}.py`" in text), "")


def _check(name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for a width or a type that no model has; `num_classes` None leaves the classifier out."""
    for option, least in (("num_features", 1), ("num_classes", 0)):
        value = options.get(option, least)
        if not (isinstance(value, Integral) and value >= least) and (option, value) != ("num_classes", None):
            raise ValueError(f"{name}: {option} is {value!r}, expected an integer of at least {least}")
    if "dtype" in options and not _is_floating(options["dtype"]):
        raise ValueError(f"{name}: dtype is {options['dtype']!r}, expected a floating-point type such as 'bfloat16'")


def _is_floating(dtype: Any) -> bool:
    import jax.numpy as jnp

    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _with(part: Part, changes: Mapping[str, Any]) -> Part:
    return dataclasses.replace(part, options={**part.options, **changes})


def _made(value: Any) -> Any:
    if not isinstance(value, Part):
        return value
    options = {key: _made(option) for key, option in value.options.items()}
    make = _find(value.constructor)
    if value.bind:
        return functools.partial(make, **options)
    return make(**options)


def _gat_weights(path: str | os.PathLike[str], template: Any) -> Any:
    from facejax.interop import tensorflow, torch_geometric

    if os.path.isfile(path):
        return torch_geometric.load_gat(path, template)
    return tensorflow.gat(tensorflow.read_checkpoint(path, "(?!.*Adam).*"), template)


def _array(*shape: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    return (jnp.zeros((1, *shape)),)


def _vector_and_key(width: int) -> tuple[Any, ...]:
    import jax

    return *_array(width), jax.random.key(0)


def _tokens(length: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    tokens = jnp.ones((1, length), jnp.int32)
    return tokens, tokens


def _graph(width: int) -> tuple[Any, ...]:
    from facejax.ops.graph import make_graph

    return *_array(width), make_graph([0], [0], 1)


def _sparse_graph(width: int) -> tuple[Any, ...]:
    import numpy as np

    from facejax.graph.gcn import SparseFeatures

    return SparseFeatures.from_dense(np.zeros((1, width), np.float32)), _graph(width)[1]


def _sampled_graph(width: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    from facejax.graph.graphsage import Block

    block = Block(jnp.zeros(1, jnp.int32), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    return *_array(width), (block, block)


def _pairs_of_nodes(width: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    node = jnp.zeros(1, jnp.int32)
    return *_graph(width), node, node


def _subgraphs(width: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    from facejax.clustering.vegcn import Subgraphs

    return (Subgraphs(jnp.zeros((1, 1, width)), jnp.ones((1, 1, 1)), jnp.ones((1, 1), bool)),)


def _chains(width: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    return *_array(width), *_array(width), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)


def _edit(layers: int, size: int, attributes: int) -> tuple[Any, ...]:
    import jax.numpy as jnp

    return jnp.zeros((1, layers, size)), jnp.zeros((1, attributes)), jnp.ones((1, attributes), bool)


INPUTS = {
    "array": _array,
    "vector_and_key": _vector_and_key,
    "tokens": _tokens,
    "graph": _graph,
    "sparse_graph": _sparse_graph,
    "sampled_graph": _sampled_graph,
    "pairs_of_nodes": _pairs_of_nodes,
    "subgraphs": _subgraphs,
    "chains": _chains,
    "edit": _edit,
}
"""Kind of inputs -> the call arguments of a batch of one, from `Model.input_shape`."""

FACE, PICTURE, PATCH = (112, 112, 3), (224, 224, 3), (48, 48, 3)
BACKBONES, INTEROP = "facejax.backbones.", "facejax.interop."
CENTERNET, YOLO5FACE = "facejax.detection.centernet:", "facejax.detection.yolo5face:"
RETINAFACE = Part("facejax.detection.retinaface:RetinaFace", {"lowest": 0.6})
SCRFD = Part("facejax.detection.scrfd:SCRFD", {"lowest": 0.5, "threshold": 0.4, "plus_one": True})
ARCFACE, TORCHVISION, HRNET = INTEROP + "arcface_torch:load", INTEROP + "torchvision:load", INTEROP + "hrnet_torch:load"
KERAS = INTEROP + "keras_applications:load"
LAYERS = "summed over the paper's layers"


def _mobilenet(version: int, width: float, parameters: int) -> Model:
    source = "Keras" if version == 1 else "torchvision"
    return Model(
        f"{BACKBONES}mobilenet:mobilenet_v{version}", parameters, PICTURE, source,
        f"MobileNet V{version}, width {width}, classifier of ImageNet", {"width": width}, converter=KERAS,
    )  # fmt: skip


def _fsanet(aggregation: str, scoring: str, total: int) -> Model:
    return Model(
        "facejax.attributes.fsanet:FSANet", total - 1856, (64, 64, 3),
        f"the authors' Keras files, {total} with 1856 running statistics",
        f"FSA-Net, {aggregation} aggregation, {scoring} scoring: yaw, pitch, roll",
        {"aggregation": aggregation, "scoring": scoring}, converter=INTEROP + "fsanet:load",
    )  # fmt: skip


def _bilinear(trunks: str, parameters: int) -> Model:
    names = {"d": ("vgg16", "relu5_3", "VGG-16"), "m": ("vgg_m", "relu5", "VGG-M")}
    (trunk, layer, title), (other, other_layer, other_title) = (names[letter] for letter in trunks)
    options: dict[str, Any] = {"num_classes": 200, "trunk": Part(f"{BACKBONES}vgg:{trunk}"), "layer": layer}
    if other != trunk:
        options |= {"other": Part(f"{BACKBONES}vgg:{other}"), "other_layer": other_layer}
    return Model(
        "facejax.foundations.bilinear_cnn:BilinearCNN", parameters, (448, 448, 3), LAYERS,
        f"bilinear pooling of {title} and {other_title}, classifier of 200 birds", options,
    )  # fmt: skip


def _hrnet_classifier(trunk: str, parameters: int, source: str) -> Model:
    return Model(
        BACKBONES + "hrnet:Classifier", parameters, PICTURE, source, f"{trunk}, classifier of ImageNet",
        {"trunk": Part(f"{BACKBONES}hrnet:{trunk}")}, converter=HRNET,
    )  # fmt: skip


def _hrnet_pose(trunk: str, parameters: int) -> Model:
    return Model(
        BACKBONES + "hrnet:PoseNet", parameters, (256, 192, 3), "the authors' code",
        f"{trunk}, heatmaps of 17 joints", {"trunk": Part(f"{BACKBONES}hrnet:{trunk}", {"finest_only": True})},
        converter=HRNET,
    )  # fmt: skip


def _deformable(depth: int, parameters: int, about: str, stages: tuple[int, ...], options: Mapping[str, Any]) -> Model:
    conv = Part("facejax.foundations.deformable:DeformableConv", options, bind=True)
    return Model(
        f"{BACKBONES}resnet:resnet{depth}", parameters, PICTURE, "torchvision, and the offset layers of the paper",
        about, {"conv": conv, "conv_stages": stages, "output_stride": 16},
    )  # fmt: skip


def _detector(name: str, parameters: int, size: int, source: str, about: str, **options: Any) -> Model:
    return Model(f"facejax.detection.{name}", parameters, (size, size, 3), source, about, options)


def _centernet(trunk: str, parameters: int, part: Part, width: int = 256) -> Model:
    return Model(
        CENTERNET + "Net", parameters, (512, 512, 3), "the authors' code", f"CenterNet on {trunk}, 80 classes",
        {"trunk": part, "width": width}, converter=INTEROP + "centernet:load",
        detector=Part(CENTERNET + "CenterNet", {"lowest": 0.3}),
    )  # fmt: skip


def _graph_model(name: str, parameters: int, width: int, source: str, about: str, inputs: str, **options: Any) -> Model:
    return Model(f"facejax.graph.{name}", parameters, (width,), source, about, options, inputs=inputs)


MODELS: Mapping[str, Model] = {
    **{
        f"iresnet{depth}": Model(
            f"{BACKBONES}iresnet:iresnet{depth}", parameters, FACE, "arcface_torch, without its 512 constant scales",
            f"IResNet-{depth}, the face embedder of ArcFace", num_features="embedding_size", converter=ARCFACE,
        )
        for depth, parameters in {
            18: 24_025_088, 34: 34_138_816, 50: 43_590_336, 100: 65_155_648, 200: 118_833_408
        }.items()
    },
    "mobilefacenet": Model(
        BACKBONES + "mobilefacenet:mobilefacenet", 2_059_520, FACE, "arcface_torch",
        "MobileFaceNet with doubled widths, arcface_torch's mbf", num_features="embedding_size", converter=ARCFACE,
    ),
    "mobilefacenet_large": Model(
        BACKBONES + "mobilefacenet:mobilefacenet_large", 6_314_880, FACE, "arcface_torch",
        "MobileFaceNet with four times the widths, arcface_torch's mbf_large",
        num_features="embedding_size", converter=ARCFACE,
    ),
    "mobilefacenet_1x": Model(
        BACKBONES + "mobilefacenet:mobilefacenet_1x", 1_003_136, FACE, LAYERS,
        "MobileFaceNet with the paper's widths", num_features="embedding_size",
    ),
    "mobilefacenet_1x_linear": Model(
        BACKBONES + "mobilefacenet:mobilefacenet_1x", 999_552, (112, 96, 3), "public PyTorch weights",
        "MobileFaceNet with the paper's widths and its linear last layer", {"last": "linear"},
        num_features="embedding_size", converter=ARCFACE,
    ),
    **{
        f"faceresnet{depth}": Model(
            f"facejax.recognition.virface:faceresnet{depth}", parameters, FACE, "VirFace's code",
            f"ResNet-{depth} for small faces, the embedder of VirFace", num_features="embedding_size",
        )
        for depth, parameters in {
            18: 24_027_328, 34: 34_135_488, 50: 74_889_792, 101: 93_881_920, 152: 109_525_568
        }.items()
    },
    "virface_generator": Model(
        "facejax.recognition.virface:Generator", 361_728, (512,), "VirFace's code",
        "VirFace's variational generator of embeddings", inputs="vector_and_key",
    ),
    "groupface": Model(
        "facejax.recognition.groupface:GroupFace", 224_506_976, FACE, LAYERS,
        "GroupFace: IResNet-100 with an instance branch and 32 group branches",
        {"backbone": Part(BACKBONES + "iresnet:iresnet100", {"embedding_size": 4096})}, num_features="embedding_size",
    ),
    **{
        f"magface_iresnet{depth}": Model(
            "facejax.recognition.magface:Magnified", parameters, FACE, "MagFace's code",
            f"IResNet-{depth} with a trained scale after its last batch norm",
            {"backbone": Part(f"{BACKBONES}iresnet:iresnet{depth}")}, num_features="backbone.embedding_size",
            converter=INTEROP + "arcface_torch:load_magface",
        )
        for depth, parameters in {50: 43_590_848, 100: 65_156_160}.items()
    },
    "ssrnet": Model(
        "facejax.attributes.ssrnet:SSRNet", 40_531, (64, 64, 3),
        "the authors' Keras files, 40915 with 384 running statistics", "SSR-Net: age in three stages",
        converter=INTEROP + "ssrnet:load",
    ),
    "ssrnet_gender": Model(
        "facejax.attributes.ssrnet:SSRNet", 40_531, (64, 64, 3),
        "the authors' Keras files, 40915 with 384 running statistics", "SSR-Net of gender, 0 to 1", {"span": 1.0},
        converter=INTEROP + "ssrnet:load",
    ),
    "ssrnet_pose": Model(
        "facejax.attributes.ssrnet:MultiSSRNet", 231_763, (64, 64, 3),
        "FSA-Net's authors' Keras file, 233619 with 1856 running statistics", "SSR-Net for yaw, pitch and roll",
    ),
    **{
        f"fsanet_{aggregation}_{scoring}": _fsanet(aggregation, scoring, total)
        for aggregation, scoring, total in (
            ("capsule", "conv", 238_471), ("capsule", "variance", 238_406), ("capsule", "none", 694_563),
            ("netvlad", "conv", 183_562), ("netvlad", "variance", 183_497), ("netvlad", "none", 114_342),
            ("metric", "conv", 175_046), ("metric", "variance", 174_981), ("metric", "none", 106_339),
        )
    },
    "tinyfqnet": Model(
        "facejax.quality.tinyfqnet:TinyFQNet", 21_473, (48, 48, 3), "summed over our layers; published 21.8 thousand",
        "tinyFQnet: a quality score from separable convolutions",
    ),
    "eqface_head": Model(
        "facejax.quality.eqface:QualityHead", 12_847_104, (25_088,), "EQFace's code",
        "EQFace's confidence from the last map of an IResNet",
    ),
    "faceqnet": Model(
        "facejax.quality.faceqnet:FaceQnet", 23_573_633, PICTURE, LAYERS,
        "FaceQnet: two trained layers on a frozen ResNet-50 of VGGFace2",
        {"trunk": Part("facejax.quality.faceqnet:Pooled")},
    ),
    "pcnet": Model(
        BACKBONES + "resnet:resnet18", 11_177_025, FACE, "torchvision, with one output", "PCNet: ResNet-18 confidence",
        {"num_classes": 1},
    ),
    "rankiqa": Model(
        BACKBONES + "vgg:vgg16", 134_264_641, PICTURE, "torchvision, with one output", "RankIQA: VGG-16 quality score",
        {"num_classes": 1},
    ),
    "qan_branch": Model(
        "facejax.quality.qan:QualityBranch", 87_425, PICTURE, "summed over the authors' layers",
        "QAN's quality branch on images", {"stem": True},
    ),
    "qan_pp": Model(
        "facejax.quality.qan_pp:QualityNet", 122_569, FACE, "QAN++'s code", "QAN++'s quality network",
    ),
    "sdd_fiqa_mobilefacenet": Model(
        "facejax.quality.sdd_fiqa:QualityMobileFaceNet", 961_409, FACE, "SDD-FIQA's code",
        "SDD-FIQA's quality network on MobileFaceNet",
    ),
    "sdd_fiqa_resnet50": Model(
        "facejax.quality.sdd_fiqa:QualityResNet", 30_777_537, FACE, "SDD-FIQA's code",
        "SDD-FIQA's quality network on an IR-50",
    ),
    **{
        f"resnet{depth}": Model(
            f"{BACKBONES}resnet:resnet{depth}", parameters, PICTURE, "torchvision",
            f"ResNet-{depth}, classifier of ImageNet", converter=TORCHVISION,
        )
        for depth, parameters in {
            18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808
        }.items()
    },
    "resnet50_keras": Model(
        BACKBONES + "resnet:resnet50", 25_557_032, PICTURE, "torchvision",
        "ResNet-50 with the stride in 1x1 convolutions, as in Keras", {"stride_in_1x1": True}, converter=KERAS,
    ),
    "vgg16": Model(
        BACKBONES + "vgg:vgg16", 138_357_544, PICTURE, "torchvision", "VGG-16, classifier of ImageNet",
        {"num_classes": 1000}, converter=TORCHVISION,
    ),
    "vgg16_trunk": Model(
        BACKBONES + "vgg:vgg16", 14_714_688, PICTURE, "torchvision", "VGG-16's convolutions alone",
    ),
    "vgg19": Model(
        BACKBONES + "vgg:vgg19", 143_667_240, PICTURE, "torchvision", "VGG-19, classifier of ImageNet",
        {"num_classes": 1000}, converter=KERAS,
    ),
    "vgg_m": Model(
        BACKBONES + "vgg:vgg_m", 102_908_520, PICTURE, LAYERS, "VGG-M, classifier of ImageNet", {"num_classes": 1000},
    ),
    "zfnet": Model(
        BACKBONES + "zfnet:ZFNet", 62_357_608, PICTURE, LAYERS, "ZFNet, the network that deconvolution visualises",
    ),
    "zfnet_trunk": Model(
        BACKBONES + "zfnet:ZFNet", 3_726_464, PICTURE, LAYERS, "ZFNet's convolutions alone", {"num_classes": None},
    ),
    "mobilenet_v1": _mobilenet(1, 1.0, 4_231_976),
    "mobilenet_v1_075": _mobilenet(1, 0.75, 2_585_560),
    "mobilenet_v1_050": _mobilenet(1, 0.5, 1_331_592),
    "mobilenet_v1_025": _mobilenet(1, 0.25, 470_072),
    "mobilenet_v2": _mobilenet(2, 1.0, 3_504_872),
    "mobilenet_v2_140": _mobilenet(2, 1.4, 6_108_776),
    "mobilenet_v2_075": _mobilenet(2, 0.75, 2_636_424),
    "mobilenet_v2_050": _mobilenet(2, 0.5, 1_968_680),
    "mobilenet_v2_035": _mobilenet(2, 0.35, 1_677_128),
    "mobilenet_v2_torchvision": Model(
        BACKBONES + "mobilenet:mobilenet_v2", 3_504_872, PICTURE, "torchvision",
        "MobileNet V2 with torchvision's padding and batch norm", {"padding": 1, "epsilon": 1e-5, "momentum": 0.9},
        converter=TORCHVISION,
    ),
    "googlenet": Model(
        BACKBONES + "inception:googlenet", 13_378_280, PICTURE, "Caffe's bvlc_googlenet",
        "GoogLeNet (Inception V1) with its two side classifiers",
    ),
    "googlenet_torchvision": Model(
        BACKBONES + "inception:googlenet_torchvision", 13_004_888, PICTURE, "torchvision",
        "GoogLeNet with batch norm, as in torchvision", converter=TORCHVISION,
    ),
    "bn_inception": Model(
        BACKBONES + "inception:bn_inception", 11_188_288, PICTURE, "TF-slim, with the paper's first batch norm",
        "BN-Inception (Inception V2), classifier of ImageNet",
    ),
    "inception_v3": Model(
        BACKBONES + "inception:inception_v3", 27_161_264, (299, 299, 3), "torchvision",
        "Inception V3 with its side classifier",
    ),
    "inception_v3_torchvision": Model(
        BACKBONES + "inception:inception_v3_torchvision", 27_161_264, (299, 299, 3), "torchvision",
        "Inception V3 with torchvision's pools", converter=TORCHVISION,
    ),
    "hrnet_w18_small": _hrnet_classifier("hrnet_w18_small", 13_187_464, "timm"),
    "hrnet_w18_small_v2": _hrnet_classifier("hrnet_w18_small_v2", 15_597_464, "timm"),
    "hrnet_w18": _hrnet_classifier("hrnet_w18", 21_299_004, "the authors' code and timm"),
    "hrnet_w32": _hrnet_classifier("hrnet_w32", 41_232_680, "the authors' code and timm"),
    "hrnet_w48": _hrnet_classifier("hrnet_w48", 77_469_864, "the authors' code and timm"),
    "hrnet_w18_pose": _hrnet_pose("hrnet_w18", 9_318_215),
    "hrnet_w32_pose": _hrnet_pose("hrnet_w32", 28_536_113),
    "hrnet_w48_pose": _hrnet_pose("hrnet_w48", 63_595_745),
    "simple_baseline_resnet50": Model(
        BACKBONES + "hrnet:SimpleBaseline", 33_999_697, (256, 192, 3), "HRNet's authors' code",
        "ResNet-50 and three transposed convolutions, heatmaps of 17 joints",
        {"trunk": Part(BACKBONES + "resnet:resnet50")},
    ),
    "bilinear_cnn_dd": _bilinear("dd", 67_143_688),
    "bilinear_cnn_dm": _bilinear("dm", 73_672_328),
    "bilinear_cnn_mm": _bilinear("mm", 58_957_640),
    "deformable_resnet101": _deformable(
        101, 45_544_704, "ResNet-101 with deformable convolutions (v1) in its last stage", (5,), {"offset_groups": 4}
    ),
    "deformable_v2_resnet50": _deformable(
        50, 26_428_295, "ResNet-50 with modulated deformable convolutions (v2)", (3, 4, 5), {"modulated": True}
    ),
    "transformer_base": Model(
        "facejax.foundations.transformer:Transformer", 63_045_632, (256,), "summed over the paper's layers; paper 65 M",
        "the base Transformer with 37,000 tokens", inputs="tokens",
    ),
    "transformer_big": Model(
        "facejax.foundations.transformer:Transformer", 214_171_648, (256,),
        "summed over the paper's layers; paper 213 M", "the big Transformer with 37,000 tokens",
        {"width": 1024, "heads": 16, "hidden": 4096, "dropout": 0.3}, inputs="tokens",
    ),
    "vib": Model("facejax.foundations.vib:Classifier", 2_380_810, (784,), LAYERS, "Deep VIB of digits, 256-d code"),
    "vib_deterministic": Model(
        "facejax.foundations.vib:Classifier", 1_863_690, (784,), LAYERS, "Deep VIB's baseline without a bottleneck",
        {"latent": 0},
    ),
    "vib_plane": Model(
        "facejax.foundations.vib:Classifier", 1_858_595, (784,), LAYERS, "Deep VIB of digits, 2-d code",
        {"latent": 2, "covariance": "full"},
    ),
    "cdp_mediator": Model(
        "facejax.clustering.cdp:Mediator", 2522, (14,), "CDP's code", "CDP's mediator of five models",
    ),
    "da_net": Model(
        "facejax.clustering.density_aware:DANet", 1_379_072, (256,), LAYERS,
        "DA-Net: a graph convolution and an LSTM along density chains", num_features="features", inputs="chains",
    ),
    "gcn_v": Model(
        "facejax.clustering.vegcn:GCNV", 526_337, (256,), "VE-GCN's code", "VE-GCN's vertex confidence",
        inputs="graph", converter=INTEROP + "clustering:load",
    ),
    "gcn_e": Model(
        "facejax.clustering.vegcn:GCNE", 1_509_890, (512,), "VE-GCN's code", "VE-GCN's edge connectivity",
        inputs="subgraphs", converter=INTEROP + "clustering:load",
    ),
    "star_fc": Model(
        "facejax.clustering.star_fc:EdgeNet", 788_994, (256,), "STAR-FC's code", "STAR-FC's edge probability",
        inputs="pairs_of_nodes", converter=INTEROP + "clustering:load_star_fc",
    ),
    "odc_resnet50": Model(
        "facejax.clustering.odc:ODC", 24_688_448, PICTURE, "the authors' code", "ODC: ResNet-50 and embedding neck",
        {"backbone": Part(BACKBONES + "resnet:resnet50"), "neck": Part("facejax.clustering.odc:Neck")},
        num_features="neck.width",
    ),
    **{
        f"gcn_{data}": dataclasses.replace(
            _graph_model(
                "gcn:GCN", parameters, width, "the authors' code", f"GCN of two layers for {data.title()}",
                "sparse_graph", num_classes=classes,
            ), converter=INTEROP + "torch_geometric:load_gcn",
        )
        for data, width, classes, parameters in (
            ("cora", 1433, 7, 23_040), ("citeseer", 3703, 6, 59_344), ("pubmed", 500, 3, 8_048)
        )
    },
    **{
        f"gat_{data}": dataclasses.replace(
            _graph_model(
                "gat:GAT", parameters, width, "the authors' code", f"GAT for {data.title()}", "graph",
                num_classes=classes, **options,
            ), converter="facejax.models:_gat_weights",
        )
        for data, width, classes, parameters, options in (
            ("cora", 1433, 7, 92_391, {}), ("citeseer", 3703, 6, 237_604, {}),
            ("pubmed", 500, 3, 33_832, {"heads": (8, 8)}),
        )
    },
    "gat_ppi": _graph_model(
        "gat:GAT", 2_901_150, 50, "the authors' code", "GAT for protein interactions", "graph", num_classes=121,
        widths=(256, 256), heads=(4, 4, 6), dropout=0.0, skip=True,
    ),
    **{
        f"graphsage_{aggregator}": _graph_model(
            "graphsage:GraphSAGE", parameters, 50, LAYERS, f"GraphSAGE for protein interactions, {aggregator}",
            "sampled_graph", num_classes=121, aggregator=aggregator,
        )
        for aggregator, parameters in {
            "mean": 109_433, "gcn": 109_433, "meanpool": 359_033, "maxpool": 359_033, "lstm": 391_801
        }.items()
    },
    "ovd": Model(
        "facejax.restoration.video_deblur:OVD", 926_084, (5, 256, 256, 3), "zzh-tech/ESTRNN, and beta",
        "OVD: recurrent video deblurring with dynamic temporal blending",
    ),
    "strcnn": Model(
        "facejax.restoration.video_deblur:OVD", 721_219, (5, 256, 256, 3), "zzh-tech/ESTRNN without blending",
        "STRCNN: OVD without dynamic temporal blending", {"blending": False},
    ),
    "uid_gan": Model(
        "facejax.restoration.uid_deblur:UID", 19_926_902, (128, 128, 3), "the authors' code",
        "UID-GAN: encoders of content and blur, generators of sharp and blurred images",
    ),
    "uid_gan_discriminator": Model(
        "facejax.restoration.uid_deblur:Discriminator", 8_271_171, (128, 128, 3), "the authors' code",
        "UID-GAN's discriminator of patches at three scales",
    ),
    "retinanet_resnet50": _detector(
        "retinanet:retinanet_resnet50", 37_968_692, 800, "torchvision, with P6 from C5", "RetinaNet, 80 classes"
    ),
    "retinanet_resnet101": _detector(
        "retinanet:retinanet_resnet101", 56_960_820, 800, LAYERS, "RetinaNet on ResNet-101, 80 classes"
    ),
    "retinanet_resnet50_torchvision": _detector(
        "retinanet:retinanet_resnet50", 34_068_119, 800, "torchvision", "RetinaNet with torchvision's layers",
        num_classes=91, coarse="p5", stride_in_1x1=False,
    ),
    "ssd300": _detector("ssd:ssd300", 26_285_486, 300, LAYERS, "SSD of 300 pixels, 20 classes"),
    "ssd300_coco": _detector(
        "ssd:ssd300", 34_305_206, 300, LAYERS, "SSD of 300 pixels, 80 classes", num_classes=80
    ),
    "ssd300_torchvision": _detector(
        "ssd:ssd300", 35_641_826, 300, "torchvision", "SSD of 300 pixels, 90 classes", num_classes=90
    ),
    "ssd512": _detector("ssd:ssd512", 27_188_676, 512, LAYERS, "SSD of 512 pixels, 20 classes"),
    "ssd512_coco": _detector(
        "ssd:ssd512", 36_038_196, 512, LAYERS, "SSD of 512 pixels, 80 classes", num_classes=80
    ),
    "hourglass104": Model(
        BACKBONES + "hourglass:hourglass104", 187_700_352, (511, 511, 3), "CornerNet's code",
        "Hourglass-104 of two stacks, the trunk of CornerNet and CenterNet",
    ),
    "dla34": Model(BACKBONES + "dla:dla34", 15_270_832, (512, 512, 3), "CenterNet's code", "DLA-34, a trunk"),
    "cornernet_hourglass104": Model(
        "facejax.detection.cornernet:Net", 201_035_212, (511, 511, 3), "the authors' code",
        "CornerNet on Hourglass-104, 80 classes", {"trunk": Part(BACKBONES + "hourglass:hourglass104")},
    ),
    "centernet_resnet18": _centernet(
        "ResNet-18", 14_437_349, Part(CENTERNET + "ResNetUp", {"trunk": Part(BACKBONES + "resnet:resnet18")}), 64
    ),
    "centernet_resnet101": _centernet(
        "ResNet-101", 49_673_189, Part(CENTERNET + "ResNetUp", {"trunk": Part(BACKBONES + "resnet:resnet101")}), 64
    ),
    "centernet_dla34": _centernet(
        "DLA-34", 19_675_892, Part(BACKBONES + "dla:DLAUp", {
            "trunk": Part(BACKBONES + "dla:dla34"), "conv": Part(CENTERNET + "deformable", bind=True)
        }),
    ),
    "centernet_hourglass104": _centernet("Hourglass-104", 191_284_008, Part(BACKBONES + "hourglass:hourglass104")),
    "centerface": Model(
        "facejax.detection.centerface:Net", 1_835_895, (640, 640, 3), "the published ONNX file, batch norms unfolded",
        "CenterFace on MobileNet V2, face detector with five landmarks", converter=INTEROP + "centerface:load",
        detector=Part("facejax.detection.centerface:CenterFace"),
    ),
    "ssh_vgg16": Model(
        "facejax.detection.ssh:ssh_vgg16", 19_766_372, (640, 640, 3),
        "the authors' layers, without the 2,048 constants of the fixed deconvolution",
        "SSH, a face detector with three modules on VGG-16",
    ),
    **{
        f"dsfd_{name}": Model(f"facejax.detection.dsfd:dsfd_{name}", parameters, (640, 640, 3), source, about)
        for name, parameters, source, about in (
            ("resnet152", 120_058_406, "the authors' code", "DSFD as released, a face detector on ResNet-152"),
            ("vgg16", 70_730_278, "summed over the layers of the authors' code", "DSFD's released code with VGG-16"),
            ("dual_vgg16", 37_931_250, LAYERS, "DSFD with the paper's two shots on VGG-16"),
            ("dual_resnet152", 107_632_626, LAYERS, "DSFD with the paper's two shots on ResNet-152"),
        )
    },
    "retinaface_mobilenet025": Model(
        "facejax.detection.retinaface:retinaface_mobilenet025", 426_608, (640, 640, 3), "biubug6/Pytorch_Retinaface",
        "RetinaFace, MobileNet V1 with a quarter of the channels, face detector",
        converter=INTEROP + "retinaface:load", detector=RETINAFACE,
    ),
    "retinaface_mobilenet025_body": Model(
        "facejax.detection.retinaface:MobileNetBody", 470_072, (224, 224, 3), "biubug6/Pytorch_Retinaface",
        "the trunk of the smaller RetinaFace as a classifier of ImageNet",
    ),
    "retinaface_resnet50": Model(
        "facejax.detection.retinaface:retinaface_resnet50", 27_293_600, (640, 640, 3), "biubug6/Pytorch_Retinaface",
        "RetinaFace, ResNet-50, face detector", converter=INTEROP + "retinaface:load", detector=RETINAFACE,
    ),
    "retinaface_resnet152": Model(
        "facejax.detection.retinaface:retinaface_resnet152", 69_095_144, (640, 640, 3),
        "summed over the paper's layers", "RetinaFace of the paper: five levels, deformable convolutions, one head",
    ),
    "yolov1": Model(
        "facejax.detection.yolov1:yolov1", 271_703_550, (448, 448, 3), "layers of the paper's Fig. 3",
        "YOLO v1, 24 convolutions, 20 classes",
    ),
    "fast_yolov1": Model(
        "facejax.detection.yolov1:fast_yolov1", 45_089_374, (448, 448, 3), "layers of the authors' yolo-tiny.cfg",
        "Fast YOLO v1, 9 convolutions, 20 classes",
    ),
    **{
        f"yolo5face_{name}": Model(
            f"facejax.detection.yolo5face:yolo5face_{name}", parameters, (640, 640, 3), source,
            f"YOLO5Face {about}, face detector with five landmarks", converter=INTEROP + "yolo5face:load",
            detector=Part(YOLO5FACE + ("yolo5face_p6" if "6" in name else "YOLO5Face"), {"lowest": 0.6}),
        )
        for name, parameters, about, source in (
            ("n05", 447_456, "n-0.5 on ShuffleNet V2", "published millions of the authors' code"),
            ("n", 1_725_744, "n on ShuffleNet V2", "published millions of the authors' code"),
            ("s", 7_074_640, "s", "published millions of the authors' code"),
            ("m", 21_063_024, "m", "published millions of the authors' code"),
            ("l", 46_626_832, "l", "published millions of the authors' code"),
            ("s6", 12_386_176, "s with a fourth level", "layers of YOLOv5's P6 networks"),
            ("m6", 35_484_960, "m with a fourth level", "layers of YOLOv5's P6 networks"),
            ("l6", 76_674_112, "l with a fourth level", "layers of YOLOv5's P6 networks"),
        )
    },
    **{
        f"scrfd_{name}": Model(
            f"facejax.detection.scrfd:scrfd_{name}", parameters, (640, 640, 3),
            "published millions of the authors' code", f"SCRFD of {flops} GF, face detector",
            converter=INTEROP + "scrfd:load", detector=SCRFD,
        )
        for name, flops, parameters in (
            ("500m", 0.5, 572_741), ("1g", 1, 635_565), ("2_5g", 2.5, 671_761), ("10g", 10, 3_860_225),
            ("34g", 34, 9_802_737),
        )
    },
    **{
        f"scrfd_{name}_kps": Model(
            f"facejax.detection.scrfd:scrfd_{name}", parameters, (640, 640, 3), source,
            f"SCRFD of {flops} GF with five landmarks, face detector",
            {"norm_groups": 0, "shared": False, "points": 5}, converter=INTEROP + "scrfd:load",
            detector=SCRFD,
        )
        for name, flops, parameters, source in (
            ("500m", 0.5, 631_410, "the published ONNX file, batch norms unfolded"),
            ("2_5g", 2.5, 819_806, "published millions of the authors' code"),
            ("10g", 10, 4_229_902, "published millions of the authors' code"),
        )
    },
    **{
        f"tddfa_mobilenet_{name}": Model(
            "facejax.reconstruction.tddfa:mobilenet", parameters, (120, 120, 3), "summed over the layers of the code",
            f"3DDFA's MobileNet (cleardusk/3DDFA) with {width} times the channels, 62 parameters of a face",
            {"width": width}, converter=INTEROP + "tddfa_v2:load_3ddfa",
        )
        for name, width, parameters in (
            ("2", 2.0, 12_820_158), ("1", 1.0, 3_270_526), ("075", 0.75, 1_864_238), ("05", 0.5, 850_398),
            ("025", 0.25, 229_006),
        )
    },
    "fab": Model(
        "facejax.alignment.fab:FAB", 2_907_580, (3, 256, 256, 3), "the layers of the authors' code",
        "FAB, 68 landmarks in blurred videos",
    ),
    "lab_estimator": Model(
        "facejax.alignment.lab:BoundaryEstimator", 36_159_860, (256, 256, 3), "our layers, the graph of a port",
        "LAB's boundary heatmaps by four stacked hourglasses with message passing",
    ),
    "normalized_face": Model(
        "facejax.generation.normalized_face:Decoder", 55_146_085, (1024,), LAYERS,
        "Decoder of identity features: landmarks and texture of a normalised face",
    ),
    "normalized_face_texture": Model(
        "facejax.generation.normalized_face:TextureNet", 52_531_555, (1024,), LAYERS,
        "Its texture branch, 224 pixels",
    ),
    "normalized_face_landmarks": Model(
        "facejax.generation.normalized_face:LandmarkNet", 1_564_930, (1024,), LAYERS,
        "Its landmark branch, 65 points",
    ),
    **{
        f"pggan_{name}": Model(
            f"facejax.generation.pggan:{make}", parameters, shape, "summed over the layers of the authors' code", about
        )
        for name, make, parameters, shape, about in (
            ("generator", "Generator", 23_079_115, (512,), "PG-GAN's generator, 1024 pixels, all image layers"),
            ("discriminator", "Discriminator", 23_087_249, (1024, 1024, 3), "PG-GAN's discriminator, 1024 pixels"),
            ("generator_128", "celeba_128_generator", 13_629_810, (512,), "PG-GAN's small generator, 128 pixels"),
            ("discriminator_128", "celeba_128_discriminator", 13_636_897, (128, 128, 3),
             "PG-GAN's small discriminator, 128 pixels"),
        )
    },
    "asl2d_resnet50": Model(
        "facejax.reconstruction.asl2d:Net", 23_638_206, (120, 120, 4), "summed over the layers of the authors' code",
        "2DASL's ResNet-50 of a crop and the map of its landmarks, 62 parameters of a face",
        converter=INTEROP + "torchvision:load",
    ),
    "byeglassesgan": Model(
        "facejax.generation.byeglassesgan:ByeGlasses", 16_558_277, (256, 256, 3), "our layers: ELEGANT's widths",
        "ByeGlassesGAN's generator: faces without their glasses, masks of glasses and face",
    ),
    "byeglassesgan_discriminator": Model(
        "facejax.generation.byeglassesgan:PatchDiscriminator", 2_764_737, (256, 256, 3), "pix2pix's layers, no norm",
        "ByeGlassesGAN's discriminator of 70 x 70 pixels",
    ),
    **{
        f"{name}_{size}": Model(
            f"facejax.generation.{make}", parameters, shape, source, f"{about}, {size} pixels",
            converter=INTEROP + "stylegan2:load" if name == "stylegan2_generator" else "",
        )
        for name, size, make, parameters, shape, source, about in (
            ("stylegan_generator", 1024, "stylegan:Generator", 26_219_627, (512,), "the authors' listing",
             "StyleGAN's generator, all image layers"),
            ("stylegan_discriminator", 1024, "stylegan:Discriminator", 23_087_249, (1024, 1024, 3),
             "summed over the layers of the authors' code", "StyleGAN's discriminator"),
            ("stylegan2_generator", 1024, "stylegan2:Generator", 30_370_060, (512,),
             "summed over the layers of the authors' code", "StyleGAN2's generator, configuration F"),
            ("stylegan2_discriminator", 1024, "stylegan2:Discriminator", 29_012_513, (1024, 1024, 3),
             "summed over the layers of the authors' code", "StyleGAN2's discriminator, configuration F"),
            ("stylegan_generator", 256, "stylegan:ffhq_256_generator", 26_086_229, (512,),
             "summed over the layers of the authors' code", "StyleGAN's generator, all image layers"),
            ("stylegan_discriminator", 256, "stylegan:ffhq_256_discriminator", 23_052_353, (256, 256, 3),
             "summed over the layers of the authors' code", "StyleGAN's discriminator"),
            ("stylegan2_generator", 256, "stylegan2:ffhq_256_generator", 30_034_338, (512,),
             "summed over the layers of the authors' code", "StyleGAN2's generator, configuration F"),
            ("stylegan2_discriminator", 256, "stylegan2:ffhq_256_discriminator", 28_864_129, (256, 256, 3),
             "summed over the layers of the authors' code", "StyleGAN2's discriminator, configuration F"),
        )
    },
    "dystyle": Model(
        "facejax.generation.dystyle:DyStyle", 151_372_800, (18, 512, 9), "our layers, the paper gives no widths",
        "DyStyle, edits of nine attributes in W+ of 1024 pixels", inputs="edit",
    ),
    "discofacegan_generator": Model(
        "facejax.generation.discofacegan:Generator", 25_970_517, (286,), "summed over the layers of the authors' code",
        "DiscoFaceGAN's generator, 256 pixels, of 254 coefficients and 32 numbers of noise",
    ),
    **{
        f"discofacegan_{name}": Model(
            "facejax.generation.discofacegan:Decoder", parameters, (latents,),
            "summed over the layers of the authors' code", f"DiscoFaceGAN's decoder of the {name}",
            {"outputs": outputs, "width": width},
        )
        for name, parameters, latents, outputs, width in (
            ("identity", 673_440, 128, 160, 512), ("expression", 156_480, 32, 64, 256), ("light", 38_683, 16, 27, 128),
            ("pose", 2_339, 3, 3, 32),
        )
    },
    "rnet": Model(
        "facejax.generation.discofacegan:RNet", 24_034_625, (224, 224, 3), "torchvision's trunk and seven linear heads",
        "R-Net, 257 numbers of a face model from an image",
    ),
    "prnet": Model(
        "facejax.reconstruction.prnet:Net", 13_353_618, (256, 256, 3), "the layers of the authors' code",
        "PRNet, crops to position maps", converter=INTEROP + "prnet:load",
    ),
    **{
        f"tddfa_v2_{name}": Model(
            f"facejax.reconstruction.tddfa_v2:{name}", parameters, (120, 120, 3), "the published file's layers",
            "3DDFA_V2's network with its branch of landmarks", converter="facejax.interop.tddfa_v2:load",
        )
        for name, parameters in (("mb1", 3_409_926), ("mb05", 920_166))
    },
    **{
        f"pfld_{name}": Model(
            constructor, parameters, (112, 112, 3), source, about, options, converter=converter
        )
        for name, constructor, parameters, source, about, options, converter in (
            ("98", "facejax.alignment.pfld:Net", 1_728_359, "polarisZhao/PFLD-pytorch without its unused batch norm",
             "PFLD, 98 landmarks, with the auxiliary branch", {}, ""),
            ("68_compressed", "facejax.alignment.pfld:pfld_68_compressed", 1_194_027,
             "the published file and polarisZhao/PFLD-pytorch's auxiliary branch", "PFLD as published, 68 landmarks",
             {}, "facejax.interop.pfld:load"),
        )
    },
    **{
        f"adaptive_wing_{name}": Model(
            "facejax.alignment.adaptive_wing:Net", parameters, (256, 256, 3), "the layers of the authors' code",
            f"four stacked hourglasses with CoordConv, {landmarks} landmarks and boundary lines",
            {"landmarks": landmarks},
        )
        for name, landmarks, parameters in (
            ("300w", 68, 24_099_156), ("wflw", 98, 24_153_036), ("cofw", 29, 24_029_112), ("aflw", 19, 24_011_152)
        )
    },
    "dan": Model(
        "facejax.alignment.dan:DAN", 23_095_382, (112, 112, 1), "the layers of the authors' code",
        "DAN, 68 landmarks in two stages",
    ),
    **{
        f"mcnet_{landmarks}": Model(
            "facejax.alignment.mcl:mcnet", parameters, (50, 50, 1), "the authors' layers",
            f"MCNet, {landmarks} landmarks", {"landmarks": landmarks},
        )
        for landmarks, parameters in {29: 2_620_634, 68: 2_700_584}.items()
    },
    "mcl_68": Model(
        "facejax.alignment.mcl:Net", 1_124_136, (50, 50, 1), "our layers; the paper's widths are not known",
        "MCL's network with averaged features, 68 landmarks",
    ),
    "wing_cnn6": Model(
        "facejax.alignment.wing:cnn6", 3_806_152, (64, 64, 3), LAYERS, "CNN-6 of the wing loss, 68 landmarks"
    ),
    "wing_cnn6_aflw": Model(
        "facejax.alignment.wing:cnn6", 3_705_702, (64, 64, 3), LAYERS, "CNN-6 of the wing loss, 19 landmarks",
        {"landmarks": 19},
    ),
    "wing_cnn7": Model(
        "facejax.alignment.wing:cnn7", 6_185_288, (128, 128, 3), "widths of ours after the first layer",
        "CNN-7 of the wing loss, 68 landmarks",
    ),
    "wing_cnn67": Model(
        "facejax.alignment.wing:TwoStage", 9_991_440, (128, 128, 3), "widths of ours after CNN-7's first layer",
        "CNN-6 and CNN-7 as two stages, 68 landmarks",
        {"first": Part("facejax.alignment.wing:cnn6"), "second": Part("facejax.alignment.wing:cnn7")},
    ),
    "wing_resnet50": Model(
        "facejax.alignment.wing:ResNetPoints", 23_786_696, (224, 224, 3),
        "torchvision's trunk and a dense layer", "ResNet-50 with the wing loss, 68 landmarks",
        {"trunk": Part(BACKBONES + "resnet:resnet50")},
    ),
    **{
        f"srcnn_{''.join(map(str, kernels))}": Model(
            "facejax.restoration.super_resolution:SRCNN", parameters, PATCH, LAYERS,
            f"SRCNN, kernels of {kernels[0]}, {kernels[1]} and {kernels[2]}: super-resolution x3", {"kernels": kernels},
        )
        for kernels, parameters in {(9, 1, 5): 8129, (9, 5, 5): 57_281}.items()
    },
    **{
        f"edsr_{name}x{scale}": Model(
            f"facejax.restoration.super_resolution:{make}", parameters, PATCH,
            "published millions of the authors' code", f"EDSR{about}: super-resolution x{scale}", {"scale": scale},
            converter=INTEROP + "super_resolution:load",
        )
        for name, make, about, counts in (
            ("baseline_", "edsr_baseline", ", the smaller one", (1_369_859, 1_554_499, 1_517_571)),
            ("", "EDSR", "", (40_729_603, 43_680_003, 43_089_923)),
        )
        for scale, parameters in zip((2, 3, 4), counts, strict=True)
    },
    "srresnet": Model(
        "facejax.restoration.super_resolution:SRResNet", 1_549_462, PATCH, LAYERS,
        "SRResNet, the generator of SRGAN: super-resolution x4",
    ),
    "srgan_discriminator": Model(
        "facejax.restoration.srgan:Discriminator", 23_565_505, (96, 96, 3), LAYERS, "SRGAN's discriminator",
    ),
    "rrdbnet": Model(
        "facejax.restoration.super_resolution:RRDBNet", 16_697_987, PATCH, "BasicSR",
        "RRDBNet, the generator of ESRGAN: super-resolution x4", converter=INTEROP + "super_resolution:load",
    ),
    "esrgan_discriminator": Model(
        "facejax.restoration.srgan:esrgan_discriminator", 14_499_401, (128, 128, 3), "BasicSR",
        "ESRGAN's discriminator",
    ),
    "fsrnet": Model(
        "facejax.restoration.fsrnet:FSRNet", 3_311_326, (16, 16, 3), LAYERS,
        "FSRNet: super-resolution of faces x8 with 68 landmarks and 11 parsing maps as priors",
    ),
}  # fmt: skip
"""Name -> published architecture. Add a row for a new architecture; tests/test_models.py checks its parameter count."""
