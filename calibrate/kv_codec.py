"""Keys and values in fewer bytes than the model's: what a quantised KV cache stores of a head's vector.

`int8`: each vector of a token's key or value head is rounded to 255 steps of its own, and the step is stored beside it
(symmetric absmax quantisation, per token and head, as KIVI and KVQuant take as their baseline). `fp8`: e4m3 without a
scale, what vLLM's `kv_cache_dtype: fp8` does where no scale was calibrated; what lies beyond 448 is cut off there.
"""

from __future__ import annotations

import torch

from calibrate.pruning import KvDtype, stored_bytes
from ground.errors import UserError

_LARGEST_E4M3 = 448.0


class KvCodec:
    """Packs [..., head_dim] values into [..., `width`] bytes (uint8), and back.

    Raises:
        UserError: vectors whose bytes leave the scales behind them unaligned.
    """

    def __init__(self, kind: KvDtype, head_dim: int, dtype: torch.dtype) -> None:
        if kind == "int8" and head_dim % 4:
            raise UserError(f"quantised_kv: head_dim is {head_dim}; expected a multiple of 4, beside which scales lie")
        self.kind = kind
        self.width = stored_bytes(kind, head_dim)
        self._head_dim = head_dim
        self._dtype = dtype

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        if self.kind == "fp8":
            cut = values.float().clamp(-_LARGEST_E4M3, _LARGEST_E4M3)
            return cut.to(torch.float8_e4m3fn).view(torch.uint8)
        values = values.float()
        scale = values.abs().amax(dim=-1, keepdim=True) / 127
        # A vector of noughts has no step; any will do.
        steps = (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        return torch.cat((steps.view(torch.uint8), scale.contiguous().view(torch.uint8)), dim=-1)

    def unpack(self, stored: torch.Tensor) -> torch.Tensor:
        values = stored[..., : self._head_dim]
        if self.kind == "fp8":
            return values.contiguous().view(torch.float8_e4m3fn).to(self._dtype)
        scale = stored[..., self._head_dim :].contiguous().view(torch.float32)
        return (values.contiguous().view(torch.int8) * scale).to(self._dtype)
