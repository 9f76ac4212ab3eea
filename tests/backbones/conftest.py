import numpy as np
import pytest

from facejax.data.synthetic.faces import png


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """A folder train/class/picture, val/class/picture of four classes of noise around a colour, not square."""
    root, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 2)):
        for c in range(4):
            (root / split / f"c{c}").mkdir(parents=True)
            for i in range(number):
                image = np.uint8(np.clip(60 * c + rng.normal(size=(20, 28, 3)) * 20, 0, 255))
                (root / split / f"c{c}" / f"{i}.png").write_bytes(png(image))
    return root
