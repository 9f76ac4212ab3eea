"""Transformer: translation by attention alone, and a recurrent baseline of about the same size.

    python -m experiments.transformer                         # a small language pair with a known grammar, two cores
    python -m experiments.transformer --config=recurrent      # a GRU encoder and a GRU decoder
    python -m experiments.transformer --config=small_multi30k --config.data.path=DIR   # DIR/train.en, train.de, ...
    python -m experiments.transformer --config=small_multi30k_cpu --config.data.path=DIR   # overnight on two cores
    python -m experiments.transformer --config=small_multi30k_minutes --config.data.path=DIR   # the first three minutes
    python -m experiments.transformer --config=base_wmt14 --config.data.path=DIR       # the paper's, 8 accelerators

Published: base_wmt14 27.3, big_wmt14 28.4 BLEU on newstest2014 (paper); small_multi30k 41.02 lower-cased tokenised BLEU
on test2016 (Revisit-MMT's text-only baseline), comparable with "bleu_lower". With --config.data.lower=False capitals
are kept and "bleu" is sacreBLEU's default. The paper computes BLEU on tokens, with compounds split. The evaluated
parameters are a moving average over all steps, or with --eval_only --average=5 (big: 20), as in the paper, the mean of
the last checkpoints.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from facejax.data import text
from facejax.data.synthetic import language
from facejax.evaluate import translation
from facejax.foundations import transformer
from facejax.train import AXIS, Experiment, Mean, Options, Report, TrainState, app, map_batches, optim, supervised_step
from facejax.train.claims import Claim

BASE = {
    "seed": 0,
    "data": {
        "source": "grammar",  # "grammar" (a small language pair), or "files"
        "path": "",  # folder with train.LANGUAGE and TEST.LANGUAGE (or with .gz), one sentence a line
        "languages": ("en", "de"),  # of source and target: endings of the files' names
        "test": "test_2016_flickr",  # name of the test files before the ending
        "pairs": 3000,  # of "grammar", sentence pairs to train on
        "test_pairs": 300,  # of "grammar", sentence pairs to test on
        "byte_pairs": 10_000,  # of "files", size of the joint vocabulary
        "lower": True,  # of "files", whether sentences are lower-cased
        "lengths": (16,),  # of the buckets, tokens
    },
    "model": {
        "kind": "transformer",  # "transformer" or "recurrent"
        "width": 64,  # d_model; of "recurrent" the size of embeddings and states
        "heads": 4,  # of each attention
        "hidden": 128,  # d_ff, of the feed-forward layers
        "layers": 2,  # of the encoder and of the decoder
        "dropout": 0.1,  # rate, 0..1
        "pre_norm": False,  # whether each sublayer's input is normalised, not its sum
        "bias": False,  # whether the attention's projections have biases
        "dtype": "float32",  # of the computation
        "remat": False,  # whether the backward pass computes the insides of layers anew, which saves memory
    },
    "loss": {"smoothing": 0.1},  # part of the target spread over the vocabulary, 0..1
    "optim": {
        "warmup": 150,  # updates over which the rate rises
        "factor": 1.0,  # multiplies the paper's learning rate
        "b2": 0.98,  # Adam's decay of the squared gradients' average
        "ema": 0.99,  # decay of the moving average of the parameters, which is evaluated
    },
    # batch_size counts tokens of each side, padding included
    "train": asdict(Options(batch_size=1024, steps=800, log_every=100, save_every=200, devices=1)),
    "eval": {
        "batch_size": 100,  # sentences a call
        "beam": 4,  # hypotheses kept
        "alpha": 0.6,  # exponent of the length penalty
        "extra": 3,  # tokens that a translation may have beyond its source
    },
}


def wmt14(width: int, heads: int, dropout: float, steps: int, keep: int) -> dict[str, Any]:
    """The paper's run: 37,000 joint byte pairs, 25,000 tokens a side, warm-up 4,000 steps, a checkpoint in 600 s."""
    return {
        "data": {"source": "files", "test": "newstest2014", "byte_pairs": 37_000, "lower": False,
                 "lengths": (32, 64, 128, 256)},
        "model": {"width": width, "heads": heads, "hidden": 4 * width, "layers": 6, "dropout": dropout,
                  "dtype": "bfloat16"},
        "optim": {"warmup": 4000, "ema": 0.9995},
        "train": {"batch_size": 24_576, "steps": steps, "devices": 8, "save_every": 1000, "save_seconds": 600.0,
                  "keep": keep},
        "eval.extra": 50,
    }  # fmt: skip


