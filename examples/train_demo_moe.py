#!/usr/bin/env python3
"""Train the small gpt-oss-layout demo model that ships in python/trivium/demo.

    train_demo_moe.py --minutes 45 --work WORK_DIR      train (resumes from WORK_DIR), then export
    train_demo_moe.py --export --work WORK_DIR          export the latest checkpoint only
    train_demo_moe.py --check                           measure the exported folder and its completions

Data: the docstrings of the running interpreter's standard library. The experts are trained through MXFP4
rounding, so the 4-bit export is the model that was trained. Needs torch, transformers, tokenizers, safetensors
and, for --check, accelerate.

Shape letters: B rows, T positions, N = B * T, H hidden, I intermediate, E experts, K chosen experts, D head size.
"""

import argparse
import ast
import hashlib
import json
import math
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Mxfp4Config,
)
from transformers.models.gpt_oss import modeling_gpt_oss

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "python" / "trivium" / "demo"
PROMPTS = ROOT / "examples" / "prompts.txt"
SPECIALS = [
    f"<|{name}|>" for name in "startoftext endoftext return constrain channel start end message call".split()
]
VOCAB = 2048
WINDOW = 256  # positions in a training row
SPLIT = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def token_id(special: str) -> int:
    return VOCAB - len(SPECIALS) + SPECIALS.index(f"<|{special}|>")


# ------------------------------------------------------------------------------------------------- corpus


def library_docstrings() -> list[str]:
    """Every distinct docstring of the standard library, sorted; site-packages is not part of it."""
    root, found = Path(sysconfig.get_path("stdlib")), set()
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.relative_to(root).parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # the library ships files that are broken on purpose, for its tests
            continue
        for node in ast.walk(tree):
            if isinstance(node, holders) and (text := (ast.get_docstring(node) or "").strip()):
                found.add(text)
    return sorted(found)


def split_corpus(texts: list[str]) -> tuple[list[str], list[str]]:
    """(train, held out). A text's own hash decides, so the split survives additions to the library."""
    held = [hashlib.sha256(text.encode()).digest()[0] < 13 for text in texts]  # 13 / 256 = 5.1 %
    return [t for t, h in zip(texts, held) if not h], [t for t, h in zip(texts, held) if h]


def trigram_bits_per_byte(train: list[str], held: list[str]) -> float:
    """Interpolated Kneser-Ney byte trigram; symbol 256 ends a document, as <|endoftext|> does for the model."""

    def grams(texts: list[str]) -> tuple[np.ndarray, ...]:
        s = np.array([symbol for text in texts for symbol in (256, 256, *text.encode(), 256)])
        a, b, c = s[:-2], s[1:-1], s[2:]
        inside = ~((b == 256) & (c == 256))  # triples that reach into the next document's frame
        return a[inside], b[inside], c[inside]

    def discounted(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """counts [..., 257] to probabilities, backing off to lower, which broadcasts against counts."""
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount, total = once / (once + 2 * twice), counts.sum(-1, keepdims=True)
        spare = np.where(
            total > 0, discount * (counts > 0).sum(-1, keepdims=True) / np.maximum(total, 1), 1.0
        )
        return np.maximum(counts - discount, 0) / np.maximum(total, 1) + spare * lower

    a, b, c = grams(train)
    three = np.bincount((a * 257 + b) * 257 + c, minlength=257**3).reshape(257, 257, 257)
    two = (three > 0).sum(0)  # Kneser-Ney: the number of contexts in which the shorter gram was seen
    one = (two > 0).sum(0) + 0.5  # half a count for bytes never seen
    trigram = discounted(three, discounted(two, one / one.sum()))
    return float(-np.log2(trigram[grams(held)]).sum() / sum(len(t.encode()) for t in held))


# ---------------------------------------------------------------------------------------------- tokenizer


def trained_pieces(texts: list[str]) -> list[str]:
    """Byte-level BPE: the merged pieces in merge order, in the byte-to-character alphabet."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    ids = bpe.get_vocab()
    return [piece for piece in sorted(ids, key=ids.get) if len(piece) > 1]


def last_merge(piece: str, ranks: dict[str, int]) -> list[str]:
    """The two parts whose merge makes this piece: run the merges of lower rank, two parts remain."""
    parts, limit = list(piece), ranks[piece]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], limit))
        assert ranks.get(parts[best] + parts[best + 1], limit) < limit, piece
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def tokenizer_json(texts: list[str]) -> dict:
    """A tokenizer.json in the published layout: ids 0..255 are the bytes, the specials are the last ids."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    letters = [chr(b) if b in keep else chr(next(moved)) for b in range(256)]
    pieces = trained_pieces(texts)
    ranks = {piece: i for i, piece in enumerate(letters + pieces)}
    assert len(ranks) == VOCAB - len(SPECIALS), "the corpus is too small for this vocabulary"
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True}
    model |= {"vocab": ranks, "merges": [last_merge(piece, ranks) for piece in pieces]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id(s[2:-2]), "content": s, **flags} for s in SPECIALS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": {**byte_level, "use_regex": True},
        "model": model,
    }


