#!/usr/bin/env python3
"""Train a byte language model of LUT layers on the docstrings of the standard library, with numpy alone.

    train_lut_lm.py --work DIR [--minutes 10]     train; resumes from DIR
    train_lut_lm.py --work DIR --export FOLDER    write the model folder that trivium.load and getp run
    train_lut_lm.py --check FOLDER                held-out bits per byte of a folder, and of a bigram

Plain SGD inside the backward pass, as in the Spiking Manifesto (arXiv 2512.11843): the summed cross-entropy, the
step falling with the samples seen. Writes DIR/loss.png (with matplotlib) and prints a sample of text.
"""

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import trivium
from trivium import lut

END = 256
BATCH = 64
SHAPE = dict(
    vocab_size=257,
    embedding_dim=32,
    context_size=32,
    positional_dim=3,
    num_layers=2,
    num_heads=1,
    n_detectors=16,
    n_anchors_per_detector=7,
    n_anchors_per_detector_attention=3,
)


def library_docstrings() -> tuple[list[bytes], list[bytes]]:
    """Every distinct docstring of the standard library (not site-packages), sorted: (train, held out)."""
    root, found = Path(sysconfig.get_path("stdlib")), set()
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in root.rglob("*.py"):
        if "site-packages" in path.relative_to(root).parts:
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_bytes()))
        except (SyntaxError, ValueError):  # the library ships files that are broken on purpose, for its tests
            continue
        found |= {(ast.get_docstring(node) or "").strip() for node in nodes if isinstance(node, holders)}
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for text in sorted(found - {""}):
        data = text.encode()
        parts[hashlib.sha256(data).digest()[0] < 13].append(data)  # 13 / 256 is 5.1 %, by the text's own hash
    return parts


def symbols(texts: list[bytes]) -> np.ndarray:
    """All texts one after another, an end token before, between and after them."""
    return np.array([END, *(s for text in texts for s in (*text, END))], np.int64)


def bigram_bits_per_byte(train: list[bytes], held: list[bytes]) -> float:
    """Byte bigram with interpolated absolute discounting; predicts the end of a text too."""
    s, h = symbols(train), symbols(held)
    counts = np.bincount(s[:-1] * 257 + s[1:], minlength=257**2).reshape(257, 257)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount, total = once / (once + 2 * twice), np.maximum(counts.sum(1, keepdims=True), 1)
    one = (counts > 0).sum(0) + 0.5
    kept = np.maximum(counts - discount, 0) / total
    p = kept + (1 - kept.sum(1, keepdims=True)) * (one / one.sum())
    return float(-np.log2(p[h[:-1], h[1:]]).sum() / sum(map(len, held)))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def held_out_bits_per_byte(folder: Path, held: list[bytes]) -> float:
    """Each text alone after an end token, through the runtime's own model; the bits of its closing token count."""
    model, bits = trivium.load(folder, device="cpu"), 0.0
    for text in held:
        tokens = [END, *text]
        p = log_probabilities(model.logits(tokens).astype(np.float64))
        bits -= p[np.arange(len(tokens)), [*text, END]].sum() / np.log(2)
    return bits / sum(map(len, held))