SMALL = {
    "data": {"source": "files", "lengths": (16, 32, 64)},
    "model": {"width": 128, "heads": 4, "hidden": 256, "layers": 4, "dropout": 0.3, "bias": True},
    "optim": {"warmup": 2000, "factor": 2.53, "ema": 0.999},  # peak 0.005
    "train": {"batch_size": 8192, "steps": 8000},
    "eval": {"beam": 5, "extra": 20},
}
PRESETS = {
    "synthetic": {},
    "recurrent": {"model": {"kind": "recurrent", "width": 96}},
    "small_multi30k": SMALL,
    "small_multi30k_cpu": {**SMALL, "train": {"batch_size": 2048, "steps": 32_000}},
    "small_multi30k_minutes": {
        **SMALL,
        "optim": {"warmup": 100, "factor": 0.15, "ema": 0.98},  # peak 0.0013
        "train": {"batch_size": 2048, "steps": 300, "log_every": 30},
    },
    "base_wmt14": wmt14(512, 8, 0.1, 100_000, 5),
    "big_wmt14": wmt14(1024, 16, 0.3, 300_000, 20),
}
CLAIM = Claim(
    "transformer.attention",
    "attention alone translates more held-out sentences without an error than a recurrent encoder and decoder",
    metric="exact_match",
    better="higher",
    method="synthetic",
    baseline=("recurrent",),
)


def get_config(preset: str = "synthetic") -> ConfigDict:
    """The configuration of a preset."""
    return app.preset(BASE, PRESETS, preset)


