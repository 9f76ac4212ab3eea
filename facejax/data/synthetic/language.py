"""A synthetic language pair with a known grammar: every sentence has exactly one correct translation.

A source sentence is a noun phrase (determiner, adjectives, noun), a verb, a second noun phrase and an optional adverb.
In the target, the adverb is first, the verb last, and adjectives follow their noun in reverse order; determiners and
adjectives agree with the noun in gender and number, the verb with its subject in number.
"""

from __future__ import annotations

import numpy as np

NOUNS = {"man": "vir", "dog": "kan", "horse": "eko", "king": "rego", "woman": "fema", "cat": "feli", "house": "domi",
         "queen": "regi", "child": "puero", "book": "libo", "tree": "arbo", "star": "stelo"}  # fmt: skip
"""Four nouns per gender, in the order m, f, n."""
ADJECTIVES = {"big": "grand", "small": "pet", "old": "vet", "red": "rub", "good": "bon", "black": "nig"}
VERBS = {"see": "vid", "love": "am", "find": "trov", "hear": "aud", "follow": "sek"}
ADVERBS = {"today": "hodi", "often": "sepe", "slowly": "lente"}
DETERMINERS = {"the": "l", "this": "st", "some": "kv"}
ENDINGS = {("m", 0): "o", ("m", 1): "i", ("f", 0): "a", ("f", 1): "e", ("n", 0): "u", ("n", 1): "y"}


def words() -> list[str]:
    """Every word of both languages, sorted."""
    source = [*ADJECTIVES, *ADVERBS, *DETERMINERS]
    source += [word + s for word in NOUNS for s in ("", "s")] + [word + s for word in VERBS for s in ("s", "")]
    target = [*ADVERBS.values()]
    target += [stem + e for stem in (*ADJECTIVES.values(), *DETERMINERS.values()) for e in ENDINGS.values()]
    target += [stem + s for stem in NOUNS.values() for s in ("", "n")]
    target += [stem + s for stem in VERBS.values() for s in ("at", "ant")]
    return sorted({*source, *target})


def pairs(count: int, seed: int, max_adjectives: int = 3) -> list[tuple[str, str]]:
    """`count` distinct random (source, target) sentences.

    Args:
      count: number of pairs.
      seed: seed of the draws.
      max_adjectives: largest number of adjectives per noun.

    Raises:
      ValueError: the draws yield fewer distinct sentences.
    """
    rng, found = np.random.default_rng(seed), {}
    for _ in range(20 * count):
        found.setdefault(*_sentence(rng, max_adjectives))
        if len(found) == count:
            return list(found.items())
    raise ValueError(f"language: the grammar yielded {len(found)} distinct sentences, expected {count}")


def _sentence(rng: np.random.Generator, most: int) -> tuple[str, str]:
    (first, subject, number), (second, thing, _) = _group(rng, most), _group(rng, most)
    verb = str(rng.choice(list(VERBS)))
    source, target = [*first, verb + ("" if number else "s"), *second], [*subject, *thing]
    target.append(VERBS[verb] + ("ant" if number else "at"))
    if rng.random() < 0.5:
        adverb = str(rng.choice(list(ADVERBS)))
        source, target = [*source, adverb], [ADVERBS[adverb], *target]
    return " ".join(source), " ".join(target)


def _group(rng: np.random.Generator, most: int) -> tuple[list[str], list[str], int]:
    place, number = rng.integers(len(NOUNS)), int(rng.integers(2))
    noun, determiner = list(NOUNS)[place], str(rng.choice(list(DETERMINERS)))
    adjectives = [str(a) for a in rng.choice(list(ADJECTIVES), rng.integers(most + 1), replace=False)]
    ending = ENDINGS["mfn"[place // 4], number]
    source = [determiner, *adjectives, noun + "s" * number]
    target = [NOUNS[noun] + "n" * number, *(ADJECTIVES[a] + ending for a in reversed(adjectives))]
    return source, [DETERMINERS[determiner] + ending, *target], number
