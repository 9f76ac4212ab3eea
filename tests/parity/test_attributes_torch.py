"""SSR-Net and FSA-Net compared with PyTorch functions of the authors' layers: outputs, training, gradients."""

import jax
import numpy as np
import pytest

from facejax.attributes import fsanet, ssrnet

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytestmark = pytest.mark.parity
F = torch.nn.functional
POOLS = {"first": (torch.relu, F.avg_pool2d), "second": (torch.tanh, F.max_pool2d)}


def conv(p, x, padding=0, groups=1):
    return F.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p.get("bias"), padding=padding, groups=groups)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, stats, x, train):
    s = stats["norm"]
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) if train else (s["mean"], s["var"])
    shape = (1, -1, 1, 1)
    x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-3)
    return x * p["norm"]["scale"].view(shape) + p["norm"]["bias"].view(shape)


def flat(x):
    return x.permute(0, 2, 3, 1).flatten(1)


def regression(parts, span, first):
    total, divisor = 0, 1
    for scores, shifts, stretch in parts:
        divisor = divisor * 3 * (1 + stretch)
        total = total + sum(scores[..., i] * (i + first + shifts[..., i]) for i in range(3)) / divisor
    return span * total


def ssr_net(p, stats, x, train):
    maps = {}
    for stream, (act, pool) in POOLS.items():
        y, maps[stream] = x, []
        for depth in range(4):
            block, s = p["trunk"][f"{stream}{depth}"], stats["trunk"][f"{stream}{depth}"]
            y = act(norm(block["bn"], s["bn"], conv(block["conv"], y), train))
            y = pool(y, 2) if depth < 3 else y
            maps[stream].append(y)
    parts = []
    for k, (depth, size) in enumerate(((3, 1), (1, 4), (0, 8)), 1):
        stage, vectors = p[f"stage{k}"], {}
        for stream, (_, pool) in POOLS.items():
            vectors[stream] = flat(pool(torch.relu(conv(stage[f"{stream}_reduced"], maps[stream][depth])), size))
        narrow = [torch.relu(dense(stage[f"{s}_narrow"], vectors[s])) for s in POOLS]
        mixed = torch.relu(dense(stage["mixed"], narrow[0] * narrow[1]))
        stretch = torch.tanh(dense(stage["stretch"], vectors["first"] * vectors["second"]))[:, 0]
        parts.append((torch.relu(dense(stage["scores"], mixed)), torch.tanh(dense(stage["shifts"], mixed)), stretch))
    return regression(parts, 101.0, 0)


def separable_maps(p, stats, x, train):
    found = {}
    for stream, (act, pool) in POOLS.items():
        y, maps, number = x, [], 0
        for depth in range(4):
            for _ in range(1 if depth == 0 else 2):
                name, number = f"{stream}{number}", number + 1
                y = conv(p[f"{name}_depthwise"], y, 1, y.shape[1])
                block, s = p[f"{name}_pointwise"], stats[f"{name}_pointwise"]
                y = act(norm(block["bn"], s["bn"], conv(block["conv"], y), train))
            y = pool(y, 2) if depth < 3 else y
            maps.append(y)
        found[stream] = [act(conv(p[f"{stream}_reduced{k}"], maps[4 - k])) for k in (1, 2, 3)]
    return found


def multi_ssr_net(p, stats, x, train):
    maps, parts = separable_maps(p["trunk"], stats["trunk"], x, train), []
    for k in range(3):
        pooled = [pool(maps[stream][k], 2) for stream, (_, pool) in POOLS.items()]
        y = flat(pooled[0] * pooled[1])
        scores = torch.relu(dense(p[f"scores{k + 1}"], y)).view(-1, 3, 3)
        stretch, shift = (
            torch.tanh(dense(p[f"{name}{k + 1}"], torch.tanh(dense(p[f"{name}_hidden{k + 1}"], y))))
            for name in ("stretch", "shift")
        )
        parts.append((scores, shift[..., None].expand(-1, -1, 3), stretch))
    return regression(parts, 99.0, -1)


