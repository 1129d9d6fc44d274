"""Writes tests/data/golden/*.safetensors: inputs and the float64 results of tests/oracles/moe_oracle.py.

    python tests/data/make_golden.py

Needs numpy. The C++ op tests read the files; run it again when the oracle or a case changes.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracles"))
import moe_oracle as oracle  # noqa: E402

TAGS = {"float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8", "int32": "I32", "int64": "I64"}


class File:
    def __init__(self, name):
        self.path = HERE / "golden" / f"{name}.safetensors"
        self.tensors = {}

    def add(self, case, **arrays):
        for key, array in arrays.items():
            array = np.asarray(array)
            self.tensors[f"{case}.{key}"] = (TAGS[array.dtype.name], array)

    def save(self):
        self.path.parent.mkdir(exist_ok=True)
        oracle.save_safetensors(str(self.path), self.tensors)


def bf16(rng, *shape, scale=1.0):
    """Normal values that bfloat16 holds exactly, as float32."""
    return oracle.round_bf16(rng.standard_normal(shape) * scale)


def norm(rng):
    file = File("rms_norm")
    for i, (rows, dim) in enumerate([(1, 1), (3, 97), (2, 64), (5, 33)]):
        x, w = bf16(rng, rows, dim, scale=10.0**i), bf16(rng, dim)
        file.add(i, x=x, w=w, y=oracle.rms_norm(x.astype(np.float64), w.astype(np.float64), 1e-5))
    file.save()


def swiglu(rng):
    file = File("swiglu")
    x = bf16(rng, 3, 74, scale=4.0)
    x[0, :16] = [100, 100, -100, -100, 7, 7, -7, -7, 7.5, -7.5, 0, -0.0, 1e4, -1e4, -1e4, 1e4]
    with np.errstate(over="ignore"):
        file.add(0, x=x, y=oracle.clamped_swiglu(x.astype(np.float64), 1.702, 7.0))
        file.add(1, x=x, y=oracle.clamped_swiglu(x.astype(np.float64), 1.0, 2.5))
    file.save()


def linear(rng):
    file = File("linear")
    for i, (m, n, k) in enumerate([(5, 13, 67), (1, 1, 1), (3, 9, 40), (7, 6, 96)]):
        x, w, bias = bf16(rng, m, k), bf16(rng, n, k), bf16(rng, n)
        arrays = dict(x=x, w=w, bias=bias, y=x.astype(np.float64) @ w.astype(np.float64).T + bias)
        if k % 32 == 0:
            blocks, scales = oracle.mxfp4_encode(w)
            y = x.astype(np.float64) @ oracle.mxfp4_decode(blocks, scales).T + bias
            arrays |= dict(blocks=blocks, scales=scales, mxfp4_y=y)
        file.add(i, **arrays)
    file.save()


def mxfp4(_):
    """Every byte at each scale: 16 blocks of 16 bytes a row."""
    file = File("mxfp4")
    scales = np.array([0, 1, 2, 100, 127, 200, 252], np.uint8)
    blocks = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (len(scales), 1, 1))
    scales = np.tile(scales[:, None], (1, 16))
    file.add(0, blocks=blocks, scales=scales, y=oracle.mxfp4_decode(blocks, scales))
    file.save()


def rope(rng):
    file = File("rope")
    positions = np.array([0, 1, 2, 127, 4095, 4096, 100000, 131071], np.int32)
    for i, (dim, factor) in enumerate([(64, 32.0), (16, 32.0), (6, 1.0), (2, 32.0)]):
        config = oracle.MoeConfig(head_dim=dim, rope_factor=factor)
        inv_freq, concentration = oracle.yarn_inv_freq(config)
        x = bf16(rng, len(positions), 2, dim)
        y = oracle.apply_rope(x.astype(np.float64), positions, inv_freq, concentration)
        file.add(i, x=x, positions=positions, inv_freq=inv_freq, concentration=np.float64(concentration), y=y)
        file.add(i, factor=np.int64(factor))
    file.save()


def attention(rng):
    """[queries, positions, heads, kv heads, head size, window]: the window's edges, groups of 1, 2, 3 and 8."""
    cases = [
        (1, 1, 2, 1, 16, 5),
        (4, 4, 2, 2, 16, 5),
        (5, 5, 4, 2, 16, 5),
        (6, 6, 3, 1, 20, 5),
        (13, 13, 8, 1, 16, 5),
        (3, 13, 4, 2, 20, 5),
        (3, 13, 4, 2, 20, 0),
        (2, 40, 2, 2, 16, 16),
        (9, 9, 2, 1, 16, 1),
    ]
    file = File("attention")
    for i, (tokens, positions, heads, kv_heads, dim, window) in enumerate(cases):
        q = bf16(rng, tokens, heads, dim, scale=100.0 if i == 5 else 2.0)
        k, v = bf16(rng, positions, kv_heads, dim), bf16(rng, positions, kv_heads, dim)
        sinks = bf16(rng, heads, scale=60.0 if i == 4 else 1.0)
        q_pos, k_pos = np.arange(positions - tokens, positions), np.arange(positions)
        wide = [a.astype(np.float64) for a in (q, k, v, sinks)]
        y = oracle.attention(wide[0], q_pos, wide[1], wide[2], k_pos, wide[3], window)
        with np.errstate(invalid="ignore"):
            bare = oracle.attention(wide[0], q_pos, wide[1], wide[2], k_pos, np.full(heads, -np.inf), window)
        file.add(i, q=q, k=k, v=v, sinks=sinks, window=np.int64(window), y=y, y_without_sinks=bare)
    file.save()


