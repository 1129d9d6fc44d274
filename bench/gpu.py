"""Speed of a whole model on a GPU: prefill, decode at several batch sizes, a batch job; the installed peers beside it.

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
from gpu_peers import Transformers, Vllm, installed_peers
from moe import decode_bytes, prompt

PREFILL, CONTEXT = 2048, 64
Peer = Transformers | Vllm


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


def prefill_rate(model: Ours | Peer, length: int) -> float:
    return length / model.run([prompt(length, 1, model.vocab)], 1)


def decode_rate(model: Ours | Peer, batch: int, steps: int) -> float:
    prompts = [prompt(CONTEXT, s, model.vocab) for s in range(batch)]
    prefill = min(model.run(prompts, 1) for _ in range(2))
    seconds = model.run(prompts, 1 + steps) - prefill
    if seconds <= 0:
        raise RuntimeError(f"{steps} steps at batch {batch} are too short to measure; use --steps")
    return batch * steps / seconds


def job_rate(model: Ours | Peer, requests: int, tokens: int) -> float:
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
    figures["peers"] = {}
    for name, (make, most) in {} if a.no_peer else installed_peers().items():
        figures["peers"][name] = measure_peer(a, name, make, most)
    return figures


def measure_peer(a: argparse.Namespace, name: str, make: type, most: int) -> dict:
    """Rates under the keys that ours have. A peer that fails is reported and does not take our figures along."""
    try:
        model = make(a.checkpoint, "cpu" if a.device == "cpu" else "cuda")
        figures: dict = {"decode_tokens_per_s": {}}
        figures["prefill_tokens_per_s"] = median_of(lambda: prefill_rate(model, a.prefill), 2)
        report(f"{name}, prefill", figures["prefill_tokens_per_s"])
        for batch in [b for b in a.batches if b <= most]:
            rate = median_of(lambda batch=batch: decode_rate(model, batch, a.peer_steps), 2)
            figures["decode_tokens_per_s"][str(batch)] = rate
            report(f"{name}, decode, batch {batch}", rate)
        if most >= a.requests:
            figures["job_tokens_per_s"] = job_rate(model, a.requests, a.job_tokens)
            report(f"{name}, batch job", figures["job_tokens_per_s"])
        return figures
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"  {name} could not be measured: {why}", flush=True)
        return {"error": why}


def report(what: str, rate: float) -> None:
    print(f"  {what:32} {rate:12.1f} tokens/s", flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("--device", default="auto")
    ap.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    ap.add_argument("--prefill", type=int, default=PREFILL)
    ap.add_argument("--steps", type=int, default=64)
    ap.add_argument("--peer-steps", type=int, default=16)
    ap.add_argument("--requests", type=int, default=256)
    ap.add_argument("--job-tokens", type=int, default=128)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--bandwidth", type=float, help="GB/s of the device")
    ap.add_argument("--no-peer", action="store_true", help="leave the peers out")
    ap.add_argument("--allow-cpu", action="store_true")
    ap.add_argument("--json", type=Path, help="write the figures here too")
    a = ap.parse_args()
    if a.device.startswith("emu") or (a.device == "cpu" and not a.allow_cpu):
        sys.exit(f"bench/gpu.py measures GPUs, not {a.device}")
    try:
        figures = measure(a)
    except RuntimeError as error:
        sys.exit(f"bench/gpu.py: {error}")
    if figures["device"] == "cpu" and not a.allow_cpu:
        sys.exit("bench/gpu.py: no GPU was found; these are no GPU figures")
    print(json.dumps(figures, indent=1))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
