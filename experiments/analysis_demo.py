"""The networks of `facejax --demo`: trained on rendered faces alone, one after the other, and written as one file.

    python -m experiments.analysis_demo                        # all, about an hour on two cores
    python -m experiments.analysis_demo --only pose,age        # some of them; the file is written when all are trained

Each network trains in a folder of its own below --workdir; a killed run goes on where it was. Prints the numbers on
rendered test faces; `python -m benchmarks.demo_photographs` has those on photographs.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from facejax.alignment import wing
from facejax.analysis import demo
from facejax.attributes import ssrnet
from facejax.data import detection, distortions, landmark_images, pipeline, scene_faces, sources, transforms
from facejax.data.detection import DetectionImages
from facejax.data.landmark_images import Augmentation
from facejax.data.pipeline import Load
from facejax.data.scene_faces import SceneFaces
from facejax.data.synthetic import faces, scenes
from facejax.data.synthetic.faces import Task
from facejax.data.synthetic.factors import Ranges
from facejax.data.synthetic.scenes import Scenes
from facejax.evaluate import verification
from facejax.evaluate.detection import report as detection_report
from facejax.evaluate.embedder import embed_flipped
from facejax.metrics import age, landmarks, pose
from facejax.recipes import recogniser, scorer
from facejax.recipes.detector import Evaluation, detector
from facejax.recognition.heads import Head
from facejax.train import Experiment, Options, Report, TrainState, map_batches, optim, train

SCENES = Scenes(
    "demo", 192, 2400, 200, faces=12, height=(8, 185), small=1.0, people=(500, 60), views=1, head=176, light=1.0
)
"""Faces for the detector, and for what looks at a square around a face."""
PEOPLE = Task(
    "demo_people", demo.EMBEDDER_SIDE, 500, 60, 12, Ranges(yaw=0.35, pitch=0.18, light=1.0, glasses=0.25), aligned=True,
    seed=8,
)  # fmt: skip
"""Aligned faces for the embedder."""
PHOTOGRAPHED = Augmentation(
    rotation=0.0, scale=0.0, shift=0.0, flip=0.0, blur=0.2, noise=0.3, occlusion=0.0, colour=0.4
)
"""What a camera changes."""
SQUARES = dataclasses.replace(PHOTOGRAPHED, rotation=25.0, scale=0.15, shift=0.06, flip=0.5, blur=0.3, occlusion=0.15)
"""Of squares around a face; also what a detector's box may be off."""
ALIGNED = dataclasses.replace(PHOTOGRAPHED, rotation=6.0, scale=0.05, shift=0.03, flip=0.5, occlusion=0.1)
"""Of aligned faces; also what five detected points may be off."""
LIGHT = dataclasses.replace(PHOTOGRAPHED, blur=0.0)
"""What a camera changes without blurring."""
MOST_BLUR, MOST_SHRUNK = 0.05, 10.0
"""Strongest blur, of the face's side, and factor of the lowest resolution that the network of quality sees."""
GREY = 0.2
"""Share of the training images without colour."""
TRAINED_SIDE = 160
"""Of the detector's training images, pixels."""


def adam(steps: int, peak: float, decay: float = 1e-5) -> Any:
    """Adam with a cosine schedule."""
    schedule = {"kind": "cosine", "peak": peak, "warmup": 50, "boundaries": ()}
    return optim.from_config({"name": "adamw", "weight_decay": decay, "schedule": schedule}, steps)


