"""Tiny random checkpoints in every layout, and a worker process that runs them on a chosen CPU level.

The weights come from tests/oracles/moe_oracle.py and are exact in bfloat16 or MXFP4, so that every layout holds
the same numbers. Run as a script it is the worker: jobs in (pickle on stdin), results out (pickle on stdout).
"""

import dataclasses
import functools
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
import moe_oracle as oracle  # noqa: E402
from moe_oracle import MoeConfig  # noqa: E402

LEVELS = ("scalar", "avx2", "avx512-bf16")
ALL_FORMATS = (
    "mxfp4",
    "shards_from_0",
    "shards_from_1",
    "dense",
    "dense_shards",
    "openai",
    "openai_shards",
    "bin_f32",
    "bin_bf16",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration of the oracle and how it is stored."""

    config: MoeConfig
    format: str = "mxfp4"
    seed: int = 0
    overrides: tuple = ()  # (key, value) pairs of config.json

    def weights(self):
        return _weights(_key(self.config), self.seed)


def _key(config: MoeConfig) -> tuple:
    return dataclasses.astuple(config)


@functools.lru_cache(maxsize=8)
def _weights(key: tuple, seed: int):
    cfg = MoeConfig(*key)
    blocks = cfg.hidden_size % 32 == 0 and cfg.intermediate_size % 32 == 0
    return oracle.random_weights(cfg, seed, quantise_experts=blocks)


def config(vocab, hidden, inter, layers, heads, kv_heads, dim, experts, top_k, window, **more) -> MoeConfig:
    return MoeConfig(
        vocab, hidden, inter, layers, heads, kv_heads, dim, experts, top_k, window,
        **{"max_positions": 512, **more},
    )  # fmt: skip


# H != I unless the name says so. The first is the oracle's own, the second moe.md's shape (b).
CASES = {
    "a": Case(config(320, 64, 96, 4, 8, 2, 16, 6, 2, 5)),
    "b_equal_widths": Case(config(500, 64, 64, 3, 6, 3, 32, 8, 4, 16), seed=1),
    "sharded": Case(config(257, 96, 64, 4, 4, 1, 64, 5, 5, 7), "shards_from_0", seed=2),
    "dense": Case(config(130, 72, 40, 3, 9, 3, 10, 3, 1, 4), "dense", seed=3),  # widths no multiple of 32
    "no_yarn": Case(config(200, 32, 128, 2, 4, 4, 24, 16, 3, 12, rope_factor=1.0), seed=4),
    "one_layer": Case(config(97, 128, 32, 1, 5, 5, 6, 4, 2, 1), seed=5),  # window 1: a query sees itself only
    "odd_group": Case(
        config(333, 160, 64, 5, 21, 3, 22, 7, 3, 9, rope_theta=10000.0), seed=6
    ),  # 7 heads a group
    "yarn_short_context": Case(
        config(150, 64, 32, 2, 2, 1, 16, 2, 2, 3, initial_context=64, rope_factor=8.0, beta_fast=16.0), seed=7
    ),
    "no_attention_bias": Case(
        config(180, 64, 96, 2, 4, 2, 16, 4, 2, 6), seed=8, overrides=(("attention_bias", False),)
    ),
    "tied": Case(
        config(190, 64, 96, 2, 4, 2, 16, 4, 2, 6), seed=9, overrides=(("tie_word_embeddings", True),)
    ),
}


def case_weights(name: str):
    """The oracle's weights of a case, in float64."""
    case = CASES[name]
    model = case.weights()
    changed = dict(case.overrides)
    if changed.get("attention_bias") is False:
        layers = [{k: v * 0 if k in ATTENTION_BIASES else v for k, v in w.items()} for w in model["layers"]]
        model = {**model, "layers": layers}
    if changed.get("tie_word_embeddings"):
        model = {**model, "lm_head": model["embed"]}
    return model


ATTENTION_BIASES = ("q.bias", "k.bias", "v.bias", "o.bias")


def hf_config(cfg: MoeConfig, mxfp4=True, **overrides) -> dict:
    out = oracle.hf_config(cfg, mxfp4)
    if cfg.rope_factor <= 1:
        out["rope_scaling"] = {"rope_type": "default"}
    out.update(overrides)
    return {k: v for k, v in out.items() if v is not REMOVE}


REMOVE = object()


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1))


