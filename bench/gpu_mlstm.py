"""The mLSTM's chunkwise passes on a GPU, beside the Triton kernels of mlstm_kernels in the same run.

    python bench/gpu_mlstm.py [--device cuda:0] [--rounds 20] [--no-peer] [--json FILE] [--small]

65,536 tokens: 8 sequences of 8192, 8 heads, DHQK 256, DHHV 512, bfloat16 in and out, chunks of 64. Inputs and
results are tensors on the device, and every call of ours waits for its end; the peer's are timed to
torch.cuda.synchronize(). The same inputs on both sides, turn by turn; outputs are compared before anything is timed.
mlstm_kernels is not open source: where it is installed (with torch and Triton) it serves this comparison only.
--small is a tiny case, on which any device, the emulated ones too, can try the script; its times mean nothing and
are not written.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

REFERENCE = (8, 8, 8192, 256, 512)  # B, NH, S, DHQK, DHHV
SMALL = (1, 2, 20, 16, 16)
CHUNK = 64
TOLERANCE = 0.02  # relative, of bfloat16 outputs of two orders of summation


def flops(b: int, nh: int, s: int, dqk: int, dv: int) -> tuple[int, int]:
    """(forward, backward): multiply-adds count twice, of the pairs in a chunk only the causal half."""
    forward = 4 * dqk * dv + CHUNK * (dqk + dv)
    return forward * b * nh * s, (10 * dqk * dv + CHUNK * (3 * dqk + 2 * dv)) * b * nh * s


def arrays(b: int, nh: int, s: int, dqk: int, dv: int):
    """q, k, v, i, f and the gradient of h, float32 on the host."""
    import numpy as np

    rng = np.random.default_rng(1)
    shapes = [(b, nh, s, dqk), (b, nh, s, dqk), (b, nh, s, dv), (b, nh, s), (b, nh, s), (b, nh, s, dv)]
    out = [rng.standard_normal(shape, np.float32) for shape in shapes]
    out[4] += 3
    return out


class Ours:
    def __init__(self, inputs, device: str):
        import trivium
        from trivium import mlstm

        half = (True, True, True, False, False, True)  # gates stay float32
        self.mlstm = mlstm
        tensors = [trivium.Tensor(x, device=device) for x in inputs]
        tensors = [t.to("bfloat16") if h else t for t, h in zip(tensors, half)]
        self.x, self.dh = tensors[:5], tensors[5]

    def forward(self):
        return self.mlstm.chunkwise_fw(*self.x, CHUNK_SIZE=CHUNK)

    def both(self):
        out = self.forward()
        return self.mlstm.chunkwise_bw(
            *self.x, vecN_out=out.vecN_out, vecM_out=out.vecM_out, matDeltaH=self.dh, CHUNK_SIZE=CHUNK
        )

    def output(self):
        import numpy as np

        return np.asarray(self.forward().matH.to("float32").to("cpu"))


class Peer:
    def __init__(self, inputs):
        import torch
        from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

        self.torch, self.kernel = torch, mlstm_chunkwise__xl_chunk
        half = (True, True, True, False, False, True)
        tensors = [torch.from_numpy(x).cuda() for x in inputs]
        tensors = [t.bfloat16() if h else t for t, h in zip(tensors, half)]
        self.x, self.dh = [t.requires_grad_() for t in tensors[:5]], tensors[5]

    def _run(self):
        return self.kernel(*self.x, autocast_kernel_dtype=self.torch.bfloat16)

    def forward(self) -> None:
        with self.torch.no_grad():
            self._run()
        self.torch.cuda.synchronize()

    def both(self) -> None:
        for t in self.x:
            t.grad = None
        self._run().backward(self.dh)
        self.torch.cuda.synchronize()

    def output(self):
        with self.torch.no_grad():
            return self._run().float().cpu().numpy()


def find_peer(inputs):
    try:
        return Peer(inputs)
    except Exception as error:  # missing, without a device, or refusing it
        print(f"  without the peer: {error}", flush=True)
        return None


def summary(times: list[float]) -> dict:
    times = sorted(times)
    return {
        "median": statistics.median(times),
        "p10": times[len(times) // 10],
        "p90": times[len(times) * 9 // 10],
    }


def interleaved(sides: dict, rounds: int) -> dict:
    """{side_pass_ms: summary}, sides in turn."""
    times: dict[str, list[float]] = {}
    for r in range(rounds + 3):  # three to warm up
        for name, side in sides.items():
            for what in ("forward", "both"):
                start = time.perf_counter()
                getattr(side, what)()
                if r >= 3:
                    times.setdefault(f"{name}_{what}_ms", []).append(1e3 * (time.perf_counter() - start))
    return {key: summary(values) for key, values in times.items()}


def measure(a: argparse.Namespace) -> dict:
    import numpy as np

    shape = SMALL if a.small else REFERENCE
    inputs = arrays(*shape)
    sides = {"trivium": Ours(inputs, a.device)}
    figures: dict = {"shape": shape, "tokens": shape[0] * shape[2]}
    peer = None if a.no_peer or a.small else find_peer(inputs)
    if peer:
        theirs = peer.output()
        figures["difference"] = float(
            np.linalg.norm(sides["trivium"].output() - theirs) / np.linalg.norm(theirs)
        )
        if not figures["difference"] < TOLERANCE:
            sys.exit(f"bench/gpu_mlstm.py: outputs differ by {figures['difference']:.3g}")
        sides["mlstm_kernels"] = peer
    figures |= interleaved(sides, a.rounds)
    forward, backward = flops(*shape)
    for what, work in (("forward", forward), ("both", forward + backward)):
        figures[f"{what}_tflops"] = work / figures[f"trivium_{what}_ms"]["median"] / 1e9
    return figures


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--device", default="cuda:0")
    ap.add_argument("--rounds", type=int, default=20)
    ap.add_argument("--no-peer", action="store_true", help="leave mlstm_kernels out")
    ap.add_argument("--json", type=Path, help="write the figures here too")
    ap.add_argument("--small", action="store_true", help="try the script on any device")
    a = ap.parse_args()
    if not a.small and a.device.split(":")[0] not in ("cuda", "hip"):
        sys.exit(f"bench/gpu_mlstm.py measures GPUs, not {a.device}; --small tries the script")
    figures = measure(a)
    if a.small:
        print("tried:", " ".join(key for key in figures if key.endswith("_ms")))
        return
    print(json.dumps(figures, indent=1))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
