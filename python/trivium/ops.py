"""Ops on tensors. Arguments are Tensors or any arrays with DLPack or a buffer; results are Tensors.

The arrays of a call lie on one device, where the op runs and leaves its result. With `device="cuda:0"` arrays that
lie elsewhere are copied there first. A call returns when the result is there.
"""

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
