"""Writes a gpt-oss checkpoint with random weights: real layer shapes, as few layers as wanted.

    python bench/make_checkpoint.py OUT [--layers 4] [--experts 32]

Names, shapes, dtypes and value ranges are those of the published 20b weights (MXFP4 experts, bf16 elsewhere), so
that loading and speed can be measured without them. 4 layers are 4.2 GB, all 24 of the 20b model 13.8 GB. The text it
writes means nothing. Needs numpy alone; every core writes its own pieces, and the bytes do not depend on how many there are.
"""

import argparse
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CHUNK = 1 << 24


def make_config(layers: int, experts: int) -> dict:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        "max_position_embeddings": 131072,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    }


def tensors(c: dict) -> Iterator[tuple[str, str, tuple[int, ...], float]]:
    """(name, dtype tag, shape, spread) in checkpoint order; a spread above 0 is a standard deviation, a
    negative one marks gains around 1. U8 tensors ending in _scales hold E8M0 exponents."""
    h, i, v, e = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["num_local_experts"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", "BF16", (v, h), 1.0
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", "BF16", (h,), -0.1
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield p + f"self_attn.{name}_proj.weight", "BF16", (rows, h), h**-0.5
            yield p + f"self_attn.{name}_proj.bias", "BF16", (rows,), 0.02
        yield p + "self_attn.o_proj.weight", "BF16", (h, q), q**-0.5
        yield p + "self_attn.o_proj.bias", "BF16", (h,), 0.02
        yield p + "self_attn.sinks", "BF16", (c["num_attention_heads"],), 1.0
        yield p + "post_attention_layernorm.weight", "BF16", (h,), -0.1
        yield p + "mlp.router.weight", "BF16", (e, h), h**-0.5
        yield p + "mlp.router.bias", "BF16", (e,), 0.02
        for name, rows, cols in (("gate_up_proj", 2 * i, h), ("down_proj", h, i)):
            yield p + f"mlp.experts.{name}_blocks", "U8", (e, rows, cols // 32, 16), 0
            yield p + f"mlp.experts.{name}_scales", "U8", (e, rows, cols // 32), cols**-0.5
            yield p + f"mlp.experts.{name}_bias", "BF16", (e, rows), 0.02
    yield "model.norm.weight", "BF16", (h,), -0.1
    yield "lm_head.weight", "BF16", (v, h), h**-0.5


def values(rng: np.random.Generator, name: str, tag: str, count: int, spread: float) -> np.ndarray:
    """`count` random elements as the bytes of the file; bf16 by truncation."""
    if tag == "U8" and name.endswith("_blocks"):
        return np.frombuffer(rng.bytes(count), np.uint8)
    if tag == "U8":
        exponent = round(np.log2(spread / 2.9))  # uniform E2M1 codes have a root mean square of 2.9
        return rng.integers(126 + exponent, 128 + exponent, count, dtype=np.uint8)
    x = rng.standard_normal(count, dtype=np.float32) * np.float32(abs(spread)) + np.float32(spread < 0)
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def pieces(config: dict, at: int) -> Iterator[tuple[int, str, str, int, float]]:
    """(place in the file, name, dtype tag, elements, spread) of pieces of at most CHUNK elements."""
    for name, tag, shape, spread in tensors(config):
        left = int(np.prod(shape))
        while left:
            count = min(CHUNK, left)
            yield at, name, tag, count, spread
            at += count * (2 if tag == "BF16" else 1)
            left -= count


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--experts", type=int, default=32)
    a = ap.parse_args()
    config = make_config(a.layers, a.experts)
    header, offset = {}, 0
    for name, tag, shape, _ in tensors(config):
        size = int(np.prod(shape)) * (2 if tag == "BF16" else 1)
        header[name] = {"dtype": tag, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "config.json").write_text(json.dumps(config, indent=1))
    part = a.out / "model.safetensors.part"
    start = 8 + len(text)
    with open(part, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(start + offset)
        jobs = list(pieces(config, start))

        def write(index: int) -> int:
            at, name, tag, count, spread = jobs[index]
            data = values(np.random.default_rng([0, index]), name, tag, count, spread).tobytes()
            return os.pwrite(f.fileno(), data, at)

        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for size in pool.map(write, range(len(jobs))):
                done += size
                print(f"\r{done / 1e9:6.2f} of {offset / 1e9:.2f} GB", end="", flush=True)
    if done != offset:
        raise OSError(f"{part}: {done} of {offset} bytes were written")
    part.rename(a.out / "model.safetensors")
    print(f"\n{a.out}: written")


if __name__ == "__main__":
    main()