# ------------------------------------------------------------------------------------------------- MXFP4


def mxfp4_split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., n], n a multiple of 32 -> (values on the FP4 grid, power-of-two exponent), [..., n/32, 32 | 1].

    OCP rule: exponent = floor(log2(largest)) - 2; nearest grid value, ties to the even code, 6 at most.
    """
    groups = weight.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    exponent = (largest.frexp()[1] - 3).clamp(-127, 124)  # frexp: a number in [0.5, 1) times 2**e
    exponent = torch.where(largest > 0, exponent, -127)
    scaled = torch.ldexp(groups, -exponent)
    size = scaled.abs()
    # The grid is 0 0.5 1 1.5 2 3 4 6: its step doubles at 2 and at 4, and half-to-even rounding of a
    # multiple of the step is rounding to the even code.
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((torch.round(size / step) * step).clamp(max=6), scaled), exponent


def fake_quantised(weight: torch.Tensor) -> torch.Tensor:
    """weight rounded to MXFP4 along its last dimension; the gradient passes straight through."""
    with torch.no_grad():
        values, exponent = mxfp4_split(weight)
        delta = torch.ldexp(values, exponent).flatten(-2) - weight
    return weight + delta


def mxfp4_bytes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., n] -> blocks U8 [..., n/32, 16] with the even element in the low nibble, scales U8 [..., n/32]."""
    values, exponent = mxfp4_split(weight.float())
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    code = torch.searchsorted(grid, values.abs().contiguous()) | (torch.signbit(values).long() << 3)
    return (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8), (exponent[..., 0] + 127).to(torch.uint8)


# ----------------------------------------------------------------------------------------- faster modules


def grouped_experts(self, hidden, router_indices=None, routing_weights=None):
    """Equal to transformers' loop, with one gather and one scatter for all experts.

    hidden [N, H], router_indices and routing_weights [N, K] -> [N, H].
    """
    order = router_indices.flatten().argsort(stable=True)
    rows_of = torch.bincount(router_indices.flatten(), minlength=self.num_experts).tolist()
    token = order // router_indices.shape[1]
    # Checkpoint rows [E, out, in]; gate and linear rows are split here, not in the larger activations.
    up_weight, down_weight = self.gate_up_proj.transpose(1, 2), self.down_proj.transpose(1, 2)
    if getattr(self, "quantise", False):
        up_weight, down_weight = fake_quantised(up_weight), fake_quantised(down_weight)
    up_weight = torch.cat([up_weight[:, 0::2], up_weight[:, 1::2]], 1)
    up_bias = torch.cat([self.gate_up_proj_bias[:, 0::2], self.gate_up_proj_bias[:, 1::2]], 1)
    parts = []
    for e, rows in enumerate(hidden[token].split(rows_of)):
        gate, linear = F.linear(rows, up_weight[e], up_bias[e]).chunk(2, -1)
        gate, linear = gate.clamp(max=self.limit), linear.clamp(-self.limit, self.limit)
        active = gate * torch.sigmoid(gate * self.alpha) * (linear + 1)
        parts.append(F.linear(active, down_weight[e], self.down_proj_bias[e]))
    weighted = torch.cat(parts) * routing_weights.flatten()[order, None]
    return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden.dtype))


