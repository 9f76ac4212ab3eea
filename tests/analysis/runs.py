"""Runs and faces without a network, for the tests of what is made of them."""

import json

import numpy as np

from facejax.analysis.faces import Faces
from facejax.data.synthetic.faces import png

WEIGHTS = {"detector": {"name": "boxes", "sha256": "d"}, "recogniser": {"name": "net", "sha256": "a" * 64}}


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faces_of(embeddings, sides=None):
    """Faces with boxes of the given sides, the first being the largest by default."""
    embeddings = unit(np.reshape(embeddings, (len(embeddings), -1)))
    sides = np.arange(len(embeddings), 0, -1.0) if sides is None else np.asarray(sides, float)
    boxes = np.stack([0 * sides, 0 * sides, 10 * sides, 10 * sides], 1).astype(np.float32)
    return Faces((100, 100), boxes, np.full(len(sides), 0.9, np.float32), embeddings=embeddings)


def people(count, per_person, width=16, noise=0.1, seed=0):
    """Unit embeddings [count * per_person, width] around orthogonal centres, and the people [count * per_person]."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), per_person)
    return unit(np.eye(width)[labels] + noise * rng.normal(size=(len(labels), width))), labels


class FakeAnalyzer:
    """An analyzer that looks photographs up by their file names; what is not there cannot be read."""

    def __init__(self, faces, sha256="a" * 64):
        self.faces, self.seen = faces, []
        self.identity = {**WEIGHTS, "recogniser": {"name": "net", "sha256": sha256}}
        self.settings = {"size": 640}

    def __call__(self, file):
        self.seen.append(str(file).rsplit("/", 1)[-1])
        if self.seen[-1] not in self.faces:
            raise ValueError(f"{file}: an image of 4 bytes does not decode")
        return self.faces[self.seen[-1]]


def make_run(folder, embeddings, files=None, facts=()):
    """A run's folder with a photograph for each row of embeddings, `facts` being further fields of its record."""
    (folder / "crops").mkdir(parents=True)
    run = {"format": 1, "facejax": "0", "dimension": embeddings.shape[1], "weights": WEIGHTS, "settings": {}}
    (folder / "run.json").write_text(json.dumps(run))
    with open(folder / "faces.jsonl", "w") as lines:
        for i in range(len(embeddings)):
            crop = f"crops/{i:08d}.png"
            (folder / crop).write_bytes(png(np.full((112, 112, 3), (7 * i) % 256, np.uint8)))
            face = {"id": i, "box": [0, 0, 9, 9], "score": round(0.5 + 0.001 * i, 3), "crop": crop}
            face |= facts[i] if i < len(facts) else {}
            file = files[i] if files else f"photo{i}.jpg"
            print(json.dumps({"file": file, "width": 50, "height": 40, "faces": [face]}), file=lines)
    (folder / "embeddings.f32").write_bytes(np.asarray(embeddings, "<f4").tobytes())
    return folder