def varied(load: Load, augmentation: Augmentation, grey: float) -> Load:
    """`load` with the colours, blur and noise of `augmentation`, and a share of the images in grey."""

    def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = landmark_images.changed(image, augmentation, rng)
        return scene_faces.greyed(image) if rng.random() < grey else image

    def loaded(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        batch = load(examples, rngs)
        batch["image"] = np.stack([changed(image, rng) for image, rng in zip(batch["image"], rngs, strict=True)])
        return batch

    return loaded


def detector_run(settings: Scenes, steps: int, batch_size: int = 16) -> tuple[Experiment, Options]:
    """The detector: mosaics of scenes."""
    model, options = demo.detector(0.02), Options(batch_size, steps)
    data = DetectionImages(image_size=TRAINED_SIDE, max_boxes=32, augment="mosaic")
    tx = optim.from_config(
        {
            "name": "sgd", "momentum": 0.937, "nesterov": True, "weight_decay": 5e-4, "decay": "kernels",
            "schedule": {"kind": "cosine", "peak": 0.02, "end": 0.0, "warmup": 100, "boundaries": ()},
        },
        steps,
    )  # fmt: skip

    def batches() -> Any:
        source = scenes.load(settings, "train")
        load = detection.loader(source, TRAINED_SIDE, data.max_boxes, data.augment, 1, 4.0)
        return pipeline.train_batches(source, varied(load, PHOTOGRAPHED, GREY), batch_size, seed=0)

    def evaluate(state: TrainState) -> Report:
        test, size = scenes.load(settings, "test"), settings.image_size
        return detection_report(model, scorer.variables(state), test, size, protocol="faces", batch_size=20)

    run = detector(model, data, tx, options, Evaluation(), seed=0)
    return dataclasses.replace(run, train_data=batches, evaluate=evaluate), options


def square_run(
    name: str, loss: Callable[[Any, dict[str, jax.Array]], jax.Array], measure: Callable[[Any, Any], dict[str, float]]
) -> Callable[..., tuple[Experiment, Options]]:
    """The run of a network that looks at a square around a face.

    Args:
      name: of `demo.NETS`.
      loss: (outputs, batch) -> [n].
      measure: (outputs, batch) of all test faces -> numbers.
    """

    def make(settings: Scenes, steps: int, batch_size: int = 32) -> tuple[Experiment, Options]:
        build, size = demo.NETS[name]
        net = build()

        def batches() -> Any:
            source = SceneFaces(settings, "train", lowest=20.0)
            load = scene_faces.loader(size, demo.SQUARE, SQUARES, GREY)
            return pipeline.train_batches(source, load, batch_size, seed=0)

        def evaluate(state: TrainState) -> Report:
            source = SceneFaces(settings, "test", lowest=20.0)
            load = scene_faces.loader(size, demo.SQUARE, scene_faces.STILL)
            batch = load([source[i] for i in range(len(source))], [np.random.default_rng(0)] * len(source))
            found = map_batches(
                lambda v, images: net.apply(v, demo.shrunk(size)(images), train=False),
                scorer.variables(state), batch["image"], 100,
            )  # fmt: skip
            return Report({**measure(found, batch), "faces": len(source)})

        shapes = {"points": (68, 2), "pose": (3,), "age": ()}
        fields = {k: jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32) for k, shape in shapes.items()}
        parts = scorer.training(
            net, loss, adam(steps, RATES[name]), image_size=size, batch_size=batch_size, fields=fields
        )
        return Experiment(evaluate=evaluate, train_data=batches, **parts), Options(batch_size, steps)

    return make


RATES = {"landmarks": 2e-3, "pose": 3e-3, "age": 3e-3}
"""Peaks of the learning rates."""