def write_shards(folder: Path, tensors: dict, shards: int, first: int, last: int, index=True) -> None:
    """model-FIRST-of-LAST.safetensors, ..., tensors dealt out in turn."""
    items, weight_map = list(tensors.items()), {}
    for s in range(shards):
        name = f"model-{first + s:05d}-of-{last:05d}.safetensors"
        part = dict(items[s::shards])
        oracle.save_safetensors(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    total = sum(a.nbytes for _, a in tensors.values())
    if index:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def write_hf(folder: Path, model, cfg: MoeConfig, *, mxfp4=True, tensors=None, **overrides) -> Path:
    """One file. `tensors` replaces what the model gives; overrides go into config.json (REMOVE drops a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hf_config(cfg, mxfp4, **overrides))
    oracle.save_safetensors(folder / "model.safetensors", tensors or oracle.to_hf_tensors(model, mxfp4))
    return folder


def hf_shapes(cfg: MoeConfig, mxfp4=True) -> dict:
    """Name -> (dtype tag, shape) of every tensor of a Hugging Face checkpoint."""
    table = "BF16", (cfg.vocab_size, cfg.hidden_size)
    out = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    out["model.norm.weight"] = "BF16", (cfg.hidden_size,)
    for layer in range(cfg.num_layers):
        for key, shape in oracle.layer_shapes(cfg).items():
            name = f"model.layers.{layer}.{oracle.HF_LAYER[key]}"
            if key not in ("gate_up.weight", "down.weight"):
                out[name] = "BF16", shape
            elif mxfp4:
                blocks = (*shape[:-1], shape[-1] // 32)
                out[name + "_blocks"], out[name + "_scales"] = ("U8", (*blocks, 16)), ("U8", blocks)
            else:
                out[name] = "BF16", (shape[0], shape[2], shape[1])
    return out


def random_bytes(cfg):
    """Random bytes: making and encoding real numbers would take longer than the test."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (tag, shape) in hf_shapes(cfg).items():
        low, high = (118, 122) if name.endswith("_scales") else (0, 256)
        data = rng.integers(low, high, shape, dtype=np.uint8) if tag == "U8" else small_bf16(rng, shape)
        tensors[name] = tag, data
    return tensors


def small_bf16(rng, shape):
    """bfloat16 bits of numbers with magnitudes from 2^-6 to 2^-4."""
    bits = rng.integers(0, 256, shape, dtype=np.uint16) | np.uint16(0x3C80)
    return bits | (rng.integers(0, 2, shape, dtype=np.uint16) << np.uint16(15))


def write_zeros(folder: Path, cfg: MoeConfig, *, mxfp4=True, odd_header=False) -> Path:
    """A checkpoint of gigabytes that takes no disk: the data is a hole. An odd header aligns nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hf_config(cfg, mxfp4))
    header, end = {}, 0
    for name, (tag, shape) in hf_shapes(cfg, mxfp4).items():
        size = int(np.prod(shape, dtype=np.int64)) * (2 if tag == "BF16" else 1)
        header[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * ((-len(text) % 8) + odd_header)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def openai_config(cfg: MoeConfig) -> dict:
    return {
        "num_hidden_layers": cfg.num_layers,
        "num_experts": cfg.num_experts,
        "experts_per_token": cfg.experts_per_token,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "swiglu_limit": cfg.swiglu_limit,
        "head_dim": cfg.head_dim,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "sliding_window": cfg.sliding_window,
        "initial_context_length": cfg.initial_context,
        "rope_theta": cfg.rope_theta,
        "rope_scaling_factor": cfg.rope_factor,
        "rope_ntk_alpha": cfg.beta_slow,
        "rope_ntk_beta": cfg.beta_fast,
    }


def write_format(path: Path, model, cfg: MoeConfig, layout: str, **overrides) -> Path:
    """The checkpoint in one of ALL_FORMATS; returns what trivium.load takes."""
    path.mkdir(parents=True, exist_ok=True)
    dense = layout.startswith("dense")
    if layout in ("mxfp4", "dense"):
        return write_hf(path, model, cfg, mxfp4=not dense, **overrides)
    if layout in ("shards_from_0", "shards_from_1", "dense_shards"):
        write_json(path / "config.json", hf_config(cfg, not dense, **overrides))
        first = 1 if layout == "shards_from_1" else 0
        write_shards(path, oracle.to_hf_tensors(model, not dense), 3, first, 2 + first)
    elif layout in ("openai", "openai_shards"):
        write_json(path / "config.json", openai_config(cfg))
        tensors = oracle.to_openai_tensors(model)
        if layout == "openai":
            oracle.save_safetensors(path / "model.safetensors", tensors)
        else:
            write_shards(path, tensors, 4, 1, 4, index=False)
    elif layout == "bin_f32":
        oracle.save_flat_bin(path / "model.bin", model, cfg)
        return path / "model.bin"
    elif layout == "bin_bf16":
        oracle.save_flat_bin(path / "model.bin", model, cfg)
        data = (path / "model.bin").read_bytes()
        halves = oracle.to_bf16_bits(np.frombuffer(data, np.float32, offset=60))
        (path / "model.bin").write_bytes(data[:60] + halves.tobytes())
        return path / "model.bin"
    else:
        raise ValueError(layout)
    return path


def write_case(folder: Path, name: str) -> Path:
    case = CASES[name]
    return write_format(folder, case_weights(name), case.config, case.format, **dict(case.overrides))


def set_header_field(path: Path, index: int, value) -> None:
    """Overwrites one of the 15 four-byte fields of a model.bin."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<f" if isinstance(value, float) else "<i", data, 4 * index, value)
    path.write_bytes(data)


