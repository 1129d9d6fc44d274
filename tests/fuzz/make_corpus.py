"""Writes the seeds of the libFuzzer targets: corpus/NAME/SEED, small files that reach each branch of a parser.

python tests/fuzz/make_corpus.py
"""

import json
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def write(target: str, name: str, data: bytes) -> None:
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], begin: int, end: int, **other) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **other}


def safetensors_seeds() -> dict[str, bytes]:
    two = {
        "__metadata__": {"format": "pt"},
        "a": tensor("F32", [2], 0, 8),
        "b": tensor("BF16", [3, 1], 8, 14),
    }
    return {
        "two": safetensors(two, bytes(14)),
        "empty": safetensors({}),
        "scalar": safetensors({"s": tensor("U8", [], 0, 1)}, b"x"),
        "zero_size": safetensors({"z": tensor("I64", [0, 4], 0, 0), "s": tensor("I8", [1], 0, 1)}, b"x"),
        "unknown": safetensors({"q": tensor("Q4_K", [32], 0, 3, extra={"a": [1, {}]})}, b"xyz"),
        "small_floats": safetensors({"f": tensor("F4", [2], 0, 1), "e": tensor("F8_E4M3", [1], 1, 2)}, b"xy"),
        "truncated": safetensors(two, bytes(13)),
        "overflow": safetensors({"o": tensor("F32", [2**40, 2**40], 0, 0)}),
        "overlap": safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"xyz"),
        "length": struct.pack("<Q", 2**63),
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
    }


def json_seeds() -> dict[str, bytes]:
    return {
        "values": rb'{"a":[1,-2,2.5e-3,null,true,false],"b":{"c":"\u00e9\ud83d\ude00\n\\\""},"d":18446744073709551615}',
        "depth": b"[" * 65 + b"]" * 65,
        "surrogate": rb'["\ud800"]',
        "overflow": b"[1e999]",
        "utf8": '"Käse \u20ac \U0001f9c0"'.encode(),
        "bad_utf8": b'"\xed\xa0\x80"',
        "twice": b'{"a":1,"a":2}',
        "bom": b"\xef\xbb\xbf{}",
        "nul": b"{}\0{}",
    }


def config_seeds() -> dict[str, bytes]:
    hf = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 256,
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
        "rms_norm_eps": 1e-5,
        "swiglu_limit": 7.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": [2, 3],
        "quantization_config": {"quant_method": "mxfp4"},
    }
    newer = {k: v for k, v in hf.items() if k not in ("rope_theta", "rope_scaling", "quantization_config")}
    newer["rope_parameters"] = {**hf["rope_scaling"], "rope_theta": 150000.0}
    newer["swiglu_alpha"] = 1.702
    openai = {
        "num_hidden_layers": 2,
        "num_experts": 6,
        "experts_per_token": 2,
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "swiglu_limit": 7.0,
        "head_dim": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": 5,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    seeds = {"hf": hf, "newer": newer, "openai": openai, "zero_heads": {**hf, "num_key_value_heads": 0}}
    return {name: json.dumps(config).encode() for name, config in seeds.items()}


def flat_bin_seeds() -> dict[str, bytes]:
    V, H, E, K, F, L, D, Nq, Nk = 11, 6, 3, 2, 5, 2, 4, 4, 2
    header = struct.pack("<11i2fif", V, H, E, K, F, L, D, Nq, Nk, 2048, 4096, 150000.0, 32.0, 5, 7.0)
    qkv = (Nq + 2 * Nk) * D
    layer = (
        2 * H + qkv * (H + 1) + H * (Nq * D + 1) + Nq + E * (H + 1) + E * 2 * F * (H + 1) + E * H * (F + 1)
    )
    parameters = 2 * V * H + H + L * layer
    return {
        "float32": struct.pack("<q", 60 + 4 * parameters) + header,
        "bfloat16": struct.pack("<q", 60 + 2 * parameters) + header,
        "short": struct.pack("<q", 30) + header[:30],
        "negative": struct.pack("<q", 60 + 4 * parameters) + struct.pack("<i", -1) + header[4:],
    }


SEEDS = {
    "safetensors": safetensors_seeds,
    "json": json_seeds,
    "config": config_seeds,
    "flat_bin": flat_bin_seeds,
}

if __name__ == "__main__":
    for target, seeds in SEEDS.items():
        for name, data in seeds().items():
            write(target, name, data)
