"""Every library function that takes features checks them: one bad row would spoil the others silently."""

import jax
import numpy as np
import pytest

from facejax.clustering import baselines, cdp
from facejax.metrics import identification, template, verification
from facejax.ops import knn
from facejax.quality import faceqnet, human_quality, pcnet, sdd_fiqa, tinyfqnet


def bad(count, width=4):
    return np.where(np.arange(count)[:, None] == 1, np.nan, np.ones((count, width), np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda: knn.knn(bad(6), 2),
        lambda: baselines.baseline("components", bad(6), 0.5, k=2, clusters=2),
        lambda: cdp.mediator_features(bad(6)[None], [], cdp.Pairs(np.array([0]), np.array([2]), np.ones(1))),
        lambda: faceqnet.gallery_labels(bad(6), np.arange(6) // 2, np.arange(6)),
        lambda: human_quality.matcher_quality(bad(6), np.arange(6) // 2, np.arange(6)),
        lambda: pcnet.free_confidences(bad(6), np.arange(6) // 2),
        lambda: sdd_fiqa.pseudo_labels(jax.random.key(0), bad(6), np.arange(6) // 2),
        lambda: tinyfqnet.centre_cosine(bad(6), np.arange(6) // 2),
        lambda: template.image_features(bad(6)),
        lambda: identification.refine_distractors(bad(6), np.zeros(6, bool)),
        lambda: identification.refine_probes(bad(6), np.arange(6), np.zeros(6, bool), np.random.default_rng(0)),
        lambda: verification.all_pairs(bad(6), np.arange(6) // 2),
        lambda: verification.leave_one_out_rank1(bad(6), np.arange(6) // 2),
    ],
)
def test_library_functions_check_their_features(call):
    with pytest.raises(ValueError, match="row 1 is not finite"):
        call()
