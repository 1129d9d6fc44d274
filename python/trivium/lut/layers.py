"""LUT layers on numpy arrays: structure, weights and gradients; the arithmetic is native."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from .._core import InvalidArgument, Tensor
from . import connectivity
from .connectivity import Targets
from .decode import DecodeCache, decode
from .row_gradient import RowGradient

POLICIES = {"dense": "dense", "row_sparse": "rows", "internal": "internal"}


@dataclass(frozen=True)
class SynapseMeta:
    """Initial weights clip(initial_weight + initial_noise_level * U[0, 1), min_weight, max_weight), and a factor
    of weight gradients. The bounds are not enforced in training."""

    learning_rate: float = 1.0
    min_weight: float = 0.0
    max_weight: float = 1.0
    initial_weight: float = 0.0
    initial_noise_level: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not hasattr(value, "__float__") or not math.isfinite(value):
                raise InvalidArgument(f"{name} is {value!r}, expected a finite number")
        if not self.min_weight <= self.max_weight:
            raise InvalidArgument(f"min_weight is {self.min_weight}, above max_weight {self.max_weight}")
        if not self.min_weight <= self.initial_weight <= self.max_weight:
            raise InvalidArgument(
                f"initial_weight is {self.initial_weight}, expected {self.min_weight} to {self.max_weight}"
            )
        if not 0 <= self.learning_rate <= 1:
            raise InvalidArgument(f"learning_rate is {self.learning_rate}, expected 0 to 1")


def _on_host(array: Any) -> np.ndarray:
    return array.to("cpu").numpy() if isinstance(array, Tensor) else np.asarray(array)


class LUTLayerBasic:
    """Nt tables addressed by comparisons of inputs, added up (Izhikevich, arXiv 2512.11843).

    anchors int [tables, pairs, 2]: the inputs each detector compares. sequence_length > 1 makes the layer
    sequential: position j adds one row for every earlier position i, addressed by both and by a trainable
    embedding of their distance with positional_dim coordinates (given exactly then, 0 for none).
    concatenation_product=False compares across the pair instead (sliced_product_mode: coordinate by coordinate).
    weights_gradient_policy: "dense", "row_sparse", or "internal": plain SGD inside backward with a step from
    set_learning_rate_hook. summation "int32" adds whole quanta 1 / ((2^20 - 1) int_rescaler); a weight gradient
    that would leave +-(2^31 - 1) quanta stays at that end. backward uses the weights as they are when it is called.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        anchors: np.ndarray,
        targets: Targets | None = None,
        *,
        sequence_length: int = 1,
        positional_dim: int | None = None,
        unified_pe: bool = False,
        concatenation_product: bool = True,
        sliced_product_mode: bool = False,
        synapse_meta: SynapseMeta | None = None,
        weights_gradient_policy: str = "dense",
        normalized: bool = False,
        summation: str = "float32",
        int_rescaler: float = 0.001,
        group_size: int = 32,
        do_normalise_weights: bool = False,
        cmp_eps: float = 0.0,
        random_seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        integer = connectivity.integer
        self.input_shape = tuple(integer(n, "input_shape") for n in input_shape)
        self.output_shape = tuple(integer(n, "output_shape") for n in output_shape)
        sequence_length = integer(sequence_length, "sequence_length")
        positional_dim = None if positional_dim is None else integer(positional_dim, "positional_dim")
        self._check_sequence(sequence_length, positional_dim, concatenation_product, sliced_product_mode)
        if summation not in ("float32", "int32"):
            raise InvalidArgument(f"summation is {summation!r}, expected 'float32' or 'int32'")
        if summation == "int32" and not int_rescaler > 0:
            raise InvalidArgument(f"int_rescaler is {int_rescaler}, expected more than 0")
        self._check_policy(weights_gradient_policy, normalized, summation)
        self.sequence_length, self.normalized, self.policy = (
            sequence_length,
            normalized,
            weights_gradient_policy,
        )
        self.synapse_meta = synapse_meta or SynapseMeta()
        mode = "rows"
        if sequence_length > 1:
            mode = "sequence" if concatenation_product else "sliced" if sliced_product_mode else "product"
        self._options: dict[str, Any] = dict(
            inputs=int(np.prod(self.input_shape)),
            outputs=int(np.prod(self.output_shape)),
            mode=mode,
            sequence_length=sequence_length,
            positional_dim=positional_dim or 0,
            unified_pe=unified_pe,
            cmp_eps=cmp_eps,
            learning_rate=self.synapse_meta.learning_rate,
            int_rescaler=int_rescaler if summation == "int32" else 0.0,
            group_size=integer(group_size, "group_size"),
            device=device,
        )
        self._build(connectivity.as_int32(anchors, "anchors"), targets)
        self._initialise(random_seed, do_normalise_weights)
        self._saved: _core.LutSaved | None = None
        self._x_shape: tuple[int, ...] = ()
        self._hook: Callable[[Any], float] | None = None
        self.weight_gradient: np.ndarray | RowGradient | None = None
        self.positional_gradient: np.ndarray | None = None

    @staticmethod
    def _check_sequence(
        sequence_length: int,
        positional_dim: int | None,
        concatenation_product: bool,
        sliced_product_mode: bool,
    ) -> None:
        if (sequence_length > 1) != (positional_dim is not None):
            raise InvalidArgument(
                f"positional_dim is {positional_dim}, expected a number exactly when sequence_length ({sequence_length}) > 1"
            )
        if not concatenation_product and sequence_length < 2:
            raise InvalidArgument(
                f"concatenation_product is False with sequence_length {sequence_length}, expected at least 2"
            )
        if sliced_product_mode and concatenation_product:
            raise InvalidArgument(
                "sliced_product_mode is True, expected concatenation_product=False beside it"
            )

    @staticmethod
    def _check_policy(policy: str, normalized: bool, summation: str) -> None:
        if policy not in POLICIES:
            raise InvalidArgument(f"weights_gradient_policy is {policy!r}, expected {', '.join(POLICIES)}")
        if policy == "internal" and normalized:
            raise InvalidArgument("normalized gradients cannot go with the internal policy")
        if policy == "internal" and summation == "int32":
            raise InvalidArgument("summation 'int32' cannot go with the internal policy")

    def _build(self, anchors: np.ndarray, targets: Targets | None) -> None:
        self.native = self._make_native(anchors, targets)
        self.anchors, self.targets = anchors, targets

    def _make_native(self, anchors: np.ndarray, targets: Targets | None) -> "_core.LutLayer":
        sparse: dict[str, Any] = {}
        if targets is not None:
            sparse = {"pointers": targets.pointers, "targets": targets.targets}
        return _core.LutLayer(anchors=anchors, **sparse, **self._options)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy or a pickle: native objects stay behind, and with them what a forward saved."""
        state = self.__dict__ | {"_saved": None}
        del state["native"]
        for name in ("weight", "positional_embeddings"):
            state[name] = None if state[name] is None else _on_host(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build(self.anchors, self.targets)
        for name in ("weight", "positional_embeddings"):
            if state[name] is not None:
                setattr(self, name, self._on_device(state[name]))

    def _initialise(self, seed: int | None, normalise: bool) -> None:
        meta, shape = self.synapse_meta, self.native.weight_shape
        weight = np.full(shape, meta.initial_weight, np.float32)
        if meta.initial_noise_level:
            noise = connectivity.generator(seed, 1).random(shape, np.float32)
            weight = np.clip(
                weight + np.float32(meta.initial_noise_level) * noise, meta.min_weight, meta.max_weight
            )
        if normalise:
            if self.targets is not None:
                raise InvalidArgument("do_normalise_weights needs a fully connected layer")
            weight /= np.maximum(np.linalg.norm(weight, axis=-1, keepdims=True), np.float32(1e-16))
        self.weight = self._on_device(weight.astype(np.float32))
        self.positional_embeddings: Any = None
        if self._options["positional_dim"]:
            uniform = connectivity.generator(seed, 2).random(self.native.pe_shape, np.float32)
            self.positional_embeddings = self._on_device(2 * uniform - 1)

    def _on_device(self, array: np.ndarray) -> Any:
        """A Tensor on a device; on the CPU a numpy array over the memory of one, where rows start at cache lines."""
        if self.native.device != "cpu":
            return Tensor(array).to(self.native.device)
        return Tensor(array, copy=True).numpy()

    @property
    def positional_dim(self) -> int:
        return self._options["positional_dim"]

    @property
    def n_outputs(self) -> int:
        return self._options["outputs"]

    def set_learning_rate_hook(self, hook: Callable[[Any], float] | None) -> None:
        """hook(weight) gives the step of an internal update; it is called once per backward."""
        if hook is not None and self.policy != "internal":
            raise InvalidArgument(f"a learning rate hook goes with the internal policy, not {self.policy}")
        if hook is not None and not callable(hook):
            raise InvalidArgument(f"the learning rate hook is {hook!r}, expected a function of the weight")
        self._hook = hook

    def forward(self, x: Any, training: bool = True) -> Any:
        """x float32 [batch, (positions,) *input_shape] -> y [batch, (positions,) *output_shape].

        Non-sequential layers take any leading dimensions as batch.
        """
        lead, flat = self._flatten(x, self.input_shape, "x")
        if training and self.native.device == "cpu" and self._options["mode"] in ("product", "sliced"):
            flat = flat.copy()  # backward reads x again, when the caller may have changed it
        y, saved = self.native.forward(self.weight, flat, self.positional_embeddings, training=training)
        self._saved, self._x_shape = (saved if training else None), lead
        return self._unflatten(y, (*lead, *self.output_shape))

    __call__ = forward

    def backward(self, gy: Any, need_input_gradient: bool = True) -> Any:
        """The gradient of x. Sets weight_gradient and positional_gradient, or updates the weight (internal)."""
        if self._saved is None:
            raise InvalidArgument("backward: nothing was saved; call forward with training=True first")
        eta = 0.0
        if self.policy == "internal":
            if self._hook is None:
                raise InvalidArgument("backward: the internal policy needs set_learning_rate_hook")
            eta = float(self._hook(self.weight))
        lead, flat = self._flatten(gy, self.output_shape, "gy")
        if lead != self._x_shape:
            raise InvalidArgument(f"backward: gy is for {lead}, x was {self._x_shape}")
        self.weight_gradient = None  # its memory, when nobody else holds it, is the next one's
        g = self.native.backward(
            self.weight,
            flat,
            self._saved,
            policy=POLICIES[self.policy],
            normalized=self.normalized,
            eta=eta,
            need_x=need_input_gradient,
        )
        if self.policy == "internal":
            _core.synchronize(self.native.device)  # the weight may be shared with another library
        self._saved = None
        self.weight_gradient = self._weight_gradient(g)
        self.positional_gradient = self._unflatten(g.gpe, g.gpe.shape) if self.positional_dim else None
        return self._unflatten(g.gx, (*lead, *self.input_shape)) if need_input_gradient else None

    def _weight_gradient(self, g: "_core.LutGradients") -> Any:
        if self.policy == "internal":
            return None
        gw = self._unflatten(g.gw, g.gw.shape)
        if self.policy == "dense":
            return gw
        rows, cells = g.rows.numpy(), self.native.cells
        if self.targets is None:
            counts, starts = np.full(len(rows), self.n_outputs), rows * self.n_outputs
        elif len(self.targets.pointers) == self.anchors.shape[0] + 1:
            degrees = np.diff(self.targets.pointers)
            counts = degrees[rows // cells]
            starts = cells * self.targets.pointers[rows // cells] + rows % cells * counts
        else:
            counts, starts = np.diff(self.targets.pointers)[rows], self.targets.pointers[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return RowGradient(rows, gw.reshape(len(rows), -1) if self.targets is None else gw, offsets, starts)

    def make_cache(self, sequences: int = 1) -> DecodeCache:
        """What decode remembers of `sequences` sequences that go in step."""
        return DecodeCache(self, sequences)

    def decode(self, x: Any, cache: DecodeCache) -> Any:
        """The next position of each of the cache's sequences: x [sequences, *input_shape] -> y [sequences, *output_shape].

        Bit for bit what forward gives for that position, at the cost of one position. It goes on past
        sequence_length: a position sees the sequence_length - 1 before it.
        """
        return decode(self, x, cache)

    def _flatten(
        self, x: Any, shape: tuple[int, ...], name: str, rank: int | None = None
    ) -> tuple[tuple[int, ...], Any]:
        if not isinstance(x, Tensor):
            if np.iscomplexobj(x):
                raise InvalidArgument(f"{name} is complex, expected real numbers")
            x = np.ascontiguousarray(x, np.float32)
        split = x.ndim - len(shape)
        rank = rank or (2 if self.sequence_length > 1 else None)
        if split < 1 or x.shape[split:] != shape or (rank and split != rank):
            axes = "batch, positions" if rank == 2 else "batch"
            raise InvalidArgument(f"{name} is {list(x.shape)}, expected [{axes}, {str(list(shape))[1:-1]}]")
        lead, size = tuple(x.shape[:split]), int(np.prod(shape))
        if isinstance(x, Tensor):
            x = np.asarray(x.to("cpu"))
        flat = x.reshape((*lead, size) if rank else (-1 if x.size else int(np.prod(lead)), size))
        return lead, flat if self.native.device == "cpu" else Tensor(flat).to(self.native.device)

    def _unflatten(self, t: Tensor, shape: Sequence[int]) -> Any:
        return t.to("cpu").numpy().reshape(shape)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything a layer of the same options needs to be this one."""
        state = {"anchors": self.anchors, "weight": _on_host(self.weight)}
        if self.positional_dim:
            state["positional_embeddings"] = _on_host(self.positional_embeddings)
        if self.targets is not None:
            state |= {"pointers": self.targets.pointers, "targets": self.targets.targets}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_state(state)()

    def _check_state(self, state: dict[str, Any]) -> Callable[[], None]:
        """Refuses a state this layer cannot take; calling what it returns takes it."""
        expected = set(self.state_dict())
        if set(state) != expected:
            raise InvalidArgument(f"state has {sorted(state)}, expected {sorted(expected)}")
        targets = None
        if self.targets is not None:
            targets = Targets(np.array(state["pointers"]), np.array(state["targets"]))
        weight = np.asarray(state["weight"])
        pe = np.asarray(state["positional_embeddings"]) if self.positional_dim else None
        anchors = connectivity.as_int32(np.array(state["anchors"]), "anchors")
        if anchors.shape != self.anchors.shape:
            raise InvalidArgument(f"anchors are {anchors.shape}, expected {self.anchors.shape}")
        native = self._make_native(anchors, targets)
        for name, array, shape in (
            ("weight", weight, native.weight_shape),
            ("positional_embeddings", pe, native.pe_shape),
        ):
            if array is not None and (array.shape != tuple(shape) or array.dtype != np.float32):
                raise InvalidArgument(
                    f"{name} is {array.dtype} {array.shape}, expected float32 {tuple(shape)}"
                )

        def take() -> None:
            self.native, self.anchors, self.targets, self._saved = native, anchors, targets, None
            self.weight = self._on_device(weight)
            self.positional_embeddings = None if pe is None else self._on_device(pe)

        return take

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a safetensors file."""
        _core.save_safetensors(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        self.load_state_dict(_core.load_safetensors(path))


class LUTLayer(LUTLayerBasic):
    """Fully connected: every detector compares any inputs and reaches all outputs."""

    def __init__(
        self,
        n_inputs: int,
        n_anchors_per_detector: int,
        n_detectors: int,
        n_outputs: int,
        *,
        exact_anchors: bool = False,
        random_seed: int | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("n_inputs", n_inputs), ("n_detectors", n_detectors), ("n_outputs", n_outputs)):
            connectivity.integer(value, name)
        if n_detectors < 1:
            raise InvalidArgument(f"n_detectors is {n_detectors}, expected at least 1")
        product = options.get("sequence_length", 1) > 1 and not options.get("concatenation_product", True)
        seen = 2 * n_inputs + (options.get("positional_dim") or 0) if product else n_inputs
        anchors = connectivity.sample_anchors(
            connectivity.generator(random_seed, 0),
            [np.arange(seen)] * n_detectors,
            n_anchors_per_detector,
            exact=exact_anchors,
        )
        super().__init__((n_inputs,), (n_outputs,), anchors, random_seed=random_seed, **options)
