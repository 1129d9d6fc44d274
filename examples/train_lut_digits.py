#!/usr/bin/env python3
"""Classify scikit-learn's 8x8 digits with two LUT layers in numpy: no matrix products, no autograd.

    train_lut_digits.py [--epochs 60] [--seed 1] [--picture digits.png]

Prints the accuracy on held-out digits, a confusion table, and saves a picture of some test digits with what the
network says. Needs scikit-learn; the picture needs matplotlib. About half a minute on two cores.
"""

import argparse
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from trivium import lut

BATCH = 32


class Network:
    """Pixels -> hidden LUT layer of small windows -> LUT layer of 10 scores."""

    def __init__(self, seed: int) -> None:
        meta = lut.SynapseMeta(min_weight=-1.0, initial_weight=-0.05, initial_noise_level=0.1)
        self.hidden = lut.Conv2DLUTLayer(
            (8, 8),
            4,
            (3, 3),
            (8, 8),
            receptive_field_shape=4,
            synapse_meta=meta,
            random_seed=seed,
        )
        self.head = lut.LUTLayer(64, 6, 192, 10, random_seed=seed + 1)
        self.layers = [self.hidden, self.head]
        self.moments = [[np.zeros_like(layer.weight) for _ in range(2)] for layer in self.layers]
        self.steps = 0

    def forward(self, x: np.ndarray, training: bool) -> np.ndarray:
        h = self.hidden.forward(x, training)
        return self.head.forward(h.reshape(len(x), -1), training)

    def step(self, x: np.ndarray, target: np.ndarray, rate: float) -> float:
        """One step of Adam (Kingma & Ba 2015) on the mean cross-entropy."""
        scores = self.forward(x, True)
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        rows = np.arange(len(x))
        loss = -np.log(np.maximum(p[rows, target], 1e-12)).mean()
        p[rows, target] -= 1
        gx = self.head.backward((p / len(x)).astype(np.float32))
        self.hidden.backward(gx.reshape(-1, 8, 8), need_input_gradient=False)
        self.steps += 1
        for layer, (first, second) in zip(self.layers, self.moments):
            g = layer.weight_gradient
            first += 0.1 * (g - first)
            second += 0.001 * (g * g - second)
            size = np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8
            layer.weight -= rate * (first / (1 - 0.9**self.steps)) / size
        return float(loss)


def confusion(truth: np.ndarray, said: np.ndarray) -> str:
    table = np.zeros((10, 10), int)
    np.add.at(table, (truth, said), 1)
    lines = ["said    " + "".join(f"{d:4d}" for d in range(10))]
    for digit, row in enumerate(table):
        lines.append(f"true {digit}  " + "".join(f"{n:4d}" if n else "   ." for n in row))
    return "\n".join(lines)


def save_picture(path: str, images: np.ndarray, truth: np.ndarray, said: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wrong = np.flatnonzero(truth != said)
    shown = np.concatenate([wrong, np.flatnonzero(truth == said)])[:32]
    figure, axes = plt.subplots(4, 8, figsize=(9, 5.5))
    for axis, i in zip(axes.flat, shown):
        axis.imshow(images[i], cmap="gray_r")
        axis.set_title(f"{said[i]}" if said[i] == truth[i] else f"{said[i]}, is {truth[i]}", fontsize=9)
        axis.title.set_color("black" if said[i] == truth[i] else "red")
        axis.axis("off")
    figure.suptitle("What the LUT network says (mistakes first)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--picture", default="digits.png", help="file to write; empty: none")
    options = parser.parse_args()

    digits = load_digits()
    x, held_x, y, held_y = train_test_split(
        (digits.images / 16).astype(np.float32),
        digits.target,
        test_size=0.25,
        random_state=0,
        stratify=digits.target,
    )
    network, rng, start = Network(options.seed), np.random.default_rng(options.seed), time.perf_counter()
    for epoch in range(options.epochs):
        losses = []
        rate = options.rate * (1 - epoch / options.epochs)
        for batch in np.array_split(rng.permutation(len(x)), len(x) // BATCH):
            # One pixel of shift and a little noise: the windows then meet more addresses than 1,347 digits have.
            shifted = np.stack([np.roll(x[i], rng.integers(-1, 2, 2), (0, 1)) for i in batch])
            losses.append(
                network.step(shifted + rng.normal(0, 0.03, shifted.shape).astype(np.float32), y[batch], rate)
            )
        if epoch % 5 == 4 or epoch + 1 == options.epochs:
            accuracy = (network.forward(held_x, False).argmax(1) == held_y).mean()
            print(
                f"epoch {epoch + 1:3d}  loss {np.mean(losses):.4f}  test accuracy {accuracy:.2%}", flush=True
            )
    said = network.forward(held_x, False).argmax(1)
    print(confusion(held_y, said))
    print(
        f"test accuracy {(said == held_y).mean():.2%} of {len(held_y)} digits, {time.perf_counter() - start:.0f} s"
    )
    if options.picture:
        save_picture(options.picture, held_x, held_y, said)
        print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