def landmark_loss(found: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    """Wing loss in pixels, and a squared error of the auxiliary branch's angles, as in `experiments.pfld`."""
    error = demo.SIDE * found["points"] - (batch["points"] + 0.5)
    angles = -jnp.radians(batch["pose"])[:, jnp.array([1, 0, 2])]
    return wing.wing(error, width=10.0, curvature=2.0).sum((1, 2)) / 68 + jnp.sum((found["angles"] - angles) ** 2, -1)


def landmark_numbers(found: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean error in % of sqrt(width * height) of the landmarks' box."""
    sizes = landmarks.face_sizes(batch["points"], "box")
    errors = landmarks.normalized_mean_error(demo.SIDE * found["points"] - 0.5, batch["points"], sizes)
    return {"nme": 100 * float(errors.mean())}


def pose_numbers(found: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean absolute errors in degrees."""
    errors = pose.pose_errors(found, batch["pose"])
    return {"mae": errors.mean, "yaw": errors.yaw, "pitch": errors.pitch, "roll": errors.roll}


def age_numbers(found: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean absolute error in years, and that of always saying the median."""
    truth = batch["age"]
    return {
        "mae": age.age_error(found, truth),
        "mae_of_the_median": age.age_error(np.full(len(truth), np.median(truth)), truth),
    }


def embedder_run(task: Task, steps: int, batch_size: int = 64) -> tuple[Experiment, Options]:
    """The embedder: ArcFace's margin."""
    size, net = task.image_size, demo.embedder()

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        images = []
        for example, rng in zip(examples, rngs, strict=True):
            image = transforms.decode(example["image"], upright=False)
            centre = (size - 1) / 2
            region, angle = landmark_images.jittered((centre, centre, size), ALIGNED, rng)
            matrix = landmark_images.region_matrix(region, angle, size, rng.random() < ALIGNED.flip)
            images.append(landmark_images.crop(image, matrix, size))
        return {"image": np.stack(images), "label": np.array([sources.label(e) for e in examples], np.int32)}

    def batches() -> Any:
        return pipeline.train_batches(faces.load(task, "train"), varied(load, ALIGNED, GREY), batch_size, seed=0)

    def evaluate(state: TrainState) -> Report:
        variables = {"params": state.params["backbone"], "batch_stats": state.model_state}
        test = faces.load(task, "test")
        report = verification.verify_held_out(test, size, lambda images: embed_flipped(net, variables, images, 100))
        return Report(report.metrics)

    schedule = {"kind": "cosine", "peak": 0.1, "warmup": 0, "boundaries": (), "power": 1.0}
    parts = recogniser.training(
        net, Head(), optim.from_config({**recogniser.OPTIM, "schedule": schedule}, steps), image_size=size,
        embedding_size=net.embedding_size, num_classes=task.train, batch_size=batch_size,
    )  # fmt: skip
    return Experiment(evaluate=evaluate, train_data=batches, **parts), Options(batch_size, steps)


def degraded(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """An aligned face [S, S, 3] that is blurred, or shrunk and enlarged; a strength of 1 leaves hardly a face."""
    if rng.random() < 0.5:
        return distortions.blur(image, max(MOST_BLUR * len(image) * strength, 1e-3), rng)
    return distortions.resolution(image, 1 + (MOST_SHRUNK - 1) * strength, rng)


def quality_run(task: Task, steps: int, batch_size: int = 64) -> tuple[Experiment, Options]:
    """The quality: 1 less the strength of what blurred the face, or took its resolution."""
    size, net = demo.QUALITY_SIDE, demo.quality()

    def load(examples: Sequence[Any], rngs: Sequence[np.random.Generator]) -> dict[str, np.ndarray]:
        strengths = [rng.random() for rng in rngs]
        faces = [
            degraded(transforms.decode(example["image"], upright=False), strength, rng)
            for example, strength, rng in zip(examples, strengths, rngs, strict=True)
        ]
        images = np.stack([transforms.resize(face, size, size) for face in faces])
        return {"image": images, "label": 1 - np.float32(strengths)}

    def batches() -> Any:
        return pipeline.train_batches(faces.load(task, "train"), varied(load, LIGHT, GREY), batch_size, seed=0)

    def evaluate(state: TrainState) -> Report:
        source = faces.load(task, "test")
        batch = load(pipeline.fetch(source, range(len(source))), [np.random.default_rng(i) for i in range(len(source))])
        scores = lambda v, images: net.apply(v, demo.shrunk(size)(images), train=False)  # noqa: E731
        found = map_batches(scores, scorer.variables(state), batch["image"], 100)
        return Report({"rank_correlation": float(stats.spearmanr(found, batch["label"])[0]), "faces": len(source)})

    parts = scorer.training(
        net, lambda scores, batch: (scores - batch["label"]) ** 2, adam(steps, 1e-2), image_size=size,
        batch_size=batch_size, fields={"label": jax.ShapeDtypeStruct((batch_size,), jnp.float32)},
    )  # fmt: skip
    return Experiment(evaluate=evaluate, train_data=batches, **parts), Options(batch_size, steps)


RUNS: dict[str, Callable[[], tuple[Experiment, Options]]] = {
    "detector": lambda: detector_run(SCENES, 2000),
    "landmarks": lambda: square_run("landmarks", landmark_loss, landmark_numbers)(SCENES, 2000),
    "pose": lambda: square_run("pose", lambda found, batch: ssrnet.absolute_error(found, batch["pose"]), pose_numbers)(
        SCENES, 1000
    ),
    "age": lambda: square_run("age", lambda found, batch: ssrnet.absolute_error(found, batch["age"]), age_numbers)(
        SCENES, 600
    ),
    "recogniser": lambda: embedder_run(PEOPLE, 1200),
    "quality": lambda: quality_run(PEOPLE, 600),
}
"""Name of a network of `demo.NETS` -> its run."""


def trained(name: str, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a network, or goes on; prints its losses and its numbers on rendered test faces; its variables."""
    experiment, options = RUNS[name]()
    state, report = train(experiment, options, seed=0, workdir=workdir / name)
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in report.metrics.items()), flush=True)
    if name == "recogniser":
        return {"params": state.params["backbone"], "batch_stats": state.model_state}
    return scorer.variables(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/analysis_demo"))
    parser.add_argument("--only", default=",".join(RUNS), help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--file", type=pathlib.Path, default=demo.asset(), help="to write")
    given = parser.parse_args()
    names = given.only.split(",")
    for name in names:
        if name not in RUNS:
            parser.error(f"--only: no network {name!r}: expected some of {', '.join(RUNS)}")
    found = {name: trained(name, given.workdir) for name in names}
    if len(found) == len(RUNS):
        print(f"{given.file}: {demo.write(given.file, found)} bytes")


if __name__ == "__main__":
    main()
