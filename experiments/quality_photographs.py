"""Quality scores and labels on a published recogniser: photographs that are blurred, covered or made small.

    python -m experiments.quality_photographs --photographs att_faces --weights 068.ckpt

First the verification of the photographs as they are: with the 400 of AT&T (40 people) and MobileFaceNet's published
weights (Xiaoccer/MobileFaceNet_Pytorch), rank-1 0.990 and TAR at FAR 1e-1, 1e-2, 1e-3 of 0.961, 0.917, 0.823. Then
every photograph also gets a version of each fault, of random strength; half of the people are there to learn from, the
others are scored. Errors are the recogniser's own. Rows marked "label" know who is on the picture: they are what
networks are told, not what tells quality of a new face.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from experiments import arcface, ser_fiq
from experiments import quality_common as common
from facejax.backbones.mobilefacenet import ConvBlock, mobilefacenet_1x
from facejax.data import distortions, pipeline, readers, transforms
from facejax.interop import arcface_torch
from facejax.metrics import quality, verification
from facejax.quality import faceqnet, pcnet, sdd_fiqa, tinyfqnet
from facejax.quality import ser_fiq as robust
from facejax.train import Report, map_batches
from facejax.train.report import write_html

SIZE = (112, 96)
KINDS = ("blur", "occlusion", "resolution")
STRONGEST = {"blur": 6.0, "occlusion": 0.7, "resolution": 10.0}  # sigma in pixels; side over the width; factor
COLUMNS = ("aoc", "edc_area", "fault_correlation", *KINDS)


def worse(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A picture [H, W, 3] uint8 with a fault of strength 0..1."""
    level = STRONGEST[kind] * strength
    if kind == "blur":
        return distortions.blur(image, max(level, 1e-3), rng)
    if kind == "resolution":
        return distortions.resolution(image, max(level, 1.0), rng)
    side, covered = round(level * image.shape[1]), image.copy()
    top, left = (int(rng.integers(0, length - side + 1)) for length in image.shape[:2])
    cv2.rectangle(covered, (left, top), (left + side - 1, top + side - 1), (128, 128, 128), -1)
    return covered if side else image


def read(path: str, rng: np.random.Generator, limit: int = 0) -> common.Faces:
    """Photographs of all people, or the first `limit`: as they are, then a version of each fault.

    A fault's strength is drawn evenly from 0..1; `kind` is the place in `KINDS`, -1 for none.
    """
    source = readers.read(path)
    examples = [e for e in pipeline.fetch(source, range(len(source))) if not limit or arcface.label(e) < limit]
    clean = [transforms.resize(transforms.decode(e["image"]), *SIZE) for e in examples]
    labels = np.array([arcface.label(e) for e in examples])
    images, people, fault, kinds = list(clean), [labels], [np.zeros(len(clean))], [np.full(len(clean), -1)]
    for number, kind in enumerate(KINDS):
        strength = rng.random(len(clean))
        images += [worse(image, kind, level, rng) for image, level in zip(clean, strength, strict=True)]
        people, fault, kinds = [*people, labels], [*fault, strength], [*kinds, np.full(len(clean), number)]
    found = common.unmeasured(np.stack(images), np.concatenate(people))
    return found._replace(fault=np.concatenate(fault), kind=np.concatenate(kinds))


