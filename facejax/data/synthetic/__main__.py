"""A contact sheet of a task: `python -m facejax.data.synthetic TASK sheet.png`."""

from __future__ import annotations

import argparse
import dataclasses

import cv2
import numpy as np

from facejax.data.synthetic.faces import TASKS, generate


def main() -> None:
    """Renders examples of a task and writes them as one image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--size", type=int, help="side of each image in pixels; default: that of the task")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=4)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    size = arguments.size or task.image_size
    task = dataclasses.replace(task, image_size=size, per_person=1)
    images: list[np.ndarray] = []
    wanted = arguments.columns * arguments.rows
    for _, example in generate(task, range(wanted)):
        encoded = example["image"] if isinstance(example["image"], list) else [example["image"]]
        images += [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in encoded]
        if len(images) >= wanted:
            break
    columns = arguments.columns
    rows = [np.concatenate(images[i : i + columns], 1) for i in range(0, wanted, columns)]
    cv2.imwrite(arguments.output, np.concatenate(rows))


if __name__ == "__main__":
    main()
