"""Attention to a sequence's first tokens and to its last ones; the keys and values in between are given up.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (ICLR 2024). A request never holds more blocks
than those of its sinks and one more than its window: the tokens that come go where those lay that left the window. So
the prefix cache has the blocks of the sinks alone, which are never written over.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.spec import Spec


class Window(Spec):
    sinks: int = Field(default=16, ge=0, description="first tokens that everybody attends to; whole blocks")
    window: int = Field(gt=0, description="last tokens that a token attends to, itself among them; whole blocks")

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        return replace(pruning, sinks=self.sinks, window=self.window)
