"""Layers and functions for PyTorch, with autograd. Needs torch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"trivium.torch needs torch, which cannot be imported: {error}") from error
from ._torch_lut import LUTLayer, LUTModule
from ._torch_lut import module as lut_module
from ._torch_lut_model import LUTTransformer
from ._torch_mlstm import mlstm_chunkwise, mlstm_step, mLSTMLayer

__all__ = [
    "LUTLayer",
    "LUTModule",
    "LUTTransformer",
    "lut_module",
    "mLSTMLayer",
    "mlstm_chunkwise",
    "mlstm_step",
]