def build(config: ConfigDict) -> Experiment:
    """Wires the run."""
    model, lengths, tokens = config.model, tuple(config.data.lengths), config.train.batch_size
    if config.data.source not in ("grammar", "files") or model.kind not in ("transformer", "recurrent"):
        raise ValueError(
            f"data.source is {config.data.source!r}, model.kind {model.kind!r}: expected grammar or files, "
            "and transformer or recurrent"
        )
    size = config.data.byte_pairs if config.data.source == "files" else len(text.Words(language.words()))
    net = make_network(config, size)
    rate = transformer.noam(model.width, config.optim.warmup, config.optim.factor)
    tx = optim.optimizer("adam", rate, b2=config.optim.b2, eps=1e-9)
    read = functools.cache(lambda: corpus(config))  # learning byte pairs takes minutes

    def init(rng: jax.Array) -> TrainState:
        one = jnp.ones((1, lengths[0]), jnp.int32)
        return TrainState.create(rng, net.init(rng, one, one, train=False)["params"], tx, ema=True)

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        def of_length(length: int) -> Any:
            def run(source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
                source, target = source.reshape(-1, length), target.reshape(-1, length)
                begin = jnp.full((len(target), 1), text.BEGIN, target.dtype)
                inputs = jnp.concatenate([begin, target[:, :-1]], 1)
                logits = net.apply({"params": params}, source, inputs, train=True, rngs={"dropout": rng})
                losses = transformer.smoothed_cross_entropy(logits, target, config.loss.smoothing)
                return losses.ravel(), (logits.argmax(-1) == target).ravel()

            return run

        losses, right = lax.switch(
            batch["bucket"][0], [of_length(n) for n in lengths], batch["source"], batch["target"]
        )
        real = batch["target"] != text.PAD
        metrics = {"loss": Mean.of(losses, real), "token_accuracy": Mean.of(right, real)}
        return jnp.mean(losses * batch["weight"]), (model_state, metrics)

    step = supervised_step(loss_fn, tx, microbatches=config.train.microbatches, ema_decay=config.optim.ema)

    def train_step(state: TrainState, batch: dict[str, jax.Array], rng: jax.Array) -> Any:
        real = batch["target"] != text.PAD
        share = lax.pmean(real.mean(), AXIS)  # averaged over devices, so every real token has equal weight
        return step(state, {**batch, "weight": real / share}, rng)

    def train_data() -> Any:
        source, target, vocabulary = read()[:3]
        encoded = [[vocabulary.encode(sentence) for sentence in side] for side in (source, target)]
        return text.Buckets(*encoded, lengths, tokens, config.seed)

    def evaluate(state: TrainState) -> Report:
        *_, vocabulary, sources, references = read()
        rows = text.pad([vocabulary.encode(s) for s in sources], max(lengths))
        longest = max(lengths) + config.eval.extra

        def translate(params: Any, rows: jax.Array) -> jax.Array:
            limits = (rows != text.PAD).sum(1) + config.eval.extra
            options = {"length": longest, "beam": config.eval.beam, "alpha": config.eval.alpha}
            return transformer.beam_search(net, {"params": params}, rows, limits, **options)[0]

        found = map_batches(translate, state.ema, rows, config.eval.batch_size)
        found = [vocabulary.decode(row) for row in found]
        examples = [
            {"source": s, "translation": f, "reference": r} for s, f, r in zip(sources, found, references, strict=True)
        ]
        figures = {}
        if model.kind == "transformer":
            figures["Attention to the source"] = translation.attention_figure(
                net, state.ema, vocabulary, sources[0], found[0]
            )
        return Report(
            translation.scores(
                found, references, tokenized=config.data.source == "grammar", cased=not config.data.lower
            ),
            tables={"Translations": examples[:12]},
            figures=figures,
        )

    shape = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    return Experiment(
        evaluate=evaluate,
        init=init,
        train_step=train_step,
        train_data=train_data,
        batch={"source": shape, "target": shape, "bucket": shape},
    )


def make_network(config: ConfigDict, vocabulary: int) -> Any:
    """The network that the configuration names, for a vocabulary of that size."""
    model = config.model
    if model.kind == "recurrent":
        return transformer.Recurrent(vocabulary, model.width, model.dropout)
    return transformer.Transformer(
        vocabulary,
        model.width,
        model.heads,
        model.hidden,
        model.layers,
        model.dropout,
        max(config.data.lengths) + config.eval.extra,
        model.pre_norm,
        model.bias,
        jnp.dtype(model.dtype),
        model.remat,
    )


def corpus(config: ConfigDict) -> tuple[Any, ...]:
    """Training sentences (source, target), the vocabulary, test sentences and their references."""
    data = config.data
    if data.source == "grammar":
        pairs = language.pairs(data.pairs + data.test_pairs, config.seed)
        (source, target), (sources, references) = (
            tuple(zip(*part, strict=True)) for part in (pairs[: data.pairs], pairs[data.pairs :])
        )
        return source, target, text.Words(language.words()), sources, references
    if not data.path:
        raise ValueError("data.path is empty: expected a folder with train and test files of both languages")
    train, test = (text.read_pairs(data.path, part, data.languages, data.lower) for part in ("train", data.test))
    (source, target), (sources, references) = train, test
    vocabulary = text.BytePairs([*source, *target], data.byte_pairs)
    longest = max(data.lengths)
    kept = [p for p in zip(source, target, strict=True) if max(len(vocabulary.encode(s)) for s in p) <= longest]
    return *zip(*kept, strict=True), vocabulary, sources, references


if __name__ == "__main__":
    app.main(get_config, build)
