"""Quality scores and labels with a published recogniser: photographs that are blurred, occluded or reduced.

    python -m experiments.quality_photographs --photographs att_faces --weights 068.ckpt

First the verification of the photographs as they are: with the 400 of AT&T (40 people) and MobileFaceNet's published
weights (Xiaoccer/MobileFaceNet_Pytorch), rank-1 0.990 and TAR at FAR 1e-1, 1e-2, 1e-3 of 0.961, 0.917, 0.823. Then
every photograph also gets a version of each degradation, of random strength; half of the people are trained on, the
others are scored. Errors are the recogniser's own. Rows marked "label" use identities: they are targets that networks
are trained on, not scores of new faces.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facejax.backbones.mobilefacenet import ConvBlock, mobilefacenet_1x
from facejax.data import distortions, pipeline, readers, sources, transforms
from facejax.data.quality_faces import Faces, unmeasured
from facejax.evaluate.quality import QualityProtocol, baseline_scores, edc_figure, fault_figure, ranked
from facejax.evaluate.verification import CONVENTION, tar_metrics
from facejax.interop import arcface_torch
from facejax.metrics import quality, verification
from facejax.quality import faceqnet, pcnet, sdd_fiqa, ser_fiq, tinyfqnet
from facejax.recipes import on_top
from facejax.train import Experiment, Options, Report, map_batches, optim, train
from facejax.train.report import write_html

SIZE = (112, 96)
KINDS = ("blur", "occlusion", "resolution")
STRONGEST = {"blur": 6.0, "occlusion": 0.7, "resolution": 10.0}  # sigma in pixels; side over the width; factor
COLUMNS = ("aoc", "edc_area", "fault_correlation", *KINDS)


def degrade(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """An image [H, W, 3] uint8 with a degradation of strength 0..1."""
    level = STRONGEST[kind] * strength
    if kind == "blur":
        return distortions.blur(image, max(level, 1e-3), rng)
    if kind == "resolution":
        return distortions.resolution(image, max(level, 1.0), rng)
    side, covered = round(level * image.shape[1]), image.copy()
    top, left = (int(rng.integers(0, length - side + 1)) for length in image.shape[:2])
    cv2.rectangle(covered, (left, top), (left + side - 1, top + side - 1), (128, 128, 128), -1)
    return covered if side else image


def read(path: str, rng: np.random.Generator, limit: int = 0) -> Faces:
    """Photographs of all people, or the first `limit`: as they are, then a version of each degradation.

    Strengths are uniform in 0..1; `kind` is the place in `KINDS`, -1 for none.
    """
    source = readers.read(path)
    examples = [e for e in pipeline.fetch(source, range(len(source))) if not limit or sources.label(e) < limit]
    clean = [transforms.resize(transforms.decode(e["image"]), *SIZE) for e in examples]
    labels = np.array([sources.label(e) for e in examples])
    images, people, fault, kinds = list(clean), [labels], [np.zeros(len(clean))], [np.full(len(clean), -1)]
    for number, kind in enumerate(KINDS):
        strength = rng.random(len(clean))
        images += [degrade(image, kind, level, rng) for image, level in zip(clean, strength, strict=True)]
        people, fault, kinds = [*people, labels], [*fault, strength], [*kinds, np.full(len(clean), number)]
    found = unmeasured(np.stack(images), np.concatenate(people))
    return found._replace(fault=np.concatenate(fault), kind=np.concatenate(kinds))


def embed(weights: str, images: np.ndarray, masks: int, dropout: float = 0.4) -> dict[str, np.ndarray]:
    """Embeddings [N, 256] of images and their mirror images, concatenated; robustness [N] to dropout in the last layer.

    The published network was trained without dropout; the masks apply to the 512 inputs of its last layer.
    """
    net = mobilefacenet_1x(last="linear")
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, *SIZE, 3)), train=False), jax.random.key(0))
    depthwise = ConvBlock(512, (7, 6), groups=512, linear=True)
    last = ConvBlock(128, 1, linear=True)

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        def part(name: str) -> dict[str, Any]:
            return {collection: tree[name] for collection, tree in variables.items()}

        scaled = (batch.astype(jnp.float32) - 127.5) / 128
        found, mirrored = (net.apply(variables, x, train=False, features=True) for x in (scaled, scaled[:, :, ::-1]))
        numbers = depthwise.apply(part("global_depthwise"), found["separate"], train=False)

        def drop(key: jax.Array) -> jax.Array:
            kept = jax.random.bernoulli(key, 1 - dropout, numbers.shape)
            embedding = last.apply(part("linear"), jnp.where(kept, numbers / (1 - dropout), 0.0), train=False)
            return embedding.reshape(len(batch), -1)

        draws = ser_fiq.stochastic_embeddings(drop, jax.random.key(0), masks)
        both = jnp.concatenate([found["embedding"], mirrored["embedding"]], 1)
        return {"embedding": both, "robustness": ser_fiq.robustness(draws)}

    return map_batches(one, arcface_torch.load(weights, template), images, 64)


def board(photographs: str, weights: str, *, seed: int = 0, people: int = 0, masks: int = 100) -> Report:
    """Verification of the photographs, and a row for every score and label.

    Args:
      photographs: what `facejax.data.readers.read` opens; one folder a person.
      weights: MobileFaceNet's, 112 x 96.
      seed: of the degradations and of all training.
      people: the first of them only; 0 is all.
      masks: of SER-FIQ.
    """
    known = read(photographs, np.random.default_rng([seed, 1]), people)
    found = embed(weights, known.images, masks)
    clean, rows = known.kind == -1, known.people >= (known.people.max() + 1) // 2
    metrics = {"rank1": verification.leave_one_out_rank1(found["embedding"][clean], known.people[clean])}
    metrics |= tar_metrics(found["embedding"][clean], known.people[clean])
    test, protocol = Faces(*(field[rows] for field in known)), QualityProtocol()
    features = found["embedding"][rows]
    scores = {
        "ser_fiq in the last layer": found["robustness"][rows],
        "ser_fiq on top": on_top_scores(found["embedding"][~rows], known.people[~rows], features, seed, masks),
        "norm": np.linalg.norm(features, axis=1),
        "sdd_fiqa label": sdd_fiqa.pseudo_labels(jax.random.key(seed), features, test.people),
        "pcnet label": pcnet.free_confidences(features, test.people),
        "pcnet label, mean of both": pcnet.free_confidences(features, test.people, minimum_only=False),
        "tinyfqnet label": tinyfqnet.centre_cosine(features, test.people),
        "faceqnet label": faceqnet.gallery_labels(features, test.people, -test.fault),
        **baseline_scores(test, seed),
    }
    table, curves = [], {}
    for name, values in {**scores, "true fault": -test.fault}.items():
        rated = np.isfinite(values)  # FaceQnet's gallery images have no label
        own, some = values[rated], Faces(*(field[rated] for field in test))
        pairs = protocol.compare(features[rated], some.people)
        curves[name] = protocol.curve(own, pairs)
        if name in scores:
            row = {**protocol.measures(own, some, pairs), **by_kind(own, some)}
            table.append({"score": name, **{column: row[column] for column in COLUMNS}})
    ordered = sorted(curves, key=lambda name: quality.partial_area(curves[name], 0.8))
    best = scores["sdd_fiqa label"]
    return Report(
        metrics,
        tables={"Scores of photographs": sorted(table, key=lambda row: -row["aoc"])},
        figures={
            "Error over discarded": edc_figure({name: curves[name] for name in ordered}, protocol.start),
            "SDD-FIQA's label over the strength of the degradation": fault_figure(best, test, KINDS),
            "Robustness over the strength of the degradation": fault_figure(
                scores["ser_fiq in the last layer"], test, KINDS
            ),
        },
        images={"By SDD-FIQA's label, from the lowest to the highest": ranked(best, test.images)},
        arrays=scores,
        notes=CONVENTION,
    )


def on_top_scores(
    features: np.ndarray, people: np.ndarray, new: np.ndarray, seed: int, masks: int, steps: int = 2000
) -> np.ndarray:
    """Scores [M] of embeddings `new` [M, D] by SER-FIQ's network on top, trained on [N, D] of `people` [N]."""
    net, size = ser_fiq.OnTop(int(people.max()) + 1), 256
    source = on_top.examples(features, people, size)
    experiment = Experiment(
        evaluate=lambda state: Report({}),
        train_data=lambda: pipeline.train_batches(source, pipeline.stacked_batch, size, seed=seed),
        **on_top.training(net, optim.optimizer("adam", 1e-3), embedding_size=features.shape[1], batch_size=size),
    )
    state, _ = train(experiment, Options(batch_size=size, steps=steps), seed=seed, quiet=True)
    return on_top.scores(net, state.params, new, masks=masks, seed=seed)


