"""NumPy oracle for the gpt-oss mixture-of-experts transformer.

Clarity before speed.  Everything is computed in one floating-point type (float64
unless told otherwise); weights may be dense or MXFP4.  Contents:

  config            MoeConfig, GPT_OSS_20B, GPT_OSS_120B, TINY
  number formats    bf16 rounding, MXFP4 encode / decode
  layers            rms_norm, yarn_inv_freq, apply_rope, attention, clamped_swiglu, moe
  model             random_weights, forward, KVCache (full + ring layers), generate
  sampling          xorshift64* generator, greedy / temperature / top-p
  files             safetensors read / write, flat model.bin write, HF <-> OpenAI names
  cost model        parameter counts, bytes and FLOPs per token, roofline

Run the file to execute the self-check.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass

import numpy as np

# --------------------------------------------------------------------------- config


@dataclass
class MoeConfig:
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_layers: int = 24
    num_heads: int = 64
    num_kv_heads: int = 8
    head_dim: int = 64
    num_experts: int = 32
    experts_per_token: int = 4
    sliding_window: int = 128  # used on even layers (0, 2, 4, ...)
    initial_context: int = 4096
    rope_theta: float = 150000.0
    rope_factor: float = 32.0
    beta_fast: float = 32.0  # called ntk_beta in the OpenAI checkpoint code
    beta_slow: float = 1.0  # called ntk_alpha there
    rms_eps: float = 1e-5
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    max_positions: int = 131072

    @property
    def q_dim(self):
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self):
        return self.num_kv_heads * self.head_dim

    def is_sliding(self, layer: int) -> bool:
        return self.sliding_window > 0 and layer % 2 == 0


GPT_OSS_20B = MoeConfig()
GPT_OSS_120B = MoeConfig(num_layers=36, num_experts=128)
# All widths that enter an MXFP4 row (hidden, intermediate) are multiples of 32.
TINY = MoeConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    num_experts=6,
    experts_per_token=2,
    sliding_window=5,
    max_positions=256,
)

# --------------------------------------------------------------------------- number formats


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    """float -> bf16 bit pattern (uint16), round to nearest even, NaN kept quiet."""
    b = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((b + 0x7FFF + ((b >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(np.asarray(x, np.float32))
    return np.where(nan, np.uint16(0x7FC0), rounded)


def from_bf16_bits(u: np.ndarray) -> np.ndarray:
    return (u.astype(np.uint32) << 16).view(np.float32)


def round_bf16(x):
    return from_bf16_bits(to_bf16_bits(x))


FP4_MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4_TABLE = np.concatenate([FP4_MAGNITUDES, -FP4_MAGNITUDES])  # index = 4-bit code


def mxfp4_encode(w: np.ndarray):
    """[..., n] -> blocks uint8 [..., n/32, 16], scales uint8 [..., n/32].

    Shared exponent = floor(log2(max |w|)) - 2 (OCP MX rule); elements are rounded to the
    nearest table entry, ties to the even code, saturating at 6.
    """
    *lead, n = w.shape
    assert n % 32 == 0, "last dimension must be a multiple of 32"
    g = np.asarray(w, np.float64).reshape(*lead, n // 32, 32)
    amax = np.abs(g).max(-1)
    exp = np.where(amax > 0, np.floor(np.log2(np.where(amax > 0, amax, 1.0))) - 2, -127)
    exp = np.clip(exp, -127, 127)
    scaled = np.abs(g) * np.exp2(-exp)[..., None]
    dist = np.abs(scaled[..., None] - FP4_MAGNITUDES)  # [..., 32, 8]
    # ties: prefer an even code -> bias odd codes by a hair
    code = np.argmin(dist + np.array([0, 1, 0, 1, 0, 1, 0, 1]) * 1e-12, -1).astype(np.uint8)
    code |= np.signbit(g).astype(np.uint8) << 3
    blocks = code[..., 0::2] | (code[..., 1::2] << 4)  # low nibble = even element
    return blocks.astype(np.uint8), (exp + 127).astype(np.uint8)


def mxfp4_decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Inverse of mxfp4_encode.  value = table[nibble] * 2**(scale - 127)."""
    assert blocks.shape[:-1] == scales.shape and blocks.shape[-1] == 16
    codes = np.empty((*blocks.shape[:-1], 32), np.uint8)
    codes[..., 0::2] = blocks & 15
    codes[..., 1::2] = blocks >> 4
    vals = FP4_TABLE[codes] * np.exp2(scales.astype(np.float64) - 127)[..., None]
    vals = np.where((scales == 255)[..., None], np.nan, vals)
    return vals.reshape(*blocks.shape[:-2], blocks.shape[-2] * 32)


