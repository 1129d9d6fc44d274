"""Speed of the mLSTM's chunkwise passes beside mlstm_kernels' native torch implementation, in one run.

    python bench/mlstm.py [--roof build/bench/bench/trivium_roof] [--json results.json]

float32 in and out, two threads, medians; the peer is mlstm_chunkwise__native_custbw with its default float32 products.
Results are compared before they are timed. Prints the share of the machine's measured multiply-add rate and the cost
for growing S. mlstm_kernels is not open source: it is installed for this comparison only.
"""

import argparse
import json
import subprocess
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


def ours(x, dh):
    forward = mlstm.chunkwise_fw(*x, CHUNK_SIZE=CHUNK)
    grads = mlstm.chunkwise_bw(
        *x, vecN_out=forward.vecN_out, vecM_out=forward.vecM_out, matDeltaH=dh, CHUNK_SIZE=CHUNK
    )
    return forward, grads


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
    forward, _ = ours(x, dh)
    with torch.no_grad():
        error = relative(forward.matH, peer(*x, chunk_size=CHUNK))
    assert error < 1e-4, f"results differ: {error}"
    row = {"config": config, "error": error}
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
    if roof:
        row["of_roof"] = [g * 1e9 / roof["f32_flops"] for g in row["gflops"]]
    row["times_faster"] = row["peer_forward_ms"] / row["forward_ms"], row["peer_both_ms"] / row["both_ms"]
    row["goals"] = goals
    return row


def scaling():
    rows = []
    for s in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        x, dh = inputs(1, 4, s, 128, 256)
        forward = median_ms(partial(mlstm.chunkwise_fw, *x))
        rows.append((s, forward, median_ms(partial(ours, x, dh), 0.5, 3)))
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roof", help="the program that measures the machine's limits")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trivium.set_num_threads(options.threads)
    roof = json.loads(subprocess.check_output([options.roof])) if options.roof else None
    try:
        from mlstm_kernels.torch.chunkwise.native.fwbw import mlstm_chunkwise__native_custbw as peer
    except ImportError as error:
        raise SystemExit(f"the peer is missing ({error}); pip install mlstm_kernels==2.0.6 einops") from error
    results = {"roof": roof, "configs": [], "scaling": []}
    print(
        "config (B, NH, S, DHQK, DHHV)   pass         ours ms   peer ms   times  goal   GFLOP/s  of roof  bf16 ms"
    )
    for config, goals in zip(CONFIGS, GOALS):
        row = compare(peer, config, goals, roof)
        results["configs"].append(row)
        for i, name in enumerate(("forward", "both")):
            share = f"{row['of_roof'][i]:7.0%}" if roof else "      -"
            print(
                f"{config!s:<31} {name:<9} {row[name + '_ms']:10.2f} {row['peer_' + name + '_ms']:9.2f} "
                f"{row['times_faster'][i]:7.2f} {goals[i]:5} {row['gflops'][i]:9.0f} {share} "
                f"{row['bf16_' + name + '_ms']:8.2f}"
            )
    print("\n      S   forward ms  us/token   both ms  us/token     (1, 4, S, 128, 256)")
    for s, fw, both in scaling():
        results["scaling"].append((s, fw, both))
        print(f"{s:7} {fw:12.2f} {1e3 * fw / s:9.2f} {both:9.2f} {1e3 * both / s:9.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