def by_kind(scores: np.ndarray, test: Faces) -> dict[str, float]:
    """Rank correlation with the absence of each degradation, among the images that have it."""
    rows = {kind: test.kind == number for number, kind in enumerate(KINDS)}
    return {kind: quality.spearman(scores[here], -test.fault[here]) for kind, here in rows.items()}


def main() -> None:
    """Prints the numbers and the table, and writes report.html."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", required=True, help="a folder with one sub-folder for each person")
    parser.add_argument("--weights", required=True, help="068.ckpt of MobileFaceNet, 112 x 96")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", default="runs/quality_photographs")
    arguments = parser.parse_args()
    report = board(arguments.photographs, arguments.weights, seed=arguments.seed)
    print("photographs as they are: " + ", ".join(f"{name} {value:.3f}" for name, value in report.metrics.items()))
    print(f"{'score':28}" + "".join(f"{column:>19}" for column in COLUMNS))
    for row in report.tables["Scores of photographs"]:
        print(f"{row['score']:28}" + "".join(f"{row[column]:19.4f}" for column in COLUMNS))
    page = pathlib.Path(arguments.workdir) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_html(page, "quality_photographs", report, [], str(vars(arguments)), __doc__.partition("\n")[0])
    print(f"report: {page}")


if __name__ == "__main__":
    main()
