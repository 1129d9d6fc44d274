"""Speed of a whole model on a GPU: prefill, decode at several batch sizes, a batch job; transformers beside it.

    python bench/gpu.py CHECKPOINT [--device cuda:0] [--batches 1 8 32 128 256] [--no-peer] [--json FILE]

CHECKPOINT is a gpt-oss folder; bench/make_checkpoint.py --layers 24 writes one with the shapes of the 20b model.
Decode figures are tokens/s of the decode steps alone: a longer run minus one that ends with the prefill. The bound is
the weights that one step must read, at the bandwidth given with --bandwidth (GB/s, from trivium_gpu_kernels).
The batch job runs 256 requests of 64 to 191 prompt tokens and 128 generated ones through the scheduler of getp.
An emulated device is refused; cpu is accepted with --allow-cpu, to try the script.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from moe import decode_bytes, prompt

PREFILL, CONTEXT = 2048, 64


class Ours:
    def __init__(self, folder: str, device: str, batch: int):
        import trivium

        start = time.perf_counter()
        self.model = trivium.load(folder, device=device, precision="bfloat16", batch_size=batch)
        self.load_seconds = time.perf_counter() - start
        self.device = self.model.device
        self.vocab = self.model.vocab_size

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        start = time.perf_counter()
        self.model.generate(prompts, max_tokens=tokens, ignore_eos=True)
        return time.perf_counter() - start


class Transformers:
    def __init__(self, folder: str, device: str):
        import torch
        from transformers import AutoModelForCausalLM, Mxfp4Config

        self.torch, self.device = torch, device
        self.model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map=device,
            quantization_config=Mxfp4Config(dequantize=True),
        ).eval()
        self.vocab = self.model.config.vocab_size

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        ids = self.torch.tensor(prompts, device=self.device)
        start = time.perf_counter()
        with self.torch.no_grad():
            self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize()
        return time.perf_counter() - start


def prefill_rate(model: Ours | Transformers, length: int) -> float:
    return length / model.run([prompt(length, 1, model.vocab)], 1)


def decode_rate(model: Ours | Transformers, batch: int, steps: int) -> float:
    prompts = [prompt(CONTEXT, s, model.vocab) for s in range(batch)]
    prefill = model.run(prompts, 1)
    seconds = model.run(prompts, 1 + steps) - prefill
    if seconds <= 0:
        sys.exit(f"bench/gpu.py: {steps} steps at batch {batch} are too short to measure; use --steps")
    return batch * steps / seconds


def job_rate(model: Ours, requests: int, tokens: int) -> float:
    prompts = [prompt(64 + s * 37 % 128, s, model.vocab) for s in range(requests)]
    return requests * tokens / model.run(prompts, tokens)


def median_of(measure, rounds: int) -> float:
    measure()
    return statistics.median(measure() for _ in range(rounds))


def measure(a: argparse.Namespace) -> dict:
    config = json.loads((Path(a.checkpoint) / "config.json").read_text())
    ours = Ours(a.checkpoint, a.device, max(*a.batches, min(a.requests, 256)))
    figures: dict = {
        "device": ours.device,
        "layers": config["num_hidden_layers"],
        "load_seconds": ours.load_seconds,
        "decode_tokens_per_s": {},
    }
    figures["prefill_tokens_per_s"] = median_of(lambda: prefill_rate(ours, a.prefill), a.rounds)
    report("prefill", figures["prefill_tokens_per_s"])
    for batch in a.batches:
        rate = median_of(lambda batch=batch: decode_rate(ours, batch, a.steps), a.rounds)
        figures["decode_tokens_per_s"][str(batch)] = rate
        report(f"decode, batch {batch}", rate)
    figures["job_requests"] = a.requests
    figures["job_tokens_per_s"] = job_rate(ours, a.requests, a.job_tokens)
    report(f"batch job of {a.requests} requests", figures["job_tokens_per_s"])
    if a.bandwidth:
        bound = a.bandwidth * 1e9 / decode_bytes(config)
        figures["decode_bound_tokens_per_s"] = bound
        if "1" in figures["decode_tokens_per_s"]:
            figures["decode_of_bound"] = figures["decode_tokens_per_s"]["1"] / bound
    if not a.no_peer:
        figures["transformers"] = peer(a)
    return figures


def peer(a: argparse.Namespace) -> dict:
    model = Transformers(a.checkpoint, "cpu" if a.device == "cpu" else "cuda")
    figures = {"prefill_tokens_per_s": median_of(lambda: prefill_rate(model, a.prefill), 2)}
    report("transformers, prefill", figures["prefill_tokens_per_s"])
    for batch in [b for b in a.batches if b <= 32]:
        rate = median_of(lambda batch=batch: decode_rate(model, batch, min(a.steps, 16)), 2)
        figures[f"decode_{batch}_tokens_per_s"] = rate
        report(f"transformers, decode, batch {batch}", rate)
    return figures


def report(what: str, rate: float) -> None:
    print(f"  {what:32} {rate:12.1f} tokens/s", flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("--device", default="auto")
    ap.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    ap.add_argument("--prefill", type=int, default=PREFILL)
    ap.add_argument("--steps", type=int, default=64)
    ap.add_argument("--requests", type=int, default=256)
    ap.add_argument("--job-tokens", type=int, default=128)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--bandwidth", type=float, help="GB/s of the device")
    ap.add_argument("--no-peer", action="store_true", help="leave transformers out")
    ap.add_argument("--allow-cpu", action="store_true")
    ap.add_argument("--json", type=Path, help="write the figures here too")
    a = ap.parse_args()
    if a.device.startswith("emu") or (a.device == "cpu" and not a.allow_cpu):
        sys.exit(f"bench/gpu.py measures GPUs, not {a.device}")
    figures = measure(a)
    if figures["device"] == "cpu" and not a.allow_cpu:
        sys.exit("bench/gpu.py: no GPU was found; these are no GPU figures")
    print(json.dumps(figures, indent=1))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
