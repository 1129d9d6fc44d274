"""Speed of the mLSTM's chunkwise passes beside mlstm_kernels' native torch implementation, in one run.

    python bench/mlstm.py [--roof build/bench/bench/trivium_roof] [--json results.json]

float32 in and out, two threads, medians; the peer is mlstm_chunkwise__native_custbw with its default float32 products,
whose backward pass takes the denominator for a constant, and gradients are compared with that one (grad_mode
"approx"). Results and gradients are compared before they are timed. Prints the shares of the machine's measured
multiply-add rates, float32 and bfloat16, and for growing S the time and the memory a token takes beside its inputs.
mlstm_kernels is not open source: it is installed for this comparison only.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch
import trivium
from trivium import mlstm

CONFIGS = [(1, 8, 2048, 256, 512), (1, 4, 2048, 128, 256), (2, 4, 1024, 64, 64)]
GOALS = [(4, 4), (2, 3), (2, 3)]  # times faster than the peer: forward, forward and backward
CHUNK = 64


def inputs(b, nh, s, dqk, dv, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(b, nh, s, dqk), (b, nh, s, dqk), (b, nh, s, dv), (b, nh, s), (b, nh, s)]
    x = [torch.randn(shape, generator=g) for shape in shapes]
    x[4] += 3
    return x, torch.randn((b, nh, s, dv), generator=g)


def flops(b, nh, s, dqk, dv, chunk=CHUNK):
    """(forward, backward): multiply-adds count twice, of the pairs in a chunk only the causal half."""
    forward = 4 * dqk * dv + chunk * (dqk + dv)
    return forward * b * nh * s, (10 * dqk * dv + chunk * (3 * dqk + 2 * dv)) * b * nh * s


def median_ms(run, at_least=1.0, rounds=5):
    run()
    times = []
    start = time.perf_counter()
    while len(times) < rounds or time.perf_counter() - start < at_least:
        t = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - t))
    return float(np.median(times))


def ours(x, dh, grad_mode="exact"):
    forward = mlstm.chunkwise_fw(*x, CHUNK_SIZE=CHUNK)
    known = {"vecN_out": forward.vecN_out, "vecM_out": forward.vecM_out, "matDeltaH": dh}
    return forward, mlstm.chunkwise_bw(*x, **known, CHUNK_SIZE=CHUNK, grad_mode=grad_mode)


def theirs(x, dh, peer):
    leaves = [t.clone().requires_grad_() for t in x]
    h = peer(*leaves, chunk_size=CHUNK)
    h.backward(dh)
    return h, [t.grad for t in leaves]


def relative(a, b):
    a, b = (np.asarray(t.detach() if isinstance(t, torch.Tensor) else t, np.float64) for t in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(peer, config, goals, roof):
    x, dh = inputs(*config)
    forward, grads = ours(x, dh, "approx")
    h, peer_grads = theirs(x, dh, peer)
    errors = {"h": relative(forward.matH, h)}
    errors |= {name: relative(a, b) for name, a, b in zip("qkvif", grads, peer_grads)}
    for name, error in errors.items():
        assert error < 1e-4, f"{name} differs: {error}"
    row = {"config": config, "errors": errors}
    with torch.no_grad():
        row["peer_forward_ms"] = median_ms(lambda: peer(*x, chunk_size=CHUNK))
    row["forward_ms"] = median_ms(lambda: mlstm.chunkwise_fw(*x, CHUNK_SIZE=CHUNK))
    row["peer_both_ms"] = median_ms(lambda: theirs(x, dh, peer))
    row["both_ms"] = median_ms(lambda: ours(x, dh))
    x16 = [t.bfloat16() for t in x[:3]] + x[3:]
    row["bf16_forward_ms"] = median_ms(lambda: mlstm.chunkwise_fw(*x16, CHUNK_SIZE=CHUNK))
    row["bf16_both_ms"] = median_ms(lambda: ours(x16, dh.bfloat16()))
    fw, bw = flops(*config)
    row["gflops"] = fw / row["forward_ms"] / 1e6, (fw + bw) / row["both_ms"] / 1e6
    row["bf16_gflops"] = fw / row["bf16_forward_ms"] / 1e6, (fw + bw) / row["bf16_both_ms"] / 1e6
    if roof:
        row["of_roof"] = [g * 1e9 / roof["f32_flops"] for g in row["gflops"]]
        row["bf16_of_roof"] = [g * 1e9 / roof["bf16_flops"] for g in row["bf16_gflops"]]
    row["times_faster"] = row["peer_forward_ms"] / row["forward_ms"], row["peer_both_ms"] / row["both_ms"]
    row["goals"] = goals
    return row


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_memory(s):
    """What the peak of a process of its own grows by: results and work memory of the forward pass, then of both."""
    x, dh = inputs(1, 4, s, 128, 256)
    start = peak_bytes()
    kept = mlstm.chunkwise_fw(*x, CHUNK_SIZE=CHUNK)
    forward = peak_bytes() - start
    del kept
    ours(x, dh)
    print(json.dumps([forward, peak_bytes() - start]))


def scaling(threads):
    """(S, forward ms, both ms, bytes of the forward pass, bytes of both)"""
    rows = []
    for s in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        x, dh = inputs(1, 4, s, 128, 256)
        forward = median_ms(partial(mlstm.chunkwise_fw, *x))
        both = median_ms(partial(ours, x, dh), 0.5, 3)
        command = [sys.executable, __file__, "--memory", str(s), "--threads", str(threads)]
        rows.append((s, forward, both, *json.loads(subprocess.check_output(command))))
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roof", help="the program that measures the machine's limits")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, help="print the memory of a sequence of this length alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trivium.set_num_threads(options.threads)
    if options.memory:
        return print_memory(options.memory)
    roof = json.loads(subprocess.check_output([options.roof])) if options.roof else None
    try:
        from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_custbw as peer
    except ImportError as error:
        raise SystemExit(f"the peer is missing ({error}); pip install mlstm_kernels==2.0.6 einops") from error
    results = {"roof": roof, "configs": [], "scaling": []}
    print(
        "config (B, NH, S, DHQK, DHHV)   pass         ours ms   peer ms   times  goal   GFLOP/s  of roof  bf16 ms  "
        "of roof"
    )
    for config, goals in zip(CONFIGS, GOALS):
        row = compare(peer, config, goals, roof)
        results["configs"].append(row)
        for i, name in enumerate(("forward", "both")):
            share, share16 = (f"{row[n][i]:7.0%}" if roof else "      -" for n in ("of_roof", "bf16_of_roof"))
            print(
                f"{config!s:<31} {name:<9} {row[name + '_ms']:10.2f} {row['peer_' + name + '_ms']:9.2f} "
                f"{row['times_faster'][i]:7.2f} {goals[i]:5} {row['gflops'][i]:9.0f} {share} "
                f"{row['bf16_' + name + '_ms']:8.2f}  {share16}"
            )
    print("\n      S   forward ms  us/token  B/token   both ms  us/token  B/token     (1, 4, S, 128, 256)")
    for s, fw, both, fw_bytes, both_bytes in scaling(options.threads):
        results["scaling"].append((s, fw, both, fw_bytes, both_bytes))
        print(
            f"{s:7} {fw:12.2f} {1e3 * fw / s:9.2f} {fw_bytes / s:8.0f} {both:9.2f} {1e3 * both / s:9.2f} "
            f"{both_bytes / s:8.0f}"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
