"""Keys and values in one byte a value: `calibrate/kv_codec.py` says how each is stored."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from calibrate.model import ModelShape
from calibrate.pruning import KvDtype, Pruning
from ground.spec import Spec


class QuantisedKv(Spec):
    dtype: KvDtype = Field(default="int8", description="int8 with a scale a token and head, or fp8 (e4m3) without")

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        return replace(pruning, kv_dtype=self.dtype)