def route(rng):
    file = File("moe_route")
    for i, (tokens, experts, top_k) in enumerate([(5, 1, 1), (9, 6, 2), (4, 32, 4), (3, 7, 7)]):
        logits = bf16(rng, tokens, experts, scale=2.0)
        logits[0] = np.round(logits[0])  # ties
        config = oracle.MoeConfig(num_experts=experts, experts_per_token=top_k)
        weights = {"router.weight": np.eye(experts), "router.bias": np.zeros(experts)}
        chosen, shares = oracle.route(logits.astype(np.float64), weights, config)
        file.add(i, logits=logits, experts=chosen.astype(np.int32), weights=shares)
    file.save()


def experts(rng):
    """Hidden and intermediate sizes differ, so that a transposed matrix cannot pass."""
    file = File("moe_experts")
    hidden, inter, num, top_k, tokens = 32, 64, 4, 2, 9
    config = oracle.MoeConfig(
        hidden_size=hidden, intermediate_size=inter, num_experts=num, experts_per_token=top_k
    )
    gate_up = oracle.mxfp4_encode(bf16(rng, num, 2 * inter, hidden, scale=0.5))
    down = oracle.mxfp4_encode(bf16(rng, num, hidden, inter, scale=0.3))
    arrays = dict(
        x=bf16(rng, tokens, hidden),
        gate_up_bias=bf16(rng, num, 2 * inter, scale=0.3),
        down_bias=bf16(rng, num, hidden, scale=0.3),
        router=bf16(rng, num, hidden, scale=0.5),
    )
    weights = {
        "router.weight": arrays["router"].astype(np.float64),
        "router.bias": np.zeros(num),
        "gate_up.weight": oracle.mxfp4_decode(*gate_up),
        "gate_up.bias": arrays["gate_up_bias"].astype(np.float64),
        "down.weight": oracle.mxfp4_decode(*down),
        "down.bias": arrays["down_bias"].astype(np.float64),
    }
    x = arrays["x"].astype(np.float64)
    chosen, shares = oracle.route(x, weights, config)
    file.add(0, **arrays, experts=chosen.astype(np.int32), weights=shares.astype(np.float32))
    file.add(
        0, gate_up_blocks=gate_up[0], gate_up_scales=gate_up[1], down_blocks=down[0], down_scales=down[1]
    )
    file.add(0, y=oracle.moe(x, weights, config))
    file.save()


def philox(key, counter):
    """First word of Philox 4x32-10 (Salmon et al. 2011) with a 64-bit key and counter."""
    c = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


class PhiloxSampler(oracle.Sampler):
    """The oracle's sampler with our number for (seed, step); tells how near the draw is to a boundary."""

    def draw(self, logits, seed, step):
        self.u = (philox(seed, step) >> 8) / 2.0**24
        z = np.asarray(logits, np.float64) / self.t
        p = np.sort(np.exp(z - z.max()) / np.exp(z - z.max()).sum())[::-1]
        self.margin = np.inf
        if 0.0 < self.p < 1.0:
            cumulative = np.cumsum(p)
            self.margin = np.abs(cumulative - self.p).min()
            p = p[: int(np.searchsorted(cumulative, self.p, side="right")) + 1]
        self.margin = min(self.margin, np.abs(np.cumsum(p) / p.sum() - self.u).min())
        return self(logits)

    def u01(self):
        return self.u


def sampling(rng):
    file = File("sampling")
    logits = bf16(rng, 4, 61, scale=3.0)
    settings, draws = [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5), (0.3, 0.95), (5.0, 0.25)], []
    for row in range(len(logits)):
        for setting, (temperature, top_p) in enumerate(settings):
            sampler = PhiloxSampler(float(np.float32(temperature)), float(np.float32(top_p)))
            for draw in range(25):
                seed, step = int(rng.integers(0, 2**62)), int(rng.integers(0, 5000)) if draw else 0
                token = sampler.draw(logits[row], seed, step)
                if sampler.margin > 1e-5:  # float32 probabilities decide nearer ones either way
                    draws.append((row, setting, seed, step, token))
    file.add(0, logits=logits, settings=np.array(settings, np.float32), draws=np.array(draws, np.int64))
    file.save()


def add_norm(rng):
    file = File("add_rms_norm")
    for i, (rows, dim) in enumerate([(1, 1), (3, 97), (2, 64), (5, 2050)]):
        x, add, w = bf16(rng, rows, dim, scale=10.0**i), bf16(rng, rows, dim, scale=3.0), bf16(rng, dim)
        total = x.astype(np.float64) + add.astype(np.float64)
        file.add(i, x=x, add=add, w=w, total=total, y=oracle.rms_norm(total, w.astype(np.float64), 1e-5))
    file.save()


if __name__ == "__main__":
    for number, make in enumerate(
        [norm, swiglu, linear, mxfp4, rope, attention, route, experts, sampling, add_norm]
    ):
        make(np.random.default_rng(number))
