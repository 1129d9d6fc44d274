"""Prompts and options of generation as callers give them: defaults, aliases, and what is wrong with a value."""

import difflib
from collections.abc import Mapping
from typing import Any

from . import _core

_DEFAULTS: dict[str, Any] = {
    "max_tokens": 256,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": 0,
    "stop": None,
    "ignore_eos": False,
}
_ALIASES = {"max_new_tokens": "max_tokens", "temp": "temperature"}


def parse_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with `options` over them, under their canonical names and checked."""
    settings = dict(_DEFAULTS)
    for name, value in options.items():
        canonical = _ALIASES.get(name, name)
        if canonical not in settings:
            near = difflib.get_close_matches(name, [*_DEFAULTS, *_ALIASES], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"generation has no option {name!r}{hint}")
        if canonical != name and canonical in options:
            raise TypeError(f"{name!r} is an alias of {canonical!r}: give one of them")
        settings[canonical] = value
    _check_types(settings)
    settings["ignore_eos"] = bool(settings["ignore_eos"])
    settings["stop"] = _stop_list(settings["stop"])
    _check_range("temperature", settings["temperature"], settings["temperature"] >= 0, "at least 0")
    _check_range("top_p", settings["top_p"], 0 <= settings["top_p"] <= 1, "in [0, 1]")
    _check_range("min_p", settings["min_p"], 0 <= settings["min_p"] <= 1, "in [0, 1]")
    _check_range("top_k", settings["top_k"], 0 <= settings["top_k"] < 2**31, "in [0, 2^31)")
    _check_range("seed", settings["seed"], 0 <= settings["seed"] < 2**64, "in [0, 2^64)")
    limit = settings["max_tokens"]
    _check_range("max_tokens", limit, limit is None or 0 <= limit < 2**62, "at least 0, or None")
    return settings


def _check_types(settings: dict[str, Any]) -> None:
    for name in ("temperature", "top_p", "min_p"):
        if not hasattr(settings[name], "__float__"):
            raise TypeError(f"{name} is {settings[name]!r}, expected a number")
    if settings["ignore_eos"] not in (True, False, None):
        raise TypeError(f"ignore_eos is {settings['ignore_eos']!r}, expected True or False")
    for name in ("top_k", "seed", "max_tokens"):
        value = settings[name]
        if not (_is_integer(value) or (name == "max_tokens" and value is None)):
            raise TypeError(f"{name} is {value!r}, expected an integer{' or None' * (name == 'max_tokens')}")


def _stop_list(stop: Any) -> list[str]:
    if stop is not None and (isinstance(stop, bytes) or not hasattr(stop, "__iter__")):
        raise TypeError(f"stop is {stop!r}, expected a string or a list of strings")
    texts = [stop] if isinstance(stop, str) else list(stop or [])
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"stop has {text!r}, expected strings")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise _core.InvalidArgument(f"stop has {text!r}, whose surrogates no text contains")
    return texts


def _check_range(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise _core.InvalidArgument(f"{name} is {value!r}, expected {expected}")


def is_single(prompt: Any) -> bool:
    """Whether this is one prompt, a text or token ids, and not a list of prompts."""
    if isinstance(prompt, (str, bytes)):
        return True
    if not (hasattr(prompt, "__len__") and hasattr(prompt, "__getitem__")) or isinstance(prompt, Mapping):
        raise TypeError(
            f"the prompt is a {type(prompt).__name__}, expected a text, token ids or a list of those"
        )
    if getattr(prompt, "ndim", 1) == 0:
        raise TypeError("the prompt has no dimensions, expected a text, token ids or a list of those")
    return len(prompt) > 0 and _is_integer(prompt[0]) and getattr(prompt, "ndim", 1) == 1


def _is_integer(value: Any) -> bool:
    """An array is none, though numpy's and torch's have __index__ whatever their size."""
    return hasattr(value, "__index__") and getattr(value, "ndim", 0) == 0


def parse_ids(ids: Any) -> list[int]:
    if isinstance(ids, str) or not (hasattr(ids, "tolist") or hasattr(ids, "__iter__")):
        raise TypeError(f"token ids are {ids!r}, expected a list of integers")
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not isinstance(values, list):
        raise TypeError(f"token ids are {ids!r}, expected a list of integers")
    for at, value in enumerate(values):
        if not _is_integer(value):
            raise TypeError(f"token id {at} is {value!r}, expected an integer")
        if not -(2**31) <= value < 2**31:
            raise _core.InvalidArgument(f"token id {at} is {value}, which no vocabulary has")
    return values