def attention_with_sinks(module, query, key, value, attention_mask, scaling, dropout=0.0, s_aux=None, **_):
    """Equal to transformers' eager attention, through the fused kernel. query [B, heads, T, D]; mask [B, 1, T, T].

    The sink becomes one more key: every query gets one more coordinate, 1, which only the sink key sees.
    """
    (rows, heads, length, size), pad = query.shape, 8
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    marker = F.pad(query.new_ones(rows, heads, length, 1), (0, pad - 1))
    sink = F.pad((s_aux / scaling).view(1, heads, 1, 1).expand(rows, -1, -1, -1), (size, pad - 1))
    out = F.scaled_dot_product_attention(
        torch.cat([query, marker], -1),
        torch.cat([F.pad(key, (0, pad)), sink], 2),
        F.pad(value, (0, pad, 0, 1)),
        attn_mask=F.pad(attention_mask, (0, 1), value=True),
        scale=scaling,
    )
    return out[..., :size].transpose(1, 2), None


AttentionInterface.register("fused_sinks", attention_with_sinks)


# ------------------------------------------------------------------------------------------------- model


def demo_config() -> dict:
    """config.json with the keys of the published checkpoints."""
    layers = 4
    rope = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096}
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": list(KEPT_BF16)}
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": token_id("return"),
        "experts_per_token": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initial_context_length": 4096,
        "initializer_range": 0.04,
        "intermediate_size": 128,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        "max_position_embeddings": 2048,
        "model_type": "gpt_oss",
        "num_attention_heads": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "pad_token_id": token_id("endoftext"),
        "quantization_config": quantised,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**rope, "rope_type": "yarn", "truncate": False},
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.01,
        "sliding_window": 64,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def new_model(seed: int, dropout: float) -> GptOssForCausalLM:
    """A float32 model with the faster modules, and dropout on the embedding and on both residual branches."""
    torch.manual_seed(seed)
    settings = {k: v for k, v in demo_config().items() if k not in ("quantization_config", "torch_dtype")}
    config = GptOssConfig(**settings, attn_implementation="fused_sinks")
    modeling_gpt_oss.GptOssExperts.forward = grouped_experts
    model = GptOssForCausalLM(config).float()
    drop = lambda module, _, out: F.dropout(out, dropout, module.training)
    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        # Residual branches start small; the router starts with distinct experts.
        layer.self_attn.o_proj.weight.data /= math.sqrt(2 * config.num_hidden_layers)
        layer.mlp.experts.down_proj.data /= math.sqrt(2 * config.num_hidden_layers)
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.experts.register_forward_hook(drop)
    return model