def embed(weights: str, images: np.ndarray, masks: int, dropout: float = 0.4) -> dict[str, np.ndarray]:
    """Embeddings [N, 256] of pictures beside their mirror images, and robustness [N] to dropout in the last layer.

    The published network was trained without dropout; the masks lie on the 512 numbers that its last layer takes.
    """
    net = mobilefacenet_1x(last="linear")
    template = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, *SIZE, 3)), train=False), jax.random.key(0))
    depthwise = ConvBlock(512, (7, 6), groups=512, linear=True)
    last = ConvBlock(128, 1, linear=True)

    def one(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        def part(name: str) -> dict[str, Any]:
            return {collection: tree[name] for collection, tree in variables.items()}

        pictures = (batch.astype(jnp.float32) - 127.5) / 128
        found, mirrored = (
            net.apply(variables, x, train=False, features=True) for x in (pictures, pictures[:, :, ::-1])
        )
        numbers = depthwise.apply(part("global_depthwise"), found["separate"], train=False)

        def drop(key: jax.Array) -> jax.Array:
            kept = jax.random.bernoulli(key, 1 - dropout, numbers.shape)
            told = last.apply(part("linear"), jnp.where(kept, numbers / (1 - dropout), 0.0), train=False)
            return told.reshape(len(batch), -1)

        draws = robust.stochastic_embeddings(drop, jax.random.key(0), masks)
        both = jnp.concatenate([found["embedding"], mirrored["embedding"]], 1)
        return {"embedding": both, "robustness": robust.robustness(draws)}

    return map_batches(one, arcface_torch.load(weights, template), images, 64)


def board(photographs: str, weights: str, *, seed: int = 0, people: int = 0, masks: int = 100) -> Report:
    """Verification of the photographs, and a row for every score and label.

    Args:
      photographs: what `facejax.data.readers.read` opens; one folder a person.
      weights: MobileFaceNet's, 112 x 96.
      seed: of the faults and of what learns.
      people: the first of them only; 0 is all.
      masks: of SER-FIQ.
    """
    known = read(photographs, np.random.default_rng([seed, 1]), people)
    found = embed(weights, known.images, masks)
    clean, judged = known.kind == -1, known.people >= (known.people.max() + 1) // 2
    fars = (1e-1, 1e-2, 1e-3)
    rates = verification.all_pairs_tar(found["embedding"][clean], known.people[clean], fars)
    metrics = {"rank1": verification.leave_one_out_rank1(found["embedding"][clean], known.people[clean])}
    metrics |= {f"tar_at_far_{far:.0e}".replace("e-0", "e-"): float(r) for far, r in zip(fars, rates, strict=True)}
    test = common.Faces(*(field[judged] for field in known))
    features = found["embedding"][judged]
    config = ser_fiq.get_config("on_top")
    config.seed, config.masks = seed, masks
    scores = {
        "ser_fiq in the last layer": found["robustness"][judged],
        "ser_fiq on top": ser_fiq.on_top(config, found["embedding"][~judged], known.people[~judged], features),
        "norm": np.linalg.norm(features, axis=1),
        "sdd_fiqa label": sdd_fiqa.pseudo_labels(jax.random.key(seed), features, test.people),
        "pcnet label": pcnet.free_confidences(features, test.people),
        "pcnet label, mean of both": pcnet.free_confidences(features, test.people, worse_only=False),
        "tinyfqnet label": tinyfqnet.centre_cosine(features, test.people),
        "faceqnet label": faceqnet.gallery_labels(features, test.people, -test.fault),
        **common.floors(test, seed),
    }
    compared = common.compare(features, test.people, *common.chosen_pairs(test.people, config.eval.pairs))
    rows, curves = [], {}
    for name, values in scores.items():
        row = {**common.measures(config, values, test, compared), **by_kind(values, test)}
        rows.append({"score": name, **{column: row[column] for column in COLUMNS}})
        curves[name] = common.discard_curve(config, values, compared)
    curves["true fault"] = common.discard_curve(config, -test.fault, compared)
    ordered = sorted(curves, key=lambda name: quality.partial_area(curves[name], 0.8))
    best = scores["sdd_fiqa label"]
    return Report(
        metrics,
        tables={"Scores of photographs": sorted(rows, key=lambda row: -row["aoc"])},
        figures={
            "Error over discarded": common.edc_figure(config, {name: curves[name] for name in ordered}),
            "SDD-FIQA's label over the strength of the fault": common.fault_figure(best, test, KINDS),
            "Robustness over the strength of the fault": common.fault_figure(
                scores["ser_fiq in the last layer"], test, KINDS
            ),
        },
        images={"By SDD-FIQA's label, from the worst to the best": common.ranked(best, test.images)},
        arrays=scores,
    )


def by_kind(scores: np.ndarray, test: common.Faces) -> dict[str, float]:
    """Rank correlation with being faultless, among the pictures that have the fault."""
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