def fsa_net(p, stats, x, train):
    streams = separable_maps(p["trunk"], stats["trunk"], x, train)
    maps = [a * b for a, b in zip(streams["first"], streams["second"], strict=True)]
    maps[2] = F.avg_pool2d(maps[2], 2)
    pixels = [m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps]
    whole = torch.cat(pixels, 1)
    m = p["mapping"]
    scores = [torch.sigmoid(dense(m["score"], y))[..., 0] for y in pixels]
    left = torch.sigmoid(dense(m["vectors"], torch.cat(scores, 1))).view(len(x), 7, 5)
    weights = [left @ torch.sigmoid(dense(m["pixels"], y)).view(len(x), 5, -1) for y in scores]
    vectors = torch.cat([w @ whole / w.sum(-1, keepdim=True) for w in weights], 1)
    votes = torch.einsum("nme,cmde->ncmd", vectors, p["aggregate"]["weights"])
    logits = torch.zeros(votes.shape[:3])
    for step in range(2):
        s = (logits.softmax(1)[..., None] * votes).sum(2)
        square = (s**2).sum(-1, keepdim=True)
        capsules = square / (1 + square) * s / torch.sqrt(square + 1e-7)
        logits = logits + (capsules[:, :, None] * votes).sum(-1) if step == 0 else logits
    parts = []
    for k in range(3):
        row = capsules[:, k]
        scores = torch.relu(dense(p[f"scores_{k}"], row[:, 8:])).view(-1, 3, 3)
        shift = torch.tanh(dense(p[f"shift_{k}"], row[:, 4:8]))[..., None].expand(-1, -1, 3)
        parts.append((scores, shift, torch.tanh(dense(p[f"stretch_{k}"], row[:, :4]))))
    return regression(parts, 99.0, -1)


def scaled(rng, shape):
    """Normal variates that keep the size of a layer's inputs."""
    return np.float32(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])))


SMALL = {"widths": (4, 5, 6, 7), "reduced": 8}
NETS = {
    "ssrnet": (ssrnet.SSRNet(widths=(6, 4), dropout=0.0), ssr_net, (40, 45, 51)),
    "ssrnet_pose": (ssrnet.MultiSSRNet(**SMALL), multi_ssr_net, (16, 33, 39)),
    "fsanet": (fsanet.FSANet(**SMALL), fsa_net, (16, 17, 31)),
}


@pytest.mark.parametrize("name", NETS)
def test_network(name):
    net, reference, sizes = NETS[name]
    rng = np.random.default_rng(0)
    for size in sizes:
        images = rng.uniform(0, 2, (3, size, size + 2, 3)).astype(np.float32)
        shapes = jax.eval_shape(lambda key, x=images: net.init(key, x, train=False), jax.random.key(0))
        variables = jax.tree.map(lambda x: scaled(rng, x.shape), shapes)
        variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 1, variables["batch_stats"])
        params = jax.tree.map(lambda x: torch.tensor(np.array(x), requires_grad=True), variables["params"])
        stats = jax.tree.map(lambda x: torch.tensor(np.array(x)), variables["batch_stats"])
        x = torch.tensor(images).permute(0, 3, 1, 2)
        expected = reference(params, stats, x, False).detach().numpy()
        found = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, images)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    if name == "ssrnet_pose":  # the trunk and the regression are those of the others
        return
    factors = rng.normal(size=expected.shape).astype(np.float32)

    def objective(p):
        out, _ = net.apply({**variables, "params": p}, images, train=True, mutable=["batch_stats"])
        return (out * factors).sum() / 100

    value, gradients = jax.jit(jax.value_and_grad(objective))(variables["params"])
    target = (reference(params, stats, x, True) * torch.tensor(factors)).sum() / 100
    target.backward()
    np.testing.assert_allclose(value, target.item(), rtol=1e-3)
    for (path, got), leaf in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(params), strict=True):
        wanted = leaf.grad.numpy()
        np.testing.assert_allclose(got, wanted, atol=2e-3 * max(np.abs(wanted).max(), 1e-2), err_msg=str(path))
