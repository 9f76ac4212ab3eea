"""A contact sheet of a task or of scenes: `python -m facejax.data.synthetic scenes_128 sheet.png --truth`."""

from __future__ import annotations

import argparse
import dataclasses

import cv2
import numpy as np

from facejax.data.synthetic import faces, scenes
from facejax.data.synthetic.faces import TASKS
from facejax.data.synthetic.scenes import SCENES


def main() -> None:
    """Renders examples and writes them as one image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*TASKS, *SCENES])
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--size", type=int, help="side of each face image in pixels; default: that of the task")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--truth", action="store_true", help="draw boxes and points of scenes")
    arguments = parser.parse_args()
    wanted, columns = arguments.columns * arguments.rows, arguments.columns
    if arguments.name in SCENES:
        images = scene_images(arguments.name, wanted, arguments.truth)
    else:
        images = face_images(arguments.name, wanted, arguments.size)
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, wanted, columns)]
    cv2.imwrite(arguments.output, np.concatenate(rows))


def face_images(name: str, wanted: int, size: int | None) -> list[np.ndarray]:
    """The first images [S, S, 3] BGR of a task, one per person and view."""
    task = dataclasses.replace(TASKS[name], image_size=size or TASKS[name].image_size, per_person=1)
    images: list[np.ndarray] = []
    for _, example in faces.generate(task, range(wanted)):
        encoded = example["image"] if isinstance(example["image"], list) else [example["image"]]
        images += [_decode(data) for data in encoded]
        if len(images) >= wanted:
            break
    return images[:wanted]


def scene_images(name: str, wanted: int, truth: bool) -> list[np.ndarray]:
    """The first test scenes [S, S, 3] BGR, with their boxes and points if `truth`."""
    settings = dataclasses.replace(SCENES[name], test=wanted)
    images = []
    for _, example in scenes.generate(settings, "test"):
        image = _decode(example["image"])
        if truth:
            grow = max(1, 512 // len(image))
            image = cv2.resize(image, None, fx=grow, fy=grow, interpolation=cv2.INTER_NEAREST)
            for i in range(example["count"]):
                low, high = np.rint(example["boxes"][i].reshape(2, 2) * grow).astype(int).tolist()
                cv2.rectangle(image, low, high, (0, 255, 0), 1)
                for point, seen in zip(example["points"][i], example["visible"][i], strict=True):
                    at = np.rint(point * grow).astype(int).tolist()
                    cv2.circle(image, at, max(1, grow // 2), (0, 255, 255) if seen else (0, 0, 255), -1)
        images.append(image)
    return images


def _decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


if __name__ == "__main__":
    main()
