"""The LUT language model: embedding, causal LUT attention, LUT feed-forward, LUT unembedding; no matrix products."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from .._core import InvalidArgument
from . import connectivity
from .batch_norm import BatchNorm
from .decode import DecodeCache
from .layers import LUTLayer, LUTLayerBasic, SynapseMeta

END_OF_TEXT = 256  # id of the end token, for vocabularies that have one beside the 256 bytes
# What config.json says of a model, and what it may leave out.
_SIZES = frozenset(
    "vocab_size embedding_dim context_size positional_dim num_layers num_heads n_detectors n_anchors_per_detector".split()
)
_CHOICES = frozenset("n_anchors_per_detector_attention no_ffn use_batch_norm unified_pe cmp_eps".split())


class LUTTransformer:
    """z = embedding[tokens]; per layer z += attention(z), z += ffn(z); logits = unembedder(z).

    attention is sequential with num_heads * n_detectors tables, ffn and unembedder see positions one by one. The
    embedding is random and frozen. Every table starts at zero; train with cross-entropy through backward().
    use_batch_norm normalises what attention and ffn give, after their dropout, over all positions of a batch; its
    weights and biases are the caller's to update, as the embeddings of distances are.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        context_size: int,
        positional_dim: int,
        num_layers: int,
        num_heads: int,
        n_detectors: int,
        n_anchors_per_detector: int,
        n_anchors_per_detector_attention: int | None = None,
        *,
        no_ffn: bool = False,
        dropout: float = 0.0,
        use_batch_norm: bool = False,
        unified_pe: bool = False,
        synapse_meta: SynapseMeta | None = None,
        weights_gradient_policy: str = "dense",
        summation: str = "float32",
        int_rescaler: float = 0.001,
        cmp_eps: float = 0.0,
        random_seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        for name, value, least in (
            ("vocab_size", vocab_size, 1),
            ("embedding_dim", embedding_dim, 2),
            ("context_size", context_size, 2),
            ("positional_dim", positional_dim, 0),
            ("num_layers", num_layers, 0),
            ("num_heads", num_heads, 1),
            ("n_detectors", n_detectors, 1),
            ("n_anchors_per_detector", n_anchors_per_detector, 1),
        ):
            if connectivity.integer(value, name) < least:
                raise InvalidArgument(f"{name} is {value}, expected at least {least}")
        if not 0 <= dropout < 1:
            raise InvalidArgument(f"dropout is {dropout}, expected 0 up to 1")
        attention_anchors = n_anchors_per_detector_attention or n_anchors_per_detector
        self.config: dict[str, Any] = dict(
            vocab_size=vocab_size,
            embedding_dim=embedding_dim,
            context_size=context_size,
            positional_dim=positional_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            n_detectors=n_detectors,
            n_anchors_per_detector=n_anchors_per_detector,
            n_anchors_per_detector_attention=attention_anchors,
            no_ffn=no_ffn,
            use_batch_norm=use_batch_norm,
            unified_pe=unified_pe,
            cmp_eps=cmp_eps,
        )
        self.dropout, self._rng = dropout, connectivity.generator(random_seed, 4)
        common: dict[str, Any] = dict(
            synapse_meta=synapse_meta,
            weights_gradient_policy=weights_gradient_policy,
            summation=summation,
            int_rescaler=int_rescaler,
            cmp_eps=cmp_eps,
            device=device,
        )

        def layer(number: int, anchors: int, detectors: int, outputs: int, **more: Any) -> LUTLayer:
            seed = None if random_seed is None else random_seed + number
            return LUTLayer(embedding_dim, anchors, detectors, outputs, random_seed=seed, **common, **more)

        self.embedding = (
            2 * connectivity.generator(random_seed, 3).random((vocab_size, embedding_dim), np.float32) - 1
        )
        sequence = dict(sequence_length=context_size, positional_dim=positional_dim, unified_pe=unified_pe)
        self.attention = [
            layer(2 * i + 1, attention_anchors, num_heads * n_detectors, embedding_dim, **sequence)
            for i in range(num_layers)
        ]
        self.ffn = [
            layer(2 * i + 2, n_anchors_per_detector, n_detectors, embedding_dim)
            for i in range(0 if no_ffn else num_layers)
        ]
        self.unembedder = layer(2 * num_layers + 1, n_anchors_per_detector, n_detectors, vocab_size)
        norms = num_layers if use_batch_norm else 0
        self.attention_norms = [BatchNorm(embedding_dim) for _ in range(norms)]
        self.ffn_norms = [BatchNorm(embedding_dim) for _ in range(0 if no_ffn else norms)]
        self._masks: list[np.ndarray | None] = []

    def named_layers(self) -> dict[str, LUTLayerBasic]:
        layers: dict[str, LUTLayerBasic] = {}
        for i, attention in enumerate(self.attention):
            layers[f"layers.{i}.attention"] = attention
            if self.ffn:
                layers[f"layers.{i}.ffn"] = self.ffn[i]
        layers["unembedder"] = self.unembedder
        return layers

    def named_norms(self) -> dict[str, BatchNorm]:
        """The batch norms, empty without use_batch_norm."""
        norms = {f"layers.{i}.attention_norm": norm for i, norm in enumerate(self.attention_norms)}
        return norms | {f"layers.{i}.ffn_norm": norm for i, norm in enumerate(self.ffn_norms)}

    def set_learning_rate_hook(self, hook: Callable[[Any], float] | None) -> None:
        for layer in self.named_layers().values():
            layer.set_learning_rate_hook(hook)

    def num_parameters(self) -> int:
        norms = sum(norm.weight.size + norm.bias.size for norm in self.named_norms().values())
        return (
            self.embedding.size
            + norms
            + sum(
                int(np.prod(layer.weight.shape))
                + (int(np.prod(layer.native.pe_shape)) if layer.positional_dim else 0)
                for layer in self.named_layers().values()
            )
        )

    def forward(self, tokens: Any, training: bool = True) -> np.ndarray:
        """Logits float32 [batch, positions, vocab_size] of tokens int [batch, up to context_size positions]."""
        tokens = np.asarray(tokens)
        context = self.config["context_size"]
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= context:
            raise InvalidArgument(f"tokens are {list(tokens.shape)}, expected [batch, 1 to {context}]")
        self._check_tokens(tokens)
        self._masks = []
        z = self.embedding[tokens]
        for i, attention in enumerate(self.attention):
            z = z + self._normal(self.attention_norms, i, attention.forward(z, training), training)
            if self.ffn:
                z = z + self._normal(self.ffn_norms, i, self.ffn[i].forward(z, training), training)
        return self.unembedder.forward(z, training)

    __call__ = forward

    def make_cache(self, sequences: int = 1) -> list[DecodeCache]:
        """What decode remembers of `sequences` sequences that go in step, layer by layer."""
        return [attention.make_cache(sequences) for attention in self.attention]

    def decode(self, tokens: Any, cache: list[DecodeCache]) -> np.ndarray:
        """Logits float32 [sequences, vocab_size] after the next token of each sequence, int [sequences].

        Bit for bit those of forward(training=False) up to context_size tokens; past it attention sees the last
        context_size - 1 positions. What a forward kept for its backward is gone then.
        """
        if len(cache) != len(self.attention):
            raise InvalidArgument(f"cache is of {len(cache)} layers, expected {len(self.attention)}")
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise InvalidArgument(f"tokens are {list(tokens.shape)}, expected [sequences]")
        self._check_tokens(tokens)
        z = self.embedding[tokens]
        for i, attention in enumerate(self.attention):
            z = z + self._normal(self.attention_norms, i, attention.decode(z, cache[i]), False)
            if self.ffn:
                z = z + self._normal(self.ffn_norms, i, self.ffn[i].forward(z, False), False)
        self._masks = []
        return self.unembedder.forward(z, False)

    def backward(self, glogits: Any) -> None:
        """Gradients of all tables, embeddings of distances and norms, into their layers; internal layers update."""
        gz = self.unembedder.backward(glogits)
        for i in reversed(range(len(self.attention))):
            if self.ffn:
                gz = gz + self.ffn[i].backward(self._unnormal(self.ffn_norms, i, gz))
            gz = gz + self.attention[i].backward(self._unnormal(self.attention_norms, i, gz))

    def _check_tokens(self, tokens: np.ndarray) -> None:
        vocab = self.config["vocab_size"]
        if tokens.size and not np.issubdtype(tokens.dtype, np.integer):
            raise InvalidArgument(f"tokens are {tokens.dtype}, expected integers")
        if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab):
            raise InvalidArgument(f"tokens are {tokens.min()} to {tokens.max()}, expected 0 to {vocab - 1}")

    def _normal(self, norms: list[BatchNorm], i: int, y: np.ndarray, training: bool) -> np.ndarray:
        y = self._drop(y, training)
        return norms[i].forward(y, training) if norms else y

    def _unnormal(self, norms: list[BatchNorm], i: int, gy: np.ndarray) -> np.ndarray:
        return self._undrop(norms[i].backward(gy) if norms else gy)

    def _drop(self, y: np.ndarray, training: bool) -> np.ndarray:
        mask = None
        if training and self.dropout:
            mask = (self._rng.random(y.shape, np.float32) >= self.dropout) / np.float32(1 - self.dropout)
            y = y * mask
        self._masks.append(mask)
        return y

    def _undrop(self, gy: np.ndarray) -> np.ndarray:
        mask = self._masks.pop()
        return gy if mask is None else gy * mask

    def state_dict(self) -> dict[str, np.ndarray]:
        state = {"embedding": self.embedding}
        for name, part in (self.named_layers() | self.named_norms()).items():
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        owners: dict[str, Any] = self.named_layers() | self.named_norms()
        parts: dict[str, dict[str, Any]] = {name: {} for name in owners}
        for key, value in state.items():
            name, _, field = key.rpartition(".")
            if name not in parts and key != "embedding":
                raise InvalidArgument(f"state has {key!r}, which this model has no place for")
            if name:
                parts[name][field] = value
        embedding = np.array(state.get("embedding", np.zeros(0)), np.float32)
        if embedding.shape != self.embedding.shape:
            raise InvalidArgument(f"embedding is {embedding.shape}, expected {self.embedding.shape}")
        takers = []
        for name, owner in owners.items():
            try:
                takers.append(owner._check_state(parts[name]))
            except InvalidArgument as error:
                raise InvalidArgument(f"{name}: {error}") from None
        for take in takers:  # nothing is changed before everything fits
            take()
        self.embedding = embedding

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a model folder that trivium.load and getp run: config.json, model.safetensors, tokenizer.json.

        Token ids below 256 are bytes; id 256, when the vocabulary has it, ends a text.
        """
        vocab = self.config["vocab_size"]
        if vocab not in (256, 257):
            raise InvalidArgument(
                f"vocab_size is {vocab}, expected 256 bytes, or 257 with an end token, to save a folder"
            )
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        _core.save_safetensors(path / "model.safetensors", self.state_dict())
        config = {"model_type": "lut_transformer", "architectures": ["LUTTransformer"], **self.config}
        if vocab > END_OF_TEXT:
            config["eos_token_id"] = END_OF_TEXT
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (path / "tokenizer.json").write_text(byte_tokenizer(vocab > END_OF_TEXT))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu", **options: Any) -> "LUTTransformer":
        """A model saved with save(); options are those of training (policy, dropout)."""
        path = Path(folder)
        if twice := sorted(set(options) & (_SIZES | _CHOICES)):
            raise InvalidArgument(f"options are {twice}, which the folder's config.json gives")
        config = _read_config(path)
        try:
            model = cls(**config, device=device, **options)
        except InvalidArgument:
            try:
                cls(**config)
            except InvalidArgument as error:
                raise _core.ModelFormatError(f"{path / 'config.json'}: {error}") from None
            raise  # the file is good: what the caller gave is not
        model.load_state_dict(_core.load_safetensors(path / "model.safetensors"))
        return model


def _read_config(path: Path) -> dict[str, Any]:
    """The arguments in a saved model's config.json."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise _core.ModelFormatError(f'no config.json in "{path}"') from None
    except ValueError as error:
        raise _core.ModelFormatError(f"{file}: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else config
    if kind != "lut_transformer":
        raise _core.ModelFormatError(f'{path}: model_type is {kind!r}, expected "lut_transformer"')
    for key in ("model_type", "architectures", "eos_token_id"):
        config.pop(key, None)
    missing, unknown = sorted(_SIZES - set(config)), sorted(set(config) - _SIZES - _CHOICES)
    if missing or unknown:
        raise _core.ModelFormatError(f"{file}: lacks {missing} and has {unknown}, expected neither")
    return config


def byte_tokenizer(with_end: bool) -> str:
    """tokenizer.json of the Hugging Face format whose ids are bytes, without merges."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    vocab = {chr(b if b in kept else next(moved)): b for b in range(256)}
    end = {
        "id": END_OF_TEXT,
        "content": "<|endoftext|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end] if with_end else [],
            "normalizer": None,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": split,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [],
            },
        }
    )
