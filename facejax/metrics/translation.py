"""Quality of translations: corpus BLEU by sacrebleu, and sentences that are right to the last word."""

from __future__ import annotations

from collections.abc import Sequence


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a"
) -> float:
    """Corpus BLEU, 0 to 100, with one reference a sentence.

    Args:
      hypotheses, references: sentences, in the same order.
      lowercase, tokenize: sacrebleu's; `tokenize="none"` where both are tokenised already.
    """
    _check(hypotheses, references)
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU needs the sacrebleu library: pip install 'facejax[text]'") from error
    score = sacrebleu.corpus_bleu(hypotheses, [references], lowercase=lowercase, tokenize=tokenize, force=True)
    return float(score.score)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Percent of sentences that equal their reference."""
    _check(hypotheses, references)
    return 100 * sum(h == r for h, r in zip(hypotheses, references, strict=True)) / len(references)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"translation: {len(hypotheses)} hypotheses for {len(references)} references, expected equally many, not 0"
        )
