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
    params = layer.init(jax.random.key(0), x, memory, method=run)["params"]
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [v + 0.1 * rng.normal(size=v.shape).astype(np.float32) for v in leaves])
    kind = torch.nn.TransformerDecoderLayer if cross else torch.nn.TransformerEncoderLayer
    theirs = kind(WIDTH, HEADS, HIDDEN, 0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=pre_norm)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in torch_state(params).items()})
    a, b = torch.tensor(x, requires_grad=True), torch.tensor(memory)
    hidden = torch.tensor(~seen)
    out = (
        theirs(a, b, tgt_mask=torch.tensor(~causal), memory_key_padding_mask=hidden)
        if cross
        else theirs(a, src_key_padding_mask=hidden)
    )
    torch.cos(out).sum().backward()
    np.testing.assert_allclose(apply(params, x, memory), out.detach(), atol=1e-5)
    gradient, by_x = jax.grad(lambda p, x: jnp.cos(apply(p, x, memory)).sum(), (0, 1))(params, x)
    np.testing.assert_allclose(by_x, a.grad, atol=2e-5)
    found = torch_state(gradient)
    for name, value in theirs.named_parameters():
        np.testing.assert_allclose(found[name], value.grad, atol=5e-5, err_msg=name)
