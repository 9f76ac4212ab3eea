"""FSA-Net with capsules as an ONNX graph of any batch size, from variables of `facejax.attributes.fsanet.FSANet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

STREAMS = {"first": ("Relu", "AveragePool"), "second": ("Tanh", "MaxPool")}
SPAN = 99.0


class Graph:
    """Nodes and constants; a call adds a node and returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def dense(self, x: str, layer: Mapping[str, Any]) -> str:
        return self("Add", self("MatMul", x, self.constant(layer["kernel"])), self.constant(layer["bias"]))

    def shaped(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.constant(shape, np.int64))

    def total(self, x: str, axis: int) -> str:
        return self("ReduceSum", x, self.constant([axis], np.int64))


def model(variables: Sequence[Mapping[str, Any]]) -> bytes:
    """The mean of networks: "images" [n, 3, 64, 64] RGB in 0..255 -> "angles" [n, 3]."""
    graph = Graph()
    angles = [_network(graph, v["params"], v["batch_stats"], "images") for v in variables]
    graph.nodes.append(helper.make_node("Mean", angles, ["angles"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 64, 64])
    outputs = helper.make_tensor_value_info("angles", TensorProto.FLOAT, ["n", 3])
    made = helper.make_graph(graph.nodes, "fsanet", [images], [outputs], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def _network(graph: Graph, params: Mapping[str, Any], stats: Mapping[str, Any], images: str) -> str:
    streams = [_stream(graph, params["trunk"], stats["trunk"], name, images) for name in STREAMS]
    maps = [graph("Mul", *pair) for pair in zip(*streams, strict=True)]
    maps[2] = graph("AveragePool", maps[2], kernel_shape=[2, 2], strides=[2, 2])
    pixels = [graph.shaped(graph("Transpose", x, perm=[0, 2, 3, 1]), 0, 64, 64) for x in maps]
    whole = graph("Concat", *pixels, axis=1)
    vectors = _mapped(graph, params["mapping"], pixels, whole) if "mapping" in params else whole
    capsules = _capsules(graph, params["aggregate"]["weights"], vectors)
    result, divisor = None, None
    for k in range(3):
        row = graph("Gather", capsules, graph.constant(k, np.int64), axis=1)
        stretch, shift, scores = (
            graph.dense(graph("Gather", row, graph.constant(range(*entries), np.int64), axis=1), params[f"{name}_{k}"])
            for name, entries in (("stretch", (0, 4)), ("shift", (4, 8)), ("scores", (8, 16)))
        )
        stretch = graph("Tanh", stretch)
        shift = graph.shaped(graph("Tanh", shift), 0, 3, 1)
        scores = graph.shaped(graph("Relu", scores), 0, 3, 3)
        places = graph("Add", shift, graph.constant([-1, 0, 1]))
        part = graph("Mul", graph("Add", stretch, graph.constant(1)), graph.constant(3))
        divisor = part if divisor is None else graph("Mul", divisor, part)
        mean = graph("Squeeze", graph.total(graph("Mul", scores, places), 2), graph.constant([2], np.int64))
        mean = graph("Div", mean, divisor)
        result = mean if result is None else graph("Add", result, mean)
    return graph("Mul", result, graph.constant(SPAN))


def _stream(graph: Graph, params: Mapping[str, Any], stats: Mapping[str, Any], name: str, x: str) -> list[str]:
    """The three maps of a stream, deepest first."""
    act, pool = STREAMS[name]
    maps, number = [], 0
    for depth in range(4):
        for _ in range(1 if depth == 0 else 2):
            kernel = np.asarray(params[f"{name}{number}_depthwise"]["kernel"]).transpose(3, 2, 0, 1)
            x = graph("Conv", x, graph.constant(kernel), pads=[1] * 4, group=len(kernel))
            block = f"{name}{number}_pointwise"
            conv, norm, running = params[block]["conv"], params[block]["bn"]["norm"], stats[block]["bn"]["norm"]
            factor = np.asarray(norm["scale"]) / np.sqrt(np.asarray(running["var"]) + 1e-3)
            kernel = np.asarray(conv["kernel"]).transpose(3, 2, 0, 1) * factor[:, None, None, None]
            bias = (np.asarray(conv["bias"]) - running["mean"]) * factor + norm["bias"]
            x = graph(act, graph("Conv", x, graph.constant(kernel), graph.constant(bias)))
            number += 1
        if depth < 3:
            x = graph(pool, x, kernel_shape=[2, 2], strides=[2, 2])
        maps.append(x)
    reduced = []
    for k in (1, 2, 3):
        layer = params[f"{name}_reduced{k}"]
        kernel = graph.constant(np.asarray(layer["kernel"]).transpose(3, 2, 0, 1))
        reduced.append(graph(act, graph("Conv", maps[4 - k], kernel, graph.constant(layer["bias"]))))
    return reduced


def _mapped(graph: Graph, params: Mapping[str, Any], pixels: Sequence[str], whole: str) -> str:
    """Pixels [n, 64, 64] of three maps -> vectors [n, 21, 64]."""
    scores = []
    for x in pixels:
        if "score" in params:
            found = graph("Sigmoid", graph.dense(x, params["score"]))
        else:
            rest = graph("Sub", x, graph("ReduceMean", x, axes=[2]))
            found = graph("ReduceMean", graph("Mul", rest, rest), axes=[2])
        scores.append(graph.shaped(found, 0, 64))
    left = graph("Sigmoid", graph.dense(graph("Concat", *scores, axis=1), params["vectors"]))
    left, vectors = graph.shaped(left, 0, 7, 5), []
    for score in scores:
        right = graph.shaped(graph("Sigmoid", graph.dense(score, params["pixels"])), 0, 5, 192)
        weights = graph("MatMul", left, right)
        vectors.append(graph("Div", graph("MatMul", weights, whole), graph.total(weights, 2)))
    return graph("Concat", *vectors, axis=1)


def _capsules(graph: Graph, weights: Any, vectors: str) -> str:
    """[n, M, E] -> [n, 3, 16] by two routings."""
    count = weights.shape[1]
    kernel = graph.constant(np.asarray(weights).transpose(0, 1, 3, 2))
    votes = graph.shaped(graph("MatMul", graph.shaped(vectors, -1, 1, count, 1, 64), kernel), -1, 3, count, 16)
    flat = _squash(graph, graph("ReduceMean", graph("Mul", votes, graph.constant(count / 3)), axes=[2]))
    shares = graph("Softmax", graph.total(graph("Mul", votes, flat), 3), axis=1)
    return graph.shaped(_squash(graph, graph.total(graph("Mul", votes, shares), 2)), 0, 3, 16)


def _squash(graph: Graph, x: str) -> str:
    square = graph.total(graph("Mul", x, x), 3)
    length = graph("Sqrt", graph("Add", square, graph.constant(1e-7)))
    return graph("Div", graph("Mul", x, square), graph("Mul", length, graph("Add", square, graph.constant(1))))