def attention_masks(segment: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """segment [B, T], equal inside one document -> boolean masks [B, 1, T, T], true where a key is visible."""
    gap = torch.arange(segment.shape[1])[:, None] - torch.arange(segment.shape[1])
    full = (segment[:, :, None] == segment[:, None, :]) & (gap >= 0)
    return {"full_attention": full[:, None], "sliding_attention": (full & (gap < window))[:, None]}


# ---------------------------------------------------------------------------------------------- training


def epoch_rows(documents: list[list[int]], seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, segments), both [rows, WINDOW + 1]: shuffled documents end to end, each behind an <|endoftext|>.

    In half of the documents the text does not see that token, because prompts come without one.
    """
    rng = np.random.default_rng((seed, epoch))
    order, hidden_start = rng.permutation(len(documents)), rng.random(len(documents)) < 0.5
    end, tokens, segments = token_id("endoftext"), [], []
    for i in order:
        tokens += [end, *documents[i]]
        segments += [2 * i + 1 if hidden_start[i] else 2 * i, *[2 * i] * len(documents[i])]
    rows = (len(tokens) - 1) // WINDOW
    index = torch.arange(rows)[:, None] * WINDOW + torch.arange(WINDOW + 1)
    return torch.tensor(tokens)[index], torch.tensor(segments)[index]


def balance_loss(router_logits: list[torch.Tensor], chosen: int) -> torch.Tensor:
    """Mean over layers of E * sum_e (share of tokens that chose e) * (mean probability of e); logits [N, E]."""
    losses = []
    for logits in router_logits:
        picked = torch.zeros_like(logits).scatter(1, logits.topk(chosen, -1).indices, 1.0)
        losses.append(logits.shape[1] * (picked.mean(0) / chosen * logits.softmax(-1).mean(0)).sum())
    return torch.stack(losses).mean()


class Trainer:
    """Model, optimiser and position in the run; saved to and resumed from WORK_DIR/checkpoint.pt."""

    def __init__(self, args, documents: list[list[int]]):
        self.args, self.documents, self.file = args, documents, Path(args.work) / "checkpoint.pt"
        self.model = new_model(args.seed, args.dropout)
        self.router_logits: list[torch.Tensor] = []
        keep = lambda _, __, out: self.router_logits.append(out[0])
        for layer in self.model.model.layers:
            layer.mlp.router.register_forward_hook(keep)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": args.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.rows_per_epoch = len(epoch_rows(documents, args.seed, 0)[0])
        self.step, self.seconds, self.loss, self.epoch, self.data = 0, 0.0, 0.0, -1, None
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
            print(f"resumed at step {self.step}")

    def save(self):
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"step": self.step, "seconds": self.seconds, "loss": self.loss}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)  # an interrupted save leaves the old file

    def progress(self) -> float:
        """0 to 1: how much of the step or time limit is used; the schedules follow it."""
        by_steps = self.step / self.args.steps if self.args.steps else 0.0
        by_time = self.seconds / (60 * self.args.minutes) if self.args.minutes else 0.0
        return max(by_steps, by_time)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, place = divmod(self.step, self.rows_per_epoch // self.args.rows)
        if epoch != self.epoch:
            self.epoch, self.data = epoch, epoch_rows(self.documents, self.args.seed, epoch)
        rows = slice(place * self.args.rows, (place + 1) * self.args.rows)
        return self.data[0][rows], self.data[1][rows]

    def train_step(self) -> float:
        config, progress, args = self.model.config, self.progress(), self.args
        rate = args.rate * min(1.0, (self.step + 1) / 100) * (0.02 + 0.98 * (1 - min(progress, 1.0)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for layer in self.model.model.layers:
            layer.mlp.experts.quantise = progress >= args.quantise_from
        torch.manual_seed(args.seed + self.step)  # dropout repeats after a resume
        tokens, segments = self.batch()
        self.router_logits.clear()
        masks = attention_masks(segments[:, :-1], config.sliding_window)
        logits = self.model(tokens[:, :-1], attention_mask=masks, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        balance = balance_loss(self.router_logits, config.num_experts_per_tok)
        self.optimiser.zero_grad()
        (loss + config.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def run(self, held: list[str], tokenizer: Tokenizer):
        self.model.train()
        saved = reported = time.monotonic()
        while self.progress() < 1:
            started = time.monotonic()
            loss = self.train_step()
            self.loss = loss if self.step == 1 else 0.98 * self.loss + 0.02 * loss
            self.seconds += min(time.monotonic() - started, 10.0)  # a paused process does not use up its time
            if time.monotonic() - reported > 20:
                reported = time.monotonic()
                seen = self.step * self.args.rows * WINDOW
                print(f"step {self.step} {self.progress():.1%} loss {self.loss:.4f} tokens {seen / 1e6:.2f} M "
                      f"{seen / self.seconds:.0f} tokens/s", flush=True)  # fmt: skip
            if time.monotonic() - saved > 60 * self.args.save_minutes:
                saved = time.monotonic()
                self.save()
                bits = held_out_bits_per_byte(self.model, tokenizer, held[::4])
                print(
                    f"step {self.step} bits per byte of a quarter of the held-out texts {bits:.4f}",
                    flush=True,
                )
        self.save()


# ------------------------------------------------------------------------------------- export and checks


KEPT_BF16 = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")


def export(model: GptOssForCausalLM, tokenizer: dict):
    """Write the model folder: MXFP4 experts as blocks and scales [E, out, in / 32, ...], bf16 for the rest."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name + "_blocks"], tensors[name + "_scales"] = mxfp4_bytes(value.transpose(1, 2))
        else:
            tensors[name] = value.to(torch.bfloat16)
    FOLDER.mkdir(parents=True, exist_ok=True)
    weights = FOLDER / "model.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, weights, {"format": "pt"})
    weights.chmod(0o644)  # the writer makes it private
    stops = [token_id("return"), token_id("endoftext"), token_id("call")]
    ends = {"bos_token_id": token_id("startoftext"), "do_sample": False, "eos_token_id": stops}
    generation = {**ends, "pad_token_id": token_id("endoftext")}
    for file, content in (("config.json", demo_config()), ("generation_config.json", generation)):
        (FOLDER / file).write_text(json.dumps(content, indent=2) + "\n")
    text = json.dumps(tokenizer, ensure_ascii=False)
    (FOLDER / "tokenizer.json").write_text(text, encoding="utf-8")
    print(f"exported {sum(f.stat().st_size for f in FOLDER.iterdir())} bytes to {FOLDER}")


@torch.no_grad()
def held_out_bits_per_byte(model: GptOssForCausalLM, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Each text alone, behind <|endoftext|>, its closing <|endoftext|> counted; windows overlap by half."""
    end, pieces = token_id("endoftext"), []
    for text in texts:
        ids = [end, *tokenizer.encode(text).ids, end]
        for start in range(0, max(len(ids) - WINDOW // 2 - 1, 1), WINDOW // 2):
            part = ids[start : start + WINDOW + 1]
            pieces.append((part, 1 if start == 0 else WINDOW // 2 + 1))
    pieces.sort(key=lambda piece: len(piece[0]))
    training, nats = model.training, 0.0
    model.eval()
    for i in range(0, len(pieces), 16):
        group = pieces[i : i + 16]
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p, _ in group], True, -100)
        inputs = rows[:, :-1].clamp(min=0)  # padding is on the right, so no scored position sees it
        masks = attention_masks(torch.zeros_like(inputs), model.config.sliding_window)
        logits = model(inputs, attention_mask=masks, use_cache=False).logits
        targets = rows[:, 1:].clone()
        for row, (_, first) in zip(targets, group):
            row[: first - 1] = -100  # scored in the window before
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    model.train(training)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def completion_faults(ids: list[int], text: str, words: set[str]) -> list[str]:
    """Why a completion is not acceptable: a token 4-gram more than 3 times, or too many unknown words."""
    grams = Counter(zip(ids, ids[1:], ids[2:], ids[3:]))
    faults = [f"4-gram {gram} {n} times" for gram, n in grams.items() if n > 3]
    found = re.findall(r"[A-Za-z]{2,}", text)
    known = sum(word.lower() in words for word in found)
    if known < 0.9 * len(found):
        faults.append(f"only {known} of {len(found)} words are known")
    return faults


def check(train: list[str], held: list[str]) -> bool:
    """Measure the exported folder, dequantised to float32 by transformers."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    load = {"dtype": torch.float32, "quantization_config": Mxfp4Config(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(FOLDER, **load, attn_implementation="eager").eval()
    words = {word.lower() for text in train for word in re.findall(r"[A-Za-z]{2,}", text)}
    count, *prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    good = int(count) == len(prompts)
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        out = model.generate(torch.tensor([ids]), max_new_tokens=200, do_sample=False)[0].tolist()
        text = tokenizer.decode(out[len(ids) :])
        faults = completion_faults(out, text, words)
        good &= not faults
        print(f"[{prompt}]{text}\n    {len(out) - len(ids)} tokens {faults or 'ok'}")
    ours, theirs = held_out_bits_per_byte(model, tokenizer, held), trigram_bits_per_byte(train, held)
    print(f"held-out bits per byte: model {ours:.4f}, trigram {theirs:.4f}")
    return good and ours < theirs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default="demo_training", help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=45.0, help="time limit, 0 for none")
    parser.add_argument("--steps", type=int, default=0, help="step limit, 0 for none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16, help="rows of 256 tokens in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--quantise-from", type=float, default=0.3, help="share of the run before MXFP4 rounding"
    )
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--export", action="store_true", help="only export the checkpoint")
    parser.add_argument("--check", action="store_true", help="only measure the exported folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, held = split_corpus(library_docstrings())
    if args.check:
        raise SystemExit(0 if check(train, held) else 1)
    if not args.steps and not args.minutes:
        parser.error("--steps or --minutes must limit the run")
    Path(args.work).mkdir(parents=True, exist_ok=True)
    description = tokenizer_json(train)
    tokenizer = Tokenizer.from_str(json.dumps(description))
    trainer = Trainer(args, [encoding.ids for encoding in tokenizer.encode_batch(train)])
    print(f"{len(train)} training texts, {trainer.rows_per_epoch} rows of {WINDOW} tokens, {len(held)} held out, "
          f"{sum(p.numel() for p in trainer.model.parameters())} parameters", flush=True)  # fmt: skip
    if not args.export:
        trainer.run(held, tokenizer)
        print(f"trained {trainer.step} steps, {trainer.seconds / 60:.1f} minutes, loss {trainer.loss:.4f}")
    export(trainer.model, description)


if __name__ == "__main__":
    main()
