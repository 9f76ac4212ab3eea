"""Scores of translations and a figure of a Transformer's attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facejax.data import text
from facejax.metrics import translation
from facejax.train import new_figure


def scores(found: Sequence[str], references: Sequence[str], *, tokenized: bool, cased: bool) -> dict[str, float]:
    """Exact translations and BLEU, in percent.

    Args:
      found, references: sentences, in the same order.
      tokenized: whether words are tokens already; BLEU is then computed on them as they are.
      cased: whether capitals were kept; if so, "bleu" counts them and "bleu_lower" does not.
    """
    exact = {"exact_match": translation.exact_match(found, references)}
    if tokenized:
        return exact | {"bleu": translation.bleu(found, references, tokenize="none")}
    with_case = {"bleu": translation.bleu(found, references)} if cased else {}
    return {"bleu_lower": translation.bleu(found, references, lowercase=True), **with_case, **exact}


def attention_figure(net: Any, params: Any, vocabulary: Any, source: str, found: str) -> Any:
    """Attention of the last layer from target to source, averaged over the heads.

    Args:
      net, params: a `facejax.foundations.transformer.Transformer`.
      vocabulary: `Words` or `BytePairs`.
      source, found: a sentence and its translation.
    """
    rows, target = (np.array([vocabulary.encode(s)]) for s in (source, found))
    _, state = net.apply({"params": params}, rows, text.shift(target), train=False, mutable=["attention"])
    layer = state["attention"][f"decoder_{net.layers - 1}"]["other"]["weights"][0]
    words, outputs = ([vocabulary.decode([t]) or "</s>" for t in side[0]] for side in (rows, target))
    figure, axis = new_figure(0.45 * len(words) + 1.5, 0.4 * len(outputs) + 1.5)
    axis.imshow(np.asarray(layer[0].mean(0)), cmap="magma_r", aspect="auto")
    axis.set_xticks(range(len(words)), words, rotation=60)
    axis.set_yticks(range(len(outputs)), outputs)
    axis.grid(False)
    return figure
