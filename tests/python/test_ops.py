"""trivium.ops from Python: values against numpy in float64, arguments from any array library."""

import re
from pathlib import Path

import numpy as np
import pytest
import trivium
from op_oracles import ops

pytestmark = pytest.mark.backend

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def close(got, want, bound=1e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= bound * max(np.linalg.norm(want), 1e-30)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swiglu(x, alpha=1.702, limit=7.0):
    g, u = np.minimum(x[..., ::2], limit), np.clip(x[..., 1::2], -limit, limit)
    return g * sigmoid(alpha * g) * (u + 1)


def mxfp4_values(blocks, scales):
    """OCP MX v1.0: E2M1 nibbles, low nibble first, times 2^(scale - 127)."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([table, -table])
    values = np.stack([table[blocks & 15], table[blocks >> 4]], -1).reshape(*blocks.shape[:-1], 32)
    return (values * 2.0 ** (scales[..., None].astype(int) - 127)).reshape(*scales.shape[:-1], -1)


def random_mxfp4(*shape):
    blocks = RNG.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), dtype=np.uint8)
    return blocks, RNG.integers(120, 130, blocks.shape[:-1], dtype=np.uint8)


def test_every_op_is_exported_and_documented():
    header = (Path(__file__).resolve().parents[2] / "cpp" / "ops" / "ops.h").read_text()
    declared = set(re.findall(r"^\w+ (\w+)\((?!Stream)", header, re.M)) - {"void"}
    assert len(declared) > 5
    assert declared | {"sample"} == set(ops.__all__)
    assert all(getattr(ops, name).__doc__ for name in ops.__all__)


def test_embedding_takes_rows():
    table, ids = normal(11, 7), [3, 0, 10, 3]
    np.testing.assert_array_equal(ops.embedding(ids, table), table[ids])
    with pytest.raises(ValueError, match="11"):
        ops.embedding([11], table)
    with pytest.raises(ValueError, match="32 bits"):
        ops.embedding([2**40], table)


@pytest.mark.parametrize("shape", [(1, 1), (3, 97), (2, 5, 33)])
def test_rms_norm(shape):
    x, w = normal(*shape), normal(shape[-1])
    x64 = x.astype(np.float64)
    close(ops.rms_norm(x, w, eps=1e-5), w * x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5))


def test_linear_dense_and_mxfp4():
    x, w, bias = normal(5, 64), normal(9, 64), normal(9)
    close(ops.linear(x, w, bias), x.astype(np.float64) @ w.T + bias)
    close(ops.linear(x, w), x.astype(np.float64) @ w.T)
    blocks, scales = random_mxfp4(9, 64)
    close(
        ops.linear(x, blocks, bias, scales=scales),
        x.astype(np.float64) @ mxfp4_values(blocks, scales).T + bias,
    )
    with pytest.raises(ValueError, match="linear"):
        ops.linear(x, normal(9, 63))


def test_linear_rows_do_not_depend_on_the_batch():
    x, w = normal(33, 96), normal(17, 96)
    whole = ops.linear(x, w).numpy()
    for i in (0, 7, 32):
        np.testing.assert_array_equal(ops.linear(x[i : i + 1], w).numpy()[0], whole[i])


def test_mxfp4_decode_is_exact():
    blocks, scales = random_mxfp4(2, 3, 96)
    np.testing.assert_array_equal(ops.mxfp4_decode(blocks, scales), mxfp4_values(blocks, scales))


def test_swiglu():
    x = normal(4, 50) * 5
    close(ops.swiglu(x), swiglu(x.astype(np.float64)))


def test_rope_rotates_half_split_pairs():
    inv_freq, concentration = ops.rope_frequencies(8, theta=10000.0)
    np.testing.assert_allclose(inv_freq, 10000.0 ** (-np.arange(4) / 4))
    assert concentration == 1
    x, positions = normal(3, 2, 8), np.array([0, 5, 1000], np.int32)
    angle = positions[:, None, None] * np.array(inv_freq)
    a, b = x[..., :4].astype(np.float64), x[..., 4:].astype(np.float64)
    want = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
    close(ops.rope(x, positions, inv_freq, concentration), want)
    _, stretched = ops.rope_frequencies(8, factor=32.0)
    assert stretched == pytest.approx(0.1 * np.log(32) + 1)


@pytest.mark.parametrize(("window", "with_sinks"), [(0, False), (0, True), (3, True)])
def test_attention(window, with_sinks):
    heads, kv_heads, dim, length, queries = 4, 2, 8, 9, 5
    q, k, v = normal(queries, heads, dim), normal(length, kv_heads, dim), normal(length, kv_heads, dim)
    sinks = normal(heads) if with_sinks else None
    want = np.zeros((queries, heads, dim))
    for t in range(queries):
        i = length - queries + t
        first = max(0, i - window + 1) if window else 0
        for h in range(heads):
            kv = h // (heads // kv_heads)
            scores = k[first : i + 1, kv].astype(np.float64) @ q[t, h] / np.sqrt(dim)
            extra = np.exp(sinks[h]) if with_sinks else 0
            weights = np.exp(scores)
            want[t, h] = weights @ v[first : i + 1, kv] / (weights.sum() + extra)
    close(ops.attention(q, k, v, sinks, window=window), want)


def test_moe_route_breaks_ties_to_the_lower_index():
    logits = np.array([[0, 3, 1, 3], [2, 2, 2, 2]], np.float32)
    experts, weights = ops.moe_route(logits, 2)
    assert experts.numpy().tolist() == [[1, 3], [0, 1]]
    np.testing.assert_allclose(weights, 0.5)


@pytest.mark.parametrize("mxfp4", [False, True])
def test_moe_experts(mxfp4):
    tokens, hidden, inter, num_experts, top_k = 5, 64, 32, 3, 2
    x = normal(tokens, hidden)
    gate_up_bias, down_bias = normal(num_experts, 2 * inter), normal(num_experts, hidden)
    experts, weights = ops.moe_route(normal(tokens, num_experts), top_k)
    if mxfp4:
        gate_up, gate_up_scales = random_mxfp4(num_experts, 2 * inter, hidden)
        down, down_scales = random_mxfp4(num_experts, hidden, inter)
        values = mxfp4_values(gate_up, gate_up_scales), mxfp4_values(down, down_scales)
        scales = {"gate_up_scales": gate_up_scales, "down_scales": down_scales}
    else:
        gate_up, down, scales = normal(num_experts, 2 * inter, hidden), normal(num_experts, hidden, inter), {}
        values = gate_up, down
    got = ops.moe_experts(x, experts, weights, gate_up, down, gate_up_bias, down_bias, **scales)
    want = np.zeros((tokens, hidden))
    for t in range(tokens):
        for e, weight in zip(experts.numpy()[t], weights.numpy()[t], strict=True):
            act = swiglu(values[0][e].astype(np.float64) @ x[t] + gate_up_bias[e])
            want[t] += weight * (values[1][e].astype(np.float64) @ act + down_bias[e])
    close(got, want)


def test_sample_greedy_and_seeded():
    logits = normal(6, 50)
    assert ops.sample(logits) == logits.argmax(1).tolist()
    first = ops.sample(logits, temperature=1.0, seed=list(range(6)), step=3)
    assert first == ops.sample(logits, temperature=1.0, seed=list(range(6)), step=3)
    alone = [ops.sample(logits[r : r + 1], temperature=1.0, seed=r, step=3)[0] for r in range(6)]
    assert first == alone
    draws = {tuple(ops.sample(logits, temperature=1.0, seed=s)) for s in range(20)}
    assert len(draws) > 1
    logits[2, 7] = np.nan
    assert ops.sample(logits)[2] == -1


def test_ops_take_tensors_of_other_libraries():
    torch = pytest.importorskip("torch")
    x, w = torch.randn(3, 16), torch.randn(16)
    close(torch.from_dlpack(ops.rms_norm(x, w)), ops.rms_norm(x.numpy(), w.numpy()))
    half = ops.rms_norm(x.bfloat16(), w)
    assert half.dtype == "bfloat16"
    close(torch.from_dlpack(half).float(), ops.rms_norm(x, w), 0.02)


def test_strided_arguments():
    x, w = normal(12, 16)[::2], normal(16)
    close(ops.rms_norm(x, w), ops.rms_norm(x.copy(), w))
    assert isinstance(ops.rms_norm(x, w), trivium.Tensor)
