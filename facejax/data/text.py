"""Tokenisation and batching of sentences: vocabularies of words or byte pairs, and length buckets.

Token 0 is padding, 1 the begin and 2 the end of a sequence, 3 an unknown token.
"""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from facejax.formats import texts

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BEGIN, END, UNKNOWN = range(4)


def read_pairs(
    folder: str | os.PathLike[str], part: str, languages: Sequence[str], lower: bool = False
) -> list[list[str]]:
    """Sentences of each language, from files folder/PART.LANGUAGE or folder/PART.LANGUAGE.gz, one sentence per line.

    Pairs with an empty line in any language are dropped; a warning tells how many.

    Args:
      folder: folder of the files.
      part: PART, such as "train".
      languages: LANGUAGE of each file.
      lower: whether to lower-case the sentences.

    Raises:
      ValueError: the languages differ in their number of lines, or all pairs have an empty line.
    """
    sides = [read_lines(pathlib.Path(folder) / f"{part}.{name}", lower) for name in languages]
    if len(set(map(len, sides))) > 1:
        counts = " and ".join(f"{part}.{n} {len(side)}" for n, side in zip(languages, sides, strict=True))
        raise ValueError(f"{folder}: {counts} sentences, expected equally many")
    kept = [pair for pair in zip(*sides, strict=True) if all(pair)]
    if not kept:
        raise ValueError(f"{folder}: {part} has no pair without an empty line, expected one sentence per line")
    if len(kept) < len(sides[0]):
        count = f"{len(sides[0]) - len(kept)} of {len(sides[0])} pairs"
        warnings.warn(f"{folder}: {part} has {count} with an empty line: dropped", stacklevel=2)
    return list(map(list, zip(*kept, strict=True)))


def read_lines(path: pathlib.Path, lower: bool) -> list[str]:
    """Sentences of a UTF-8 file, one per line; if the file name with .gz appended exists, of that file."""
    packed = path.with_name(f"{path.name}.gz")
    found = texts.lines(texts.read_packed(packed) if packed.exists() else texts.read(path))
    return [line.strip().lower() if lower else line.strip() for line in found]


class Words:
    """A vocabulary of whole words, for small languages."""

    def __init__(self, words: Iterable[str]):
        self._words = [*SPECIAL, *words]
        self._numbers = {word: i for i, word in enumerate(self._words)}

    def __len__(self) -> int:
        return len(self._words)

    def encode(self, sentence: str) -> list[int]:
        """Tokens of a sentence, END last. Raises ValueError for a word outside the vocabulary."""
        unknown = [word for word in sentence.split() if word not in self._numbers]
        if unknown:
            raise ValueError(f"text: {unknown[0]!r} in {sentence!r} is not one of the vocabulary's {len(self)} words")
        return [*(self._numbers[word] for word in sentence.split()), END]

    def decode(self, tokens: Iterable[int]) -> str:
        """The sentence up to END."""
        return " ".join(self._words[t] for t in until_end(tokens))


class BytePairs:
    """A joint byte-pair vocabulary, learnt by the tokenizers library; unknown characters become <unk>.

    Args:
      sentences: sentences of both languages.
      size: number of tokens, including the four special ones.

    Raises:
      ValueError: the sentences yield fewer tokens.
    """

    def __init__(self, sentences: Iterable[str], size: int):
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("byte pairs need the tokenizers library: pip install 'facejax[text]'") from error
        model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL[UNKNOWN]))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.Punctuation()]
        )  # separates punctuation marks; decoding restores the sentence
        model.decoder = tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
        model.train_from_iterator(sentences, trainer)
        if model.get_vocab_size() != size:
            raise ValueError(f"text: the sentences yield {model.get_vocab_size()} byte pairs, expected {size}")
        self._model = model

    def __len__(self) -> int:
        return self._model.get_vocab_size()

    def encode(self, sentence: str) -> list[int]:
        """Tokens of a sentence, END last."""
        return [*self._model.encode(sentence).ids, END]

    def decode(self, tokens: Iterable[int]) -> str:
        """The sentence up to END."""
        return self._model.decode([int(t) for t in until_end(tokens)], skip_special_tokens=False)


