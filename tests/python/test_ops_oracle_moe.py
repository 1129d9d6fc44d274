"""moe_route, moe_experts and sample of trivium.ops against float64 numpy."""

import numpy as np
import pytest
import trivium
from checkpoints import oracle
from op_oracles import BF16, DTYPES, check, f64, normal, ops

pytestmark = pytest.mark.backend


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# --- mixture of experts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(1, 1, 1), (5, 7, 3), (33, 128, 4), (4, 6, 6), (0, 4, 2)]
)
def test_moe_route(rng, tokens, experts, top_k):
    logits = np.round(normal(rng, tokens, experts) * 2) / 2  # many ties
    weights = {"router.weight": np.eye(experts), "router.bias": np.zeros(experts)}
    cfg = oracle.MoeConfig(experts_per_token=top_k)
    want_experts, want_weights = oracle.route(f64(logits), weights, cfg)
    got_experts, got_weights = ops.moe_route(logits, top_k)
    np.testing.assert_array_equal(got_experts, want_experts.reshape(tokens, top_k))
    np.testing.assert_allclose(got_weights, want_weights.reshape(tokens, top_k), rtol=1e-6)


def test_moe_route_with_extreme_logits():
    experts, weights = ops.moe_route(np.array([[1e30, -1e30, 1e30, 0]], np.float32), 3)
    assert experts.numpy().tolist() == [[0, 2, 3]]
    np.testing.assert_array_equal(weights, [[0.5, 0.5, 0]])


def experts_in_float64(x, chosen, weights, gate_up, down, gate_up_bias, down_bias, round_act=False):
    want = np.zeros((len(x), down.shape[1]))
    for t, (es, ws) in enumerate(zip(chosen, weights, strict=True)):
        for e, weight in zip(es, ws, strict=True):
            act = oracle.clamped_swiglu(gate_up[e] @ f64(x[t]) + gate_up_bias[e], 1.702, 7.0)
            act = f64(act.astype(BF16)) if round_act else act
            want[t] += f64(weight) * (down[e] @ act + down_bias[e])
    return want


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mxfp4", *DTYPES])
@pytest.mark.parametrize(("tokens", "hidden", "inter", "experts", "top_k"), [(1, 32, 32, 1, 1), (9, 96, 64, 5, 2), (40, 64, 160, 8, 4)])  # fmt: skip
def test_moe_experts(rng, x_dtype, kind, tokens, hidden, inter, experts, top_k):
    x = normal(rng, tokens, hidden, dtype=DTYPES[x_dtype])
    chosen, weights = (t.numpy() for t in ops.moe_route(normal(rng, tokens, experts), top_k))
    biases = normal(rng, experts, 2 * inter), normal(rng, experts, hidden)
    gate_up = normal(rng, experts, 2 * inter, hidden, scale=hidden**-0.5)
    down = normal(rng, experts, hidden, inter, scale=inter**-0.5)
    if kind == "mxfp4":
        (up_blocks, up_scales), (down_blocks, down_scales) = map(oracle.mxfp4_encode, (gate_up, down))
        dense = oracle.mxfp4_decode(up_blocks, up_scales), oracle.mxfp4_decode(down_blocks, down_scales)
        scales = {"gate_up_scales": up_scales, "down_scales": down_scales}
        got = ops.moe_experts(x, chosen, weights, up_blocks, down_blocks, *biases, **scales)
    else:
        stored = gate_up.astype(DTYPES[kind]), down.astype(DTYPES[kind])
        dense = [f64(w.astype(BF16) if x_dtype == "bfloat16" else w) for w in stored]
        got = ops.moe_experts(x, chosen, weights, *stored, *biases)
    want = experts_in_float64(x, chosen, weights, *dense, *biases, round_act=x_dtype == "bfloat16")
    # A bfloat16 activation may round to its other neighbour where float32 sums differ from float64's.
    check(got, want, {"float32": 3e-6, "bfloat16": 1e-3}[x_dtype])


