"""Speed of LUT layers beside PyTorch and the machine's random-row bandwidth, in one interleaved run.

    python bench/lut.py [--roof build/bench/bench/trivium_lut_roof] [--threads 2] [--rounds 7] [--json FILE]

Rows: B 1024, 256 tables of 1024 cells, 256 outputs (tables of 256 MiB). PyTorch computes the same function with
torch.nn.functional.embedding_bag(mode="sum"); for the backward pass its input gradient comes from the same
surrogate through autograd: y + U(u) (alternative - main), whose value part is detached. Sequences: B 8, S 32, 16
tables of 2^14 cells, 32 outputs. Sparse: the first projection layer of the reference's MNIST network (28 x 28 to
56 x 56, 676 tables, 80 % of the outputs), B 64, beside a numpy loop over tables: y[:, targets] += rows. Results are
compared before anything is timed. Medians over the rounds.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time

ROWS = dict(batch=1024, inputs=128, tables=256, pairs=10, outputs=256)
SPARSE_BATCH = 64
SEQUENCE = dict(batch=8, length=32, inputs=32, tables=16, pairs=5, npe=4, outputs=32)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def empty_like(w):
    """An array where a layer would allocate it: numpy's own do not start at cache lines."""
    import numpy as np
    import trivium

    return trivium.Tensor(np.zeros_like(w), copy=True).numpy()


class Rows:
    def __init__(self):
        import numpy as np
        import torch
        from trivium import lut

        c, rng = ROWS, np.random.default_rng(1)
        meta = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
        self.layer = lut.LUTLayer(
            c["inputs"], c["pairs"], c["tables"], c["outputs"], synapse_meta=meta, random_seed=1
        )
        self.x = rng.standard_normal((c["batch"], c["inputs"])).astype(np.float32)
        self.gy = rng.standard_normal((c["batch"], c["outputs"])).astype(np.float32)
        self.native, self.w = self.layer.native, self.layer.weight
        self.gw = empty_like(self.w)
        self.index = self.native.forward(self.w, self.x, training=False)[1].index.numpy()
        self.torch = torch
        self.table = torch.from_numpy(self.w).reshape(-1, c["outputs"])
        self.tx, self.tgy = torch.from_numpy(self.x), torch.from_numpy(self.gy)
        anchors = torch.from_numpy(self.layer.anchors).long()
        self.first, self.second = anchors[..., 0].reshape(-1), anchors[..., 1].reshape(-1)
        self.powers = 2 ** torch.arange(c["pairs"])
        self.base = torch.arange(c["tables"]) * (1 << c["pairs"])
        self.rows = torch.from_numpy(self.index).long() + self.base

    def ours(self):
        return self.native.forward(self.w, self.x, training=False)[0]

    def ours_given(self):
        return self.native.fill_outputs(self.w, self.index)

    def ours_both(self):
        y, saved = self.native.forward(self.w, self.x)
        return y, self.native.backward(self.w, self.gy, saved, gw=self.gw)

    def deltas(self, x):
        return (x[:, self.first] - x[:, self.second]).reshape(len(x), ROWS["tables"], ROWS["pairs"])

    def peer(self):
        index = ((self.deltas(self.tx) > 0) * self.powers).sum(-1) + self.base
        return self.torch.nn.functional.embedding_bag(index, self.table, mode="sum")

    def peer_given(self):
        return self.torch.nn.functional.embedding_bag(self.rows, self.table, mode="sum")

    def peer_both(self):
        torch = self.torch
        x, table = self.tx.clone().requires_grad_(), self.table.clone().requires_grad_()
        clock = time.perf_counter()  # the copies above are not part of the step
        u = self.deltas(x)
        bits = u.detach() > 0
        local = (bits * self.powers).sum(-1)
        least = u.detach().abs().argmin(-1, keepdim=True)
        smallest = u.gather(-1, least).squeeze(-1)
        main = local + self.base
        alternative = (local ^ (1 << least.squeeze(-1))) + self.base
        y = torch.nn.functional.embedding_bag(main, table, mode="sum")
        # The surrogate: its value is subtracted again, its gradient in x stays.
        blend = 0.5 / (1 + smallest.abs())
        fixed = table.detach()
        both = torch.cat([main, alternative], 1)
        mixed = torch.nn.functional.embedding_bag(
            both, fixed, mode="sum", per_sample_weights=torch.cat([-blend, blend], 1)
        )
        y = y + mixed - mixed.detach()
        y.backward(self.tgy)
        self.step_seconds = time.perf_counter() - clock
        return y, x.grad, table.grad

    def check(self):
        import numpy as np

        np.testing.assert_allclose(self.ours().numpy(), self.peer().numpy(), atol=2e-4)
        y, g = self.ours_both()
        want, gx, gw = self.peer_both()
        np.testing.assert_allclose(y.numpy(), want.detach().numpy(), atol=2e-4)
        np.testing.assert_allclose(g.gx.numpy(), gx.numpy(), atol=2e-3)
        np.testing.assert_allclose(self.gw.reshape(gw.shape), gw.numpy(), atol=2e-3)

    def peer_step(self) -> float:
        self.peer_both()
        return self.step_seconds


