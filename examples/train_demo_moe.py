#!/usr/bin/env python3
"""Train the small gpt-oss-layout demo model that ships in python/trivium/demo.

    train_demo_moe.py --minutes 45 --work DIR      train (resumes from DIR), then export
    train_demo_moe.py --export --work DIR          only export the latest checkpoint in DIR
    train_demo_moe.py --check                      measure the exported folder and its completions

The folder's config.json gives the shape; the data are the docstrings of the running interpreter's library. The
experts are trained through MXFP4 rounding, so the 4-bit export is the model that was trained. Needs torch,
transformers, tokenizers, safetensors and, for --check, accelerate.

Shape letters: B rows, T positions, N = B * T, H hidden, I intermediate, E experts, K chosen experts, D head size.
"""

import argparse
import ast
import hashlib
import json
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "python" / "trivium" / "demo"
PROMPTS = ROOT / "examples" / "prompts.txt"
NAMES = ("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call")
CONFIG = json.loads((FOLDER / "config.json").read_text())
VOCAB = CONFIG["vocab_size"]
SPECIAL = dict(zip(NAMES, range(VOCAB - len(NAMES), VOCAB)))  # the last ids, written <|name|>
ROWS, WINDOW = 16, 256  # rows in a training step, positions in a row
RATE, DECAY, DROPOUT = 3e-3, 0.5, 0.15  # highest learning rate, weight decay of the matrices
QUANTISE_FROM = 0.3  # share of the run before the rounding to MXFP4 starts
SPLIT = (  # the split of o200k
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def library_docstrings() -> tuple[list[str], list[str]]:
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
    parts = ([], [])
    for text in sorted(found - {""}):
        # The text's own hash decides, so the split survives additions to the library; 13 / 256 is 5.1 %.
        parts[hashlib.sha256(text.encode()).digest()[0] < 13].append(text)
    return parts


def trigram_bits_per_byte(train: list[str], held: list[str]) -> float:
    """Interpolated Kneser-Ney byte trigram; symbol 256 ends a document, as <|endoftext|> does for the model."""

    def grams(texts: list[str]) -> tuple[np.ndarray, ...]:
        s = np.array([symbol for text in texts for symbol in (256, 256, *text.encode(), 256)])
        a, b, c = s[:-2], s[1:-1], s[2:]
        inside = ~((b == 256) & (c == 256))  # not the triples that reach into the next document's frame
        return a[inside], b[inside], c[inside]

    def discounted(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """counts [..., 257] to probabilities, backing off to lower, which broadcasts against counts."""
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount, total = once / (once + 2 * twice), np.maximum(counts.sum(-1, keepdims=True), 1)
        kept = np.maximum(counts - discount, 0) / total
        return kept + (1 - kept.sum(-1, keepdims=True)) * lower

    a, b, c = grams(train)
    three = np.bincount((a * 257 + b) * 257 + c, minlength=257**3).reshape(257, 257, 257)
    two = (three > 0).sum(0)  # Kneser-Ney: the number of contexts in which the shorter gram was seen
    one = (two > 0).sum(0) + 0.5  # half a count for bytes never seen
    trigram = discounted(three, discounted(two, one / one.sum()))
    return float(-np.log2(trigram[grams(held)]).sum() / sum(len(t.encode()) for t in held))


def tokenizer_json(texts: list[str]) -> dict:
    """Byte-level BPE in the published layout: ids 0..255 are the bytes, then the merges in order, the specials."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False)
    letters, size = sorted(byte_level.alphabet()), VOCAB - len(SPECIAL)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    layout = json.loads(bpe.to_str())
    layout["decoder"] = {**layout["post_processor"], "use_regex": True}
    # The alphabet maps printable bytes to themselves and the others, in order, to U+0100 and up.
    moved = [b for b in range(256) if chr(b) not in letters]
    byte_of = {letter: ord(letter) if ord(letter) < 256 else moved[ord(letter) - 256] for letter in letters}
    vocab = {piece: byte_of.get(piece, i) for piece, i in layout["model"]["vocab"].items()}
    layout["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    assert len(vocab) == size == 256 + len(layout["model"]["merges"]), "one merge for each piece, in id order"
    return layout


def mxfp4_split(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., n], n a multiple of 32 -> (values on the FP4 grid, power-of-two exponent), [..., n/32, 32 | 1].

    OCP rule: exponent = floor(log2(largest)) - 2; nearest grid value, ties to the even code, 6 at most.
    """
    groups = weight.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    # frexp: a number in [0.5, 1) times 2**e
    exponent = torch.where(largest > 0, (largest.frexp()[1] - 3).clamp(-127, 124), -127)
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
    """weight [..., n] -> blocks U8 [..., n/32, 16], the even element in the low nibble; scales U8 [..., n/32]."""
    values, exponent = mxfp4_split(weight.float())
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    code = torch.searchsorted(grid, values.abs().contiguous()) | (torch.signbit(values).long() << 3)
    return (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8), (exponent[..., 0] + 127).to(torch.uint8)


def grouped_experts(self, hidden, router_indices=None, routing_weights=None):
    """Equal to transformers' experts, with one gather and one scatter for all of them.

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
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    marker = F.pad(query.new_ones(rows, heads, length, 1), (0, pad - 1))
    sink = F.pad((s_aux / scaling).view(1, heads, 1, 1).expand(rows, -1, -1, -1), (size, pad - 1))
    keys, values = torch.cat([F.pad(key, (0, pad)), sink], 2), F.pad(value, (0, pad, 0, 1))
    queries, mask = torch.cat([query, marker], -1), F.pad(attention_mask, (0, 1), value=True)
    out = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scaling)
    return out[..., :size].transpose(1, 2), None


def attention_masks(segment: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """segment [B, T], equal inside one document -> boolean masks [B, 1, T, T], true where a key is visible."""
    gap = torch.arange(segment.shape[1])[:, None] - torch.arange(segment.shape[1])
    full = (segment[:, :, None] == segment[:, None, :]) & (gap >= 0)
    return {"full_attention": full[:, None], "sliding_attention": (full & (gap < window))[:, None]}


def new_model(seed: int) -> transformers.GptOssForCausalLM:
    """A float32 model with the faster modules, and dropout on the embedding and on both residual branches."""
    torch.manual_seed(seed)
    transformers.AttentionInterface.register("fused_sinks", attention_with_sinks)
    GptOssExperts.forward = grouped_experts
    settings = {k: v for k, v in CONFIG.items() if k not in ("quantization_config", "torch_dtype")}
    config = transformers.GptOssConfig(**settings, attn_implementation="fused_sinks")
    model = transformers.GptOssForCausalLM(config).float()
    dropped, branch_scale = [model.model.embed_tokens], (2 * config.num_hidden_layers) ** -0.5
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= branch_scale  # residual branches start small
        layer.mlp.experts.down_proj.data *= branch_scale
        dropped += [layer.self_attn.o_proj, layer.mlp.experts]
    for module in dropped:
        module.register_forward_hook(lambda module, _, out: F.dropout(out, DROPOUT, module.training))
    return model


def epoch_rows(documents: list[list[int]], seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, segments), both [rows, WINDOW + 1]: shuffled documents end to end, each behind an <|endoftext|>.

    In half of the documents the text does not see that token, because prompts come without one.
    """
    rng = np.random.default_rng((seed, epoch))
    order, hidden_start = rng.permutation(len(documents)), rng.random(len(documents)) < 0.5
    end, tokens, segments = SPECIAL["endoftext"], [], []
    for i in order:
        tokens += [end, *documents[i]]
        segments += [2 * i + 1 if hidden_start[i] else 2 * i, *[2 * i] * len(documents[i])]
    rows = (len(tokens) - 1) // WINDOW
    index = torch.arange(rows)[:, None] * WINDOW + torch.arange(WINDOW + 1)
    return torch.tensor(tokens)[index], torch.tensor(segments)[index]


def balance_loss(logits: torch.Tensor, chosen: int) -> torch.Tensor:
    """E * sum_e (share of tokens that chose e) * (mean probability of e), 1 when balanced; logits [N, E]."""
    picked = torch.zeros_like(logits).scatter(1, logits.topk(chosen, -1).indices, 1.0)
    return logits.shape[1] * (picked.mean(0) / chosen * logits.softmax(-1).mean(0)).sum()


class Trainer:
    """Model, optimiser and position in the run; saved to and resumed from WORK_DIR/checkpoint.pt."""

    def __init__(self, args, documents: list[list[int]]):
        self.args, self.documents, self.file = args, documents, Path(args.work) / "checkpoint.pt"
        self.model = new_model(args.seed)
        self.router_logits: list[torch.Tensor] = []
        keep = lambda _, __, out: self.router_logits.append(out[0])
        for layer in self.model.model.layers:
            layer.mlp.router.register_forward_hook(keep)
        groups = [{"params": [], "weight_decay": DECAY}, {"params": [], "weight_decay": 0.0}]
        for parameter in self.model.parameters():
            groups[parameter.dim() < 2]["params"].append(parameter)  # vectors do not decay
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.rows_per_epoch = len(epoch_rows(documents, args.seed, 0)[0])
        self.step, self.seconds, self.loss, self.epoch, self.data = 0, 0.0, 0.0, -1, None
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]

    def save(self):
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        new = self.file.with_suffix(".new")
        torch.save(state | {"step": self.step, "seconds": self.seconds, "loss": self.loss}, new)
        new.replace(self.file)  # an interrupted save leaves the old file

    def progress(self) -> float:
        """0 to 1: how much of the step or time limit is used; the schedules follow it."""
        by_steps = self.step / self.args.steps if self.args.steps else 0.0
        by_time = self.seconds / (60 * self.args.minutes) if self.args.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, place = divmod(self.step, self.rows_per_epoch // ROWS)
        if epoch != self.epoch:
            self.epoch, self.data = epoch, epoch_rows(self.documents, self.args.seed, epoch)
        rows = slice(place * ROWS, (place + 1) * ROWS)
        return self.data[0][rows], self.data[1][rows]

    def train_step(self) -> float:
        progress, config = self.progress(), self.model.config
        for group in self.optimiser.param_groups:  # short warm-up, then linear to 2 %
            group["lr"] = RATE * min(1.0, (self.step + 1) / 100) * (1 - 0.98 * progress)
        for layer in self.model.model.layers:
            layer.mlp.experts.quantise = progress >= QUANTISE_FROM
        torch.manual_seed(self.args.seed + self.step)  # dropout repeats after a resume
        tokens, segments = self.batch()
        self.router_logits.clear()
        masks = attention_masks(segments[:, :-1], config.sliding_window)
        logits = self.model(tokens[:, :-1], attention_mask=masks, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        balance = sum(balance_loss(layer, config.num_experts_per_tok) for layer in self.router_logits)
        self.optimiser.zero_grad()
        (loss + config.router_aux_loss_coef * balance / config.num_hidden_layers).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def run(self):
        saved = reported = time.monotonic()
        while self.progress() < 1:
            started = time.monotonic()
            loss = self.train_step()
            self.loss = loss if self.step == 1 else 0.98 * self.loss + 0.02 * loss
            self.seconds += min(time.monotonic() - started, 10.0)  # a paused process does not use up its time
            if started - reported > 20:
                reported, tokens = started, self.step * ROWS * WINDOW
                speed = f"{tokens / 1e6:.2f} M tokens, {tokens / self.seconds:.0f} tokens/s"
                print(f"step {self.step} {self.progress():.1%} loss {self.loss:.4f} {speed}", flush=True)
            if started - saved > 240:
                saved = started
                self.save()
        self.save()


def export(model: transformers.GptOssForCausalLM, tokenizer: dict):
    """Write the model folder: MXFP4 experts as blocks and scales [E, out, in / 32, ...], bf16 for the rest."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name + "_blocks"], tensors[name + "_scales"] = mxfp4_bytes(value.transpose(1, 2))
        else:
            tensors[name] = value.to(torch.bfloat16)
    save_file({k: v.contiguous() for k, v in tensors.items()}, FOLDER / "model.safetensors", {"format": "pt"})
    (FOLDER / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    print(f"exported {sum(f.stat().st_size for f in FOLDER.iterdir())} bytes to {FOLDER}")


@torch.no_grad()
def held_out_bits_per_byte(model, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Each text stands alone between two <|endoftext|>, and the bits of the second one count.

    A text longer than WINDOW tokens is read in pieces that know only the last token of the piece before.
    """
    end, pieces, nats = SPECIAL["endoftext"], [], 0.0
    for text in texts:
        ids = torch.tensor([end, *tokenizer.encode(text).ids, end])
        pieces += [ids[start : start + WINDOW + 1] for start in range(0, len(ids) - 1, WINDOW)]
    pieces.sort(key=len)
    for i in range(0, len(pieces), ROWS):
        rows = torch.nn.utils.rnn.pad_sequence(pieces[i : i + ROWS], True, -100)
        logits = model(rows[:, :-1].clamp(min=0)).logits  # no scored position sees the padding on its right
        nats += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return nats / np.log(2) / sum(len(text.encode()) for text in texts)


def check(train: list[str], held: list[str]) -> bool:
    """Measure the exported folder, dequantised to float32, with transformers' own modules and masks.

    A completion is good when no token 4-gram comes more than 3 times and 9 of 10 words are known.
    """
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    load = {"dtype": torch.float32, "attn_implementation": "eager"}
    load |= {"quantization_config": transformers.Mxfp4Config(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, **load).float().eval()
    words_of = lambda text: re.findall(r"[a-z]{2,}", text.lower())
    words = {word for text in train for word in words_of(text)}
    count, *prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    good = int(count) == len(prompts)
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        out = model.generate(torch.tensor([ids]), max_new_tokens=200, do_sample=False)[0].tolist()
        text = tokenizer.decode(out[len(ids) :])
        most = max(Counter(zip(out, out[1:], out[2:], out[3:])).values(), default=0)
        unknown = [word for word in words_of(text) if word not in words]
        good &= most <= 3 and 10 * len(unknown) <= len(words_of(text))
        print(f"[{prompt}]{text}\n    {len(out) - len(ids)} tokens, 4-gram {most} times, unknown {unknown}")
    ours, theirs = held_out_bits_per_byte(model, tokenizer, held), trigram_bits_per_byte(train, held)
    print(f"held-out bits per byte: model {ours:.4f}, trigram {theirs:.4f}")
    return good and ours < theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default, text in (
        ("work", "demo_training", "folder of the checkpoint"),
        ("minutes", 45.0, "time limit, 0 for none"),
        ("steps", 0, "step limit, 0 for none"),
        ("threads", 2, "processor threads"),
        ("seed", 1, "of the first weights, the order of the texts and dropout"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} ({default})")
    parser.add_argument("--export", action="store_true", help="only export the checkpoint")
    parser.add_argument("--check", action="store_true", help="only measure the exported folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, held = library_docstrings()
    if args.check:
        raise SystemExit(0 if check(train, held) else 1)
    Path(args.work).mkdir(parents=True, exist_ok=True)
    layout = tokenizer_json(train)
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    trainer = Trainer(args, [encoding.ids for encoding in tokenizer.encode_batch(train)])
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{len(train)} texts, {trainer.rows_per_epoch} rows, {len(held)} held out; {size} parameters")
    if not args.export:
        trainer.run()
        print(f"trained {trainer.step} steps, {trainer.seconds / 60:.1f} minutes, loss {trainer.loss:.4f}")
    export(trainer.model, layout)


if __name__ == "__main__":
    main()
