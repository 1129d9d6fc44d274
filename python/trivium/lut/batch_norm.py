"""Normalisation of channels over a batch (Ioffe & Szegedy, arXiv 1502.03167) on numpy arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._core import InvalidArgument

EPSILON = 1e-5  # as the loader of saved models adds it (cpp/models/lut/load.cpp)
MOMENTUM = 0.1  # share of a new batch in the running averages


class BatchNorm:
    """y = (x - mean) / sqrt(variance + 1e-5) * weight + bias for each channel, the last axis of x.

    In training mean and (biased) variance are those of all other axes, and the running averages, of the unbiased
    variance, move by a tenth towards them; evaluation uses the averages. The same as torch.nn.BatchNorm1d.
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise InvalidArgument(f"channels is {channels}, expected at least 1")
        self.weight, self.bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self.running_mean, self.running_var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        self.weight_gradient: np.ndarray | None = None  # float32 [channels], of the last backward
        self.bias_gradient: np.ndarray | None = None
        self._saved: tuple[np.ndarray, np.ndarray] | None = None  # normalised x, 1 / standard deviation

    def forward(self, x: np.ndarray, training: bool = True) -> np.ndarray:
        """float32 [..., channels] -> the same shape."""
        channels = self.weight.size
        if x.ndim < 2 or x.shape[-1] != channels:
            raise InvalidArgument(f"x is {list(x.shape)}, expected [..., {channels}] with a batch axis")
        self._saved = None
        wide = x.reshape(-1, channels).astype(np.float64)
        if not training:
            scale = 1 / np.sqrt(self.running_var.astype(np.float64) + EPSILON)
            y = (wide - self.running_mean) * scale * self.weight + self.bias
            return y.astype(np.float32).reshape(x.shape)
        rows = len(wide)
        if rows == 1:
            raise InvalidArgument(
                "x has one row, expected at least two: a batch norm in training needs a variance"
            )
        if rows == 0:
            self._saved = wide, np.ones(channels)
            return np.zeros_like(x, np.float32)
        mean, variance = wide.mean(0), wide.var(0)
        inverse = 1 / np.sqrt(variance + EPSILON)
        normal = (wide - mean) * inverse
        for running, now in ((self.running_mean, mean), (self.running_var, variance * rows / (rows - 1))):
            running += np.float32(MOMENTUM) * (now.astype(np.float32) - running)
        self._saved = normal, inverse
        return (normal * self.weight + self.bias).astype(np.float32).reshape(x.shape)

    __call__ = forward

    def backward(self, gy: np.ndarray) -> np.ndarray:
        """The gradient of x, like gy; sets weight_gradient and bias_gradient."""
        if self._saved is None:
            raise InvalidArgument("backward: nothing was saved; call forward with training=True first")
        normal, inverse = self._saved
        if gy.size != normal.size or gy.shape[-1] != normal.shape[1]:
            raise InvalidArgument(
                f"gy is {list(gy.shape)}, expected the shape of x with {normal.size} elements"
            )
        self._saved = None
        wide = gy.reshape(normal.shape).astype(np.float64)
        sums, products = wide.sum(0), (wide * normal).sum(0)
        self.bias_gradient, self.weight_gradient = sums.astype(np.float32), products.astype(np.float32)
        gx = (wide - (sums + normal * products) / max(len(wide), 1)) * (inverse * self.weight)
        return gx.astype(np.float32).reshape(gy.shape)

    def state_dict(self) -> dict[str, np.ndarray]:
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_state(state)()

    def _check_state(self, state: dict[str, Any]) -> Callable[[], None]:
        """Refuses a state this norm cannot take; calling what it returns takes it."""
        expected = self.state_dict()
        if set(state) != set(expected):
            raise InvalidArgument(f"state has {sorted(state)}, expected {sorted(expected)}")
        arrays = {name: np.array(value) for name, value in state.items()}
        for name, array in arrays.items():
            if array.shape != expected[name].shape or array.dtype != np.float32:
                raise InvalidArgument(
                    f"{name} is {array.dtype} {array.shape}, expected float32 {expected[name].shape}"
                )
        if not (arrays["running_var"] >= 0).all():
            raise InvalidArgument("running_var holds a negative value or NaN, expected variances")

        def take() -> None:
            for name, array in arrays.items():
                getattr(self, name)[...] = array

        return take
