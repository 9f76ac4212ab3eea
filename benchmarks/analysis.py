"""Photographs through `facejax.analysis`: accuracy on the AT&T faces, and speed beside ONNX Runtime with NumPy.

    python -m benchmarks.analysis DATA --accuracy
    python -m benchmarks.analysis DATA --speed

DATA holds weights/{scrfd,mobilefacenet,pfld}, faces/att_faces (s1 to s40, ten pictures each) and faces/photos.

Accuracy: the best face of every picture is detected, aligned and embedded; leave-one-out rank-1 and TAR over all pairs.
A picture without a face counts as unlike all others.

Speed: SCRFD, alignment, MobileFaceNet and PFLD, from files to boxes, embeddings and 68 landmarks. The peer is ONNX
Runtime with OpenCV and NumPy on the same weights; MobileFaceNet, published for PyTorch, is written as an ONNX graph
here. Both use `--threads` threads. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any

import cv2
import numpy as np

from benchmarks import detect_photo
from benchmarks.compare import record
from facejax.data import transforms
from facejax.interop.pytorch import read_weights
from facejax.metrics import verification
from facejax.ops.vectors import unit_rows

FARS = (1e-1, 1e-2, 1e-3)


def mobilefacenet_onnx(path: pathlib.Path) -> bytes:
    """The published MobileFaceNet of 112 x 96 pixels as an ONNX graph of any batch size; its batch norms are folded."""
    from onnx import TensorProto, helper, numpy_helper

    tensors, nodes, constants = read_weights(path), [], []

    def conv(x: str, kernel: str, norm: str, slope: str, stride: int = 1, pad: int = 0) -> str:
        weight = tensors[f"{kernel}.weight"].astype(np.float64)
        scale, shift, mean, var = (tensors[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        factor = scale / np.sqrt(var.astype(np.float64) + 1e-5)
        group = len(weight) if weight.shape[1] == 1 else 1
        for name, array in (("w", weight * factor[:, None, None, None]), ("b", shift - mean * factor)):
            constants.append(numpy_helper.from_array(array.astype(np.float32), f"{kernel}.{name}"))
        out = f"{kernel}.out"
        nodes.append(helper.make_node(
            "Conv", [x, f"{kernel}.w", f"{kernel}.b"], [out], strides=[stride] * 2, pads=[pad] * 4, group=group
        ))  # fmt: skip
        if slope:
            constants.append(numpy_helper.from_array(tensors[f"{slope}.weight"].reshape(-1, 1, 1), f"{kernel}.s"))
            nodes.append(helper.make_node("PRelu", [out, f"{kernel}.s"], [f"{kernel}.act"]))
        return f"{kernel}.act" if slope else out

    def named(x: str, name: str, stride: int = 1, pad: int = 0, linear: bool = False) -> str:
        return conv(x, f"{name}.conv", f"{name}.bn", "" if linear else f"{name}.prelu", stride, pad)

    x = named(named("images", "conv1", 2, 1), "dw_conv1", 1, 1)
    for i in range(15):
        stride, block = 2 if i in (0, 5, 12) else 1, f"blocks.{i}.conv"
        y = conv(x, f"{block}.0", f"{block}.1", f"{block}.2")
        y = conv(y, f"{block}.3", f"{block}.4", f"{block}.5", stride, 1)
        y = conv(y, f"{block}.6", f"{block}.7", "")
        if stride == 1:
            nodes.append(helper.make_node("Add", [x, y], [f"{block}.sum"]))
        x = f"{block}.sum" if stride == 1 else y
    x = named(named(named(x, "conv2"), "linear7", linear=True), "linear1", linear=True)
    nodes.append(helper.make_node("Flatten", [x], ["embeddings"]))
    inputs = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 112, 96])
    outputs = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 128])
    graph = helper.make_graph(nodes, "mobilefacenet", [inputs], [outputs], constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


class Peer:
    """The three networks in ONNX Runtime; a file -> boxes with scores [n, 5], unit embeddings, landmarks [n, 68, 2]."""

    def __init__(self, weights: pathlib.Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

        def session(model: str | bytes) -> Any:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        self.detector = detect_photo.Peer(str(weights / "scrfd" / "scrfd_500m_kps.onnx"), threads)
        self.embedder = session(mobilefacenet_onnx(weights / "mobilefacenet" / "068.ckpt"))
        self.landmarks = session(str(weights / "pfld" / "pfld_68.onnx"))
        self.name = self.landmarks.get_inputs()[0].name

    def __call__(self, file: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        boxes, points = self.detector(image)
        if not len(boxes):
            return boxes, np.zeros((0, 128), np.float32), np.zeros((0, 68, 2), np.float32)
        crops = np.stack([transforms.align(image, p, 112, 96) for p in points])
        blob = ((crops.astype(np.float32) - 127.5) / 128).transpose(0, 3, 1, 2)
        embeddings = self.embedder.run(None, {"images": np.ascontiguousarray(blob)})[0]
        places = []
        for box in boxes[:, :4].astype(int):
            width, height = box[2:] - box[:2] + 1
            side = int(min(width, height) * 1.2)
            x, y = box[0] + width // 2 - side // 2, box[1] + height // 2 - side // 2
            left, top = max(0, -x), max(0, -y)
            right, bottom = max(0, x + side - image.shape[1]), max(0, y + side - image.shape[0])
            part = image[max(0, y) : y + side, max(0, x) : x + side]
            part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT)
            blob = cv2.resize(part, (112, 112)).astype(np.float32).transpose(2, 0, 1)[None] / 255
            places.append(self.landmarks.run(None, {self.name: blob})[0].reshape(68, 2) * side + [x, y])
        return boxes, unit_rows(embeddings), np.stack(places)


def accuracy(data: pathlib.Path, size: int) -> None:
    """Prints rank-1 and TAR of the AT&T faces through the whole pipeline."""
    from facejax.analysis import FaceAnalyzer

    analyzer = FaceAnalyzer.from_weights([data / "weights" / name for name in ("scrfd", "mobilefacenet")], size=size)
    recogniser = analyzer.stages["recogniser"]
    people, single, joined, found = [], [], [], 0
    for person in range(1, 41):
        for number in range(1, 11):
            faces = analyzer(data / "faces" / "att_faces" / f"s{person}" / f"{number}.pgm")
            people.append(person)
            if not len(faces):
                single.append(np.zeros(128, np.float32))
                joined.append(np.zeros(256, np.float32))
                continue
            found += 1
            best, mirrored = faces[0], recogniser(faces[0].crops[:, :, ::-1])["embeddings"][0]
            single.append(best.embeddings[0])
            joined.append(np.concatenate([best.embeddings[0], mirrored]) / np.sqrt(2))
    people = np.array(people)
    print(f"size {size}: a face in {found} of {len(people)} pictures")
    for name, embeddings in (("embedding", np.stack(single)), ("joined with the mirrored crop's", np.stack(joined))):
        cosine = embeddings @ embeddings.T
        np.fill_diagonal(cosine, -2)
        seen = (embeddings**2).sum(1) > 0
        rank1 = np.mean((people[cosine.argmax(1)] == people) & seen)
        first, second = np.triu_indices(len(people), 1)
        same = people[first] == people[second]
        genuine, impostor = cosine[first, second][same], np.sort(cosine[first, second][~same])
        accepted = verification.FalseAccepts(
            np.sort(len(impostor) - np.searchsorted(impostor, genuine, side="left")), len(impostor)
        )
        print(f"  {name}: rank-1 {rank1:.3f}, TAR {' / '.join(f'{x:.3f}' for x in accepted.tar(FARS))} at FAR "
              f"{' / '.join(f'{x:.0e}' for x in FARS)}")  # fmt: skip


def speed(data: pathlib.Path, threads: int, seconds: float) -> None:
    """Prints faces a second of both on one photograph and on a folder of 100, and what each stage takes."""
    from facejax.analysis import FaceAnalyzer, folder, photographs

    weights = data / "weights"
    start = time.perf_counter()
    analyzer = FaceAnalyzer.from_weights([weights / name for name in ("scrfd", "mobilefacenet", "pfld")])
    photo = data / "faces" / "photos" / "multiface.jpg"
    ours = analyzer(photo)
    print(f"first result after {time.perf_counter() - start:.1f} s, load {os.getloadavg()[0]:.1f}")
    peer = Peer(weights, threads)
    boxes, embeddings, landmarks = peer(photo)
    assert len(ours) == len(boxes), f"{len(ours)} and {len(boxes)} faces"
    # The usual script rounds the resized height, so that its pixels are up to half a per cent off.
    print(f"{len(ours)} faces; least cosine {np.sum(ours.embeddings * embeddings, 1).min():.4f}, landmarks "
          f"{np.abs(ours.landmarks - landmarks).max():.2f} pixels apart at most")  # fmt: skip
    times = detect_photo.race({"ONNX Runtime": lambda: peer(photo), "facejax": lambda: analyzer(photo)}, seconds)
    record(f"a photograph with {len(ours)} faces: file, detection, alignment, embeddings, landmarks", times)
    names = sorted((data / "faces" / "photos").glob("*.jpg"))
    names = [name for name in names if name.stem not in ("largest_selfie", "emma")]
    files = [names[i % len(names)] for i in range(100)]

    def in_folder() -> int:
        def work(file: pathlib.Path) -> Any:
            return analyzer(photographs.read(file)[0])

        return sum(len(result.result()) for _, result in folder.ahead(work, files))

    print(f"folder: {in_folder()} and {sum(len(peer(file)[0]) for file in files)} faces in {len(files)} photographs")
    whole = {"ONNX Runtime": lambda: [peer(file) for file in files], "facejax": in_folder}
    record(f"the same for a folder of {len(files)} photographs", detect_photo.race(whole, 3 * seconds))
    image = photographs.read(photo)[0]
    crops = {name: np.zeros((4, s.rule.side, s.rule.side, 3), np.uint8) for name, s in analyzer.stages.items()}
    detect_photo.race(
        {
            "decoding": lambda: photographs.read(photo),
            "detector": lambda: analyzer.detector.predict(image),
            **{f"{name}, 4 faces": lambda name=name: _done(analyzer.stages[name](crops[name])) for name in crops},
            "all of a decoded photograph": lambda: analyzer(image),
        },
        seconds,
    )


def _done(outputs: dict[str, Any]) -> None:
    for value in outputs.values():
        value.block_until_ready()


def main() -> None:
    parser = argparse.ArgumentParser(description="Photographs through facejax.analysis.")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320], help="sides of the detector's input")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="of each race")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])  # XLA takes as many threads
    for size in arguments.sizes if arguments.accuracy else ():
        accuracy(arguments.data, size)
    if arguments.speed:
        speed(arguments.data, arguments.threads, arguments.seconds)


if __name__ == "__main__":
    main()
