"""A face world of a few people, so that every quality experiment runs whole in seconds."""

import dataclasses

import pytest

from facejax.data.synthetic import faces

SMALL = {
    "recognition": {"train": 8, "test": 2, "per_person": 8},
    "recognition_other": {"train": 8, "test": 2, "per_person": 8},
    "quality": {"train": 6, "test": 6, "per_person": 2},
    "sets": {"train": 6, "test": 6, "per_person": 2},
}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """Folder of prepared data, shared by the tests of all modules in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, changes in SMALL.items():
            patch.setitem(faces.TASKS, name, dataclasses.replace(faces.TASKS[name], **changes))
        yield tmp_path_factory.getbasetemp() / "quality_world"
