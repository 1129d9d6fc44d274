"""Weight gradients that are zero outside a few rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class RowGradient(NamedTuple):
    """A weight gradient that is zero outside `rows`."""

    rows: np.ndarray  # int64 [n], table * cells + cell, ascending
    values: np.ndarray  # float32 [n, outputs]; of a general sparse layer [synapses], row after row
    offsets: np.ndarray  # int64 [n + 1]: where each row's values start, in flattened values
    starts: np.ndarray  # int64 [n]: where each row starts in the flattened weights

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(indices, values) of the non-zero elements in the flattened weights."""
        counts = np.diff(self.offsets)
        index = np.arange(self.offsets[-1]) + np.repeat(self.starts - self.offsets[:-1], counts)
        values = self.values.reshape(-1)
        return index[values != 0], values[values != 0]

    def dense(self, shape: Sequence[int]) -> np.ndarray:
        out = np.zeros(int(np.prod(shape)), np.float32)
        index, values = self.flat()
        out[index] = values
        return out.reshape(shape)
