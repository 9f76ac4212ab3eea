"""Rendered faces as a function of codes: a generator whose factors are known, so the truth of every edit is known.

A vector holds one factor an entry; a fixed random invertible map turns it into w of a style-based generator, and back.
Of a code with a w for every layer, each factor is read from some neighbouring layers: pose from the first, colours from
the last. The renderer draws the factors.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from facejax.data.synthetic import factors as factor
from facejax.data.synthetic.factors import Factors, Ranges
from facejax.data.synthetic.render import Renderer
from facejax.morphable.procedural import procedural

DARK, FAIR = np.array([0.04, 0.03, 0.03]), np.array([0.62, 0.50, 0.30])
YAW, PITCH, MOUTH, SKIN, ZOOM, BATCH = 0.6, 0.3, 0.9, 1.6, 0.3, 64
"""Largest angles (radians), opening of the mouth, weight of the first albedo direction; enlargement of the heads; faces
rendered at once."""
BINARY = ("glasses",)
ATTRIBUTES = ("yaw", "pitch", "mouth", "glasses", "skin", "hair")
"""Attributes by name, from coarse to fine. Numbers are uniform in -1..1: yaw, pitch, from a closed to an open mouth,
skin and hair from dark to light. Glasses are worn (above 0) or not."""


@dataclasses.dataclass(frozen=True)
class FactorFaces:
    """The `data` section: whole heads on a grey background.

    Attributes:
      image_size: side of the images, pixels.
      attributes: some of `ATTRIBUTES`, the first entries of a vector; the others keep their middle value.
      shapes: further entries: the first directions of the head's shape, which make the identity.
      layers: L, layers of a code.
      depth: nonlinear layers of the map to w.
      slope: of the map's leaky ReLU below zero, above 0; 1 makes the map a rotation.
      train, test: numbers of faces.
      seed: of the map and the faces.
    """

    image_size: int = 32
    attributes: tuple[str, ...] = ("yaw", "mouth", "glasses", "skin", "hair")
    shapes: int = 11
    layers: int = 8
    depth: int = 2
    slope: float = 0.2
    train: int = 2048
    test: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", tuple(self.attributes))  # a list in a run's config.json
        if unknown := [name for name in self.attributes if name not in ATTRIBUTES]:
            raise ValueError(f"data.attributes has {unknown[0]!r}: expected some of {', '.join(ATTRIBUTES)}")
        if not 0 < self.slope <= 1:
            raise ValueError(f"data.slope is {self.slope}: expected above 0 to 1")

    @property
    def size(self) -> int:
        """D, entries of a vector and of w."""
        return len(self.attributes) + self.shapes

    @property
    def binary(self) -> tuple[bool, ...]:
        """Of each attribute, whether it is there or not."""
        return tuple(name in BINARY for name in self.attributes)

    def codes(self, vectors: jax.Array) -> jax.Array:
        """Codes [N, L, D] of vectors [N, D], which are normal: the same w for every layer."""
        x = vectors
        for turn in _turns(self):
            x = x @ turn
            x = jnp.where(x > 0, x, self.slope * x)
        return jnp.repeat(x[:, None], self.layers, 1)

    def vectors(self, codes: jax.Array) -> jax.Array:
        """Vectors [N, D] of codes [N, L, D]; of `codes` exactly those that they were made of."""
        x = codes
        for turn in _turns(self)[::-1]:
            x = jnp.where(x > 0, x, x / self.slope)
            x = x @ turn.T
        return jnp.einsum("nld,ld->nd", x, _shares(self))

    def values(self, vectors: jax.Array) -> jax.Array:
        """Attributes [N, A] in -1..1 of vectors [N, D]; binary ones are -1 or 1."""
        own = vectors[:, : len(self.attributes)]
        numbers = 2 * jax.scipy.stats.norm.cdf(own) - 1
        return jnp.where(jnp.asarray(self.binary), jnp.where(own > 0, 1.0, -1.0), numbers)

    def outputs(self, vectors: jax.Array) -> jax.Array:
        """Outputs of a perfect predictor, [N, A]: the numbers, and logits of binary attributes."""
        own = vectors[:, : len(self.attributes)]
        return jnp.where(jnp.asarray(self.binary), LOGIT * own, self.values(vectors))

    def changed(self, vectors: np.ndarray, values: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Perfect edits: vectors [N, D] with the values [N, A] in -1..1 where active [N, A], all else as it was."""
        own = vectors[:, : len(self.attributes)]
        wanted = np.where(self.binary, np.abs(own) * np.sign(values), ndtri((values.clip(-0.999, 0.999) + 1) / 2))
        return np.concatenate([np.where(active, wanted, own), vectors[:, len(self.attributes) :]], 1).astype(np.float32)

    def factors(self, vectors: np.ndarray) -> Factors:
        """Factors of the renderer, stacked, of vectors [N, D]."""
        face = procedural()
        dimensions = len(face.identity_std), len(face.albedo_std)
        none = Ranges(*[0.0] * 6, hair=1.0, glasses=0.0, defocus=0.0, noise=0.0, jpeg=0.0, tinted=0.0, age=(30.0, 30.0))
        one = {**factor.person(0, 0, dimensions, none), **factor.picture(0, 0, 0, len(face.expressions), none)}
        one |= {
            "identity": np.zeros(dimensions[0]), "albedo": np.zeros(dimensions[1]), "hair_line": np.array(0.58),
            "hair_side": np.array(0.5), "hair_length": np.array(-0.3), "hair_volume": np.array(0.07),
            "hair_part": np.array(0.2), "light_direction": np.array([0.3, 0.4, 1.0]), "light_colour": 0.8 * np.ones(3),
            "ambient": 0.35 * np.ones(3), "jitter": np.array([0, 0, ZOOM]), "distance": np.array(8.0),
            "frame_size": np.array([0.2, 0.15]), "frame_shape": np.array(2.6), "frame_colour": 0.03 * np.ones(3),
            "tint": np.array(0.5), "background": 0.5 * np.ones((2, 3)),
        }  # fmt: skip
        found = {name: np.repeat(value[None], len(vectors), 0) for name, value in one.items()}
        given = dict(zip(self.attributes, np.asarray(self.values(vectors)).T, strict=True))
        value = {name: given.get(name, np.zeros(len(vectors))) for name in ATTRIBUTES}
        found["identity"][:, : self.shapes] = vectors[:, len(self.attributes) :].clip(-2, 2)
        found["albedo"][:, 0] = SKIN * value["skin"]
        found["pose"] = np.stack([PITCH * value["pitch"], YAW * value["yaw"], 0 * value["yaw"]], 1)
        found["expression_strength"][:, list(face.expressions).index("jaw_open")] = MOUTH * (value["mouth"] + 1) / 2
        fair = (value["hair"][:, None] + 1) / 2
        found["hair_colour"] = DARK * (1 - fair) + FAIR * fair
        found["glasses"] = (value["glasses"] > 0).astype(float)
        return found

    def render(self, vectors: np.ndarray) -> np.ndarray:
        """Images uint8 [N, S, S, 3] of vectors [N, D]."""
        renderer, images = _renderer(self.image_size), []
        for start in range(0, len(vectors), BATCH):
            part = vectors[start : start + BATCH]
            padded = self.factors(np.concatenate([part, part[-1:].repeat(BATCH - len(part), 0)]))
            drawn = renderer(padded)
            images += [renderer.compose(drawn, padded, i) for i in range(len(part))]
        return np.stack(images)

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [N, D] and images uint8 [N, S, S, 3] of "train" or "test"; rendered once in a process."""
        return _rendered(self, split)

    def draw(self, split: str) -> np.ndarray:
        """The vectors [N, D] of "train" or "test"."""
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}: expected 'train' or 'test'")
        rng = np.random.default_rng([self.seed, split == "test"])
        return rng.normal(size=(getattr(self, split), self.size)).astype(np.float32)


LOGIT = 5.0
"""Logit of a perfect predictor of a binary attribute, for one standard deviation of its factor."""


def _turns(faces: FactorFaces) -> list[np.ndarray]:
    """Random rotations [D, D], one for each layer of the map."""
    rng = np.random.default_rng([faces.seed, 2])
    found = [np.linalg.qr(rng.normal(size=(faces.size, faces.size)))[0] for _ in range(faces.depth)]
    return [turn.astype(np.float32) for turn in found]


def _shares(faces: FactorFaces) -> np.ndarray:
    """[L, D] shares of the layers in each factor: attributes in order from the first to the last layer, width one."""
    place = np.linspace(0, faces.layers - 1, len(faces.attributes))
    place = np.append(place, np.full(faces.shapes, (faces.layers - 1) / 3))
    weight = np.exp(-0.5 * (np.arange(faces.layers)[:, None] - place) ** 2)
    return (weight / weight.sum(0)).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _renderer(size: int) -> Renderer:
    return Renderer(procedural(), size, aligned=False)


@functools.lru_cache(maxsize=4)
def _rendered(faces: FactorFaces, split: str) -> tuple[np.ndarray, np.ndarray]:
    vectors = faces.draw(split)
    return vectors, faces.render(vectors)
