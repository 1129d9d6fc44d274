"""
Native core of the trivium package; use it through `import trivium`.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy

__all__: list[str] = [
    "Cancelled",
    "ChatReply",
    "DeviceError",
    "Engine",
    "Error",
    "HarmonyMessage",
    "InvalidArgument",
    "IoError",
    "ModelFormatError",
    "OutOfMemory",
    "Request",
    "Result",
    "Tensor",
    "TokenStream",
    "Tokenizer",
    "Unsupported",
    "attention",
    "backends",
    "build_id",
    "cpu_level",
    "embedding",
    "from_dlpack",
    "linear",
    "load",
    "moe_experts",
    "moe_route",
    "mxfp4_decode",
    "num_threads",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "sample",
    "set_num_threads",
    "swiglu",
]

class Tensor:
    """
    Array on a device. Built over any object with __dlpack__ or the buffer protocol, whose memory it shares and keeps alive; copy=True copies, copy=False never does.
    """
    def __array__(self, dtype: typing.Any = None, copy: bool | None = None) -> numpy.ndarray: ...
    def __dlpack__(
        self,
        *,
        stream: typing.Any = None,
        max_version: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ]
        | None = None,
        dl_device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        | None = None,
        copy: bool | None = None,
    ) -> typing.Any:
        """
        DLPack capsule over the same memory (a copy only when asked for or moved).
        """
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __init__(
        self,
        value: typing.Any,
        *,
        dtype: typing.Any = None,
        device: typing.Any = None,
        copy: bool | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def astype(self, dtype: typing.Any) -> Tensor:
        """
        With another floating-point dtype; itself when it already is.
        """
    def contiguous(self) -> Tensor: ...
    def numpy(self) -> numpy.ndarray:
        """
        numpy array over the same memory; bfloat16 needs ml_dtypes.
        """
    def to(self, target: typing.Any) -> Tensor:
        """
        On another device ("cuda:0") or with another dtype ("bfloat16").
        """
    def view_u16(self) -> Tensor:
        """
        The bits of a 2-byte dtype as uint16, over the same memory.
        """
    @property
    def device(self) -> str:
        """
        "cpu", "cuda:0", ...
        """
    @property
    def dtype(self) -> str:
        """
        Name: "float32", ...
        """
    @property
    def is_contiguous(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def shape(self) -> tuple: ...
    @property
    def size(self) -> int:
        """
        Number of elements.
        """
    @property
    def strides(self) -> tuple:
        """
        In elements, not bytes.
        """

class Tokenizer:
    """
    Byte-level BPE tokenizer of a folder (tokenizer.json, *.tiktoken, tokenizer.bin) or one such file.
    """
    def __init__(self, folder_or_file: typing.Any) -> None: ...
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def decode(
        self,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        errors: str = "replace",
        with_specials: bool = False,
    ) -> str:
        """
        Text of the ids; `errors` as in bytes.decode. Special tokens are left out unless with_specials.
        """
    def decode_bytes(
        self,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        with_specials: bool = False,
    ) -> bytes:
        """
        Bytes of the ids, not necessarily valid UTF-8.
        """
    def encode(self, text: typing.Any, *, parse_special: bool = False, strict: bool = False) -> list[int]:
        """
        Ids of str or bytes. Special-token text stays text unless parse_special; strict refuses invalid UTF-8.
        """
    def is_special(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool: ...
    def special_id(self, name: str) -> int | None:
        """
        Id of a special token such as "<|end|>", or None.
        """
    @property
    def vocab_size(self) -> int:
        """
        Largest id + 1.
        """

class Request:
    """
    Prompt ids and how to continue them.
    """

    ignore_eos: bool
    def __init__(self) -> None: ...
    def set_sampling(
        self,
        temperature: typing.SupportsFloat | typing.SupportsIndex,
        top_p: typing.SupportsFloat | typing.SupportsIndex,
        top_k: typing.SupportsInt | typing.SupportsIndex,
        min_p: typing.SupportsFloat | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    @property
    def max_tokens(self) -> int: ...
    @max_tokens.setter
    def max_tokens(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def prompt(self) -> list[int]: ...
    @prompt.setter
    def prompt(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None: ...
    @property
    def stop(self) -> list[str]: ...
    @stop.setter
    def stop(self, arg0: collections.abc.Sequence[str]) -> None: ...
    @property
    def stop_ids(self) -> list[int]: ...
    @stop_ids.setter
    def stop_ids(self, arg0: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None: ...

class Result:
    @property
    def error(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...

class HarmonyMessage:
    channel: str
    content: str
    content_type: str
    incomplete: bool
    recipient: str
    role: str
    def __init__(self) -> None: ...

class ChatReply:
    @property
    def analysis(self) -> str: ...
    @property
    def messages(self) -> list[HarmonyMessage]: ...
    @property
    def text(self) -> str: ...

class TokenStream:
    def next(self) -> tuple[int, str] | None:
        """
        (token, text), token -1 for text held back until the end; None when the stream ended.
        """
    @property
    def result(self) -> Result: ...

class Engine:
    """
    A loaded model that generates; see trivium.Model.
    """
    def chat_request(
        self, messages: collections.abc.Sequence[HarmonyMessage], reasoning: str, current_date: str
    ) -> Request: ...
    def check(self, request: Request) -> None: ...
    def generate(
        self, requests: collections.abc.Sequence[Request], on_progress: typing.Any = None
    ) -> list[Result]: ...
    def ids_request(
        self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> Request: ...
    def logits(self, ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> Tensor: ...
    def parse_chat_reply(
        self, generated: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> ChatReply: ...
    def release_states(self) -> None: ...
    def stream(self, request: Request) -> TokenStream: ...
    def text_request(self, text: bytes) -> Request: ...
    @property
    def info(self) -> dict: ...
    @property
    def tokenizer(self) -> Tokenizer:
        """
        None when the folder has none.
        """

def attention(
    q: typing.Any,
    k: typing.Any,
    v: typing.Any,
    sinks: typing.Any | None = None,
    window: typing.SupportsInt | typing.SupportsIndex = 0,
    scale: typing.SupportsFloat | typing.SupportsIndex | None = None,
) -> Tensor:
    """
    Causal attention: q [tokens, num_heads, head_dim] are the last positions of k, v [positions, num_kv_heads, head_dim]; sinks [num_heads] join the softmax denominator; window 0 sees all; scale defaults to head_dim^-1/2.
    """

def backends() -> list:
    """
    Each backend: name, loaded, file, reason it is not loaded, devices.
    """

def build_id() -> str:
    """
    Version and commit of the native library.
    """

def cpu_level() -> str:
    """
    Instruction set of the CPU kernels: "avx512-bf16", "avx2" or "scalar".
    """

def embedding(ids: typing.Any, table: typing.Any) -> Tensor:
    """
    Rows `ids` int [tokens] of table [vocab, dim] -> float32 [tokens, dim].
    """

def from_dlpack(
    value: typing.Any, *, dtype: typing.Any = None, device: typing.Any = None, copy: bool | None = None
) -> Tensor:
    """
    The same as Tensor(value, ...).
    """

def linear(
    x: typing.Any, w: typing.Any, bias: typing.Any | None = None, *, scales: typing.Any | None = None
) -> Tensor:
    """
    x w^T + bias: x [m, k], w [n, k] -> float32 [m, n]. With scales, w holds MXFP4 blocks uint8 [n, k/32, 16].
    """

def load(
    path: str,
    *,
    device: str,
    precision: str,
    tokenizer: str | None,
    check_weights: bool,
    batch_size: typing.SupportsInt | typing.SupportsIndex,
    kv_dtype: str | None,
    on_progress: typing.Any,
) -> Engine: ...
def moe_experts(
    x: typing.Any,
    experts: typing.Any,
    weights: typing.Any,
    gate_up: typing.Any,
    down: typing.Any,
    gate_up_bias: typing.Any | None = None,
    down_bias: typing.Any | None = None,
    *,
    gate_up_scales: typing.Any | None = None,
    down_scales: typing.Any | None = None,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.7020000219345093,
    limit: typing.SupportsFloat | typing.SupportsIndex = 7.0,
) -> Tensor:
    """
    Weighted sum of the routed experts' outputs: x [tokens, hidden], gate_up [experts, 2 inter, hidden] (rows interleaved), down [experts, hidden, inter] -> float32 [tokens, hidden]. With scales, MXFP4 blocks.
    """

def moe_route(logits: typing.Any, top_k: typing.SupportsInt | typing.SupportsIndex) -> tuple[Tensor, Tensor]:
    """
    (experts int32, weights float32) [tokens, top_k]: the largest logits, ties to the lower index, and their softmax.
    """

def mxfp4_decode(blocks: typing.Any, scales: typing.Any) -> Tensor:
    """
    Exact float32 values of MXFP4: blocks uint8 [..., rows, cols/32, 16], scales uint8 [..., rows, cols/32].
    """

def num_threads() -> int:
    """
    CPU threads used by kernels.
    """

def rms_norm(
    x: typing.Any, w: typing.Any, eps: typing.SupportsFloat | typing.SupportsIndex = 9.999999747378752e-06
) -> Tensor:
    """
    w * x / sqrt(mean(x^2) + eps) over the last dimension; x [..., dim] float32 or bfloat16, w [dim].
    """

def rope(
    x: typing.Any,
    positions: typing.Any,
    inv_freq: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    concentration: typing.SupportsFloat | typing.SupportsIndex = 1.0,
) -> Tensor:
    """
    x float32 [tokens, heads, head_dim] rotated to positions int [tokens]; pairs (i, i + head_dim/2).
    """

def rope_frequencies(
    head_dim: typing.SupportsInt | typing.SupportsIndex,
    *,
    theta: typing.SupportsFloat | typing.SupportsIndex = 150000.0,
    factor: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    beta_fast: typing.SupportsFloat | typing.SupportsIndex = 32.0,
    beta_slow: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    original_context: typing.SupportsFloat | typing.SupportsIndex = 4096.0,
    truncate: bool = False,
    attention_factor: typing.SupportsFloat | typing.SupportsIndex | None = None,
) -> tuple[list[float], float]:
    """
    (inv_freq [head_dim / 2], concentration) of rotary embedding with YaRN scaling; factor <= 1 is plain RoPE.
    """

def sample(
    logits: typing.Any,
    *,
    temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    top_k: typing.SupportsInt | typing.SupportsIndex = 0,
    min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    seed: typing.SupportsInt
    | typing.SupportsIndex
    | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = 0,
    step: typing.SupportsInt
    | typing.SupportsIndex
    | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = 0,
) -> list[int]:
    """
    One token id per row of logits float32 [rows, vocab], -1 for a row with NaN; seed and step may be a list with one value a row.
    """

def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets the number of CPU threads; 0 restores the default.
    """

def swiglu(
    x: typing.Any,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.7020000219345093,
    limit: typing.SupportsFloat | typing.SupportsIndex = 7.0,
) -> Tensor:
    """
    g sigmoid(alpha g) (u + 1) of clamped interleaved pairs (g, u): float32 [..., 2 dim] -> [..., dim].
    """

class Error(RuntimeError):
    """Base of all errors of this package."""

class DeviceError(Error):
    """A device or backend cannot be had."""

class Cancelled(Error):
    """The operation was stopped; the object stays usable."""

class InvalidArgument(Error, ValueError):
    """A shape, dtype, range or option is wrong."""

class ModelFormatError(Error, ValueError):
    """A model folder, tokenizer or weight file is not what it must be."""

class OutOfMemory(Error, MemoryError):
    """Host or device memory is exhausted."""

class Unsupported(Error, NotImplementedError):
    """The device has no kernel for this op."""

class IoError(Error, OSError):
    """A file could not be read or written."""
