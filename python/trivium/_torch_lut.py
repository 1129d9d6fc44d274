"""LUT layers for PyTorch: trivium.torch.LUTLayer. Weights are torch parameters over the memory of the layer.

Layers run where their parameters are, on the cpu or a cuda or hip device. Tensors cross by DLPack without copies, and
results are written to torch's own memory, whose rules about streams hold: trivium's stream waits for what torch's current
stream has written, and torch's stream for trivium's results. The host waits for row-sparse gradients alone.
"""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _core
from .lut import LUTLayer as NumpyLayer
from .lut import LUTLayerBasic, connectivity, layers
from .lut.connectivity import Targets

# Custom ops take tensors and numbers: a layer is passed by its number here.
_numbers = itertools.count()
_layers: "weakref.WeakValueDictionary[int, LUTModule]" = weakref.WeakValueDictionary()


def _torch(t: _core.Tensor) -> Tensor:
    """Shares memory; torch's current stream waits for ours."""
    if t.size:
        return torch.from_dlpack(t)
    return torch.empty(t.shape, dtype=getattr(torch, t.dtype), device=torch_device(t.device))


def torch_device(name: str) -> torch.device:
    """Where torch sees the memory of a device of trivium ("cuda:1")."""
    kind, _, index = name.partition(":")
    vendor = "hip" if torch.version.hip else "cuda"
    if kind not in ("cpu", "cuda", "hip"):
        raise _core.Unsupported(
            f"torch layers are on cpu, cuda or hip, whose memory torch can share, not on {name}"
        )
    if kind != "cpu" and (kind != vendor or not torch.cuda.is_available()):
        raise _core.Unsupported(
            f"the layer is on {name}, but torch {torch.__version__} has no {kind} device here"
        )
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(index or 0))


def device_name(device: torch.device) -> str:
    """The name that trivium has for a device of torch."""
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise _core.Unsupported(f"torch layers are on cpu, cuda or hip, not on torch's device {device}")
    return f"{'hip' if torch.version.hip else 'cuda'}:{device.index or 0}"


@contextlib.contextmanager
def _queued(x: Tensor) -> Iterator[None]:
    """Work inside is ordered with torch's current stream on the device of x, which is torch's current device there."""
    # torch hands over tensors of its current device only
    with torch.cuda.device_of(x), contextlib.ExitStack() as inside:
        if x.device.type != "cpu":
            stream = torch.cuda.current_stream(x.device).cuda_stream
            inside.enter_context(_core.ForeignStream(x.__dlpack_device__(), stream))
        yield


def _forward_results(module: "LUTModule", x: Tensor, training: bool) -> list[Tensor]:
    """Room for y and what a forward saves: index, min_delta, min_index, and those of the embeddings."""
    y = x.new_empty([*x.shape[:-1], module.layer.n_outputs])
    if module.is_product or not training:
        return [y, *(x.new_empty(0) for _ in range(6))]
    tables = module.layer.anchors.shape[0]
    rows = [*x.shape[:-1], tables]
    distances = [x.shape[1] - 1 if module.layer.positional_dim else 0, tables]
    kinds = (torch.int32, torch.float32, torch.int32)
    return [y, *(x.new_empty(shape, dtype=kind) for shape in (rows, distances) for kind in kinds)]


@torch.library.custom_op("trivium::lut_forward", mutates_args=())
def lut_forward(x: Tensor, weight: Tensor, pe: Tensor, number: int, training: bool) -> list[Tensor]:
    """[y, index, min_delta, min_index, pe_index, pe_min_delta, pe_min_index] of x float32 [..., inputs]."""
    module = _layers[number]
    y, *saved = out = _forward_results(module, x, training)
    with _queued(x):
        module.native.forward(
            weight.detach(),
            x.detach().contiguous(),
            module.pe_argument(pe),
            training=training,
            out=[y] if module.is_product or not training else out,
        )
    return [y, *saved]


