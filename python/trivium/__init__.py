"""One native runtime for mixture-of-experts transformers.

>>> import trivium
>>> model = trivium.load(trivium.demo_model())
>>> model.generate("Return the", max_tokens=4, temperature=0).finish_reason
'length'
"""

from pathlib import Path

from . import _core, lut, mlstm, ops
from ._core import (
    Cancelled,
    DeviceError,
    Error,
    InvalidArgument,
    IoError,
    ModelFormatError,
    OutOfMemory,
    Tensor,
    Tokenizer,
    Unsupported,
    backends,
    build_id,
    cpu_level,
    devices,
    from_dlpack,
    num_threads,
    set_num_threads,
    synchronize,
)
from ._version import __version__
from .models import ChatResult, Model, Piece, Result, Stream, load

asarray = from_dlpack

__all__ = [
    "Cancelled",
    "ChatResult",
    "DeviceError",
    "Error",
    "InvalidArgument",
    "IoError",
    "Model",
    "ModelFormatError",
    "OutOfMemory",
    "Piece",
    "Result",
    "Stream",
    "Tensor",
    "Tokenizer",
    "Unsupported",
    "__version__",
    "asarray",
    "backends",
    "build_id",
    "cpu_level",
    "demo_model",
    "devices",
    "from_dlpack",
    "load",
    "lut",
    "mlstm",
    "num_threads",
    "ops",
    "set_num_threads",
    "synchronize",
]


def demo_model(family: str = "moe") -> Path:
    """Folder of a small model that ships with the package: "moe" (gpt-oss layout), "lut" or "xlstm"."""
    folders = {"moe": "demo", "lut": "demo_lut", "xlstm": "demo_xlstm"}
    if family not in folders:
        raise InvalidArgument(f'demo_model: family is "{family}", expected {", ".join(folders)}')
    return Path(_core.__file__).parent / folders[family]
