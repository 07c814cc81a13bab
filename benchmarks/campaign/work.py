"""What a part is told, and how it says that it cannot be done here."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ground.whole_file import whole_file

# Tests run on a CPU: everything is as small as can be, and the same code.
MODELS = {"cpu": "tiny-llama", "cuda": "Llama-3.1-8B"}
_OWN_MODELS = Path(__file__).parent / "models"
SECOND_MODELS = {"cpu": _OWN_MODELS / "tinier-llama.json", "cuda": _OWN_MODELS / "Llama-3.2-3B.json"}
BLOCK_SIZE = 16


class Skip(Exception):
    """A part cannot be done here; the message says why."""


class TimeUp(Exception):
    """A part has to stop; the message says before what."""


@dataclass(frozen=True)
class Work:
    """Where a part runs, where its files go, and until when (`time.time`).

    `found` is what it has to say in `campaign.json`, by name. It is kept also when the part is stopped, and is here
    again when the part goes on.
    """

    device: str
    out: Path
    until: float
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def model(self) -> str:
        return MODELS[self.device]

    @property
    def profile(self) -> Path:
        return self.out / "profile"

    @property
    def power(self) -> Path:
        return self.out / "power.parquet"

    def left(self) -> float:
        """Seconds of its time that are left."""
        return self.until - time.time()

    def need(self, seconds: float, what: str) -> None:
        """Go on only if there are so many seconds left; on a CPU always, as nothing takes long there.

        Raises:
            TimeUp: there are not.
        """
        if self.on_gpu and self.left() < seconds:
            raise TimeUp(f"time was up before {what}")


def free_memory(device: str) -> None:
    """Give a GPU's memory back that nobody holds any more. A decoder and its graphs hold each other until collected."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