class Sequence:
    def __init__(self):
        import numpy as np
        from trivium import lut

        c, rng = SEQUENCE, np.random.default_rng(2)
        meta = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
        options = dict(sequence_length=c["length"], positional_dim=c["npe"], synapse_meta=meta, random_seed=1)
        layer = lut.LUTLayer(c["inputs"], c["pairs"], c["tables"], c["outputs"], **options)
        self.layer, self.native, self.w, self.pe = (
            layer,
            layer.native,
            layer.weight,
            layer.positional_embeddings,
        )
        self.x = rng.standard_normal((c["batch"], c["length"], c["inputs"])).astype(np.float32)
        self.gy = rng.standard_normal((c["batch"], c["length"], c["outputs"])).astype(np.float32)
        self.gw = empty_like(self.w)

    def check(self):
        """Against numpy: rows gathered pair by pair, and their gradients scattered."""
        import numpy as np

        y, saved = self.native.forward(self.w, self.x, self.pe)
        index, pe, c = saved.index.numpy(), saved.pe_index.numpy(), SEQUENCE
        want, gw = np.zeros_like(self.gy), np.zeros(self.w.shape, np.float64)
        tables = np.arange(c["tables"])
        for j in range(1, c["length"]):
            for i in range(j):
                cell = (index[:, j] << (c["pairs"] + c["npe"])) | (index[:, i] << c["npe"]) | pe[j - i - 1]
                want[:, j] += self.w[tables, cell].sum(1)
                np.add.at(gw, (np.broadcast_to(tables, cell.shape), cell), self.gy[:, None, j])
        np.testing.assert_allclose(y.numpy(), want, atol=1e-3)
        self.native.backward(self.w, self.gy, saved, gw=self.gw)
        np.testing.assert_allclose(self.gw, gw, atol=1e-3)
        g = self.native.backward(self.w, self.gy, saved, policy="rows")
        rows = g.rows.numpy()
        np.testing.assert_array_equal(np.flatnonzero(gw.reshape(-1, c["outputs"]).any(1)), rows)
        np.testing.assert_array_equal(
            g.gw.numpy().reshape(len(rows), -1), self.gw.reshape(-1, c["outputs"])[rows]
        )

    def forward(self):
        self.native.forward(self.w, self.x, self.pe, training=False)

    def both(self, **policy):
        _, saved = self.native.forward(self.w, self.x, self.pe)
        self.native.backward(self.w, self.gy, saved, **policy)


class Sparse:
    def __init__(self):
        import numpy as np
        from trivium import lut

        rng = np.random.default_rng(3)
        meta = lut.SynapseMeta(min_weight=-1, initial_weight=-1, initial_noise_level=2)
        mask = rng.random((56, 56)) > 0.2
        self.layer = layer = lut.ProjectionLUTLayer(
            (28, 28), (56, 56), 3, 169, 4, 5, 10, output_sparsity_mask=mask, synapse_meta=meta, random_seed=1
        )
        self.native, self.w = layer.native, layer.weight
        self.x = rng.standard_normal((SPARSE_BATCH, 28 * 28)).astype(np.float32)
        self.gy = rng.standard_normal((SPARSE_BATCH, 56 * 56)).astype(np.float32)
        self.index = self.native.forward(self.w, self.x, training=False)[1].index.numpy()
        pointers, cells = layer.targets.pointers, self.native.cells
        ranges = list(itertools.pairwise(pointers))
        self.targets = [layer.targets.targets[a:b] for a, b in ranges]
        self.rows = [self.w[cells * a : cells * b].reshape(cells, b - a) for a, b in ranges]

    def forward(self):
        return self.native.forward(self.w, self.x, training=False)[0]

    def given(self):
        return self.native.fill_outputs(self.w, self.index)

    def both(self):
        _, saved = self.native.forward(self.w, self.x)
        return self.native.backward(self.w, self.gy, saved)

    def peer_given(self):
        import numpy as np

        y = np.zeros_like(self.gy)
        for t, (targets, rows) in enumerate(zip(self.targets, self.rows, strict=True)):
            y[:, targets] += rows[self.index[:, t]]  # targets of a table are distinct here
        return y

    def check(self):
        import numpy as np

        np.testing.assert_allclose(self.given().numpy(), self.peer_given(), atol=1e-4)
        np.testing.assert_array_equal(self.given().numpy(), self.forward().numpy())


