"""Ops on tensors. Arguments are Tensors or any arrays with DLPack or a buffer; results are Tensors."""

from ._core import (
    attention,
    embedding,
    linear,
    moe_experts,
    moe_route,
    mxfp4_decode,
    rms_norm,
    rope,
    rope_frequencies,
    sample,
    swiglu,
)

__all__ = [
    "attention",
    "embedding",
    "linear",
    "moe_experts",
    "moe_route",
    "mxfp4_decode",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "sample",
    "swiglu",
]
