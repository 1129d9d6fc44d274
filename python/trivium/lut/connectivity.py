"""Which inputs a detector may compare and which outputs it reaches: grids, windows, random rectangles."""

import operator
from typing import Any, NamedTuple

import numpy as np

from .._core import InvalidArgument

Pair = tuple[int, int]


class Targets(NamedTuple):
    """The outputs of each detector: targets[pointers[t] : pointers[t + 1]], ascending."""

    pointers: np.ndarray  # int64 [tables + 1]
    targets: np.ndarray  # int32


def integer(value: Any, name: str) -> int:
    """`value` as an int; what is not a whole number by its type is refused, not rounded."""
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} is {value!r}, expected an integer") from None


def as_int32(array: Any, name: str) -> np.ndarray:
    """A contiguous int32 array of the integers in `array`, which must fit."""
    array = np.asarray(array)
    limits = np.iinfo(np.int32)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise InvalidArgument(f"{name} are {array.dtype} {list(array.shape)}, expected integers")
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise InvalidArgument(f"{name} are {array.min()} to {array.max()}, expected at most 32 bits")
    return np.ascontiguousarray(array, np.int32)


def generator(seed: int | None, stream: int) -> np.random.Generator:
    """A counter-based generator (Philox 4x64) for one tensor of a layer; None draws a fresh seed."""
    if seed is None:
        return np.random.Generator(np.random.Philox())
    seed = integer(seed, "random_seed")
    if not 0 < seed < 2**63:
        raise InvalidArgument(f"random_seed is {seed}, expected 1 to 2^63 - 1, or None for a fresh one")
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


def sample_anchors(
    rng: np.random.Generator,
    inputs: list[np.ndarray],
    num_pairs: int,
    *,
    exact: bool = False,
    pad: bool = False,
) -> np.ndarray:
    """Anchor pairs int32 [detectors, num_pairs, 2]: ordered pairs of distinct members of inputs[detector].

    exact: no pair twice in a detector; pad fills up with unused pairs (-1) where there are too few.
    """
    if integer(num_pairs, "n_anchors_per_detector") < 1:
        raise InvalidArgument(f"n_anchors_per_detector is {num_pairs}, expected at least 1")
    anchors = np.full((len(inputs), num_pairs, 2), -1, np.int32)
    for t, allowed in enumerate(inputs):
        n = len(allowed)
        if n < 2:
            raise InvalidArgument(f"detector {t} sees {n} inputs, expected at least 2 to compare")
        codes = n * (n - 1)
        if exact and codes < num_pairs and not pad:
            raise InvalidArgument(
                f"detector {t} sees {n} inputs, which make {codes} distinct pairs, expected at least {num_pairs}"
            )
        code = rng.permutation(codes)[:num_pairs] if exact else rng.integers(0, codes, num_pairs)
        first, second = code // (n - 1), code % (n - 1)
        anchors[t, : len(code), 0] = allowed[first]
        anchors[t, : len(code), 1] = allowed[second + (second >= first)]
    return anchors


def as_pair(value: Any, name: str) -> Pair:
    try:
        first, second = map(operator.index, value if isinstance(value, tuple | list) else (value, value))
    except (TypeError, ValueError):
        first = second = 0
    if first < 1 or second < 1:
        raise InvalidArgument(f"{name} is {value!r}, expected one or two integers of at least 1")
    return first, second


class Windows(NamedTuple):
    """Sliding windows over a grid, a block of cells for each window."""

    grid: Pair  # of the blocks' cells
    members: list[np.ndarray]  # flat source positions that each cell's window covers, in cell order


def sliding_windows(shape: Pair, window: Pair, stride: Pair, block: Pair) -> Windows:
    if window[0] > shape[0] or window[1] > shape[1]:
        raise InvalidArgument(f"a window of {window} does not fit into a grid of {shape}")
    counts = [(shape[i] - window[i]) // stride[i] + 1 for i in (0, 1)]
    grid = (counts[0] * block[0], counts[1] * block[1])
    members = []
    for y in range(grid[0]):
        rows = np.arange(window[0]) + y // block[0] * stride[0]
        for x in range(grid[1]):
            columns = np.arange(window[1]) + x // block[1] * stride[1]
            members.append((rows[:, None] * shape[1] + columns).reshape(-1))
    return Windows(grid, members)


def invert(members: list[np.ndarray], sources: int) -> Targets:
    """For each source the cells whose members it is among."""
    counts = np.zeros(sources, np.int64)
    for member in members:
        counts[member] += 1
    pointers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    targets, place = np.empty(pointers[-1], np.int32), pointers[:-1].copy()
    for cell, member in enumerate(members):
        targets[place[member]] = cell
        place[member] += 1
    return Targets(pointers, targets)


def join(lists: list[np.ndarray]) -> Targets:
    pointers = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return Targets(
        pointers, np.concatenate([np.asarray(one, np.int32) for one in lists] or [np.zeros(0, np.int32)])
    )


class Sampling(NamedTuple):
    """How the centres of a projection layer's groups are placed.

    kind "uniform": uniform over the grid; "normal": around mean (default the grid's centre) with deviation sd
    (default a sixth of the size); "grid": padding + stride * k, in reading order. Centres are clamped to
    `padding` from the edges.
    """

    kind: str = "uniform"
    padding: float = 0.0
    mean: tuple[float, float] | None = None
    sd: tuple[float, float] | None = None
    stride: float = 1.0

    def centres(self, rng: np.random.Generator, count: int, shape: Pair) -> np.ndarray:
        """[count, 2] as (y, x) on a grid of `shape`."""
        size = np.array(shape, np.float64)
        if self.kind == "grid":
            steps = np.maximum(np.floor((size - 1 - 2 * self.padding) / self.stride).astype(int) + 1, 0)
            if steps.prod() < count:
                raise InvalidArgument(
                    f"a grid of {steps.prod()} centres is too small for {count} detector groups"
                )
            k = np.arange(count)
            return self.padding + self.stride * np.stack([k // steps[1], k % steps[1]], 1)
        if self.kind == "normal":
            mean = size / 2 if self.mean is None else np.array(self.mean)
            sd = size / 6 if self.sd is None else np.array(self.sd)
            centres = rng.normal(mean, sd, (count, 2))
        elif self.kind == "uniform":
            centres = rng.uniform(0, size, (count, 2))
        else:
            raise InvalidArgument(f"sampling is {self.kind!r}, expected uniform, normal or grid")
        return np.clip(centres, self.padding, np.maximum(size - 1 - self.padding, self.padding))


def rectangle(
    centre: np.ndarray, half: tuple[float, float], shape: Pair, mask: np.ndarray | None
) -> np.ndarray:
    """Flat positions within `half` of the centre (and a little more, for rounding), without those of mask."""
    inside = [np.flatnonzero(np.abs(np.arange(shape[i]) - centre[i]) <= half[i] + 1e-4) for i in (0, 1)]
    cells = (inside[0][:, None] * shape[1] + inside[1]).reshape(-1)
    return cells if mask is None else cells[~mask.reshape(-1)[cells]]
