"""Translation metrics: corpus BLEU (sacrebleu) and exact matches of whole sentences."""

from __future__ import annotations

from collections.abc import Sequence


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a"
) -> float:
    """Corpus BLEU in 0..100, with one reference per sentence.

    Args:
      hypotheses, references: sentences, in the same order.
      lowercase, tokenize: passed to sacrebleu; `tokenize="none"` for text that is already tokenised.
    """
    _check(hypotheses, references)
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU needs the sacrebleu library: pip install 'facejax[text]'") from error
    score = sacrebleu.corpus_bleu(hypotheses, [references], lowercase=lowercase, tokenize=tokenize, force=True)
    return float(score.score)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Percentage of sentences that equal their reference."""
    _check(hypotheses, references)
    return 100 * sum(h == r for h, r in zip(hypotheses, references, strict=True)) / len(references)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"translation: {len(hypotheses)} hypotheses for {len(references)} references, expected equal, above 0"
        )
