#!/usr/bin/env python3
"""Train a small xLSTM language model with trivium's kernels, on the CPU, and export it as a folder trivium runs.

    train_xlstm_lm.py --minutes 30 --work DIR      train (resumes from DIR), then export
    train_xlstm_lm.py --export --work DIR          only export the latest checkpoint in DIR
    train_xlstm_lm.py --check                      bits per byte of the exported folder, read by trivium

The data are the docstrings of the running interpreter's library, or the files named with --text. The exported folder
has the layout of transformers' xLSTMForCausalLM. Needs torch, tokenizers, safetensors; matplotlib for the loss curve.
"""

import argparse
import ast
import hashlib
import json
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trivium
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from trivium.torch import mLSTMLayer

FOLDER = Path(__file__).resolve().parent.parent / "python" / "trivium" / "demo_xlstm"
END = "<|endoftext|>"
VOCAB = 1024
CONFIG = {
    "architectures": ["xLSTMForCausalLM"],
    "model_type": "xlstm",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_heads": 4,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 64,
    "use_bias": False,
    "norm_eps": 1e-6,
    "eps": 1e-6,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "weight_mode": "single",
    "tie_word_embeddings": False,
    "chunk_size": 64,
    "autocast_kernel_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}
ROWS, WINDOW = 16, 256  # rows in a training step, tokens in a row
RATE, DECAY, DROPOUT = 3e-3, 0.1, 0.1
SAVE_SECONDS = 60


def library_docstrings() -> tuple[list[str], list[str]]:
    """Every distinct docstring of the standard library, sorted: (train, held out)."""
    root, found = Path(sysconfig.get_path("stdlib")), set()
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in root.rglob("*.py"):
        if "site-packages" in path.relative_to(root).parts:
            continue
        try:
            nodes = ast.walk(ast.parse(path.read_bytes()))
        except (SyntaxError, ValueError):  # some files of its tests are broken on purpose
            continue
        found |= {(ast.get_docstring(node) or "").strip() for node in nodes if isinstance(node, holders)}
    return split(sorted(found - {""}))


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """A text's own hash decides, so that the split survives additions; 13 / 256 is 5.1 %."""
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        parts[hashlib.sha256(text.encode()).digest()[0] < 13].append(text)
    return parts


def bigram_bits_per_byte(train: list[str], held: list[str]) -> float:
    """Interpolated byte bigram with the best of many mixtures on the held-out texts, so nothing is in its disfavour;
    symbol 256 ends a text."""

    def pairs(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        s = np.array([symbol for text in texts for symbol in (256, *text.encode(), 256)])
        inside = ~((s[:-1] == 256) & (s[1:] == 256))
        return s[:-1][inside], s[1:][inside]

    a, b = pairs(train)
    two = np.bincount(a * 257 + b, minlength=257 * 257).reshape(257, 257)
    one = two.sum(0) + 0.5
    x, y = pairs(held)
    best = np.inf
    for weight in (0.5, 1, 2, 4, 8, 16, 32):
        p = (two + weight * one / one.sum()) / (two.sum(-1, keepdims=True) + weight)
        best = min(best, -np.log2(p[x, y]).sum())
    return float(best / sum(len(t.encode()) for t in held))


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with the GPT-2 split; id 0 ends a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, CONFIG["norm_eps"])


class FeedForward(torch.nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj_up_gate = torch.nn.Linear(dim, inner, bias=False)
        self.proj_up = torch.nn.Linear(dim, inner, bias=False)
        self.proj_down = torch.nn.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_down(F.silu(self.proj_up_gate(x)) * self.proj_up(x))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        dim, to = CONFIG["hidden_size"], CONFIG["ffn_round_up_to_multiple_of"]
        inner = int((dim * CONFIG["ffn_proj_factor"] + to - 1) // to) * to
        self.norm_mlstm = RMSNorm(dim)
        self.mlstm_layer = mLSTMLayer(
            dim, CONFIG["num_heads"], CONFIG["qk_dim_factor"], CONFIG["v_dim_factor"], chunk_size=64
        )
        self.norm_ffn = RMSNorm(dim)
        self.ffn = FeedForward(dim, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + F.dropout(self.mlstm_layer(self.norm_mlstm(x))[0], DROPOUT, self.training)
        return x + F.dropout(self.ffn(self.norm_ffn(x)), DROPOUT, self.training)


class LanguageModel(torch.nn.Module):
    """Parameter names are those of the exported checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        dim, layers = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
        self.backbone = torch.nn.Module()
        self.backbone.embeddings = torch.nn.Embedding(VOCAB, dim)
        self.backbone.blocks = torch.nn.ModuleList([Block() for _ in range(layers)])
        self.backbone.out_norm = RMSNorm(dim)
        self.lm_head = torch.nn.Linear(dim, VOCAB, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2 and "gate_preact" not in name:
                narrow = "out_proj" in name or "proj_down" in name
                torch.nn.init.normal_(
                    p, std=2 / (layers * p.shape[1] ** 0.5) if narrow else (0.4 / dim) ** 0.5
                )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.backbone.embeddings(ids)
        for block in self.backbone.blocks:
            x = block(x)
        cap = CONFIG["output_logit_soft_cap"]
        return cap * torch.tanh(self.lm_head(self.backbone.out_norm(x)) / cap)


def held_out_bits(score, tokenizer: Tokenizer, held: list[str]) -> float:
    """Bits per byte: every text stands alone between two end tokens; score(ids) gives logits for ids[:-1]."""
    bits = 0.0
    for text in held:
        ids = [0, *tokenizer.encode(text).ids, 0]
        log_p = torch.log_softmax(score(ids), -1)
        bits -= float(log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()) / np.log(2)
    return bits / sum(len(t.encode()) for t in held)


def curve(history: list[tuple[int, float]], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is missing: no picture of the loss")
        return
    steps, losses = zip(*history)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(steps, losses)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token (mean of 20 steps)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def train(options: argparse.Namespace, train_texts: list[str], tokenizer: Tokenizer) -> None:
    stream = torch.tensor([i for text in train_texts for i in (0, *tokenizer.encode(text).ids)])
    print(f"{len(train_texts)} texts, {len(stream)} tokens", flush=True)
    torch.manual_seed(1)
    model = LanguageModel()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2]
    vectors = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.95))
    step, spent, history, recent = 0, 0.0, [], []
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent, history, recent = (saved[key] for key in ("step", "spent", "history", "recent"))
        print(f"resumed at step {step}", flush=True)

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"step": step, "spent": spent, "history": history, "recent": recent}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        if history:
            curve(history, options.work / "loss.png")

    model.train()
    begin = last_save = time.monotonic()
    already = spent
    while spent < 60 * options.minutes and (options.steps is None or step < options.steps):
        share = max(spent / (60 * options.minutes), step / options.steps if options.steps else 0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 100, 1.0) * (1 - 0.98 * share)
        torch.manual_seed(step)  # rows and dropout are the step's, however often training was interrupted
        starts = torch.randint(len(stream) - WINDOW - 1, (ROWS,))
        batch = torch.stack([stream[s : s + WINDOW + 1] for s in starts.tolist()])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        spent = already + time.monotonic() - begin
        recent.append(loss.item())
        if step % 20 == 0:
            history.append((step, sum(recent) / len(recent)))
            recent = []
            print(f"step {step}: loss {history[-1][1]:.4f}, {spent / 60:.1f} minutes", flush=True)
        if time.monotonic() - last_save > SAVE_SECONDS:
            save()
            last_save = time.monotonic()
    save()


def export(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    saved = torch.load(options.work / "checkpoint.pt", weights_only=True)
    FOLDER.mkdir(exist_ok=True)
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in saved["model"].items()}
    save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (FOLDER / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}, indent=2) + "\n")
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    print(f"exported step {saved['step']} to {FOLDER}")


def check(train_texts: list[str], held: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = trivium.load(FOLDER, precision="float32")
    bits = held_out_bits(
        lambda ids: torch.from_numpy(np.array(model.logits(ids))[:-1]).double(), tokenizer, held
    )
    bigram = bigram_bits_per_byte(train_texts, held)
    print(f"held-out bits per byte: {bits:.4f}; byte bigram: {bigram:.4f}")
    for prompt in ("Return the", "Raise an exception if", "This module provides"):
        print(repr(prompt + model.generate(prompt, max_tokens=40).text))
    if bits >= bigram:
        raise SystemExit("the model is no better than a byte bigram")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, help="stop here even if time is left")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/train_xlstm"))
    parser.add_argument("--text", type=Path, nargs="*", help="train on these files, one text each, instead")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trivium.set_num_threads(options.threads)
    train_texts, held = split([p.read_text() for p in options.text]) if options.text else library_docstrings()
    if options.check:
        return check(train_texts, held)
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "tokenizer.json"
    if not path.exists():
        make_tokenizer(train_texts).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    if not options.export:
        train(options, train_texts, tokenizer)
    export(options, tokenizer)


if __name__ == "__main__":
    main()
