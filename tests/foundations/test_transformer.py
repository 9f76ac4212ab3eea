import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import text
from facejax.data.synthetic import language
from facejax.formats import texts
from facejax.foundations import transformer
from facejax.metrics import translation
from facejax.train.dry_run import count

LENGTH = 9


@pytest.fixture(scope="module", params=[False, True], ids=["post", "pre"])
def small(request):
    net = transformer.Transformer(13, 16, 4, 24, 2, max_length=LENGTH, pre_norm=request.param)
    rng = np.random.default_rng(0)
    source, target = rng.integers(3, 13, (3, 5)), rng.integers(3, 13, (3, LENGTH))
    source[1, 3:] = 0
    variables = net.init(jax.random.key(0), source, target, train=False)
    return net, variables, jnp.asarray(source), jnp.asarray(target)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"bias": True}, 63_082_496),
        ({"vocabulary": 9_712, "width": 128, "heads": 4, "hidden": 256, "layers": 4, "bias": True}, 2_568_192),
    ],
)
def test_parameter_counts(options, parameters):
    tokens = jnp.ones((1, 4), jnp.int32)
    net = transformer.Transformer(**options)
    shapes = jax.eval_shape(lambda key: net.init(key, tokens, tokens, train=False), jax.random.key(0))
    assert count(shapes["params"]) == parameters


def test_cached_steps_equal_the_whole(small):
    net, variables, source, target = small
    whole = net.apply(variables, source, target, train=False)
    cache, context = net.apply(variables, source, LENGTH, method="start")
    step = jax.jit(lambda *a: net.apply(variables, *a, method="step"))
    for i in range(LENGTH):
        logits, cache = step(target[:, i], jnp.int32(i), cache, context)
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


def test_the_future_and_padding_are_not_seen(small):
    net, variables, source, target = small
    whole = net.apply(variables, source, target, train=False)
    changed = net.apply(variables, source, target.at[:, 4:].set(7), train=False)
    np.testing.assert_allclose(changed[:, :4], whole[:, :4], atol=1e-6)
    assert not np.allclose(changed[:, 4:], whole[:, 4:], atol=1e-3)
    wider = jnp.pad(source, ((0, 0), (0, 3)))
    np.testing.assert_allclose(net.apply(variables, wider, target, train=False), whole, atol=1e-5)


def test_dropout_acts_on_scaled_embeddings_with_positions():
    net = transformer.Transformer(40, 16, 4, 24, 0, dropout=0.25)  # no layers: memory and logits are of the embeddings
    source, target = np.random.default_rng(0).integers(3, 40, (2, 4, 9))
    variables = net.init(jax.random.key(0), source, target, train=False)
    table = np.asarray(variables["params"]["embedding"]["embedding"])

    def run(train):
        logits, state = net.apply(
            variables, source, target, train=train, rngs={"dropout": jax.random.key(1)},
            capture_intermediates=lambda _, name: name == "encode", mutable="intermediates",
        )  # fmt: skip
        return state["intermediates"]["encode"][0], logits @ np.linalg.pinv(table.T)

    for tokens, plain, dropped in zip((source, target), run(False), run(True), strict=True):
        expected = 4 * table[tokens] + transformer.sinusoids(9, 16)
        np.testing.assert_allclose(plain, expected, atol=1e-4)
        kept = np.abs(dropped) > 1e-3
        assert 0.65 < kept.mean() < 0.85
        np.testing.assert_allclose(dropped, np.where(kept, expected / 0.75, 0), atol=2e-3)


def test_a_frequent_token_keeps_its_gradient_in_bfloat16():
    """A token that stands 4,000 times in a batch has 4,000 times the gradient of one, as in float32."""
    net = transformer.Transformer(5, 16, 4, 24, 0, max_length=100, dtype=jnp.bfloat16)
    tokens = jnp.full((40, 100), 3)
    variables = net.init(jax.random.key(0), tokens, tokens, train=False)
    slope = jax.grad(lambda v: net.apply(v, tokens, method="encode").astype(jnp.float32).sum())(variables)
    np.testing.assert_allclose(slope["params"]["embedding"]["embedding"][3], 4000 * 4.0, rtol=1e-5)


def test_a_beam_of_one_is_greedy(small):
    net, variables, source, _ = small
    variables = jax.tree.map(lambda x: 1.5 * x, variables)
    limits = jnp.array([LENGTH, 6, LENGTH])
    greedy = transformer.greedy_search(net, variables, source, limits, length=LENGTH)
    one, score = transformer.beam_search(net, variables, source, limits, length=LENGTH, beam=1)
    np.testing.assert_array_equal(greedy, one)
    assert (greedy[1, 6:] == 0).all()
    assert np.isfinite(score).all()


