"""Ops on tensors. Arguments are Tensors or any arrays with DLPack or a buffer; results are Tensors."""

from ._core import ops as _ops

__all__ = [name for name in dir(_ops) if not name.startswith("_")]
globals().update({name: getattr(_ops, name) for name in __all__})
