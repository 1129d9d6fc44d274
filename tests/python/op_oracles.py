"""What the tests of trivium.ops share: the ops on the tested device, element types, bounds, random arrays and the
comparison."""

import functools

import ml_dtypes
import numpy as np
import trivium

BF16 = ml_dtypes.bfloat16
DTYPES = {"float32": np.float32, "bfloat16": BF16, "float16": np.float16}
BOUND = {"float32": 2e-6, "bfloat16": 8e-3}  # relative L2 error by type of the activations


def on_host(result):
    if isinstance(result, trivium.Tensor):
        return result.to("cpu")
    return tuple(map(on_host, result)) if isinstance(result, tuple) else result


class Ops:
    """trivium.ops on the device of `pytest --backend`, with results on the host."""

    device = None  # set by conftest.py; None: as called, on the CPU

    def __getattr__(self, name):
        op = getattr(trivium.ops, name)
        if self.device is None or not callable(op) or name == "rope_frequencies":
            return op
        return functools.wraps(op)(lambda *args, **kwargs: on_host(op(*args, device=self.device, **kwargs)))


ops = Ops()


def normal(rng, *shape, dtype=np.float32, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(dtype)


def f64(x):
    return np.asarray(x).astype(np.float64)


def check(got, want, bound=BOUND["float32"]):
    got = got.astype("float32").numpy() if isinstance(got, trivium.Tensor) else got
    got, want = f64(got), f64(want)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) <= bound * max(np.linalg.norm(want), 1e-30)


def guarded(array, fill=np.nan):
    """A view of `array`'s values inside a larger buffer: reads beyond its end meet NaN."""
    flat = np.full(array.size + 128, fill, array.dtype)
    flat[64 : 64 + array.size] = array.ravel()
    return flat[64 : 64 + array.size].reshape(array.shape)