def test_a_beam_s_score_is_that_of_its_tokens(small):
    net, variables, _, _ = small
    variables = jax.tree.map(lambda x: 1.5 * x, variables)
    source = np.random.default_rng(0).integers(3, 13, (16, 5))
    source[1::2, 3:] = 0
    limits = np.where(np.arange(16) % 3, LENGTH, 6)
    search = jax.jit(lambda *a: transformer.beam_search(net, *a, length=LENGTH, beam=4, alpha=0.6))
    tokens, score = map(np.asarray, search(variables, source, limits))
    ended = tokens == transformer.END
    size = np.where(ended.any(1), ended.argmax(1) + 1, limits)
    written = np.arange(LENGTH) < size[:, None]
    np.testing.assert_array_equal(tokens != transformer.PAD, written)
    before = np.pad(tokens, ((0, 0), (1, 0)), constant_values=transformer.BEGIN)[:, :-1]
    log_p = jax.jit(lambda *a: jax.nn.log_softmax(net.apply(*a, train=False)))(variables, source, before)
    total = (np.take_along_axis(np.asarray(log_p), tokens[..., None], -1)[..., 0] * written).sum(1)
    np.testing.assert_allclose(score, total / ((5 + size) / 6) ** 0.6, atol=1e-4)


class Table:
    """A language model by a table: the next token's probabilities depend on the last token alone."""

    def __init__(self, probabilities):
        self.log_p = jnp.log(jnp.asarray(probabilities))

    def apply(self, _, *arguments, method):
        if method == "start":
            return jnp.zeros((len(arguments[0]), 1)), ()
        return self.log_p[arguments[0]], arguments[2]


def test_beam_search_by_hand():
    p = np.full((5, 5), 1e-9)
    p[1, 3:], p[3, 2:], p[4, 2] = [0.6, 0.4], [0.3, 0.4, 0.3], 1.0  # greedy begins with 3, the best sentence is 4 END
    source, limits = jnp.ones((1, 2), jnp.int32), jnp.array([4])
    tokens, score = transformer.beam_search(Table(p), {}, source, limits, length=4, beam=3, alpha=0.6)
    assert tokens[0].tolist() == [4, 2, 0, 0]
    assert score[0] == pytest.approx(np.log(0.4) / (7 / 6) ** 0.6, rel=1e-4)
    assert transformer.greedy_search(Table(p), {}, source, limits, length=4)[0, 0] == 3


def test_padding_is_never_written():
    p = np.full((5, 5), 1e-9)
    p[1, [0, 3, 4]], p[3, [0, 2]], p[4, [0, 2]] = [0.6, 0.3, 0.1], [0.7, 0.3], [0.5, 0.5]  # PAD is always the likeliest
    source, limits = jnp.ones((1, 2), jnp.int32), jnp.array([4])
    assert transformer.greedy_search(Table(p), {}, source, limits, length=4)[0].tolist() == [3, 2, 0, 0]
    for beam in (1, 2):
        tokens, score = transformer.beam_search(Table(p), {}, source, limits, length=4, beam=beam)
        assert tokens[0].tolist() == [3, 2, 0, 0]
        assert score[0] == pytest.approx(np.log(0.3 * 0.3) / (7 / 6) ** 0.6, rel=1e-4)


def test_smoothing():
    logits = jnp.log(jnp.array([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3]]))
    labels = jnp.array([0, 1])
    np.testing.assert_allclose(transformer.smoothed_cross_entropy(logits, labels)[0], 0, atol=1e-6)
    np.testing.assert_allclose(transformer.smoothed_cross_entropy(logits, labels, 0.0), -np.log([0.9, 0.5]), rtol=1e-5)
    expected = -0.9 * np.log(0.5) - 0.05 * np.log(0.06) + 0.9 * np.log(0.9) + 0.1 * np.log(0.05)
    np.testing.assert_allclose(transformer.smoothed_cross_entropy(logits, labels)[1], expected, rtol=1e-5)


def test_schedule_and_positions():
    rate = transformer.noam(512, 4000)
    assert rate(3999) == pytest.approx(6.99e-4, rel=1e-3)
    assert rate(0) == pytest.approx(512**-0.5 * 4000**-1.5, rel=1e-5)
    table = transformer.sinusoids(5, 4)
    np.testing.assert_allclose(table[3], [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)], rtol=1e-6)