def peak_megabytes(length: int) -> float:
    """Growth of a fresh process's peak memory over one forward and backward, tables and gradients apart."""
    code = f"""
import numpy as np
from trivium import lut

def kilobytes(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))

layer = lut.LUTLayer(32, 3, 16, 32, sequence_length={length}, positional_dim=2, random_seed=1)
x = np.random.default_rng(1).standard_normal((8, {length}, 32)).astype(np.float32)
gw = np.ones_like(layer.weight)
small = layer.native.forward(layer.weight, x[:, :2], layer.positional_embeddings)
layer.native.backward(layer.weight, np.ones((8, 2, 32), np.float32), small[1], gw=gw)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
y, saved = layer.native.forward(layer.weight, x, layer.positional_embeddings)
layer.native.backward(layer.weight, x, saved, gw=gw)
print(kilobytes("VmHWM") - before)
"""
    return (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        / 1024
    )


def bench_rows(rounds: int, roof: float, report: dict) -> None:
    r = Rows()
    r.check()
    names = ("ours", "peer", "ours_given", "peer_given", "ours_both")
    times = {name: [] for name in (*names, "peer_both")}
    for _ in range(rounds):
        for name in names:
            times[name].append(timed(getattr(r, name)))
        times["peer_both"].append(r.peer_step())
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    traffic = 4 * ROWS["batch"] * ROWS["outputs"] * (ROWS["tables"] + 1)
    report["rows_ms"] = ms
    report["rows_forward_share_of_roof"] = traffic / (ms["ours"] / 1e3) / roof if roof else None
    report["rows_given_share_of_roof"] = traffic / (ms["ours_given"] / 1e3) / roof if roof else None
    report["rows_forward_ratio"] = ms["peer"] / ms["ours"]
    report["rows_given_ratio"] = ms["peer_given"] / ms["ours_given"]
    report["rows_both_ratio"] = ms["peer_both"] / ms["ours_both"]


def bench_sequence(rounds: int, roof: float, report: dict) -> None:
    s = Sequence()
    s.check()
    work = {
        "forward": s.forward,
        "both_dense": lambda: s.both(gw=s.gw),
        "both_rows": lambda: s.both(policy="rows"),
        "both_internal": lambda: s.both(policy="internal", eta=1e-6),
    }
    times = {name: [] for name in work}
    for _ in range(3 * rounds):
        for name, one in work.items():
            one()  # each in its own steady state: what the others leave in the caches is not part of it
            times[name] += [timed(one), timed(one)]
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    c = SEQUENCE
    traffic = 4 * c["batch"] * c["tables"] * c["length"] * (c["length"] - 1) // 2 * c["outputs"]
    report["sequence_ms"] = ms
    report["sequence_forward_share_of_roof"] = traffic / (ms["forward"] / 1e3) / roof if roof else None
    for name in ("dense", "rows", "internal"):
        report[f"sequence_{name}_over_forward"] = ms[f"both_{name}"] / ms["forward"]


def bench_sparse(rounds: int, report: dict) -> None:
    s = Sparse()
    s.check()
    names = ("forward", "given", "both", "peer_given")
    times: dict = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(timed(getattr(s, name)))
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    report["sparse_ms"] = ms
    report["sparse_synapses"] = SPARSE_BATCH * sum(map(len, s.targets))
    report["sparse_given_ratio"] = ms["peer_given"] / ms["given"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roof", help="trivium_lut_roof, for the shares of the roof")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ["TRIVIUM_NUM_THREADS"] = str(options.threads)
    import torch
    import trivium

    torch.set_num_threads(options.threads)
    report: dict = {"threads": options.threads, "cpu_level": trivium.cpu_level(), "build": trivium.build_id()}
    roof: dict = {}
    if options.roof:
        roof = json.loads(subprocess.run([options.roof], capture_output=True, text=True, check=True).stdout)
        report["roof"] = roof
    bench_rows(options.rounds, roof.get("rows_1024_bytes_per_s", 0), report)
    bench_sequence(options.rounds, roof.get("rows_128_bytes_per_s", 0), report)
    bench_sparse(options.rounds, report)
    report["sequence_peak_mb"] = {
        length: round(peak_megabytes(length), 1) for length in (32, 64, 128, 256, 512, 1024)
    }
    report["process_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for key, value in report.items():
        print(f"{key:32s} {value}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
