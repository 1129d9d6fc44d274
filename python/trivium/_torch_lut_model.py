"""trivium.torch.LUTTransformer: the LUT language model under autograd."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from ._core import InvalidArgument
from ._torch_lut import LUTModule
from .lut import LUTTransformer as NumpyTransformer
from .lut.batch_norm import EPSILON, MOMENTUM, BatchNorm


def _norm(norm: BatchNorm) -> nn.BatchNorm1d:
    """torch's own, over the arrays of `norm`."""
    out = nn.BatchNorm1d(norm.weight.size, EPSILON, MOMENTUM)
    out.weight, out.bias = (
        nn.Parameter(torch.from_numpy(norm.weight)),
        nn.Parameter(torch.from_numpy(norm.bias)),
    )
    out.running_mean, out.running_var = (
        torch.from_numpy(norm.running_mean),
        torch.from_numpy(norm.running_var),
    )
    return out


class LUTTransformer(nn.Module):
    """trivium.lut.LUTTransformer for torch, with the same arguments, or over an existing one that it shares its
    arrays with: LUTTransformer(model). tokens int [batch, positions] -> logits float32 [batch, positions, vocab_size].
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        whole = len(arguments) == 1 and isinstance(arguments[0], NumpyTransformer)
        if whole and options:
            raise InvalidArgument(f"options are {sorted(options)}, expected none beside a model")
        self.model = arguments[0] if whole else NumpyTransformer(*arguments, **options)
        self.register_buffer("embedding", torch.from_numpy(self.model.embedding))
        self.attention = nn.ModuleList(LUTModule(layer) for layer in self.model.attention)
        self.ffn = nn.ModuleList(LUTModule(layer) for layer in self.model.ffn)
        self.attention_norms = nn.ModuleList(_norm(norm) for norm in self.model.attention_norms)
        self.ffn_norms = nn.ModuleList(_norm(norm) for norm in self.model.ffn_norms)
        self.unembedder = LUTModule(self.model.unembedder)
        self.dropout = nn.Dropout(self.model.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        z = nn.functional.embedding(self._checked(tokens), self.embedding)
        for i, attention in enumerate(self.attention):
            z = z + self._normal(self.attention_norms, i, self.dropout(attention(z)))
            if len(self.ffn):
                z = z + self._normal(self.ffn_norms, i, self.dropout(self.ffn[i](z)))
        return self.unembedder(z)

    def _checked(self, tokens: Tensor) -> Tensor:
        context, vocab = self.model.config["context_size"], self.model.config["vocab_size"]
        if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
            raise InvalidArgument(f"tokens are {tokens.dtype}, expected integers")
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= context:
            raise InvalidArgument(f"tokens are {list(tokens.shape)}, expected [batch, 1 to {context}]")
        tokens = tokens.long()
        # On a device torch's own check does it, without waiting for the values.
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = tokens.min().item(), tokens.max().item()
            if not 0 <= low <= high < vocab:
                raise InvalidArgument(f"tokens are {low} to {high}, expected 0 to {vocab - 1}")
        return tokens

    def _normal(self, norms: nn.ModuleList, i: int, y: Tensor) -> Tensor:
        return norms[i](y.flatten(0, 1)).view_as(y) if len(norms) else y

    def set_learning_rate_hook(self, hook: Any) -> None:
        """hook(weight) gives the step of internal updates; it is called once per layer and backward."""
        self.model.set_learning_rate_hook(hook)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a model folder that trivium.load and getp run."""
        for module in self.modules():
            if isinstance(module, LUTModule):
                module.share_weights()
        with torch.no_grad():
            self.model.embedding[...] = self.embedding.cpu().numpy()
            for ours, arrays in (
                *zip(self.attention_norms, self.model.attention_norms),
                *zip(self.ffn_norms, self.model.ffn_norms),
            ):
                for name, array in arrays.state_dict().items():
                    array[...] = getattr(ours, name).cpu().numpy()
        self.model.save(folder)