def test_the_language_s_grammar():
    pairs = language.pairs(500, 0)
    assert len(dict(pairs)) == 500
    assert {w for pair in pairs for s in pair for w in s.split()} <= set(language.words())
    target = dict(language.pairs(6, 0, max_adjectives=2))
    long = target["this red black books follow the big red houses slowly"]
    assert long == "lente sty libon nigy ruby le domin rube grande sekant"
    assert target["the man hears this childs often"] == "sepe lo vir sty pueron audat"


def test_words_and_bad_text():
    words = text.Words(["a", "b"])
    assert words.encode("b a") == [5, 4, 2]
    assert words.decode([5, 4, 2, 4]) == "b a"
    with pytest.raises(ValueError, match="'c' in 'a c' is not one of"):
        words.encode("a c")
    with pytest.raises(ValueError, match="sentence 1 is empty"):
        text.pad([[4, 2], [2]], 3)
    with pytest.raises(ValueError, match="sentence 0 has 4 tokens with its end, expected at most 3"):
        text.pad([[4, 4, 4, 2]], 3)
    with pytest.raises(ValueError, match="a sequence of 6 tokens, expected 1 to 5"):
        transformer.Transformer(9, 8, 2, 8, 1, max_length=5).init(
            jax.random.key(0), jnp.ones((1, 6), int), jnp.ones((1, 5), int), train=False
        )
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        transformer.Transformer(9, 8, 3, 8, 1).init(
            jax.random.key(0), jnp.ones((1, 2), int), jnp.ones((1, 2), int), train=False
        )


def test_lines_of_pairs_end_at_newlines_only(tmp_path):
    """As in WMT, sentences hold U+2028, U+0085 and form feeds; an empty line drops its pair on both sides."""
    english = ["one\u2028two", "", "three\x0cfour", "\u0085five\x85six", "seven", "eight\rnine"]
    (tmp_path / "t.en").write_bytes(("\ufeff" + "\r\n".join(english) + "\r\n").encode())
    (tmp_path / "t.de").write_bytes(b"eins\nzwei\ndrei\nvier\n \nsechs")
    with pytest.warns(UserWarning, match=r"t has 2 of 6 pairs with an empty line: dropped"):
        sides = text.read_pairs(tmp_path, "t", ["en", "de"])
    assert sides == [
        ["one\u2028two", "three\x0cfour", "five\x85six", "eight\rnine"], ["eins", "drei", "vier", "sechs"]
    ]  # fmt: skip
    assert texts.lines("") == []


def test_byte_pairs_come_back():
    pytest.importorskip("tokenizers")
    sentences = [s for pair in language.pairs(200, 0) for s in pair]
    vocabulary = text.BytePairs(sentences, 90)
    assert [vocabulary.decode(vocabulary.encode(s)) for s in sentences[:20]] == sentences[:20]
    assert text.UNKNOWN in vocabulary.encode("the ß")
    marked = text.BytePairs(["well-fed dogs, and (red) cats.", "cats and dogs"] * 9, 40)
    assert marked.decode(marked.encode("dogs, (red) cats.")) == "dogs, (red) cats."
    assert marked.encode("cats.")[:-2] == marked.encode("cats")[:-1]  # the full stop is a token of its own


def test_buckets_go_on_where_they_stopped():
    rng = np.random.default_rng(0)
    sides = [[[*rng.integers(4, 9, rng.integers(1, 8)), 2] for _ in range(60)] for _ in range(2)]
    first, second = (text.Buckets(*sides, (4, 8), 16, seed=0) for _ in range(2))
    for _ in range(20):
        next(first)
    second.set_state(first.get_state())
    for _ in range(12):
        a, b = next(first), next(second)
        assert a["source"].shape == (16,)
        assert all((a[k] == b[k]).all() for k in a)
        rows = a["source"].reshape(-1, (4, 8)[a["bucket"][0]])
        assert ((rows == text.END).sum(1) == 1).all()
    with pytest.raises(ValueError, match="saved with batches of 16 tokens of 60 pairs: expected 32 of 60"):
        text.Buckets(*sides, (4, 8), 32, seed=0).set_state(first.get_state())


def test_bleu_and_exact_match():
    pytest.importorskip("sacrebleu")
    assert translation.bleu(["a b c d e"], ["a b c d e"], tokenize="none") == pytest.approx(100)
    assert translation.bleu(["a b c d e f"], ["a b c d e g"], tokenize="none") == pytest.approx(
        100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    )
    assert translation.exact_match(["a", "b"], ["a", "c"]) == 50
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        translation.exact_match(["a"], ["a", "b"])


@pytest.mark.parametrize("lengths", [(8, 4), (4, 4)])
def test_buckets_increase(lengths):
    with pytest.raises(ValueError, match="must increase"):
        text.Buckets([[3, 2]], [[4, 2]], lengths, 16, seed=0)
