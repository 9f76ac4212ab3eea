"""Published PFLD and FSA-Net compared with ONNX Runtime: `python -m benchmarks.aligners DATA`.

DATA holds weights/pfld and weights/fsanet. PFLD is its published ONNX file; FSA-Net's fusion of three networks,
published for Keras, is written as one ONNX graph (`benchmarks.fsanet_onnx`). Both sides use as many threads as there
are cores at hand and give the same landmarks and angles. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import facejax
from benchmarks import fsanet_onnx
from benchmarks.compare import compare
from facejax.attributes.fsanet import SCORINGS
from facejax.interop import fsanet

CAPSULES = {scoring: f"fsanet_capsule_{scoring}" for scoring in SCORINGS}


def session(model: str | bytes, images: np.ndarray) -> Callable[[], np.ndarray]:
    """A call of ONNX Runtime on images [N, S, S, 3]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(os.sched_getaffinity(0)), 1
    made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {made.get_inputs()[0].name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    return lambda: made.run(None, given)[0]


def run(work: str, ours: Callable[[Any], jax.Array], theirs: str | bytes, images: np.ndarray, repeats: int) -> None:
    """Checks that both agree and prints the times."""
    peer, call = session(theirs, images), jax.jit(ours)
    np.testing.assert_allclose(np.asarray(call(images)).reshape(len(images), -1), peer(), atol=1e-3)
    contenders = {"ONNX Runtime": peer, "facejax": lambda: call(images)}
    compare(work, contenders, repeats=repeats, warmup=3, unit="images", amount=len(images))


def main() -> None:
    """Compares both networks on one image and on a batch."""
    parser = argparse.ArgumentParser(description="Published PFLD and FSA-Net, beside ONNX Runtime.")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    weights, rng = arguments.data / "weights", np.random.default_rng(0)
    file = weights / "pfld" / "pfld_68.onnx"
    pfld, variables = facejax.create_model("pfld_68_compressed"), facejax.load_pretrained("pfld_68_compressed", file)
    files = {scoring: fsanet.file_of(weights / "fsanet", scoring) for scoring in SCORINGS}
    loaded = [facejax.load_pretrained(CAPSULES[scoring], path) for scoring, path in files.items()]
    nets = [facejax.create_model(CAPSULES[scoring]) for scoring in SCORINGS]

    def landmarks(images: jax.Array) -> jax.Array:
        return pfld.apply(variables, images, train=False)["points"]

    def angles(images: jax.Array) -> jax.Array:
        return sum(net.apply(v, images, train=False) for net, v in zip(nets, loaded, strict=True)) / len(nets)

    for count in (1, arguments.batch):
        crops = rng.uniform(0, 1, (count, 112, 112, 3)).astype(np.float32)
        run(f"PFLD, 68 landmarks, 112 pixels, batch {count}", landmarks, str(file), crops, arguments.repeats)
        faces = rng.integers(0, 256, (count, 64, 64, 3)).astype(np.float32)
        run(f"FSA-Net, fusion of three, batch {count}", angles, fsanet_onnx.model(loaded), faces, arguments.repeats)


if __name__ == "__main__":
    main()
