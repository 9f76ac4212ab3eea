"""End-to-end speed of the face world, faces per second: `python -m benchmarks.face_world`."""

from __future__ import annotations

import dataclasses
import time

from facejax.data.synthetic.faces import TASKS, generate

if __name__ == "__main__":
    for size, people in ((48, 60), (64, 60), (112, 25)):
        task = dataclasses.replace(TASKS["attributes"], image_size=size, per_person=16)
        for _ in generate(task, range(4)):
            pass
        start = time.perf_counter()
        count = sum(1 for _ in generate(task, range(people)))
        print(f"{size:4} pixels  {count / (time.perf_counter() - start):6.0f} faces/s  ({count} faces)")