# --------------------------------------------------------------------------- layers


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def yarn_inv_freq(cfg: MoeConfig):
    """Per-pair rotation speed [head_dim/2] and the cos/sin multiplier ("concentration")."""
    half = cfg.head_dim // 2
    i = np.arange(half, dtype=np.float64)
    base_freq = cfg.rope_theta ** (-2.0 * i / cfg.head_dim)  # extrapolation
    if cfg.rope_factor <= 1.0:
        return base_freq, 1.0

    def pair_with_turns(turns):  # pair index making `turns` full turns over initial_context
        return half * math.log(cfg.initial_context / (turns * 2 * math.pi)) / math.log(cfg.rope_theta)

    low, high = pair_with_turns(cfg.beta_fast), pair_with_turns(cfg.beta_slow)  # not truncated
    low, high = max(low, 0.0), min(high, cfg.head_dim - 1.0)
    ramp = np.clip((i - low) / (high - low), 0.0, 1.0)  # 0: keep, 1: interpolate
    inv_freq = base_freq * (1 - ramp) + (base_freq / cfg.rope_factor) * ramp
    return inv_freq, 0.1 * math.log(cfg.rope_factor) + 1.0


def apply_rope(x, positions, inv_freq, concentration):
    """x [T, heads, head_dim]; pair (i, i + head_dim/2)."""
    ang = positions[:, None].astype(np.float64) * inv_freq  # [T, half]
    c = (np.cos(ang) * concentration)[:, None, :].astype(x.dtype)
    s = (np.sin(ang) * concentration)[:, None, :].astype(x.dtype)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def attention(q, q_pos, k, v, k_pos, sinks, window):
    """q [T,H,D] at positions q_pos; k, v [S,Hkv,D] at positions k_pos; window 0 = unlimited.

    Key j is visible to query i when 0 <= i - j < window (or j <= i without a window).
    The sink joins the softmax denominator but carries no value.
    """
    H, D = q.shape[1:]
    rep = H // k.shape[1]
    out = np.empty_like(q)
    gap = q_pos[:, None] - k_pos[None, :]
    visible = gap >= 0
    if window:
        visible &= gap < window
    for h in range(H):
        s = q[:, h] @ k[:, h // rep].T / math.sqrt(D)
        s = np.where(visible, s, -np.inf)
        m = np.maximum(s.max(-1), sinks[h])  # sink keeps m finite
        e = np.exp(s - m[:, None])
        denom = e.sum(-1) + np.exp(sinks[h] - m)
        out[:, h] = (e @ v[:, h // rep]) / denom[:, None]
    return out


def clamped_swiglu(gate_up, alpha, limit):
    """gate and linear parts are interleaved: even columns gate, odd columns linear."""
    gate = np.minimum(gate_up[..., 0::2], limit)
    lin = np.clip(gate_up[..., 1::2], -limit, limit)
    return gate / (1 + np.exp(-alpha * gate)) * (lin + 1)


def route(x, w, cfg):
    """Top-k over raw router logits (ties: lower index), then softmax over the k chosen."""
    logits = x @ w["router.weight"].T + w["router.bias"]
    idx = np.argsort(-logits, axis=-1, kind="stable")[:, : cfg.experts_per_token]
    top = np.take_along_axis(logits, idx, -1)
    p = np.exp(top - top.max(-1, keepdims=True))
    return idx, p / p.sum(-1, keepdims=True)


def moe(x, w, cfg):
    """Expert-grouped evaluation: gather the tokens of an expert, two GEMMs, scatter-add."""
    idx, prob = route(x, w, cfg)
    out = np.zeros_like(x)
    for e in np.unique(idx):
        tok, slot = np.nonzero(idx == e)
        h = x[tok] @ w["gate_up.weight"][e].T + w["gate_up.bias"][e]
        y = clamped_swiglu(h, cfg.swiglu_alpha, cfg.swiglu_limit) @ w["down.weight"][e].T + w["down.bias"][e]
        out[tok] += y * prob[tok, slot][:, None]
    return out


# --------------------------------------------------------------------------- model

LAYER_KEYS = (
    "input_norm",
    "post_norm",
    "q.weight",
    "q.bias",
    "k.weight",
    "k.bias",
    "v.weight",
    "v.bias",
    "o.weight",
    "o.bias",
    "sinks",
    "router.weight",
    "router.bias",
    "gate_up.weight",
    "gate_up.bias",
    "down.weight",
    "down.bias",
)


def layer_shapes(c: MoeConfig):
    H, I, E = c.hidden_size, c.intermediate_size, c.num_experts
    return {
        "input_norm": (H,),
        "post_norm": (H,),
        "q.weight": (c.q_dim, H),
        "q.bias": (c.q_dim,),
        "k.weight": (c.kv_dim, H),
        "k.bias": (c.kv_dim,),
        "v.weight": (c.kv_dim, H),
        "v.bias": (c.kv_dim,),
        "o.weight": (H, c.q_dim),
        "o.bias": (H,),
        "sinks": (c.num_heads,),
        "router.weight": (E, H),
        "router.bias": (E,),
        "gate_up.weight": (E, 2 * I, H),
        "gate_up.bias": (E, 2 * I),
        "down.weight": (E, H, I),
        "down.bias": (E, H),
    }


def random_weights(cfg: MoeConfig, seed=0, quantise_experts=True, dtype=np.float64, gain=1.0):
    """All values are exactly bf16 (or exactly MXFP4), so every file format is lossless."""
    rng = np.random.default_rng(seed)

    def make(shape, scale, shift=0.0):
        return round_bf16(rng.standard_normal(shape) * scale + shift).astype(dtype)

    H = cfg.hidden_size
    model = {
        "embed": make((cfg.vocab_size, H), 1.0),
        "lm_head": make((cfg.vocab_size, H), gain / math.sqrt(H)),
        "final_norm": make((H,), 0.1, 1.0),
        "layers": [],
    }
    for _ in range(cfg.num_layers):
        lw = {}
        for name, shape in layer_shapes(cfg).items():
            if name.endswith("norm"):
                lw[name] = make(shape, 0.1, 1.0)
            elif name.endswith("weight"):
                lw[name] = make(shape, 2.0 * gain / math.sqrt(shape[-1]))
            elif name == "sinks":
                lw[name] = make(shape, 1.0)
            else:
                lw[name] = make(shape, 0.3)
        if quantise_experts:
            for name in ("gate_up.weight", "down.weight"):
                lw[name + ".mx"] = mxfp4_encode(lw[name])
                lw[name] = mxfp4_decode(*lw[name + ".mx"]).astype(dtype)
        model["layers"].append(lw)
    return model


class KVCache:
    """Per-layer cache.  Sliding layers keep only the last `window` positions in a ring."""

    def __init__(self, cfg: MoeConfig, capacity: int, dtype=np.float64):
        self.cfg, self.capacity, self.length = cfg, capacity, 0
        self.k, self.v, self.pos = [], [], []
        for l in range(cfg.num_layers):
            n = min(cfg.sliding_window, capacity) if cfg.is_sliding(l) else capacity
            self.k.append(np.zeros((n, cfg.num_kv_heads, cfg.head_dim), dtype))
            self.v.append(np.zeros_like(self.k[-1]))
            self.pos.append(np.full(n, -1, np.int64))

    def past(self, l):
        keep = np.nonzero(self.pos[l] >= 0)[0]
        keep = keep[np.argsort(self.pos[l][keep])]
        return self.k[l][keep], self.v[l][keep], self.pos[l][keep]

    def append(self, l, k, v, positions):
        n = len(self.pos[l])
        for i, p in enumerate(positions):
            self.k[l][p % n], self.v[l][p % n], self.pos[l][p % n] = k[i], v[i], p


def forward(model, cfg: MoeConfig, tokens, cache: KVCache | None = None, return_hidden=False):
    """Logits [T, vocab] for `tokens`, which follow whatever the cache already holds."""
    start = cache.length if cache else 0
    tokens = np.asarray(tokens, np.int64)
    assert tokens.ndim == 1 and len(tokens) > 0
    assert tokens.min() >= 0 and tokens.max() < cfg.vocab_size, "token id out of range"
    if cache:
        assert start + len(tokens) <= cache.capacity, "context overflow"
    pos = start + np.arange(len(tokens))
    inv_freq, conc = yarn_inv_freq(cfg)
    x = model["embed"][tokens]
    hidden = [x]
    for l, w in enumerate(model["layers"]):
        t = rms_norm(x, w["input_norm"], cfg.rms_eps)
        q = (t @ w["q.weight"].T + w["q.bias"]).reshape(-1, cfg.num_heads, cfg.head_dim)
        k = (t @ w["k.weight"].T + w["k.bias"]).reshape(-1, cfg.num_kv_heads, cfg.head_dim)
        v = (t @ w["v.weight"].T + w["v.bias"]).reshape(-1, cfg.num_kv_heads, cfg.head_dim)
        q, k = apply_rope(q, pos, inv_freq, conc), apply_rope(k, pos, inv_freq, conc)
        kk, vv, kp = k, v, pos
        if cache:  # read the past before the ring overwrites it
            pk, pv, pp = cache.past(l)
            kk, vv, kp = np.concatenate([pk, k]), np.concatenate([pv, v]), np.concatenate([pp, pos])
            cache.append(l, k, v, pos)
        a = attention(q, pos, kk, vv, kp, w["sinks"], cfg.sliding_window if cfg.is_sliding(l) else 0)
        x = x + a.reshape(len(tokens), -1) @ w["o.weight"].T + w["o.bias"]
        x = x + moe(rms_norm(x, w["post_norm"], cfg.rms_eps), w, cfg)
        hidden.append(x)
    if cache:
        cache.length += len(tokens)
    x = rms_norm(x, model["final_norm"], cfg.rms_eps)
    logits = x @ model["lm_head"].T
    return (logits, hidden) if return_hidden else logits


def generate(
    model, cfg, prompt, max_new, stop_ids=(200002, 199999, 200012), cache_capacity=None, chunk=0, sampler=None
):
    """Greedy (or sampled) continuation.  The stop token is included in the result."""
    if len(prompt) < 1:
        raise ValueError("empty prompt")
    cap = cache_capacity or len(prompt) + max_new
    cache = KVCache(cfg, cap, model["embed"].dtype)
    chunk = chunk or len(prompt)
    for i in range(0, len(prompt), chunk):  # chunked prefill
        logits = forward(model, cfg, prompt[i : i + chunk], cache)[-1]
    out = []
    while len(out) < max_new:
        tok = int(np.argmax(logits)) if sampler is None else sampler(logits)
        out.append(tok)
        if tok in stop_ids or cache.length >= cap or len(out) == max_new:
            break
        logits = forward(model, cfg, [tok], cache)[-1]
    return out


# --------------------------------------------------------------------------- sampling


class Sampler:
    """Temperature / top-p sampler with a xorshift64* stream; draws one number per token."""

    MASK = (1 << 64) - 1

    def __init__(self, temperature=0.0, top_p=1.0, seed=1):
        self.t, self.p, self.state = temperature, top_p, (seed & self.MASK) or 1

    def u01(self):
        s = self.state
        s ^= s >> 12
        s = (s ^ (s << 25)) & self.MASK
        s ^= s >> 27
        self.state = s
        return (((s * 0x2545F4914F6CDD1D) & self.MASK) >> 40) / 16777216.0  # 24 bits

    def __call__(self, logits):
        if self.t == 0.0:
            return int(np.argmax(logits))  # first maximum
        z = np.asarray(logits, np.float64) / self.t
        p = np.exp(z - z.max())
        p /= p.sum()
        order = np.argsort(-p, kind="stable")  # ties: lower id
        if 0.0 < self.p < 1.0:
            keep = int(np.searchsorted(np.cumsum(p[order]), self.p, side="right")) + 1
            order = order[: min(keep, len(order))]
        cdf = np.cumsum(p[order])
        return int(order[min(int(np.searchsorted(cdf, self.u01() * cdf[-1], side="right")), len(order) - 1)])


# --------------------------------------------------------------------------- files

ST_DTYPES = {"F32": np.float32, "BF16": np.uint16, "U8": np.uint8, "F16": np.float16}


def save_safetensors(path, tensors):
    """tensors: name -> (dtype tag, array); BF16 arrays are given as uint16 bit patterns."""
    head, off, parts = {}, 0, []
    for name, (tag, arr) in tensors.items():
        raw = np.ascontiguousarray(arr).tobytes()
        head[name] = {"dtype": tag, "shape": list(arr.shape), "data_offsets": [off, off + len(raw)]}
        off += len(raw)
        parts.append(raw)
    js = json.dumps(head, separators=(",", ":")).encode()
    js += b" " * (-len(js) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(js)) + js)
        for raw in parts:
            f.write(raw)


def load_safetensors(path):
    with open(path, "rb") as f:
        blob = f.read()
    (n,) = struct.unpack_from("<Q", blob)
    if 8 + n > len(blob):
        raise ValueError("header runs past the end of the file")
    head = json.loads(blob[8 : 8 + n])
    out = {}
    for name, d in head.items():
        if name == "__metadata__":
            continue
        a, b = d["data_offsets"]
        dt = np.dtype(ST_DTYPES[d["dtype"]])
        if 8 + n + b > len(blob) or (b - a) != dt.itemsize * math.prod(d["shape"]):
            raise ValueError(f"bad extent for {name}")
        out[name] = (
            d["dtype"],
            np.frombuffer(blob, dt, (b - a) // dt.itemsize, 8 + n + a).reshape(d["shape"]),
        )
    return out


HF_LAYER = {
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
    "q.weight": "self_attn.q_proj.weight",
    "q.bias": "self_attn.q_proj.bias",
    "k.weight": "self_attn.k_proj.weight",
    "k.bias": "self_attn.k_proj.bias",
    "v.weight": "self_attn.v_proj.weight",
    "v.bias": "self_attn.v_proj.bias",
    "o.weight": "self_attn.o_proj.weight",
    "o.bias": "self_attn.o_proj.bias",
    "sinks": "self_attn.sinks",
    "router.weight": "mlp.router.weight",
    "router.bias": "mlp.router.bias",
    "gate_up.weight": "mlp.experts.gate_up_proj",
    "gate_up.bias": "mlp.experts.gate_up_proj_bias",
    "down.weight": "mlp.experts.down_proj",
    "down.bias": "mlp.experts.down_proj_bias",
}


def to_hf_tensors(model, mxfp4=True):
    """Hugging Face checkpoint tensors.  Dense expert weights are stored transposed ([E, in, out])."""

    def bf(a):
        return ("BF16", to_bf16_bits(a))

    t = {
        "model.embed_tokens.weight": bf(model["embed"]),
        "model.norm.weight": bf(model["final_norm"]),
        "lm_head.weight": bf(model["lm_head"]),
    }
    for l, w in enumerate(model["layers"]):
        for key, hf in HF_LAYER.items():
            name = f"model.layers.{l}.{hf}"
            if key in ("gate_up.weight", "down.weight"):
                if mxfp4:
                    blocks, scales = w[key + ".mx"] if key + ".mx" in w else mxfp4_encode(w[key])
                    t[name + "_blocks"], t[name + "_scales"] = ("U8", blocks), ("U8", scales)
                else:
                    t[name] = bf(np.swapaxes(w[key], 1, 2))
            else:
                t[name] = bf(w[key])
    return t


def to_openai_tensors(model):
    """Original OpenAI checkpoint: fused qkv, `block.N.` prefix."""

    def bf(a):
        return ("BF16", to_bf16_bits(a))

    t = {
        "embedding.weight": bf(model["embed"]),
        "norm.scale": bf(model["final_norm"]),
        "unembedding.weight": bf(model["lm_head"]),
    }
    for l, w in enumerate(model["layers"]):
        b = f"block.{l}."
        t[b + "attn.norm.scale"], t[b + "mlp.norm.scale"] = bf(w["input_norm"]), bf(w["post_norm"])
        t[b + "attn.qkv.weight"] = bf(np.concatenate([w["q.weight"], w["k.weight"], w["v.weight"]]))
        t[b + "attn.qkv.bias"] = bf(np.concatenate([w["q.bias"], w["k.bias"], w["v.bias"]]))
        t[b + "attn.out.weight"], t[b + "attn.out.bias"] = bf(w["o.weight"]), bf(w["o.bias"])
        t[b + "attn.sinks"] = bf(w["sinks"])
        t[b + "mlp.gate.weight"], t[b + "mlp.gate.bias"] = bf(w["router.weight"]), bf(w["router.bias"])
        for key, nm in (("gate_up", "mlp1"), ("down", "mlp2")):
            blocks, scales = w.get(key + ".weight.mx") or mxfp4_encode(w[key + ".weight"])
            t[b + f"mlp.{nm}_weight.blocks"], t[b + f"mlp.{nm}_weight.scales"] = (
                ("U8", blocks),
                ("U8", scales),
            )
            t[b + f"mlp.{nm}_bias"] = bf(w[key + ".bias"])
    return t


def from_hf_tensors(tensors, cfg, dtype=np.float64):
    def get(name):
        tag, a = tensors[name]
        return (from_bf16_bits(a) if tag == "BF16" else a).astype(dtype)

    model = {
        "embed": get("model.embed_tokens.weight"),
        "final_norm": get("model.norm.weight"),
        "lm_head": get("lm_head.weight"),
        "layers": [],
    }
    for l in range(cfg.num_layers):
        w = {}
        for key, hf in HF_LAYER.items():
            name = f"model.layers.{l}.{hf}"
            if key in ("gate_up.weight", "down.weight"):
                if name + "_blocks" in tensors:
                    w[key] = mxfp4_decode(tensors[name + "_blocks"][1], tensors[name + "_scales"][1]).astype(
                        dtype
                    )
                else:
                    w[key] = np.swapaxes(get(name), 1, 2)
            else:
                w[key] = get(name)
            want = layer_shapes(cfg)[key]
            if w[key].shape != want:
                raise ValueError(f"{name}: shape {w[key].shape}, expected {want}")
        model["layers"].append(w)
    return model


def hf_config(cfg: MoeConfig, mxfp4=True):
    c = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "experts_per_token": cfg.experts_per_token,
        "num_experts_per_tok": cfg.experts_per_token,
        "num_local_experts": cfg.num_experts,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "hidden_size": cfg.hidden_size,
        "initial_context_length": cfg.initial_context,
        "initializer_range": 0.02,
        "intermediate_size": cfg.intermediate_size,
        "max_position_embeddings": cfg.max_positions,
        "layer_types": [
            "sliding_attention" if cfg.is_sliding(l) else "full_attention" for l in range(cfg.num_layers)
        ],
        "num_attention_heads": cfg.num_heads,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": cfg.rms_eps,
        "rope_scaling": {
            "beta_fast": cfg.beta_fast,
            "beta_slow": cfg.beta_slow,
            "factor": cfg.rope_factor,
            "original_max_position_embeddings": cfg.initial_context,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": cfg.rope_theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": cfg.sliding_window,
        "swiglu_limit": cfg.swiglu_limit,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": cfg.vocab_size,
    }
    if mxfp4:
        c["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    return c


def save_hf_dir(path, model, cfg, mxfp4=True, shards=1):
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(hf_config(cfg, mxfp4), f, indent=1)
    items = list(to_hf_tensors(model, mxfp4).items())
    if shards == 1:
        save_safetensors(os.path.join(path, "model.safetensors"), dict(items))
        return
    weight_map, total = {}, 0
    for s in range(shards):
        part = dict(items[s::shards])
        fname = f"model-{s:05d}-of-{shards - 1:05d}.safetensors"  # the released numbering starts at 0
        save_safetensors(os.path.join(path, fname), part)
        for name, (_, a) in part.items():
            weight_map[name] = fname
            total += a.nbytes
    with open(os.path.join(path, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=1)


def save_flat_bin(path, model, cfg: MoeConfig, max_seq_len=1024):
    """The seed project's model.bin: 15 x 4-byte header, then float32 tensors, category by category."""
    L = model["layers"]
    with open(path, "wb") as f:
        f.write(
            struct.pack(
                "<11i2fif",
                cfg.vocab_size,
                cfg.hidden_size,
                cfg.num_experts,
                cfg.experts_per_token,
                cfg.intermediate_size,
                cfg.num_layers,
                cfg.head_dim,
                cfg.num_heads,
                cfg.num_kv_heads,
                max_seq_len,
                cfg.initial_context,
                cfg.rope_theta,
                cfg.rope_factor,
                cfg.sliding_window,
                cfg.swiglu_limit,
            )
        )

        def put(*arrays):
            for a in arrays:
                f.write(np.ascontiguousarray(a, np.float32).tobytes())

        put(model["embed"], model["lm_head"])
        put(*[w["input_norm"] for w in L])
        put(*[w["post_norm"] for w in L])
        put(model["final_norm"])
        put(*[np.concatenate([w["q.weight"], w["k.weight"], w["v.weight"]]) for w in L])
        put(*[np.concatenate([w["q.bias"], w["k.bias"], w["v.bias"]]) for w in L])
        for key in (
            "o.weight",
            "o.bias",
            "sinks",
            "router.weight",
            "router.bias",
            "gate_up.weight",
            "gate_up.bias",
            "down.weight",
            "down.bias",
        ):
            put(*[w[key] for w in L])


# --------------------------------------------------------------------------- cost model


def cost(cfg: MoeConfig, batch=1, context=1024, kv_bytes=2):
    """Bytes read and FLOPs done by one decode step of `batch` sequences at length `context`.

    Routing is assumed uniform and independent; experts MXFP4 (17 bytes per 32 weights), rest bf16.
    """
    H, I, E, K = cfg.hidden_size, cfg.intermediate_size, cfg.num_experts, cfg.experts_per_token
    L = cfg.num_layers
    attn = H * (cfg.q_dim + 2 * cfg.kv_dim) + cfg.q_dim * H
    attn_small = cfg.q_dim + 2 * cfg.kv_dim + H + cfg.num_heads + 2 * H
    router = E * H + E
    expert_w, expert_b = 3 * H * I, 2 * I + H
    total = L * (attn + attn_small + router + E * (expert_w + expert_b)) + 2 * cfg.vocab_size * H + H
    active = L * (attn + attn_small + router + K * (expert_w + expert_b)) + cfg.vocab_size * H + H
    expert_bytes = expert_w * 17 // 32 + 2 * expert_b
    hit = E * (1 - (1 - K / E) ** batch)
    n_slide = sum(cfg.is_sliding(l) for l in range(L))
    kv_tok = 2 * cfg.kv_dim * kv_bytes
    span = (L - n_slide) * context + n_slide * min(context, cfg.sliding_window or context)
    dense_bytes = L * 2 * (attn + attn_small + router) + 2 * (cfg.vocab_size * H + H)
    return {
        "params_total": total,
        "params_active": active,
        "file_bytes": dense_bytes + L * E * expert_bytes + 2 * cfg.vocab_size * H,
        "expert_bytes": expert_bytes,
        "dense_bytes": dense_bytes,
        "experts_hit": hit,
        "weight_bytes": dense_bytes + L * hit * expert_bytes,
        "kv_bytes_per_token_layer": kv_tok,
        "kv_bytes_per_seq": kv_tok * span,
        "kv_bytes_read": batch * kv_tok * span,
        "flops": batch
        * (2 * (L * (attn + router + K * expert_w) + cfg.vocab_size * H) + 4 * cfg.q_dim * span),
    }


def roofline(cfg, batch, context, bytes_per_s, flops_per_s):
    c = cost(cfg, batch, context)
    t = max((c["weight_bytes"] + c["kv_bytes_read"]) / bytes_per_s, c["flops"] / flops_per_s)
    return batch / t


# --------------------------------------------------------------------------- self-check


def self_check():
    import tempfile

    # MXFP4: every code survives a round trip at several scales; block layout is interleaved.
    vals = np.tile(FP4_TABLE, 2)
    for k in (-20, -1, 0, 7):
        w = (vals * 2.0**k)[None]
        b, s = mxfp4_encode(w)
        assert s[0, 0] == 127 + k and np.array_equal(mxfp4_decode(b, s), w)
        assert b[0, 0, 0] == 0x10 and b[0, 0, 4] == 0x98
    assert np.all(mxfp4_decode(*mxfp4_encode(np.zeros((1, 32)))) == 0)
    # bf16: ties to even, and dequantised MXFP4 is always exactly bf16.
    assert (
        to_bf16_bits(np.array([1.00390625]))[0] == 0x3F80
        and to_bf16_bits(np.array([1.01171875]))[0] == 0x3F82
    )
    # YaRN constants of the released models.
    f, c = yarn_inv_freq(GPT_OSS_20B)
    assert abs(c - 1.3465735902799727) < 1e-12 and f[0] == 1.0
    assert abs(f[31] * 32 * 150000 ** (62 / 64) - 1) < 1e-9
    assert abs(32 * math.log(4096 / (64 * math.pi)) / math.log(150000) - 8.0928) < 1e-3
    assert abs(32 * math.log(4096 / (2 * math.pi)) / math.log(150000) - 17.3980) < 1e-3
    # Sink: with all scores equal to the sink, n keys share n/(n+1) of the mass.
    q = np.zeros((1, 1, 4))
    k = np.zeros((3, 1, 4))
    v = np.ones((3, 1, 4))
    assert np.allclose(attention(q, np.array([2]), k, v, np.arange(3), np.zeros(1), 0), 0.75)
    assert np.allclose(attention(q, np.array([2]), k, v, np.arange(3), np.zeros(1), 2), 2 / 3)
    # Clamp: gate only from above, linear part from both sides.
    g = clamped_swiglu(np.array([100.0, 100.0, -100.0, -100.0]), 1.702, 7.0)
    assert abs(g[0] - 7 / (1 + math.exp(-1.702 * 7)) * 8) < 1e-12 and abs(g[1]) < 1e-60

    m = random_weights(TINY, 3)
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, TINY.vocab_size, 23).tolist()
    full = forward(m, TINY, prompt)
    # cache + ring, one token at a time and in chunks, equals the full pass
    for chunk in (1, 4, 7, 23):
        cache = KVCache(TINY, 64)
        got = np.concatenate([forward(m, TINY, prompt[i : i + chunk], cache) for i in range(0, 23, chunk)])
        assert np.abs(got - full).max() < 1e-10
        assert cache.k[0].shape[0] == TINY.sliding_window and cache.k[1].shape[0] == 64
    a = generate(m, TINY, prompt, 20, stop_ids=())
    ids = list(prompt)
    for tok in a:  # no cache: recompute everything
        assert int(np.argmax(forward(m, TINY, ids)[-1])) == tok
        ids.append(tok)
    assert generate(m, TINY, prompt, 20, stop_ids=(), chunk=3) == a
    assert generate(m, TINY, prompt, 20, stop_ids=(a[5],)) == a[: a.index(a[5]) + 1]
    # float32 run stays close
    m32 = random_weights(TINY, 3, dtype=np.float32)
    assert np.abs(forward(m32, TINY, prompt) - full).max() < 1e-3
    # files
    with tempfile.TemporaryDirectory() as d:
        for mx in (True, False):
            save_safetensors(d + "/a.safetensors", to_hf_tensors(m, mx))
            m2 = from_hf_tensors(load_safetensors(d + "/a.safetensors"), TINY)
            # The weights are equal; BLAS may sum a transposed copy in another order.
            assert np.abs(forward(m2, TINY, prompt) - full).max() < 1e-12
        save_safetensors(d + "/o.safetensors", to_openai_tensors(m))
        assert load_safetensors(d + "/o.safetensors")["block.0.attn.qkv.weight"][1].shape == (192, 64)
        save_flat_bin(d + "/model.bin", m, TINY)
        assert os.path.getsize(d + "/model.bin") == 60 + 4 * cost(TINY)["params_total"]
        raw = open(d + "/a.safetensors", "rb").read()
        open(d + "/cut.safetensors", "wb").write(raw[:-100])
        try:
            load_safetensors(d + "/cut.safetensors")
            raise SystemExit("truncated file accepted")
        except ValueError:
            pass
    # sampler: deterministic, top-p keeps the smallest prefix exceeding p
    s1, s2 = Sampler(0.8, 0.9, 42), Sampler(0.8, 0.9, 42)
    z = rng.standard_normal(50)
    assert [s1(z) for _ in range(20)] == [s2(z) for _ in range(20)]
    z = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    assert set(Sampler(1.0, 0.79, 7)(z) for _ in range(1)) <= {0, 1}
    sp = Sampler(1.0, 0.79, 7)
    assert set(sp(z) for _ in range(500)) == {0, 1}
    # parameter counts of the released models
    assert abs(cost(GPT_OSS_20B)["params_total"] / 20.91e9 - 1) < 1e-3
    assert abs(cost(GPT_OSS_120B)["params_total"] / 116.83e9 - 1) < 1e-3
    print("self-check passed")
    for name, cfg in (("20b", GPT_OSS_20B), ("120b", GPT_OSS_120B)):
        c = cost(cfg)
        print(
            f"gpt-oss-{name}: {c['params_total'] / 1e9:.3f} B params, {c['params_active'] / 1e9:.3f} B active, "
            f"{c['file_bytes'] / 1e9:.2f} GB, dense {c['dense_bytes'] / 1e9:.3f} GB/step, "
            f"expert {c['expert_bytes'] / 1e6:.3f} MB"
        )


if __name__ == "__main__":
    self_check()
