"""LUT networks on numpy arrays: layers, gradients, and a language model. See trivium.torch for autograd.

>>> import numpy as np
>>> from trivium import lut
>>> layer = lut.LUTLayer(4, 3, 8, 2, random_seed=1)
>>> y = layer.forward(np.ones((5, 4), np.float32))
>>> y.shape, layer.backward(np.ones_like(y)).shape, layer.weight_gradient.shape
((5, 2), (5, 4), (8, 8, 2))
"""

from .batch_norm import BatchNorm
from .connectivity import Sampling, Targets
from .decode import DecodeCache
from .layers import LUTLayer, LUTLayerBasic, SynapseMeta
from .row_gradient import RowGradient
from .spatial import Conv2DLUTLayer, ProjectionLUTLayer
from .transformer import LUTTransformer

__all__ = [
    "BatchNorm",
    "Conv2DLUTLayer",
    "DecodeCache",
    "LUTLayer",
    "LUTLayerBasic",
    "LUTTransformer",
    "ProjectionLUTLayer",
    "RowGradient",
    "Sampling",
    "SynapseMeta",
    "Targets",
]