@lut_forward.register_fake
def _(x: Tensor, weight: Tensor, pe: Tensor, number: int, training: bool) -> list[Tensor]:
    return _forward_results(_layers[number], x, training)


def _saved(module: "LUTModule", x: Tensor, pe: Tensor, saved: list[Tensor]) -> _core.LutSaved:
    """Unchanged: autograd refuses what was written to since."""
    batch, length = x.shape[0], x.shape[1] if module.sequential else 1
    more = {"x": x.detach().contiguous(), "pe": module.pe_argument(pe)} if module.is_product else {}
    index, delta, alternative, pe_index, pe_delta, pe_alternative = (t.detach().contiguous() for t in saved)
    return _core.LutSaved(
        index, delta, alternative, pe_index, pe_delta, pe_alternative, batch, length, unchanged=True, **more
    )


def _like(t: Tensor, needed: bool = True) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format) if needed else t.new_empty(0)


@torch.library.custom_op("trivium::lut_backward", mutates_args=())
def lut_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    pe: Tensor,
    saved: list[Tensor],
    number: int,
    need_x: bool,
    need_w: bool,
) -> list[Tensor]:
    """[gx, gW, gPE]; what is not needed is empty."""
    module = _layers[number]
    reuses = weight.device.type == "cpu"  # the memory of an earlier gradient, which is faster than new pages
    gx, gw, gpe = _like(x, need_x), _like(weight, need_w and not reuses), _like(pe)
    with _queued(x):
        g = module.native.backward(
            weight.detach(),
            gy.detach().contiguous(),
            _saved(module, x, pe, saved),
            policy="dense" if need_w else "none",
            normalized=module.layer.normalized,
            need_x=need_x,
            gx=gx if need_x else None,
            gw=gw if need_w and not reuses else None,
            gpe=gpe if pe.numel() else None,
        )
    return [gx, _torch(g.gw) if need_w and reuses else gw, gpe]


@lut_backward.register_fake
def _(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    pe: Tensor,
    saved: list[Tensor],
    number: int,
    need_x: bool,
    need_w: bool,
) -> list[Tensor]:
    return [_like(x, need_x), _like(weight, need_w), _like(pe)]


@torch.library.custom_op("trivium::lut_backward_internal", mutates_args={"weight"})
def lut_backward_internal(
    gy: Tensor, x: Tensor, weight: Tensor, pe: Tensor, saved: list[Tensor], number: int, need_x: bool
) -> tuple[Tensor, Tensor]:
    """(gx, gPE); weight -= eta * gradient, eta from the layer's hook. An op that changes an argument must not return
    a list, or torch.compile refuses it."""
    module = _layers[number]
    gx, gpe = _like(x, need_x), _like(pe)
    with _queued(x):
        module.native.backward(
            weight.detach(),
            gy.detach().contiguous(),
            _saved(module, x, pe, saved),
            policy="internal",
            eta=module.step_size(),
            need_x=need_x,
            gx=gx if need_x else None,
            gpe=gpe if pe.numel() else None,
        )
    return gx, gpe


@lut_backward_internal.register_fake
def _(
    gy: Tensor, x: Tensor, weight: Tensor, pe: Tensor, saved: list[Tensor], number: int, need_x: bool
) -> tuple[Tensor, Tensor]:
    return _like(x, need_x), _like(pe)