class Trainer:
    """The model, its step counter and its losses; everything a checkpoint holds."""

    def __init__(self, work: Path, seed: int, rate: float, policy: str = "internal") -> None:
        self.work, self.rate, self.seed = work, rate, seed
        self.model = lut.LUTTransformer(**SHAPE, weights_gradient_policy=policy, random_seed=seed)
        self.model.set_learning_rate_hook(lambda weight: self.step_size())
        self.steps, self.losses = 0, []
        work.mkdir(parents=True, exist_ok=True)
        if (work / "state.json").exists():
            state = json.loads((work / "state.json").read_text())
            self.model.load_state_dict(
                trivium._core.load_safetensors(work / f"step{state['steps']}.safetensors")
            )
            self.steps, self.losses = state["steps"], state["losses"]
            print(f"resumed at step {self.steps}")

    def step_size(self) -> float:
        """rate / sqrt(1 + samples), after a linear warm-up of 4000 samples."""
        samples = self.steps * BATCH
        return self.rate * min(1 / np.sqrt(1 + samples), samples / 4000**1.5)

    def save(self) -> None:
        """The new file is complete before state.json names it; the old one goes last."""
        old = list(self.work.glob("step*.safetensors"))
        name = self.work / f"step{self.steps}.safetensors"
        trivium._core.save_safetensors(name, self.model.state_dict())
        temporary = self.work / "state.json.new"
        temporary.write_text(json.dumps({"steps": self.steps, "losses": self.losses}))
        temporary.replace(self.work / "state.json")
        for path in old:
            if path != name:
                path.unlink()

    def step(self, data: np.ndarray) -> float:
        """One batch of windows; where it starts depends on the seed and the step alone."""
        rng = np.random.default_rng((self.seed, self.steps))
        context = SHAPE["context_size"]
        starts = rng.integers(0, len(data) - context - 1, BATCH)
        windows = data[starts[:, None] + np.arange(context + 1)]
        logits = self.model.forward(windows[:, :-1])
        p = np.exp(log_probabilities(logits))
        where = (*np.indices((BATCH, context)), windows[:, 1:])
        loss = float(-np.log(np.maximum(p[where], 1e-30)).mean())
        p[where] -= 1
        self.model.backward(p)
        for layer in self.model.attention:
            if layer.positional_dim:
                layer.positional_embeddings -= np.float32(self.step_size()) * layer.positional_gradient
        self.steps += 1
        return loss


def progress(trainer: Trainer, share: float, left: float, average: float) -> None:
    filled = int(30 * share)
    sys.stdout.write(
        f"\r[{'#' * filled}{'.' * (30 - filled)}] step {trainer.steps:6d}  loss {average / np.log(2):.3f} bits  {left / 60:5.1f} min left "
    )
    sys.stdout.flush()


def plot(losses: list[tuple[int, float]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    steps, values = np.array(losses).T
    axis.plot(steps * BATCH, values / np.log(2))
    axis.set_xlabel("windows seen")
    axis.set_ylabel("training loss, bits a byte")
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"loss curve: {path}")


def train(options: argparse.Namespace) -> None:
    texts, _ = library_docstrings()
    data = symbols(texts)
    print(f"{len(texts)} texts, {len(data)} bytes")
    trainer = Trainer(options.work, options.seed, options.rate)
    print(f"{trainer.model.num_parameters():,} parameters")
    start, average, saved = time.monotonic(), None, time.monotonic()
    seconds = options.minutes * 60
    while (time.monotonic() - start < seconds) and (not options.steps or trainer.steps < options.steps):
        loss = trainer.step(data)
        average = loss if average is None else 0.99 * average + 0.01 * loss
        if trainer.steps % 50 == 0:
            trainer.losses.append((trainer.steps, average))
            passed = time.monotonic() - start
            share = max(passed / seconds, trainer.steps / options.steps if options.steps else 0)
            progress(trainer, min(share, 1), passed / max(share, 1e-9) - passed, average)
        if time.monotonic() - saved > 60:
            trainer.save()
            saved = time.monotonic()
    print()
    trainer.save()
    if trainer.losses:
        plot(trainer.losses, options.work / "loss.png")
    trainer.model.save(options.work / "model")
    sample(options.work / "model")


def sample(folder: Path) -> None:
    model = trivium.load(folder, device="cpu")
    for prompt in ("Return the ", "This module ", "Raise "):
        result = model.generate(prompt, max_tokens=120, temperature=0.7, seed=1)
        print(f"--- {prompt}{result.text}")


def check(folder: Path) -> bool:
    texts, held = library_docstrings()
    ours, bigram = held_out_bits_per_byte(folder, held), bigram_bits_per_byte(texts, held)
    print(
        f"held-out bits per byte: {ours:.4f}; byte bigram: {bigram:.4f} ({len(held)} texts, {sum(map(len, held))} bytes)"
    )
    return ours < bigram


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, default=0, help="stop after this many in all (0: by time)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--export", type=Path, help="only write the latest checkpoint as a model folder")
    parser.add_argument("--check", type=Path, help="only measure a folder")
    options = parser.parse_args()
    if options.check:
        sys.exit(0 if check(options.check) else 1)
    if options.work is None:
        parser.error("--work is needed")
    if options.export:
        Trainer(options.work, options.seed, options.rate).model.save(options.export)
    else:
        train(options)


if __name__ == "__main__":
    main()
