"""
Native core of the trivium package; use it through `import trivium`.
"""

from __future__ import annotations

import collections.abc
import os
import typing

import numpy

__all__: list[str] = [
    "Cancelled",
    "ChatReply",
    "DeviceError",
    "Engine",
    "Error",
    "ForeignStream",
    "HarmonyMessage",
    "InvalidArgument",
    "IoError",
    "LutCache",
    "LutGradients",
    "LutLayer",
    "LutSaved",
    "MlstmOptions",
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
    "devices",
    "embedding",
    "from_dlpack",
    "linear",
    "load",
    "load_safetensors",
    "mlstm_chunkwise_bw",
    "mlstm_chunkwise_fw",
    "mlstm_parallel_bw_dQKV",
    "mlstm_parallel_fw_H",
    "mlstm_recurrent",
    "mlstm_recurrent_bw_dC",
    "mlstm_recurrent_fw_C",
    "moe_experts",
    "moe_route",
    "mxfp4_decode",
    "num_threads",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "sample",
    "save_safetensors",
    "set_num_threads",
    "swiglu",
    "synchronize",
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

class ForeignStream:
    """
    Inside, our work on imported arrays of a device follows what the other library's stream was given before, and what it is given afterwards follows ours, without the host. The arrays are used on that stream only, which outlives them.
    """
    def __enter__(self) -> None: ...
    def __exit__(self, *args) -> None: ...
    def __init__(
        self,
        device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex],
        native: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        device: as __dlpack_device__() gives it. native: the vendor's handle as a number.
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
    def encode(
        self,
        text: typing.Any,
        *,
        parse_special: bool = False,
        strict: bool = False,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """
        Ids of str or bytes. Special-token text stays text unless parse_special; strict refuses invalid UTF-8; add_special_tokens adds what the file's template (TemplateProcessing) puts around a text.
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
        self,
        generated: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        stop: collections.abc.Sequence[str],
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

class LutSaved:
    """
    What a backward needs of its forward.
    """
    def __init__(
        self,
        index: typing.Any,
        min_delta: typing.Any,
        min_index: typing.Any,
        pe_index: typing.Any,
        pe_min_delta: typing.Any,
        pe_min_index: typing.Any,
        batch: typing.SupportsInt | typing.SupportsIndex,
        length: typing.SupportsInt | typing.SupportsIndex,
        *,
        x: typing.Any | None = None,
        pe: typing.Any | None = None,
        unchanged: bool = False,
    ) -> None:
        """
        Of the tensors of an earlier one; product modes need x and pe alone. unchanged: their values are the forward's, and a device is not waited for to check them.
        """
    @property
    def index(self) -> Tensor:
        """
        int32 [batch, (length,) tables]
        """
    @property
    def min_delta(self) -> Tensor:
        """
        float32, like index; empty after an evaluation
        """
    @property
    def min_index(self) -> Tensor:
        """
        int32, like index; -1: no usable pair
        """
    @property
    def pe_index(self) -> Tensor:
        """
        int32 [length - 1, tables]
        """
    @property
    def pe_min_delta(self) -> Tensor:
        """
        float32, like pe_index
        """
    @property
    def pe_min_index(self) -> Tensor:
        """
        int32, like pe_index
        """
    @property
    def unchanged(self) -> bool:
        """
        Whether the values are the forward's; clear it after writing to them.
        """
    @unchanged.setter
    def unchanged(self, arg0: bool) -> None: ...

class LutGradients:
    """
    Results of LutLayer.backward; what was not asked for is empty.
    """
    @property
    def gpe(self) -> Tensor:
        """
        float32, like pe
        """
    @property
    def gw(self) -> Tensor:
        """
        float32, like the weights, or the listed rows' weights
        """
    @property
    def gx(self) -> Tensor:
        """
        float32, like x
        """
    @property
    def rows(self) -> Tensor:
        """
        int64 [rows]: table * cells + cell, ascending
        """

class LutCache:
    """
    Indices of the last positions of several sequences.
    """
    @property
    def index(self) -> Tensor:
        """
        int32 [slots, ring, tables], a copy on the CPU
        """

class LutLayer:
    """
    The structure of a LUT layer; weights belong to the caller. See trivium.lut.
    """
    def __init__(
        self,
        inputs: typing.SupportsInt | typing.SupportsIndex,
        outputs: typing.SupportsInt | typing.SupportsIndex,
        anchors: typing.Any,
        *,
        mode: str = "rows",
        sequence_length: typing.SupportsInt | typing.SupportsIndex = 1,
        positional_dim: typing.SupportsInt | typing.SupportsIndex = 0,
        unified_pe: bool = False,
        cmp_eps: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        learning_rate: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        int_rescaler: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        group_size: typing.SupportsInt | typing.SupportsIndex = 32,
        pointers: typing.Any | None = None,
        targets: typing.Any | None = None,
        rates: typing.Any | None = None,
        device: str = "cpu",
    ) -> None:
        """
        anchors int32 [tables, pairs, 2] (negative: unused pair). mode: rows, sequence, product or sliced. pointers int64 and targets int32 make it sparse. int_rescaler > 0: fixed point.
        """
    def backward(
        self,
        weights: typing.Any,
        gy: typing.Any,
        saved: LutSaved,
        *,
        policy: str = "dense",
        normalized: bool = False,
        eta: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        need_x: bool = True,
        gw: typing.Any | None = None,
        gx: typing.Any | None = None,
        gpe: typing.Any | None = None,
        staged: bool = False,
    ) -> LutGradients:
        """
        Gradients for gy, shaped like y. policy: none, dense, rows, or internal (weights -= eta * gradient, after the input gradient was taken). gw (dense), gx, gpe: where to write them.
        """
    def decode(
        self,
        weights: typing.Any,
        x: typing.Any,
        pe: typing.Any | None,
        slots: typing.Any,
        positions: typing.Any,
        cache: LutCache,
    ) -> Tensor:
        """
        Outputs of new positions x [rows, inputs]: row r is positions[r] of slots[r] (int32) and attends to the sequence_length - 1 positions before it.
        """
    def fill_outputs(self, weights: typing.Any, index: typing.Any) -> Tensor:
        """
        Outputs for given indices int32 [batch, tables].
        """
    def forward(
        self,
        weights: typing.Any,
        x: typing.Any,
        pe: typing.Any | None = None,
        *,
        training: bool = True,
        staged: bool = False,
        out: collections.abc.Sequence[typing.Any] | None = None,
    ) -> tuple[Tensor, LutSaved]:
        """
        (y, saved) of x float32 [batch, (length,) inputs]. out: where to write [y] or, in training, [y, index, min_delta, min_index] or those and [pe_index, pe_min_delta, pe_min_index].
        """
    def make_cache(
        self,
        slots: typing.SupportsInt | typing.SupportsIndex,
        max_step_rows: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> LutCache:
        """
        A cache for decode().
        """
    @property
    def cells(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def pe_shape(self) -> tuple:
        """
        [sequence_length - 1, tables, positional_dim], unified without tables
        """
    @property
    def weight_shape(self) -> tuple:
        """
        [tables, cells, outputs], sparse [synapses]
        """

class MlstmOptions:
    """
    Settings the mLSTM functions share.
    """
    def __init__(
        self,
        *,
        qk_scale: typing.SupportsFloat | typing.SupportsIndex | None = None,
        chunk_size: typing.SupportsInt | typing.SupportsIndex = 64,
        eps: typing.SupportsFloat | typing.SupportsIndex = 1e-06,
        m_floor: typing.SupportsFloat | typing.SupportsIndex = -10.0,
        sigmoid_input_gate: bool = False,
        normalize: bool = True,
        strict_chunks: bool = False,
        check_finite: bool = False,
    ) -> None: ...

def attention(
    q: typing.Any,
    k: typing.Any,
    v: typing.Any,
    sinks: typing.Any | None = None,
    window: typing.SupportsInt | typing.SupportsIndex = 0,
    scale: typing.SupportsFloat | typing.SupportsIndex | None = None,
    *,
    device: str | None = None,
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

def devices() -> list[str]:
    """
    What can be named as `device`: ["cpu", "cuda:0", ...].
    """

def embedding(ids: typing.Any, table: typing.Any, *, device: str | None = None) -> Tensor:
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
    x: typing.Any,
    w: typing.Any,
    bias: typing.Any | None = None,
    *,
    scales: typing.Any | None = None,
    device: str | None = None,
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
def load_safetensors(path: os.PathLike | str | bytes) -> dict[str, Tensor]:
    """
    The tensors of a safetensors file or folder, by name; read-only.
    """

def mlstm_chunkwise_bw(
    matQ: typing.Any,
    matK: typing.Any,
    matV: typing.Any,
    vecI: typing.Any,
    vecF: typing.Any,
    matC_initial: typing.Any | None,
    vecN_initial: typing.Any | None,
    scaM_initial: typing.Any | None,
    matC_states: typing.Any | None,
    vecN_states: typing.Any | None,
    scaM_states: typing.Any | None,
    vecN_out: typing.Any,
    vecM_out: typing.Any,
    vecNt: typing.Any | None,
    matDeltaH: typing.Any,
    matDeltaC_last: typing.Any | None,
    vecDeltaN_last: typing.Any | None,
    options: MlstmOptions,
    grad_mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]: ...
def mlstm_chunkwise_fw(
    matQ: typing.Any,
    matK: typing.Any,
    matV: typing.Any,
    vecI: typing.Any,
    vecF: typing.Any,
    matC_initial: typing.Any | None,
    vecN_initial: typing.Any | None,
    scaM_initial: typing.Any | None,
    options: MlstmOptions,
    return_last_states: bool,
    return_all_states: bool,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
]: ...
def mlstm_parallel_bw_dQKV(
    matQ: typing.Any,
    matK: typing.Any,
    matV: typing.Any,
    vecF: typing.Any,
    vecI: typing.Any,
    matC_states: typing.Any,
    scaM_states: typing.Any,
    matDeltaH: typing.Any,
    vecN_out: typing.Any,
    vecM_out: typing.Any,
    matDeltaC_states: typing.Any,
    vecN_states: typing.Any | None,
    vecDeltaN_states: typing.Any | None,
    options: MlstmOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def mlstm_parallel_fw_H(
    matQ: typing.Any,
    matK: typing.Any,
    matV: typing.Any,
    matC_states: typing.Any,
    vecN_states: typing.Any,
    scaMinter_states: typing.Any,
    vecI: typing.Any,
    vecB: typing.Any,
    options: MlstmOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def mlstm_recurrent(
    matQ: typing.Any,
    matK: typing.Any,
    matV: typing.Any,
    vecI: typing.Any,
    vecF: typing.Any,
    matC: typing.Any,
    vecN: typing.Any,
    scaM: typing.Any,
    options: MlstmOptions,
    one_token: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...
def mlstm_recurrent_bw_dC(
    matQ: typing.Any,
    vecF: typing.Any,
    scaM_states: typing.Any,
    vecM_out: typing.Any,
    matDeltaH: typing.Any,
    vecN_out: typing.Any,
    matDeltaC_last: typing.Any | None,
    matH: typing.Any | None,
    vecNt: typing.Any | None,
    vecDeltaN_last: typing.Any | None,
    options: MlstmOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def mlstm_recurrent_fw_C(
    matK: typing.Any,
    matV: typing.Any,
    vecB: typing.Any,
    vecI: typing.Any,
    matC_initial: typing.Any | None,
    vecN_initial: typing.Any | None,
    scaMinter_initial: typing.Any | None,
    matC_states: typing.Any,
    vecN_states: typing.Any,
    scaMinter_states: typing.Any,
    options: MlstmOptions,
) -> tuple[Tensor, Tensor, Tensor]: ...
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
    device: str | None = None,
) -> Tensor:
    """
    Weighted sum of the routed experts' outputs: x [tokens, hidden], gate_up [experts, 2 inter, hidden] (rows interleaved), down [experts, hidden, inter] -> float32 [tokens, hidden]. With scales, MXFP4 blocks.
    """

def moe_route(
    logits: typing.Any, top_k: typing.SupportsInt | typing.SupportsIndex, *, device: str | None = None
) -> tuple[Tensor, Tensor]:
    """
    (experts int32, weights float32) [tokens, top_k]: the largest logits, ties to the lower index, and their softmax.
    """

def mxfp4_decode(blocks: typing.Any, scales: typing.Any, *, device: str | None = None) -> Tensor:
    """
    Exact float32 values of MXFP4: blocks uint8 [..., rows, cols/32, 16], scales uint8 [..., rows, cols/32].
    """

def num_threads() -> int:
    """
    CPU threads used by kernels.
    """

def rms_norm(
    x: typing.Any,
    w: typing.Any,
    eps: typing.SupportsFloat | typing.SupportsIndex = 9.999999747378752e-06,
    *,
    device: str | None = None,
) -> Tensor:
    """
    w * x / sqrt(mean(x^2) + eps) over the last dimension; x [..., dim] float32 or bfloat16, w [dim].
    """

def rope(
    x: typing.Any,
    positions: typing.Any,
    inv_freq: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    concentration: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    *,
    device: str | None = None,
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
    device: str | None = None,
) -> list[int]:
    """
    One token id per row of logits float32 [rows, vocab], -1 for a row with NaN; seed and step may be a list with one value a row.
    """

def save_safetensors(
    path: os.PathLike | str | bytes, tensors: collections.abc.Mapping[str, typing.Any]
) -> None:
    """
    Writes one safetensors file: under a temporary name, then renamed.
    """

def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets the number of CPU threads; 0 restores the default.
    """

def swiglu(
    x: typing.Any,
    alpha: typing.SupportsFloat | typing.SupportsIndex = 1.7020000219345093,
    limit: typing.SupportsFloat | typing.SupportsIndex = 7.0,
    *,
    device: str | None = None,
) -> Tensor:
    """
    g sigmoid(alpha g) (u + 1) of clamped interleaved pairs (g, u): float32 [..., 2 dim] -> [..., dim].
    """

def synchronize(device: str) -> None:
    """
    Waits until all work on the device is done. Reading a result waits for it by itself.
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
