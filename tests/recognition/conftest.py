"""Small folders of noisy pictures in place of data sets."""

import numpy as np
import pytest

from facejax.data.synthetic.faces import png


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory):
    """(name, numbers of pictures) -> a folder of as many people with so many noisy pictures each."""

    def make(name, pictures):
        folder, rng = tmp_path_factory.mktemp(name), np.random.default_rng(0)
        for person, count in enumerate(pictures):
            base = rng.integers(0, 255, (4, 4, 3)).repeat(6, 0).repeat(6, 1)
            (folder / f"p{person}").mkdir()
            for i in range(count):
                image = np.clip(base + rng.normal(size=(24, 24, 3)) * 8, 0, 255).astype(np.uint8)
                (folder / f"p{person}" / f"{i}.png").write_bytes(png(image))
        return folder

    return make
