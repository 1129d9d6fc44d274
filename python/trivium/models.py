"""Loading models, and generating with them."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from . import _core
from ._arguments import is_single, parse_ids, parse_options

if TYPE_CHECKING:
    import numpy as np

Prompt = str | bytes | Sequence[int]
Message = Mapping[str, Any]


class GenerateOptions(TypedDict, total=False):
    """Keyword options of generate, stream and chat; `max_new_tokens` and `temp` are aliases."""

    max_tokens: int | None  # most generated tokens, default 256; None: as many as the model's positions allow
    temperature: float  # 0 (default): the most likely token; else softmax(logits / temperature) is sampled
    top_p: float  # nucleus sampling; 1 (default) disables
    top_k: int  # 0 (default) disables
    min_p: float  # 0 (default) disables
    seed: int  # default 0; a prompt's tokens depend on weights, prompt and these options only
    stop: str | Sequence[str] | None  # the text ends before the first of these
    ignore_eos: bool  # go on after the model's stop ids
    max_new_tokens: int | None
    temp: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one prompt produced. `tokens` includes the stop id; `text` is None for a model without tokenizer."""

    text: str | None
    tokens: list[int]
    finish_reason: str  # "stop", "length"; in a list of results "error"; of an unfinished stream "cancelled"
    prompt_tokens: int
    timings: dict[str, float]  # of the whole call: seconds, tokens_per_second (generated, all prompts)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A streamed token and the text it completed (whole characters); token is None for text held to the end."""

    text: str
    token: int | None


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An assistant's answer: `text` is the final channel, `analysis` the reasoning, `messages` everything."""

    text: str
    analysis: str
    messages: list[dict[str, Any]]
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    timings: dict[str, float]


class Stream(Iterator[Piece]):
    """Iterator of pieces; the model works while the caller asks for the next one."""

    def __init__(self, stream: "_core.TokenStream", has_text: bool) -> None:
        self._stream = stream
        self._has_text = has_text
        self._start = time.perf_counter()
        self._pieces = self._run()

    def _run(self) -> Iterator[Piece]:
        while (piece := self._stream.next()) is not None:
            token, text = piece
            yield Piece(text, token if token >= 0 else None)

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def result(self) -> Result:
        """What came so far; complete after the last piece."""
        result = self._stream.result
        return _result(result, self._has_text, _timings(self._start, [result]))


