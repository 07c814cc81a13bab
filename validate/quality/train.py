"""Train the small model on Python's own text: seeded, on the CPU, in minutes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional

from calibrate.model import ModelShape
from validate.quality.adamw import AdamW
from validate.quality.baselines import bigram_bits, gzip_bits
from validate.quality.language_model import SHAPE, LanguageModel
from validate.quality.text import Corpus, Document, python_text

# Bytes of a training sequence: as far as the model ever looks back.
TRAINED_LENGTH = 256


@dataclass(frozen=True)
class Training:
    """How it is trained: AdamW (Loshchilov and Hutter, 2019), warmed up, then a cosine down to a twentieth.

    Every step also asks one earlier layer, each in turn, for the next byte, with weight `exit_weight`: a model in which
    an early exit is meant to be taken is trained so (Schuster et al., 2022; Elhoushi et al., 2024).
    """

    steps: int = 1200
    sequences: int = 4
    length: int = TRAINED_LENGTH
    learning_rate: float = 4e-3
    warm_up: int = 60
    weight_decay: float = 0.1
    exit_weight: float = 0.3
    seed: int = 0

    def rate(self, step: int) -> float:
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    training: Training,
    documents: Sequence[Document],
    shape: ModelShape = SHAPE,
    on_step: Callable[[float], None] = lambda _: None,
) -> LanguageModel:
    """A model trained on `documents`. `on_step` is told the mean loss of each step's last layer, in bits a byte.

    The same settings, text, torch and number of threads give the same weights.
    """
    model = LanguageModel.drawn(shape, training.seed, training.length)
    parameters = list(model.parameters.values())
    optimizer = AdamW(parameters, training.weight_decay, betas=(0.9, 0.98))
    text = torch.frombuffer(bytearray(b"".join(document.text for document in documents)), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(training.seed)
    for step in range(training.steps):
        starts = torch.randint(len(text) - training.length, (training.sequences,), generator=generator)
        batch = torch.stack([text[start : start + training.length + 1] for start in starts.tolist()]).long()
        exit_layer = step % max(1, shape.layers - 1)
        loss, last = _loss(model, batch, exit_layer, training.exit_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(training.rate(step))
        on_step(last.item() / math.log(2))
    return model


@torch.no_grad()
def held_out_bits(model: LanguageModel, documents: Sequence[Document], length: int = TRAINED_LENGTH) -> float:
    """Bits a byte of the documents, every byte but a document's first predicted once.

    Windows of `length` overlap by half, so that all but a document's first have half a window before them.
    """
    stride, bits, number = length // 2, 0.0, 0
    for document in documents:
        text = torch.frombuffer(bytearray(document.text), dtype=torch.uint8).long()
        for start in range(0, max(1, len(text) - 1 - stride), stride):
            window = text[start : start + length + 1]
            logits = model.logits(_last(model, window[None, :-1]))[0]
            losses = functional.cross_entropy(logits, window[1:], reduction="none")
            fresh = losses if start == 0 else losses[stride:]
            bits += fresh.sum().item() / math.log(2)
            number += len(fresh)
    return bits / number


def train_to(
    folder: Path,
    training: Training,
    *,
    corpus: Corpus | None = None,
    shape: ModelShape = SHAPE,
    on_step: Callable[[float], None] = lambda _: None,
) -> dict[str, object]:
    """Train, and write `model.safetensors`, `config.json` and `training.json` into an existing folder.

    The last says how it was trained, on which text, and what it learnt; that is returned too.
    """
    corpus = corpus or python_text()
    model = train(training, corpus.training, shape, on_step)
    model.save(folder)
    facts: dict[str, object] = {
        "training": asdict(training),
        "parameters": sum(value.numel() for value in model.parameters.values()),
        "text": corpus.facts(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "held_out_bits_per_byte": {
            "model": held_out_bits(model, corpus.held_out, training.length),
            "bigram": bigram_bits(corpus.training, corpus.held_out),
            "gzip": gzip_bits(corpus.held_out),
        },
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def _loss(
    model: LanguageModel, batch: torch.Tensor, exit_layer: int, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is minimised, the last layer's part of it)."""
    given, wanted = batch[:, :-1], batch[:, 1:].flatten()
    early = torch.zeros(())
    last = torch.zeros(())
    for layer, hidden in enumerate(model.hidden(given)):
        is_last = layer == model.shape.layers - 1
        if not is_last and layer != exit_layer:
            continue
        loss = functional.cross_entropy(model.logits(hidden).flatten(0, 1), wanted)
        if is_last:
            last = loss
        else:
            early = loss
    return last + weight * early, last


def _last(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    *_, last = model.hidden(tokens)
    return last