def random_ids(cfg: MoeConfig, count: int, seed=0) -> list[int]:
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, count).tolist()


def relative_error(got, want) -> float:
    """|got - want|_2 / |want|_2"""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# --- the worker -----------------------------------------------------------------------------------------


@functools.cache
def level_available(level: str) -> bool:
    env = {**os.environ, "TRIVIUM_CPU_LEVEL": level}
    code = "import trivium; print(trivium.cpu_level())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if "DeviceError" in done.stderr and "one that this CPU runs" in done.stderr:
        return False
    assert done.stdout.split() == [level], done.stderr
    return True


def run_jobs(jobs: list[dict], level: str | None = None, timeout=300) -> list:
    """Results of `jobs` in a process of its own. A job has path, precision and either ids (logits of all
    positions) or prompts (lists of generated ids), with options of generate() for all or a list with those of
    each, batch_size and threads."""
    env = {k: v for k, v in os.environ.items() if k != "TRIVIUM_CPU_LEVEL"}
    if level:
        env["TRIVIUM_CPU_LEVEL"] = level
    done = subprocess.run(
        [sys.executable, __file__], input=pickle.dumps(jobs), env=env, capture_output=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    used, results = pickle.loads(done.stdout)
    assert level in (None, used)
    return results


def _run(job: dict, models: dict):
    import trivium
    from trivium._arguments import parse_options

    trivium.set_num_threads(job.get("threads", 2))
    key = str(job["path"]), job["precision"], job.get("batch_size", 0), job.get("kv_dtype")
    if key not in models:
        models[key] = trivium.load(key[0], device="cpu", precision=key[1], batch_size=key[2], kv_dtype=key[3])
    model = models[key]
    if "ids" in job:
        return model.logits(job["ids"])
    options = job.get("options", {})
    if isinstance(options, dict):
        options = [options] * len(job["prompts"])
    requests = [
        model._request(prompt, parse_options({"ignore_eos": True, **o}))
        for prompt, o in zip(job["prompts"], options, strict=True)
    ]
    return [r.tokens for r in model._engine.generate(requests)]


def main() -> None:
    import trivium

    models: dict = {}
    jobs = pickle.loads(sys.stdin.buffer.read())
    results = [_run(job, models) for job in jobs]
    sys.stdout.buffer.write(pickle.dumps((trivium.cpu_level(), results)))


if __name__ == "__main__":
    main()
