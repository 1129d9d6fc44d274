"""Speed of the MoE transformer beside transformers in bfloat16, on one checkpoint, in one interleaved run.

    python bench/moe.py CHECKPOINT [--roof build/.../trivium_roof] [--rounds 3] [--json FILE]

CHECKPOINT is a gpt-oss folder with the real layer shapes, for example one with 20b layers and few of them.
Printed: prefill of 512 tokens, decode of one sequence, decode of 32 sequences; medians over the rounds, as ratios to
transformers (prefill and batch 1) and to our own batch 1 (batch 32), beside the machine's measured read
bandwidth and bf16 rate. Random routing is nearly uniform, so batch 32 touches nearly all experts.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

PREFILL, DECODE, BATCH, BATCH_DECODE, CONTEXT = 512, 24, 32, 12, 16


def decode_bytes(c: dict, level: str) -> int:
    """Bytes of weights one token of one sequence reads: dense bf16, top-k experts MXFP4, the unembedding's copy in
    6 or 8 bits (the rows a greedy choice then multiplies in full are few and not counted)."""
    h, i, q = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"] * c["head_dim"]
    kv, e, k = c["num_key_value_heads"] * c["head_dim"], c["num_local_experts"], c["num_experts_per_tok"]
    attention = 2 * (h * (q + 2 * kv) + q * h + q + 2 * kv + h + c["num_attention_heads"])
    layer = attention + 2 * (e * h + e + 2 * h) + k * (3 * h * i * 17 // 32 + 2 * (2 * i + h))
    return c["num_hidden_layers"] * layer + c["vocab_size"] * (
        -(-h // 64) * (48 if level == "avx512-bf16" else 64) + 12
    )


def prompt(length: int, seed: int, vocab: int) -> list[int]:
    """Ids of a small range, so that no special token occurs."""
    return [(seed * 7919 + i * 104729) % min(vocab, 100000) for i in range(length)]


class Ours:
    def __init__(self, folder: str):
        import trivium

        self.model = trivium.load(folder, precision="bfloat16")
        self.vocab = self.model.vocab_size

    def prefill(self) -> float:
        start = time.perf_counter()
        self.model.generate(prompt(PREFILL, 1, self.vocab), max_tokens=1, ignore_eos=True)
        return PREFILL / (time.perf_counter() - start)

    def decode(self) -> float:
        stream = self.model.stream(prompt(CONTEXT, 2, self.vocab), max_tokens=DECODE + 1, ignore_eos=True)
        next(stream)
        start = time.perf_counter()
        count = sum(1 for piece in stream if piece.token is not None)
        return count / (time.perf_counter() - start)

    def batch(self) -> float:
        """Tokens/s of the decode steps alone: a longer run minus one that ends with the prefill."""
        prompts = [prompt(CONTEXT, s, self.vocab) for s in range(BATCH)]

        def run(tokens: int) -> float:
            start = time.perf_counter()
            self.model.generate(prompts, max_tokens=tokens, ignore_eos=True)
            return time.perf_counter() - start

        first = run(1)
        return BATCH * BATCH_DECODE / (run(1 + BATCH_DECODE) - first)


class Transformers:
    def __init__(self, folder: str, threads: int):
        import torch
        from transformers import AutoModelForCausalLM, Mxfp4Config

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            quantization_config=Mxfp4Config(dequantize=True),
            attn_implementation="eager",
        ).eval()
        self.vocab = self.model.config.vocab_size

    def _forward(self, ids: list[int], past=None):
        with self.torch.no_grad():
            return self.model(
                self.torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1
            )

    def prefill(self) -> float:
        start = time.perf_counter()
        self._forward(prompt(PREFILL, 1, self.vocab))
        return PREFILL / (time.perf_counter() - start)

    def decode(self, tokens: int = 4) -> float:
        out = self._forward(prompt(CONTEXT, 2, self.vocab))
        start = time.perf_counter()
        for _ in range(tokens):
            out = self._forward([int(out.logits[0, -1].argmax())], out.past_key_values)
        return tokens / (time.perf_counter() - start)


def measure_roof(program: str) -> dict:
    return json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def measure(ours: Ours, theirs: Transformers | None, rounds: int, roof: str) -> tuple[dict, dict]:
    """Samples of every case, and the machine's roofs: measured in every round too, since they drift."""
    samples: dict[str, list[float]] = {}
    roofs: list[dict] = []
    cases = [("prefill", "prefill"), ("decode", "decode"), ("batch", "batch")]
    for r in range(rounds + 1):  # round 0 warms up
        if r:
            roofs.append(measure_roof(roof))
            print(f"  round {r} read bandwidth {roofs[-1]['read_bytes_per_s'] / 1e9:.1f} GB/s", flush=True)
        for name, method in cases:
            for who, model in (("trivium", ours), ("transformers", theirs)):
                if model is None or not hasattr(model, method):
                    continue
                rate = getattr(model, method)()
                if r:
                    samples.setdefault(f"{who} {name}", []).append(rate)
                    print(f"  round {r} {who:12} {name:8} {rate:8.2f} tokens/s", flush=True)
    machine = {
        k: statistics.median(m[k] for m in roofs) if k.endswith(("_s", "flops")) else v
        for k, v in roofs[0].items()
    }
    return samples, machine


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("--roof", default="trivium_roof", help="the trivium_roof binary")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--no-peer", action="store_true", help="leave transformers out")
    ap.add_argument("--json", type=Path, help="write the figures here too")
    a = ap.parse_args()
    os.environ["TRIVIUM_NUM_THREADS"] = str(a.threads)
    config = json.loads((Path(a.checkpoint) / "config.json").read_text())
    ours = Ours(a.checkpoint)
    theirs = None if a.no_peer else Transformers(a.checkpoint, a.threads)
    samples, machine = measure(ours, theirs, a.rounds, a.roof)
    median = {name: statistics.median(values) for name, values in samples.items()}
    bound = machine["read_bytes_per_s"] / decode_bytes(config, machine["level"])
    figures = {
        "machine": machine,
        "layers": config["num_hidden_layers"],
        "tokens_per_s": median,
        "decode_of_bandwidth": median["trivium decode"] / bound,
        "batch_over_single": median["trivium batch"] / median["trivium decode"],
    }
    for case in ("prefill", "decode"):
        if f"transformers {case}" in median:
            figures[f"{case}_over_transformers"] = median[f"trivium {case}"] / median[f"transformers {case}"]
    print(json.dumps(figures, indent=1))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
