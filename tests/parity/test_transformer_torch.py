import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.foundations import transformer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WIDTH, HEADS, HIDDEN = 16, 4, 24


def attention_weights(params):
    stack = lambda leaf: np.concatenate([np.asarray(params[k][leaf]).T for k in ("query", "key", "value")])  # noqa: E731
    return {
        "in_proj_weight": stack("kernel"),
        "in_proj_bias": stack("bias"),
        "out_proj.weight": np.asarray(params["out"]["kernel"]).T,
        "out_proj.bias": params["out"]["bias"],
    }


def torch_state(params):
    state = {f"self_attn.{k}": v for k, v in attention_weights(params["own"]).items()}
    if "other" in params:
        state |= {f"multihead_attn.{k}": v for k, v in attention_weights(params["other"]).items()}
    for theirs, ours in (("linear1", "inner"), ("linear2", "outer")):
        state[f"{theirs}.weight"] = np.asarray(params["feed"][ours]["kernel"]).T
        state[f"{theirs}.bias"] = params["feed"][ours]["bias"]
    for i in range(3 if "other" in params else 2):
        state |= {
            f"norm{i + 1}.weight": params[f"norms_{i}"]["scale"],
            f"norm{i + 1}.bias": params[f"norms_{i}"]["bias"],
        }
    return {k: np.asarray(v) for k, v in state.items()}


def torch_layer(params, pre_norm):
    kind = torch.nn.TransformerDecoderLayer if "other" in params else torch.nn.TransformerEncoderLayer
    layer = kind(WIDTH, HEADS, HIDDEN, 0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=pre_norm)
    layer.load_state_dict({k: torch.tensor(v) for k, v in torch_state(params).items()})
    return layer


def torch_norm(params, x):
    return torch.nn.functional.layer_norm(x, (WIDTH,), *(torch.tensor(params[k]) for k in ("scale", "bias")), 1e-6)


def perturbed(params, rng):
    return jax.tree.map(lambda v: np.asarray(v + 0.1 * rng.normal(size=v.shape), np.float32), params)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_layers_and_their_gradients(cross, pre_norm):
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(2, 5, WIDTH)).astype(np.float32), rng.normal(size=(2, 7, WIDTH)).astype(np.float32)
    seen = np.ones((2, 7 if cross else 5), bool)
    seen[1, 3:] = False
    layer = transformer.Layer(WIDTH, HEADS, HIDDEN, 0.0, pre_norm, True, cross)
    causal = np.tril(np.ones((5, 5), bool))

    def run(module, x, memory):
        if not cross:
            return module(x, jnp.asarray(seen)[:, None, None])
        return module(x, jnp.asarray(causal)[None, None], module.project(memory), jnp.asarray(seen)[:, None, None])

    apply = lambda params, x, memory: layer.apply({"params": params}, x, memory, method=run)  # noqa: E731
    params = perturbed(layer.init(jax.random.key(0), x, memory, method=run)["params"], rng)
    theirs = torch_layer(params, pre_norm)
    a, b = torch.tensor(x, requires_grad=True), torch.tensor(memory, requires_grad=True)
    hidden = torch.tensor(~seen)
    out = (
        theirs(a, b, tgt_mask=torch.tensor(~causal), memory_key_padding_mask=hidden)
        if cross
        else theirs(a, src_key_padding_mask=hidden)
    )
    torch.cos(out).sum().backward()
    np.testing.assert_allclose(apply(params, x, memory), out.detach(), atol=1e-5)
    gradient, by_x, by_memory = jax.grad(lambda *a: jnp.cos(apply(*a)).sum(), (0, 1, 2))(params, x, memory)
    np.testing.assert_allclose(by_x, a.grad, atol=2e-5)
    if cross:
        np.testing.assert_allclose(by_memory, b.grad, atol=2e-5)
    found = torch_state(gradient)
    for name, value in theirs.named_parameters():
        np.testing.assert_allclose(found[name], value.grad, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_whole_model_and_gradient_of_its_embeddings(pre_norm):
    rng = np.random.default_rng(0)
    net = transformer.Transformer(13, WIDTH, HEADS, HIDDEN, 2, 0.0, pre_norm=pre_norm, bias=True)
    source, target = rng.integers(3, 13, (3, 7)), rng.integers(3, 13, (3, 5))
    source[1, 4:], target[2, 3:] = 0, 0
    init = jax.jit(lambda key: net.init(key, source, target, train=False)["params"])
    params = perturbed(init(jax.random.key(0)), rng)

    table = torch.tensor(params["embedding"]["embedding"], requires_grad=True)
    angles = np.arange(7)[:, None] * np.exp(np.arange(0, WIDTH, 2) * (-np.log(10000.0) / WIDTH))
    places = torch.zeros(7, WIDTH)
    places[:, 0::2], places[:, 1::2] = torch.tensor(np.sin(angles)), torch.tensor(np.cos(angles))
    unseen, unseen_target = torch.tensor(source == 0), torch.tensor(target == 0)
    memory, out = (table[torch.tensor(t)] * WIDTH**0.5 + places[: t.shape[1]] for t in (source, target))
    for i in range(2):
        memory = torch_layer(params[f"encoder_{i}"], pre_norm)(memory, src_key_padding_mask=unseen)
    memory = torch_norm(params["final_0"], memory) if pre_norm else memory
    for i in range(2):
        out = torch_layer(params[f"decoder_{i}"], pre_norm)(
            out, memory, torch.ones(5, 5, dtype=torch.bool).triu(1), None, unseen_target, unseen
        )
    logits = (torch_norm(params["final_1"], out) if pre_norm else out) @ table.T
    torch.cos(logits).sum().backward()

    def loss(params):
        logits = net.apply({"params": params}, source, target, train=False)
        return jnp.cos(logits).sum(), logits

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, logits.detach(), atol=1e-4)
    np.testing.assert_allclose(gradient["embedding"]["embedding"], table.grad, atol=2e-4)
