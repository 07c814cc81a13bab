"""Seconds of a pruned model's attention: layers that run and layers that some tokens run, over what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

from calibrate.attention_law import AttentionLaw, prefill_work
from calibrate.curve import Curve, add
from calibrate.skew import Spread

_FAR = 1e9  # tokens


class PrunedAttention:
    """What `AttentionLaw` is to a model that runs whole.

    `groups`: the law of some layers, and the share of the decoding sequences that run them; prompts run all. Where the
    share leaves less than one sequence, one runs them in so many of the steps. `most`: tokens of a sequence that are
    read at most; they slide with each query where `slides`, and else are those before a chunk. `bytes_read`: those of a
    cached token over those of a token as it was measured; a decode takes as long as one that reads as many bytes.

    A prompt's chunk that sees a window takes as long as a chunk of as many query-key pairs: behind fewer cached tokens,
    or, where even behind none there would be more, of fewer new ones. What it reads of the cache takes what it takes
    unpruned: an upper bound where that is packed.
    """

    def __init__(
        self, groups: Sequence[tuple[AttentionLaw, float]], *, most: int | None, slides: bool, bytes_read: float
    ) -> None:
        self._groups = groups
        self._most = most
        self._slides = slides
        self._bytes_read = bytes_read
        self.one_kernel = groups[0][0].one_kernel
        self.decode = _Decodes(groups, most, bytes_read)

    def prefill(self, new: float, cached: float) -> float:
        """Of one chunk."""
        new, cached = self.seen(new, cached)
        return sum(law.prefill(new, cached) for law, _ in self._groups)

    def mixed(
        self,
        prefills: Sequence[tuple[int, int]],
        decodes: int,
        kv_tokens: int,
        spread: Spread | None,
        alone: Curve | None,
    ) -> tuple[float, bool]:
        """Seconds of a step with at least one prefill, and whether all of it lies inside the measured grid."""
        seen: Any = [self.seen(new, cached) for new, cached in prefills]
        seconds, inside = 0.0, True
        for law, share in self._groups:
            sequences = max(1.0, share * decodes)
            odds = min(1.0, share * decodes)
            if odds:
                read: Any = sequences * (kv_tokens / decodes) * self._bytes_read
                over_sum = stretched(self.decode.of(law, sequences), sequences)
                some, covered = law.mixed(seen, sequences, read, None, over_sum)  # type: ignore[arg-type]
                seconds, inside = seconds + odds * some, inside and covered
            if odds < 1.0:
                none, covered = law.mixed(seen, 0, 0, None, None)
                seconds, inside = seconds + (1.0 - odds) * none, inside and covered
        return seconds, inside

    def seen(self, new: float, cached: float) -> tuple[float, float]:
        """The unpruned chunk that computes as many query-key pairs as one of `new` tokens behind `cached`."""
        most = self._most
        if most is None:
            return new, cached
        if not self._slides:
            return new, min(cached, most)
        if cached + new <= most:
            return new, cached
        growing = max(0.0, min(new, most - cached))  # queries that see all that is before them
        pairs = prefill_work(growing, cached) + (new - growing) * most
        behind = pairs / new - (new + 1) / 2
        if behind >= 0.0:
            return new, behind
        return ceil((sqrt(1.0 + 8.0 * pairs) - 1.0) / 2.0), 0


class _Decodes:
    """Decode attention of all groups, by sequences and over the mean of their cached tokens."""

    def __init__(self, groups: Sequence[tuple[AttentionLaw, float]], most: int | None, bytes_read: float) -> None:
        self._groups = groups
        self._most = most
        self._bytes_read = bytes_read
        self.keys = groups[0][0].decode.keys
        self._known: dict[tuple[AttentionLaw, float], Curve] = {}

    def at(self, decodes: int) -> Curve:
        """The curve of `decodes` sequences."""
        curves = [
            (min(1.0, share * decodes), self.of(law, max(1.0, share * decodes))) for law, share in self._groups if share
        ]
        if not curves:
            return Curve([0.0], [0.0])
        whole = curves[0][1] if len(curves) == 1 and curves[0][0] == 1.0 else add(curves)
        found = whole if self._bytes_read == 1.0 else stretched(whole, 1.0 / self._bytes_read)
        return found if self._most is None or self._most > found.high else flat_from(self._most, found)

    def of(self, law: AttentionLaw, sequences: float) -> Curve:
        """What one group's layers were measured to take, over as many tokens as have the bytes that are read."""
        if (law, sequences) not in self._known:
            self._known[law, sequences] = law.decode.at(sequences)
        return self._known[law, sequences]


def flat_from(x: float, curve: Curve) -> Curve:
    """The same up to x, which lies on its grid or between two points of it, and constant from there on."""
    before = [(at, y) for at, y in zip(curve.xs, curve.ys, strict=True) if at < x]
    points = [*before, (x, curve(x)), (x + _FAR, curve(x))]
    return Curve([at for at, _ in points], [y for _, y in points])


def stretched(curve: Curve, factor: float) -> Curve:
    """The same where every x is `factor` times as far."""
    return Curve([x * factor for x in curve.xs], curve.ys)