def until_end(tokens: Iterable[int]) -> list[int]:
    """The tokens before the first END or PAD."""
    kept = []
    for token in tokens:
        if token in (END, PAD):
            break
        kept.append(int(token))
    return kept


def pad(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Pads sequences to int32 [N, length]. Raises ValueError for one that is empty (only END) or too long."""
    for i, sequence in enumerate(sequences):
        if not until_end(sequence):
            raise ValueError(f"text: sentence {i} is empty, expected at least one token before its end")
        if len(sequence) > length:
            raise ValueError(f"text: sentence {i} has {len(sequence)} tokens with its end, expected at most {length}")
    table = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence)] = sequence
    return table


def shift(target: np.ndarray) -> np.ndarray:
    """The decoder's input [N, T]: BEGIN, then `target` without its last column."""
    return np.concatenate([np.full((len(target), 1), BEGIN, target.dtype), target[:, :-1]], 1)


class Buckets:
    """Endless batches with a fixed number of padded tokens; `get_state` and `set_state` save and restore the position.

    Each pair belongs to the shortest bucket that fits both sides. A batch of a bucket of length l contains tokens // l
    rows of source and of target, flattened, so that every batch has the shape [tokens].

    Args:
      source, target: tokens of each pair, END last.
      lengths: lengths of the buckets, increasing; each must divide `tokens`.
      tokens: number of tokens per batch and side, including padding.
      seed: seed of the order.

    Raises:
      ValueError: invalid lengths, a pair that exceeds the longest bucket, or too few pairs for a batch.
    """

    def __init__(self, source: Sequence[Any], target: Sequence[Any], lengths: Sequence[int], tokens: int, seed: int):
        if list(lengths) != sorted(set(lengths)):
            raise ValueError(f"text: bucket lengths {tuple(lengths)} must increase")
        if any(tokens % length for length in lengths):
            raise ValueError(f"text: bucket lengths {tuple(lengths)} must each divide the batch's {tokens} tokens")
        self._source, self._target = pad(source, max(lengths)), pad(target, max(lengths))
        longest = np.array([max(len(s), len(t)) for s, t in zip(source, target, strict=True)])
        self._bucket, self._lengths = np.searchsorted(lengths, longest), tuple(lengths)
        self._tokens, self._seed, self._epoch, self._next = tokens, seed, 0, 0
        self._plan = self._order()
        if not self._plan:
            raise ValueError(f"text: {len(longest)} pairs fill no batch of {tokens} tokens")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._next == len(self._plan):
            self._epoch, self._next = self._epoch + 1, 0
            self._plan = self._order()
        bucket, rows = self._plan[self._next]
        self._next += 1
        length = self._lengths[bucket]
        source, target = (x[rows, :length].reshape(-1) for x in (self._source, self._target))
        return {"source": source, "target": target, "bucket": np.full(self._tokens, bucket, np.int32)}

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "next": self._next, "tokens": self._tokens, "pairs": len(self._bucket)}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a saved position. Raises ValueError if batches or data have another size than at the save."""
        if (state["tokens"], state["pairs"]) != (self._tokens, len(self._bucket)):
            raise ValueError(
                f"text: the run was saved with batches of {state['tokens']} tokens of {state['pairs']} pairs: "
                f"expected {self._tokens} of {len(self._bucket)}"
            )
        self._epoch, self._next = state["epoch"], state["next"]
        self._plan = self._order()

    def _order(self) -> list[tuple[int, np.ndarray]]:
        rng, plan = np.random.default_rng((self._seed, self._epoch)), []
        for bucket, length in enumerate(self._lengths):
            members, rows = rng.permutation(np.flatnonzero(self._bucket == bucket)), self._tokens // length
            plan += [(bucket, members[i : i + rows]) for i in range(0, len(members) - rows + 1, rows)]
        return [plan[i] for i in rng.permutation(len(plan))]