class Model:
    """A loaded model. Several threads may use it at once: their prompts share the steps.

    A forked child may use it too, provided no call was running at the fork.
    """

    def __init__(self, engine: "_core.Engine") -> None:
        self._engine = engine
        self._info = engine.info
        self.config: dict[str, Any] = json.loads(self._info["config_json"])
        self.tokenizer: _core.Tokenizer | None = engine.tokenizer

    @property
    def device(self) -> str:
        return self._info["device"]

    @property
    def precision(self) -> str:
        """ "float32" or "bfloat16"."""
        return self._info["precision"]

    @property
    def vocab_size(self) -> int:
        return self._info["vocab_size"]

    @property
    def max_positions(self) -> int:
        """Most prompt and generated tokens together."""
        return self._info["max_positions"]

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too, and is one prompt
        self,
        prompt: Prompt,
        *,
        on_progress: Callable[[int, int, int], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        *,
        on_progress: Callable[[int, int, int], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        on_progress: Callable[[int, int, int], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result | list[Result]:
        """Continues a prompt (text or token ids), or each of a list of prompts.

        Returns a Result, or a list of Results in the order of the prompts. on_progress(done, prompts,
        generated_tokens) is called at most ten times a second. Ctrl-C raises KeyboardInterrupt and leaves the
        model usable.
        """
        single = is_single(prompt)
        prompts: list[Any] = [prompt] if single else list(prompt)
        settings = parse_options(options)
        requests = [self._request(p, settings) for p in prompts]
        start = time.perf_counter()
        results = self._engine.generate(requests, on_progress)
        timings = _timings(start, results)
        if single and results[0].error:
            raise _core.Error(results[0].error)
        out = [_result(r, self.tokenizer is not None, timings) for r in results]
        return out[0] if single else out

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Continues one prompt token by token: an iterator of Pieces."""
        if not is_single(prompt) and len(prompt):
            raise TypeError(f"stream: the prompt is {prompt!r}, expected one text or a list of token ids")
        return Stream(
            self._engine.stream(self._request(prompt, parse_options(options))), self.tokenizer is not None
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        reasoning: Literal["low", "medium", "high"] = "medium",
        current_date: str | None = None,
        on_progress: Callable[[int, int, int], object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ChatResult:
        """The assistant's next message of a conversation in the harmony format.

        `messages` are mappings with role and content (and channel, recipient, content_type for earlier
        answers); the `messages` of a ChatResult can be appended for the next turn. system and developer
        messages are instructions. `current_date` ("2025-06-28") makes the prompt independent of today.
        """
        self._need_tokenizer("chat")
        if isinstance(messages, (str, bytes, Mapping)):
            raise TypeError(f"chat: messages are {messages!r}, expected a list of messages")
        rendered = [_harmony_message(m) for m in messages]
        request = self._engine.chat_request(rendered, reasoning, current_date or "")
        self._apply(request, parse_options(options))
        start = time.perf_counter()
        result = self._engine.generate([request], on_progress)[0]
        if result.error:
            raise _core.Error(result.error)
        reply = self._engine.parse_chat_reply(result.tokens, request.stop)
        return ChatResult(
            text=reply.text,
            analysis=reply.analysis,
            messages=[_message_dict(m) for m in reply.messages],
            tokens=result.tokens,
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            timings=_timings(start, [result]),
        )

    def logits(self, token_ids: Sequence[int]) -> "np.ndarray":
        """Logits after each token: float32 [T, vocab_size]."""
        return self._engine.logits(parse_ids(token_ids)).numpy()

    def __repr__(self) -> str:
        return f"trivium.Model({self._info['path']!r}, device={self.device!r}, precision={self.precision!r})"

    def _need_tokenizer(self, what: str) -> None:
        if self.tokenizer is None:
            raise _core.InvalidArgument(
                f'{what}: the model at "{self._info["path"]}" has no tokenizer; pass token ids, or load it with tokenizer=PATH'
            )

    def _request(self, prompt: Prompt, settings: dict[str, Any]) -> "_core.Request":
        if isinstance(prompt, (str, bytes)):
            self._need_tokenizer("text prompt")
            text = prompt.encode("utf-8", "replace") if isinstance(prompt, str) else prompt
            request = self._engine.text_request(text)
        else:
            request = self._engine.ids_request(parse_ids(prompt))
        self._apply(request, settings)
        return request

    def _apply(self, request: "_core.Request", settings: dict[str, Any]) -> None:
        request.stop = settings["stop"]
        if request.stop:
            self._need_tokenizer("stop strings")
        request.max_tokens = -1 if settings["max_tokens"] is None else settings["max_tokens"]
        request.ignore_eos = settings["ignore_eos"]
        request.set_sampling(**{k: settings[k] for k in ("temperature", "top_p", "top_k", "min_p", "seed")})
        self._engine.check(request)


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    tokenizer: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    *,
    batch_size: int = 0,
    kv_dtype: Literal["float32", "bfloat16"] | None = None,
    check_weights: bool = True,
    **unknown: object,
) -> Model:
    """Loads a model: a Hugging Face folder, OpenAI's original layout, or the predecessor's model.bin.

    device: "auto", "cpu", "cuda:0", ...; an explicit device is never replaced by another. precision: "auto",
    "float32" or "bfloat16". tokenizer: a file or folder to use instead of the model's own.
    on_progress(bytes_done, bytes_total) is called while loading. batch_size: most prompts at once (0: up to 32, as memory allows).
    check_weights=False skips the scan for NaN. A name like "openai/gpt-oss-20b" is looked up in the local
    Hugging Face cache; nothing is downloaded.
    """
    if unknown:
        name = next(iter(unknown))
        hint = '; use device="auto"' if name == "device_map" else ""
        raise TypeError(f"load() has no option {name!r}{hint}")
    for name, value in {"device": device, "precision": precision}.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, expected a string")
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
        raise TypeError(f"batch_size is {batch_size!r}, expected an integer")
    if kv_dtype not in (None, "float32", "bfloat16"):
        raise _core.InvalidArgument(f"kv_dtype is {kv_dtype!r}, expected 'float32', 'bfloat16' or None")
    engine = _core.load(
        _resolve(os.fsdecode(path)),
        device=device,
        precision=precision,
        tokenizer=None if tokenizer is None else os.fsdecode(tokenizer),
        check_weights=check_weights,
        batch_size=batch_size,
        kv_dtype=kv_dtype,
        on_progress=on_progress,
    )
    return Model(engine)


def _resolve(path: str) -> str:
    """`path`, or the snapshot of a hub id that is already in the local cache."""
    if os.path.exists(path) or path.count("/") != 1 or path.startswith((".", "/", "~")):
        return path
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    folder = cache / ("models--" + path.replace("/", "--"))
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return path
    return str(snapshot) if snapshot.is_dir() else path


def _timings(start: float, results: "Sequence[_core.Result]") -> dict[str, float]:
    seconds = time.perf_counter() - start
    tokens = sum(len(r.tokens) for r in results)
    return {"seconds": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}


def _result(r: "_core.Result", has_text: bool, timings: dict[str, float]) -> Result:
    return Result(
        text=r.text if has_text else None,
        tokens=r.tokens,
        finish_reason=r.finish_reason,
        prompt_tokens=r.prompt_tokens,
        timings=timings,
        error=r.error or None,
    )


_MESSAGE_FIELDS = ("role", "content", "channel", "recipient", "content_type")


def _harmony_message(message: Message) -> "_core.HarmonyMessage":
    if not isinstance(message, Mapping):
        raise TypeError(f"chat: a message is {message!r}, expected a mapping with role and content")
    for field in ("role", "content"):
        if field not in message:
            raise _core.InvalidArgument(f"chat: a message has no {field!r}: {dict(message)!r}")
    content = message["content"]
    if isinstance(content, (list, tuple)):  # of parts, {"type": "text", "text": ...}
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise TypeError(f"chat: a part of a content is {part!r}, expected one with a text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TypeError(f"chat: a content is {content!r}, expected a string or a list of text parts")
    out = _core.HarmonyMessage()
    for field in _MESSAGE_FIELDS:
        setattr(out, field, content if field == "content" else message.get(field) or "")
    return out


def _message_dict(message: "_core.HarmonyMessage") -> dict[str, Any]:
    values = {field: getattr(message, field) for field in _MESSAGE_FIELDS}
    required = ("role", "content")
    return {k: v for k, v in values.items() if v or k in required} | {"incomplete": message.incomplete}
