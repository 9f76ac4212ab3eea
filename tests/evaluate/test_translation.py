"""Scores of translations with and without capitals."""

import pytest

from facejax.evaluate.translation import scores


def test_bleu_counts_capitals_only_if_they_were_kept():
    found, references = ["Ein Hund läuft, er bellt."], ["ein hund läuft, er bellt."]
    lower = scores(found, references, tokenized=False, cased=False)
    assert lower == {"bleu_lower": pytest.approx(100), "exact_match": 0}
    assert scores(found, references, tokenized=False, cased=True)["bleu"] < 80
    assert scores(references, references, tokenized=False, cased=True)["bleu"] == pytest.approx(100)
