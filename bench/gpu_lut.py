"""A training step of the reference LUT language model on a GPU, beside the bound of its table traffic.

    python bench/gpu_lut.py [--device cuda:0] [--bandwidth GB/s] [--rounds 20] [--no-torch] [--json FILE] [--small]

The model (812.7 M parameters): 256 bytes, 32 channels, 32 positions, 6 layers of 4 heads of 16 tables with 6 pairs
and 4 bits of distance, feed-forward layers and unembedder of 16 tables with 10 pairs; 128 sequences a step, tables
updated inside the backward pass. Two figures: the LUT layers alone, which take and give tensors on the device (calls
are queued, the host waits for the last), and, where torch has the device, the whole step with residual additions,
cross-entropy and the update of the embeddings of distances. The bound counts each addressed row once for every use: 1
read forward, 2 backward for x, 1 read and 1 write for the weights. --small is a tiny model, on which any device, the
emulated ones too, can try the script; its times mean nothing and are not written.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

REFERENCE = dict(
    vocab_size=256,
    embedding_dim=32,
    context_size=32,
    positional_dim=4,
    num_layers=6,
    num_heads=4,
    n_detectors=16,
    n_anchors_per_detector=10,
    n_anchors_per_detector_attention=6,
)
SMALL = dict(
    vocab_size=19,
    embedding_dim=6,
    context_size=5,
    positional_dim=2,
    num_layers=2,
    num_heads=2,
    n_detectors=2,
    n_anchors_per_detector=3,
    n_anchors_per_detector_attention=2,
)
PARAMETERS = 812_702_208  # of the reference model


def traffic_bytes(c: dict, batch: int) -> int:
    """Row bytes of one step: 4 a value, 5 passes over each addressed row."""
    pairs = c["context_size"] * (c["context_size"] - 1) // 2
    tables, width = c["n_detectors"], c["embedding_dim"]
    attention = batch * c["num_heads"] * tables * pairs * width
    rows = batch * c["context_size"] * tables
    return 4 * 5 * (c["num_layers"] * (attention + rows * width) + rows * c["vocab_size"])


class Layers:
    """The layers of a model on fixed inputs and output gradients that are on the device."""

    def __init__(self, model, batch: int, device: str):
        import numpy as np
        import trivium

        rng, c = np.random.default_rng(1), model.config
        self.model, self.saved = model, []

        def random(*shape):
            return trivium.Tensor(rng.standard_normal(shape, np.float32), device=device)

        shape = (batch, c["context_size"])
        inputs = {
            True: random(*shape, c["embedding_dim"]),
            False: random(shape[0] * shape[1], c["embedding_dim"]),
        }
        self.calls = []
        for layer in model.named_layers().values():
            sequential = layer.sequence_length > 1
            lead = shape if sequential else (shape[0] * shape[1],)
            self.calls.append((layer, inputs[sequential], random(*lead, layer.n_outputs)))

    def forward(self) -> None:
        self.saved = [
            layer.native.forward(layer.weight, x, layer.positional_embeddings)[1]
            for layer, x, _ in self.calls
        ]

    def backward(self) -> None:
        for (layer, _, gy), saved in zip(reversed(self.calls), reversed(self.saved)):
            layer.native.backward(layer.weight, gy, saved, policy="internal", eta=1e-6)


class WholeStep:
    """Tokens to updated weights under torch's autograd."""

    def __init__(self, model, batch: int):
        import torch
        from trivium.torch import LUTTransformer

        self.torch, self.model = torch, LUTTransformer(model)
        self.device = self.model.unembedder.weight.device
        self.model.to(self.device)  # the embedding too
        moved = [p for name, p in self.model.named_parameters() if name.endswith("positional_embeddings")]
        self.optimizer = torch.optim.SGD(moved, lr=1e-6)
        self.model.set_learning_rate_hook(lambda weight: 1e-6)
        c = model.config
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(c["vocab_size"], (batch, c["context_size"] + 1), generator=generator)
        self.tokens = tokens.to(self.device)

    def __call__(self) -> None:
        torch = self.torch
        logits = self.model(self.tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), self.tokens[:, 1:].flatten(), reduction="sum"
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if not torch.isfinite(loss):
            sys.exit("bench/gpu_lut.py: the loss is not finite")


def milliseconds(work, rounds: int, device: str) -> dict:
    import trivium

    for _ in range(3):
        work()
    trivium.synchronize(device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        trivium.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    return {
        "median": statistics.median(times),
        "p10": times[len(times) // 10],
        "p90": times[len(times) * 9 // 10],
    }


def torch_has(device: str) -> bool:
    try:
        from trivium._torch_lut import torch_device

        torch_device(device)
    except Exception as error:  # torch is missing, broken, or has no such device
        print(f"  without the whole step: {error}", flush=True)
        return False
    return True


def measure(a: argparse.Namespace) -> dict:
    from trivium import lut

    config, batch = (SMALL, 3) if a.small else (REFERENCE, 128)
    meta = lut.SynapseMeta(min_weight=-1, initial_weight=-0.01, initial_noise_level=0.02)
    model = lut.LUTTransformer(
        **config, synapse_meta=meta, weights_gradient_policy="internal", random_seed=1, device=a.device
    )
    if not a.small and model.num_parameters() != PARAMETERS:
        sys.exit(f"bench/gpu_lut.py: the model has {model.num_parameters()} parameters, not {PARAMETERS}")
    layers = Layers(model, batch, a.device)
    figures: dict = {
        "device": model.unembedder.native.device,
        "parameters": model.num_parameters(),
        "tokens": batch * config["context_size"],
        "row_gigabytes": traffic_bytes(config, batch) / 1e9,
        "forward_ms": milliseconds(layers.forward, a.rounds, a.device),
        "backward_ms": milliseconds(layers.backward, a.rounds, a.device),
    }

    def step() -> None:
        layers.forward()
        layers.backward()

    figures["layers_ms"] = milliseconds(step, a.rounds, a.device)
    if a.bandwidth:
        figures["bound_ms"] = figures["row_gigabytes"] / a.bandwidth * 1e3
        figures["of_bound"] = figures["bound_ms"] / figures["layers_ms"]["median"]
    if not a.no_torch and torch_has(a.device):
        figures["step_ms"] = milliseconds(WholeStep(model, batch), a.rounds, a.device)
    return figures


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--device", default="cuda:0")
    ap.add_argument("--bandwidth", type=float, help="GB/s of the device")
    ap.add_argument("--rounds", type=int, default=20)
    ap.add_argument("--no-torch", action="store_true", help="leave the whole step out")
    ap.add_argument("--json", type=Path, help="write the figures here too")
    ap.add_argument("--small", action="store_true", help="try the script on any device")
    a = ap.parse_args()
    if not a.small and a.device.split(":")[0] not in ("cuda", "hip"):
        sys.exit(f"bench/gpu_lut.py measures GPUs, not {a.device}; --small tries the script")
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