def test_moe_experts_without_biases_and_of_no_tokens(rng):
    gate_up, down = normal(rng, 3, 14, 5), normal(rng, 3, 5, 7)
    chosen, weights = np.array([[2, 0]], np.int32), np.array([[0.25, 0.75]], np.float32)
    x = normal(rng, 1, 5)
    zeros = np.zeros((3, 14)), np.zeros((3, 5))
    check(
        ops.moe_experts(x, chosen, weights, gate_up, down),
        experts_in_float64(x, chosen, weights, f64(gate_up), f64(down), *zeros),
    )
    assert ops.moe_experts(x[:0], chosen[:0], weights[:0], gate_up, down).shape == (0, 5)


# --- sampling ---------------------------------------------------------------------------------------------


def philox_uniform(key: int, counter: int) -> float:
    """Philox 4x32-10 of (counter, key), its first word's upper 24 bits (Salmon et al. 2011)."""
    c = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return (c[0] >> 8) / 2**24


def choice(logits, u, temperature, top_p=1.0, top_k=0, min_p=0.0):
    """(token, distance of u from the nearest border of its interval)"""
    p = np.exp((f64(logits) - logits.max()) / temperature)
    p[p < min_p] = 0
    order = np.argsort(-p, kind="stable")
    order = order[p[order] > 0][: top_k or None]
    if 0 < top_p < 1:
        cdf = np.cumsum(p[order])
        order = order[: int(np.searchsorted(cdf, top_p * cdf[-1], side="right")) + 1]
    cdf = np.cumsum(p[order]) / p[order].sum()
    return int(order[np.searchsorted(cdf[:-1], u, side="right")]), float(np.abs(cdf - u).min())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.7},
        {"top_k": 5},
        {"min_p": 0.1},
        {"top_p": 0.9, "top_k": 20, "min_p": 0.01},
        {"top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_sample_follows_its_definition(rng, options, temperature):
    logits = normal(rng, 200, 301, scale=2)
    seeds = [int(s) for s in rng.integers(0, 2**63, 200)]
    steps = [int(s) for s in rng.integers(0, 2**40, 200)]
    got = ops.sample(logits, temperature=temperature, seed=seeds, step=steps, **options)
    clear = 0
    for row, seed, step, token in zip(logits, seeds, steps, got, strict=True):
        want, distance = choice(row, philox_uniform(seed, step), temperature, **options)
        if distance > 1e-5:  # float32 probabilities may decide differently closer to a border
            clear += 1
            assert token == want
    assert clear >= 190 or options == {"top_k": 1}


def test_sample_frequencies_are_the_softmax(rng):
    logits = np.tile(normal(rng, 1, 8), (20000, 1))
    got = np.bincount(ops.sample(logits, temperature=1.0, seed=11, step=list(range(20000))), minlength=8)
    p = np.exp(f64(logits[0]))
    p /= p.sum()
    chi2 = ((got - 20000 * p) ** 2 / (20000 * p)).sum()
    assert chi2 < 29.9  # 7 degrees of freedom, p = 1e-4


def test_sample_edges():
    row = np.array([[1, 3, 3, -np.inf, 2]], np.float32)
    assert ops.sample(row) == [1]
    assert ops.sample(row, temperature=1e-40) == ops.sample(row, temperature=1e-20) == [1]
    assert ops.sample(row, temperature=1.0, top_p=1e-9) == [1]
    assert ops.sample(row, temperature=1.0, min_p=1.0, seed=3)[0] in (1, 2)
    assert {ops.sample(row, temperature=1e30, seed=s)[0] for s in range(60)} == {0, 1, 2, 4}
    assert ops.sample(np.full((2, 3), -np.inf, np.float32), temperature=1.0) == [0, 0]
    assert ops.sample(np.array([[0, np.inf]], np.float32), temperature=1.0) == [1]
    assert ops.sample(np.array([[0, np.nan]], np.float32), temperature=1.0) == [-1]
    assert ops.sample(np.zeros((1, 1), np.float32), temperature=1.0) == [0]
    assert ops.sample(np.zeros((0, 5), np.float32)) == []
    for bad in ({"temperature": float("nan")}, {"temperature": -1}, {"temperature": 1.0, "min_p": 1.5}):
        with pytest.raises(trivium.InvalidArgument, match=list(bad)[-1]):
            ops.sample(row, **bad)
