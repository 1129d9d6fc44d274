"""Sequences one position at a time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import InvalidArgument
from . import connectivity

if TYPE_CHECKING:
    from .layers import LUTLayerBasic


class DecodeCache:
    """What a sequential layer remembers of sequences that go in step: the lookup indices of their last
    sequence_length - 1 positions, 4 bytes for each table and position. Made by the layer's make_cache."""

    def __init__(self, layer: "LUTLayerBasic", sequences: int) -> None:
        if connectivity.integer(sequences, "sequences") < 1:
            raise InvalidArgument(f"sequences is {sequences}, expected at least 1")
        self.native = layer.native.make_cache(sequences)
        self.positions = np.zeros(sequences, np.int32)  # how many each sequence has had

    def reset(self, sequence: int | None = None) -> None:
        """Starts all sequences, or one, from the beginning."""
        if sequence is None:
            self.positions[:] = 0
        elif 0 <= connectivity.integer(sequence, "sequence") < len(self.positions):
            self.positions[sequence] = 0
        else:
            raise InvalidArgument(f"sequence is {sequence}, expected 0 to {len(self.positions) - 1}")


def decode(layer: "LUTLayerBasic", x: Any, cache: DecodeCache) -> Any:
    if not isinstance(cache, DecodeCache):
        raise InvalidArgument(f"decode: cache is {type(cache).__name__}, expected what make_cache gives")
    lead, flat = layer._flatten(x, layer.input_shape, "x", rank=1)
    if lead != cache.positions.shape:
        raise InvalidArgument(f"decode: x is of {lead[0]} sequences, the cache of {len(cache.positions)}")
    slots = np.arange(lead[0], dtype=np.int32)
    y = layer.native.decode(
        layer.weight, flat, layer.positional_embeddings, slots, cache.positions, cache.native
    )
    cache.positions += 1
    return layer._unflatten(y, (*lead, *layer.output_shape))
