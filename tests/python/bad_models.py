"""A small model that tests spoil, and the one sentence that loading must then end with."""

import checkpoints as cp
import pytest
import trivium
from checkpoints import oracle

CFG = cp.config(300, 64, 96, 2, 4, 2, 16, 4, 2, 5, max_positions=64)
WEIGHTS = oracle.random_weights(CFG, 1)


def load(path, **options):
    return trivium.load(path, device="cpu", precision="float32", **options)


def refusal(path, kind=trivium.ModelFormatError, **options) -> str:
    """The sentence with which loading is refused."""
    with pytest.raises(kind) as caught:
        load(path, **options)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 700
    return message