def _row_sparse(
    ctx: Any, gy: Tensor, x: Tensor, weight: Tensor, pe: Tensor, saved: list[Tensor]
) -> list[Any]:
    """[gx, gW as a sparse tensor, gPE], outside of custom ops: the number of rows depends on the data."""
    module = _layers[ctx.number]
    g = module.native.backward(
        weight.detach(),
        gy.detach().contiguous(),
        _saved(module, x, pe, saved),
        policy="rows",
        normalized=module.layer.normalized,
        need_x=ctx.needs_input_grad[0],
    )
    if module.layer.targets is None:
        values = _torch(g.gw).reshape(g.rows.size, module.layer.n_outputs)
        rows, cells = _torch(g.rows).to(weight.device), module.native.cells
        where = torch.stack([rows // cells, rows % cells])
    else:
        index, flat = module.layer._weight_gradient(g).flat()
        where, values = (torch.from_numpy(a).to(weight.device) for a in (index[None], flat))
    gw = torch.sparse_coo_tensor(where, values, weight.shape, is_coalesced=True, check_invariants=False)
    return [_torch(g.gx) if ctx.needs_input_grad[0] else None, gw, _torch(g.gpe) if pe.numel() else None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, pe, ctx.number, ctx.training = inputs
    ctx.module = _layers[ctx.number]  # may be the last reference until backward
    ctx.save_for_backward(x, weight, pe, *output[1:])
    ctx.set_materialize_grads(False)
    for t in output[1:]:
        ctx.mark_non_differentiable(t)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    gy = grads[0]
    if gy is None:
        return None, None, None, None, None
    x, weight, pe, *saved = ctx.saved_tensors
    if not ctx.training:
        raise _core.InvalidArgument("backward: the forward pass ran without training; nothing was saved")
    need_x, need_w = ctx.needs_input_grad[:2]
    # Frozen weights have no gradient, and an internal update leaves them as they are.
    policy = _layers[ctx.number].layer.policy if need_w else "dense"
    if policy == "internal":
        gx, gpe = torch.ops.trivium.lut_backward_internal(gy, x, weight, pe, saved, ctx.number, need_x)
        gw = None
    elif policy == "row_sparse":
        with _queued(x):
            gx, gw, gpe = _row_sparse(ctx, gy, x, weight, pe, saved)
    else:
        gx, gw, gpe = torch.ops.trivium.lut_backward(gy, x, weight, pe, saved, ctx.number, need_x, need_w)
    return (
        gx if need_x else None,
        gw if need_w else None,
        gpe if ctx.needs_input_grad[2] else None,
        None,
        None,
    )


torch.library.register_autograd("trivium::lut_forward", _backward, setup_context=_setup)


def _run(x: Tensor, weight: Tensor, pe: Tensor, number: int, training: bool) -> Tensor:
    return torch.ops.trivium.lut_forward(x, weight, pe, number, training)[0]


_run_uncompiled = torch.compiler.disable(_run)  # the size of a row-sparse gradient is no graph's to know


class LUTModule(nn.Module):
    """Any trivium.lut layer as a torch module. Second derivatives are not supported.

    torch.compile takes the dense and the internal policy into its graphs; row_sparse breaks the graph. The layer
    follows its parameters to other devices: module.to("cuda:0"). They stay float32. Copies and pickles have weights
    of their own; a learning rate hook is copied as it is.
    """

    def __init__(self, layer: LUTLayerBasic) -> None:
        super().__init__()
        torch_device(layer.native.device)  # or why there is none
        self.layer, self.native = layer, layer.native
        self.sequential = layer.sequence_length > 1
        self.is_product = self.sequential and layer._options["mode"] != "sequence"
        self.weight = nn.Parameter(torch.from_dlpack(layer.weight), requires_grad=True)
        if layer.positional_dim:
            self.positional_embeddings = nn.Parameter(torch.from_dlpack(layer.positional_embeddings))
        else:
            absent = torch.empty(0, device=self.weight.device)
            self.register_buffer("positional_embeddings", absent, persistent=False)
        self.register_buffer("anchors", torch.from_numpy(layer.anchors.copy()))
        if layer.targets is not None:
            self.register_buffer("pointers", torch.from_numpy(layer.targets.pointers.copy()))
            self.register_buffer("targets", torch.from_numpy(layer.targets.targets.copy()))
        self._register()

    def _register(self) -> None:
        self.number = next(_numbers)
        _layers[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["native"], state["number"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.native = self.layer.native
        self._register()
        self.share_weights()

    def pe_argument(self, pe: Tensor) -> Tensor | None:
        return pe.detach() if self.layer.positional_dim else None

    def set_learning_rate_hook(self, hook: Callable[[Any], float] | None) -> None:
        """hook(weight) gives the step of an internal update; it is called once per backward."""
        self.layer.set_learning_rate_hook(hook)

    def step_size(self) -> float:
        if self.layer._hook is None:
            raise _core.InvalidArgument("backward: the internal policy needs set_learning_rate_hook")
        return float(self.layer._hook(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, (positions,) *input_shape] -> [batch, (positions,) *output_shape]; converted to float32."""
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise _core.InvalidArgument(f"x is {kind}, expected a torch.Tensor of real numbers")
        shape = self.layer.input_shape
        split = x.ndim - len(shape)
        if split < 1 or tuple(x.shape[split:]) != shape or (self.sequential and split != 2):
            raise _core.InvalidArgument(f"x is {list(x.shape)}, expected [batch, {str(list(shape))[1:-1]}]")
        lead = x.shape[:split]
        flat = x.to(torch.float32).reshape(
            *(lead if self.sequential else (-1,)), self.layer._options["inputs"]
        )
        run = _run_uncompiled if self.layer.policy == "row_sparse" else _run
        y = run(flat, self.weight, self.positional_embeddings, self.number, torch.is_grad_enabled())
        return y.reshape(*lead, *self.layer.output_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        errors: list[str] = args[-1]
        before = len(errors)
        super()._load_from_state_dict(state_dict, prefix, *args)
        try:
            if len(errors) == before:
                self._rebuild()
                self.share_weights()
                return
        except _core.InvalidArgument:
            self._restore_structure()
            raise
        self._restore_structure()

    def _restore_structure(self) -> None:
        """After a state that could not be loaded."""
        for name in ("anchors", "pointers", "targets"):
            if hasattr(self, name):
                owner = self.layer if name == "anchors" else self.layer.targets
                getattr(self, name).copy_(torch.from_numpy(getattr(owner, name)))

    def _rebuild(self) -> None:
        def array(t: Tensor) -> Any:
            return t.cpu().numpy().copy()

        sparse = self.layer.targets is not None
        targets = Targets(array(self.pointers), array(self.targets)) if sparse else None
        self.layer._build(connectivity.as_int32(array(self.anchors), "anchors"), targets)
        self.native = self.layer.native

    def share_weights(self) -> None:
        """Lets the numpy layer see the memory of the parameters, which some functions of torch replace."""
        layer = self.layer

        def shared(t: Tensor) -> Any:
            t = t.detach()
            return t.numpy() if layer.native.device == "cpu" else _core.Tensor(t, copy=False)

        layer.weight = shared(self.weight)
        if layer.positional_dim:
            layer.positional_embeddings = shared(self.positional_embeddings)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LUTModule":
        """What to(), cuda() and cpu() call: the layer goes where the parameters went."""
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:
            raise _core.InvalidArgument(f"the weights became {self.weight.dtype}, expected torch.float32")
        name, layer = device_name(self.weight.device), self.layer
        if name != layer.native.device:
            layer._options["device"] = name
            self._rebuild()
        self.share_weights()
        return self


class LUTLayer(LUTModule):
    """trivium.lut.LUTLayer for torch: the same arguments."""

    def __init__(
        self, n_inputs: int, n_anchors_per_detector: int, n_detectors: int, n_outputs: int, **options: Any
    ) -> None:
        super().__init__(NumpyLayer(n_inputs, n_anchors_per_detector, n_detectors, n_outputs, **options))


def module(layer: LUTLayerBasic) -> LUTModule:
    """A torch module over `layer`, whose weights it shares."""
    if not isinstance(layer, layers.LUTLayerBasic):
        raise _core.InvalidArgument(f"layer is a {type(layer).__name__}, expected a layer of trivium.lut")
    return LUTModule(layer)
