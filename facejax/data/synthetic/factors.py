"""Random factors of rendered faces, by name, within the ranges of a task.

The factors of a person (shape, albedo, hair) depend on (seed, person), those of an image (pose, light, expression,
blur) on (seed, person, image), and neither on the number or order of other draws.
"""

from __future__ import annotations

import dataclasses

import numpy as np

Factors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of the factors. Angles are in radians, probabilities in 0..1; (low, high) are uniform ranges.

    Attributes:
      pitch, yaw, roll: standard deviations of the head's pose; if `yaw_uniform` is not 0, yaw is uniform within it.
      expression: largest strength of an expression, 0..1.
      light: strength of the variation of the light's direction, colour and contrast, 0..1.
      jitter: standard deviation of scale and position, relative to the image's size.
      hair, glasses, occluder, motion, defocus, noise, jpeg, low_resolution: probability of each.
      tinted: probability that glasses are tinted.
      age: years.
      motion_pixels, defocus_pixels, noise_levels, jpeg_quality, resolution: ranges of the strengths; pixels refer to an
        image of 112 pixels, `resolution` is the downsampling factor.
    """

    pitch: float = 0.12
    yaw: float = 0.25
    yaw_uniform: float = 0.0
    roll: float = 0.08
    expression: float = 0.7
    light: float = 0.7
    jitter: float = 0.03
    hair: float = 0.95
    glasses: float = 0.15
    tinted: float = 0.3
    occluder: float = 0.0
    motion: float = 0.0
    defocus: float = 0.1
    noise: float = 0.2
    jpeg: float = 0.2
    low_resolution: float = 0.0
    age: tuple[float, float] = (18.0, 75.0)
    motion_pixels: tuple[float, float] = (4.0, 14.0)
    defocus_pixels: tuple[float, float] = (0.8, 3.0)
    noise_levels: tuple[float, float] = (2.0, 12.0)
    jpeg_quality: tuple[float, float] = (25.0, 80.0)
    resolution: tuple[float, float] = (2.0, 6.0)


HAIR_COLOURS = np.array(
    [
        [0.05, 0.04, 0.035],
        [0.10, 0.07, 0.05],
        [0.20, 0.13, 0.08],
        [0.35, 0.20, 0.12],
        [0.55, 0.42, 0.26],
        [0.45, 0.20, 0.12],
    ]
)


def person(seed: int, number: int, dimensions: tuple[int, int], ranges: Ranges) -> Factors:
    """The factors that all images of a person share.

    Args:
      seed, number: the task's seed and the person's number.
      dimensions: numbers of identity and albedo coefficients of the morphable model.
      ranges: ranges of the task.
    """
    rng = np.random.default_rng([seed, number])
    identity = np.clip(rng.normal(size=dimensions[0]), -2, 2)
    albedo = np.clip(rng.normal(size=dimensions[1]), -2, 2)
    age = rng.uniform(*ranges.age)
    old = np.clip((age - 35) / 45, 0, 1)
    colour = HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))] * rng.uniform(0.7, 1.25)
    grey = np.clip(rng.normal(old * 1.2 - 0.15, 0.2), 0, 1)
    colour = colour * (1 - grey) + np.array([0.62, 0.61, 0.60]) * grey
    return {
        "identity": identity,
        "albedo": albedo,
        "age": np.array(age),
        "hair": np.array(float(rng.random() < ranges.hair)),
        "hair_colour": colour,
        "hair_line": np.array(rng.normal(0.58, 0.05) + 0.18 * old * (rng.random() < 0.5)),
        "hair_side": np.array(rng.uniform(0.25, 0.75)),
        "hair_length": np.array(rng.choice([-0.30, -0.30, -0.55, -0.95]) + rng.normal() * 0.04),
        "hair_volume": np.array(rng.uniform(0.035, 0.11)),
        "hair_part": np.array(rng.normal() * 0.25),
        "hair_phase": np.array(rng.uniform(0, 6.28)),
    }


def picture(seed: int, number: int, index: int, expressions: int, ranges: Ranges) -> Factors:
    """The factors of a single image.

    Args:
      seed, number, index: the task's seed, the person's number and the image's number.
      expressions: number of expressions of the model.
      ranges: ranges of the task.
    """
    rng = np.random.default_rng([seed, number, index, 1])
    yaw = rng.uniform(-1, 1) * ranges.yaw_uniform if ranges.yaw_uniform else rng.normal() * ranges.yaw
    pose = np.array([rng.normal() * ranges.pitch, yaw, rng.normal() * ranges.roll])
    strength = np.zeros(expressions)
    for which in rng.permutation(expressions)[: rng.integers(0, 3)]:
        strength[which] = rng.uniform(0, ranges.expression)
    direction = np.array([rng.normal() * 0.9, 0.35 + rng.normal() * 0.5, 1.0])
    direction[:2] *= ranges.light
    ambient = 0.38 - 0.2 * ranges.light * rng.random()
    warm = 1 + ranges.light * 0.10 * rng.normal() * np.array([1.0, 0.1, -1.0])

    def maybe(chance: float, span: tuple[float, float]) -> np.ndarray:
        value = rng.uniform(*span)
        return np.array(value if rng.random() < chance else 0.0)

    return {
        "pose": pose,
        "expression_strength": strength,
        "light_direction": direction,
        "light_colour": (0.80 + ranges.light * rng.uniform(-0.25, 0.15)) * warm,
        "ambient": ambient * np.ones(3),
        "jitter": np.array([rng.normal(), rng.normal(), rng.normal()]) * ranges.jitter,
        "distance": np.array(rng.uniform(4.5, 12.0)),
        "glasses": np.array(float(rng.random() < ranges.glasses)),
        "frame_size": np.array([rng.uniform(0.175, 0.215), rng.uniform(0.115, 0.175)]),
        "frame_shape": np.array(rng.choice([2.0, 2.6, 4.0])),
        "frame_colour": rng.choice([0.02, 0.05, 0.25]) * rng.uniform(0.6, 1.4, 3),
        "tint": np.array(rng.uniform(0.45, 0.95) if rng.random() < ranges.tinted else 0.06),
        "background": rng.uniform(0.05, 0.75, (2, 3)),
        "background_seed": np.array(rng.integers(2**31)),
        "occluder": maybe(ranges.occluder, (0.20, 0.50)),
        "occluder_place": rng.uniform(0.15, 0.85, 2),
        "occluder_colour": rng.uniform(0.05, 0.9, 3),
        "motion": maybe(ranges.motion, ranges.motion_pixels),
        "motion_angle": np.array(rng.uniform(0, np.pi)),
        "defocus": maybe(ranges.defocus, ranges.defocus_pixels),
        "resolution": np.maximum(maybe(ranges.low_resolution, ranges.resolution), 1.0),
        "noise": maybe(ranges.noise, ranges.noise_levels),
        "jpeg": maybe(ranges.jpeg, ranges.jpeg_quality),
        "degrade_seed": np.array(rng.integers(2**31)),
    }


def stack(examples: list[Factors]) -> Factors:
    """Stacks the factors of examples along a new leading axis."""
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}
