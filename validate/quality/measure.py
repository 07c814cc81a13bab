"""Measure what pruning costs in quality: the pruned model and the unpruned read the same held-out text."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.decoder import Decoder, dtype_of
from calibrate.model import ModelShape
from calibrate.pruned_decoder import PrunedDecoder, make_decoder
from calibrate.quality import LayerShares, PolicyQuality, QualityTable, UnprunedQuality, model_fields
from ground.errors import UserError
from sim.engine.pruning.settings import PruningSettings
from validate.quality.bootstrap import estimate
from validate.quality.excerpts import Excerpt, excerpts, go_on, read
from validate.quality.text import Corpus

_BYTES = 256
_BLOCK = 16


def measure(
    model: ModelShape,
    weights: Path,
    policies: Sequence[PruningSettings],
    corpus: Corpus,
    *,
    device: str = "cpu",
    known: QualityTable | None = None,
    on_policy: Callable[[QualityTable], None] = lambda _: None,
) -> QualityTable:
    """The quality of each policy on the held-out documents of `corpus`, with those that `known` has already.

    `on_policy` is told what is measured so far, after each policy.

    Raises:
        UserError: the model's tokens are no bytes, its weights cannot be read, a policy does not fit it, or `known` is
            of another model, other weights, another text or another engine.
    """
    if model.vocab != _BYTES:
        raise UserError(f"{model.name}: has {model.vocab} tokens; expected 256, of which each is a byte of the text")
    texts = excerpts(corpus.held_out)
    facts: dict[str, dict[str, Any]] = {
        "model": model_fields(model),
        "weights": {"sha256": _hash(weights)},
        "text": corpus.facts() | {"excerpts": len(texts), "tokens": sum(len(text.tokens) for text in texts)},
        "engine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})",
            "torch": torch.__version__,
            "simctl": version("simctl"),
        },
    }
    _check_known(known, facts)

    def decoder_of(policy: PruningSettings | None) -> Decoder:
        longest = max(len(text.tokens) for text in texts)
        return make_decoder(
            model,
            pruning=None if policy is None else policy.of(model),
            device=device,
            dtype=dtype_of(model),
            kv_blocks=len(texts) * -(-longest // _BLOCK),
            block_size=_BLOCK,
            weights=weights,
        )

    unpruned = read(decoder_of(None), texts, one_by_one=False)
    table = QualityTable(
        model=facts["model"],
        weights=facts["weights"],
        text=facts["text"],
        engine=facts["engine"],
        unpruned=_unpruned(unpruned, texts),
        policies=known.policies if known else [],
    )
    for policy in policies:
        pruning = policy.without_shares()
        if table.find(model, pruning) is None:
            found = _quality(pruning, decoder_of(policy), unpruned, texts)
            table = table.model_copy(update={"policies": [*table.policies, found]})
        on_policy(table)
    return table


def divergence(
    unpruned: Sequence[torch.Tensor], pruned: Sequence[torch.Tensor], texts: Sequence[Excerpt]
) -> np.ndarray:
    """What each document adds up to, [documents, 5]: tokens, KL(unpruned || pruned) in nats, tokens with the same most
    likely next one, and the negative log likelihood of the text under the unpruned and under the pruned model.

    Both are log probabilities [tokens, vocab] an excerpt.
    """
    sums = np.zeros((max(text.document for text in texts) + 1, 5))
    for ours, theirs, text in zip(unpruned, pruned, texts, strict=True):
        following = torch.tensor(text.following)[:, None]
        sums[text.document] += [
            len(text.tokens),
            float((ours.exp() * (ours - theirs)).sum()),
            float((ours.argmax(-1) == theirs.argmax(-1)).sum()),
            -float(ours.gather(-1, following).sum()),
            -float(theirs.gather(-1, following).sum()),
        ]
    return sums[sums[:, 0] > 0]


def _unpruned(rows: Sequence[torch.Tensor], texts: Sequence[Excerpt]) -> UnprunedQuality:
    sums = divergence(rows, rows, texts)
    return UnprunedQuality(
        perplexity=estimate(sums, lambda total: np.exp(total[..., 3] / total[..., 0])),
        bits_per_byte=estimate(sums, lambda total: total[..., 3] / total[..., 0] / math.log(2)),
    )


def _quality(
    pruning: Mapping[str, Any], decoder: Decoder, unpruned: Sequence[torch.Tensor], texts: Sequence[Excerpt]
) -> PolicyQuality:
    assert isinstance(decoder, PrunedDecoder)
    decoder.ran.clear()
    # What a budget gives up depends on the order in which tokens come.
    pruned = read(decoder, texts, one_by_one=decoder.pruning.budget is not None)
    layers = decoded = None
    if decoder.pruning.by_input:
        layers = _shares(decoder)
        go_on(decoder, texts)
        decoded = _shares(decoder)
    sums = divergence(unpruned, pruned, texts)
    return PolicyQuality(
        pruning=dict(pruning),
        kl=estimate(sums, lambda total: total[..., 1] / total[..., 0]),
        top1=estimate(sums, lambda total: total[..., 2] / total[..., 0]),
        perplexity=estimate(sums, lambda total: np.exp(total[..., 4] / total[..., 0])),
        perplexity_ratio=estimate(sums, lambda total: np.exp((total[..., 4] - total[..., 3]) / total[..., 0])),
        layers=layers,
        decoded=decoded,
    )


def _shares(decoder: PrunedDecoder) -> LayerShares:
    ran = decoder.ran
    return LayerShares(
        attention=tuple(count / ran.tokens for count in ran.attention),
        mlp=tuple(count / ran.tokens for count in ran.mlp),
    )


def _hash(weights: Path) -> str:
    files = sorted(weights.glob("*.safetensors")) if weights.is_dir() else [weights]
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); expected a safetensors file") from error
    return digest.hexdigest()


def _check_known(known: QualityTable | None, facts: Mapping[str, Mapping[str, Any]]) -> None:
    for part, now in facts.items() if known is not None else ():
        then = getattr(known, part)
        for key in now:
            if then.get(key) != now[key]:
                raise UserError(
                    f"quality.json: was measured with {part}.{key} {then.get(key)}, now it is {now[key]}; "
                    "expected the same, or another folder by -o"
                )
