"""3DDFA_V2's published MobileNet x 0.5 and a mesh of 38,365 vertices, from crops of 120 pixels: beside ONNX Runtime and
NumPy, and 256 crops in one call beside one call for each: `python -m benchmarks.tddfa_v2 FOLDER`.

FOLDER holds mb05_120x120.pth and configs/param_mean_std_62d_120x120.pkl. The network, published for PyTorch, is written
as an ONNX graph here; the mesh in NumPy is computed as in the published code. The Basel model is not public: random
bases of its size stand for it. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import compare
from facejax.backbones.mobilenet import V1_LAYERS
from facejax.data import normalize
from facejax.interop import tddfa_v2 as interop
from facejax.interop.pytorch import read_weights
from facejax.morphable import crops, tddfa_files
from facejax.morphable.parameters import LinearFace, reconstruct
from facejax.reconstruction import tddfa_v2

VERTICES, SHAPE, EXPRESSION, SIZE = 38_365, 40, 10, 120
WEIGHTS, STATISTICS = "mb05_120x120.pth", "configs/param_mean_std_62d_120x120.pkl"


def onnx_graph(path: pathlib.Path) -> bytes:
    """The network without its branch of landmarks, of any batch size; batch norms are folded."""
    from onnx import TensorProto, helper, numpy_helper

    tensors, nodes, constants = read_weights(path), [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def conv(x: str, kernel: str, norm: str, stride: int) -> str:
        weight = tensors[f"{kernel}.weight"].astype(np.float64)
        scale, shift, mean, var = (tensors[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        factor = scale / np.sqrt(var.astype(np.float64) + 1e-5)
        given = [x, constant(f"{kernel}.w", weight * factor[:, None, None, None])]
        given.append(constant(f"{kernel}.b", shift - mean * factor))
        group, pad = len(weight) if weight.shape[1] == 1 else 1, weight.shape[-1] // 2
        nodes.append(
            helper.make_node("Conv", given, [f"{kernel}.o"], strides=[stride] * 2, pads=[pad] * 4, group=group)
        )
        nodes.append(helper.make_node("Relu", [f"{kernel}.o"], [f"{kernel}.r"]))
        return f"{kernel}.r"

    x = conv("crops", "conv1", "bn1", 2)
    for layer, (_, stride) in zip(interop.LAYERS, V1_LAYERS, strict=True):
        x = conv(x, f"dw{layer}.conv_dw", f"dw{layer}.bn_dw", stride)
        x = conv(x, f"dw{layer}.conv_sep", f"dw{layer}.bn_sep", 1)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    head = [constant(f"head.{k}", tensors[f"fc_param.{k}"]) for k in ("weight", "bias")]
    nodes.append(helper.make_node("Gemm", ["features", *head], ["parameters"], transB=1))
    inputs = helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    outputs = helper.make_tensor_value_info("parameters", TensorProto.FLOAT, ["n", 12 + SHAPE + EXPRESSION])
    graph = helper.make_graph(nodes, "mb05", [inputs], [outputs], constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def random_face(seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of the Basel model's size, as `tddfa_files.dense_face` takes them."""
    rng, rows = np.random.default_rng(seed), 3 * VERTICES
    bases = rng.normal(size=(rows, SHAPE + EXPRESSION)).astype(np.float32) / np.sqrt(rows, dtype=np.float32)
    return {
        "mean": 5e4 * rng.normal(size=rows).astype(np.float32),
        "shape_basis": bases[:, :SHAPE].copy(),
        "expression_basis": bases[:, SHAPE:].copy(),
        "triangles": np.array([[0, 1, 2]]),
        "landmarks": np.arange(68),
    }


class Peer:
    """Crops uint8 [N, S, S, 3] RGB -> vertices [N, V, 3], by ONNX Runtime and the published code's NumPy."""

    def __init__(self, folder: pathlib.Path, face: dict[str, np.ndarray]):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = len(os.sched_getaffinity(0)), 1
        self.session = onnxruntime.InferenceSession(
            onnx_graph(folder / WEIGHTS), options, providers=["CPUExecutionProvider"]
        )
        whitening = tddfa_files.read_whitening(folder / STATISTICS, 12 + SHAPE + EXPRESSION)
        self.mean, self.std, self.face = np.asarray(whitening.mean), np.asarray(whitening.std), face

    def __call__(self, images: np.ndarray) -> np.ndarray:
        blob = ((images[..., ::-1].astype(np.float32) - 127.5) / 128).transpose(0, 3, 1, 2)
        (found,) = self.session.run(None, {"crops": np.ascontiguousarray(blob)})
        return np.stack([self.mesh(vector) for vector in found * self.std + self.mean])

    def mesh(self, vector: np.ndarray) -> np.ndarray:
        """[62] -> [V, 3]."""
        pose, face = vector[:12].reshape(3, 4), self.face
        shape, expression = np.split(vector[12:], [SHAPE])
        column = face["mean"] + face["shape_basis"] @ shape + face["expression_basis"] @ expression
        x, y, z = pose[:, :3] @ column.reshape(3, -1, order="F") + pose[:, 3:]
        return np.stack([x - 1, SIZE - y, z - 1], -1)


def main() -> None:
    """Checks that both give the same mesh and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--crops", type=int, default=256, help="of the one call")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    columns, net = random_face(), tddfa_v2.mb05()
    shapes = jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, SIZE, SIZE, 3)), train=False), jax.random.key(0))
    variables = interop.load(arguments.folder / WEIGHTS, shapes)
    whitening = tddfa_files.read_whitening(arguments.folder / STATISTICS, 12 + SHAPE + EXPRESSION)
    face, peer = tddfa_files.dense_face(**columns), Peer(arguments.folder, columns)

    @jax.jit
    def mesh(face: LinearFace, images: jax.Array) -> jax.Array:
        found = net.apply(variables, normalize.bgr_symmetric(images), train=False)["parameters"]
        return crops.to_image(reconstruct(face, whitening.restore(found)), SIZE, crops.V2)

    images = np.random.default_rng(1).integers(0, 256, (arguments.crops, SIZE, SIZE, 3)).astype(np.uint8)
    one = images[:1]
    expected = peer(one)
    error = np.abs(mesh(face, one) - expected).max() / np.ptp(expected)
    print(f"largest difference of a coordinate: {error:.1e} of the mesh's extent")
    if error > 1e-4:
        raise RuntimeError("both meshes differ by more than 1e-4 of their extent")
    compare(
        f"3DDFA_V2 x 0.5 and a mesh of {VERTICES:,} vertices, one crop of {SIZE} pixels",
        {"ONNX Runtime and NumPy": lambda: peer(one), "facejax": lambda: mesh(face, one)},
        repeats=5 * arguments.repeats, unit="crops", amount=1,
    )  # fmt: skip
    compare(
        f"3DDFA_V2 x 0.5 and a mesh of {VERTICES:,} vertices, {arguments.crops} crops of {SIZE} pixels in one call",
        {
            "one call for each crop": lambda: [mesh(face, image[None]) for image in images],
            "facejax": lambda: mesh(face, images),
        },
        repeats=arguments.repeats, unit="crops", amount=arguments.crops,
    )  # fmt: skip


if __name__ == "__main__":
    main()
