"""Two models of what unequal contexts cost decode attention, and their judge.

`waves` schedules the kernel's thread blocks (`calibrate.waves`); it needs to know the kernel and the GPU. `neighbours`
averages the measured unequal batches nearest to the one asked for. Which of them a profile uses is decided by their
errors on its measured unequal batches, of which neither has seen the one it is asked for.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import polars as pl

from calibrate.datasheet import device_like
from calibrate.paged_waves import PagedWaves
from calibrate.profile import Profile
from calibrate.skew import Prefill, Skew
from calibrate.waves import BlockWaves, splits_sequences, waves_of
from ground.errors import UserError

_TYPICAL_CONTEXT = 1024.0  # tokens: the excess is relative and hardly depends on it
_TILE_ROWS = 64  # query tokens that one block computes (kBlockM of the kernel that reads a paged cache)


class WaveExcess:
    """By scheduling the thread blocks of a batch that has the wanted spread, longest first.

    Those of a prefill, one a head and 64 query rows, stand behind it in the batch.
    """

    def __init__(self, alone: BlockWaves, beside_prefill: BlockWaves) -> None:
        self._alone = alone
        self._beside_prefill = beside_prefill
        self._equal: dict[tuple[int, float, Prefill], float] = {}  # seconds of batches of equal contexts

    def __call__(self, sequences: int, variation: float, longest: float, prefill: Prefill) -> float:
        return self.of_contexts(_contexts(sequences, variation, longest) * _TYPICAL_CONTEXT, prefill)

    def of_contexts(self, contexts: np.ndarray, prefill: Prefill) -> float:
        """The excess of a batch of these contexts, in tokens, (sequences,), beside a prefill."""
        chunk, prefix = prefill
        waves = self._beside_prefill if chunk else self._alone
        if not chunk and splits_sequences(len(contexts), waves.heads, waves.multiprocessors):
            return 0.0
        tiles = prefix + np.minimum(np.arange(_TILE_ROWS, chunk + _TILE_ROWS, _TILE_ROWS), chunk)
        mean = round(float(contexts.mean()), 6)
        key = (len(contexts), mean, prefill)
        if key not in self._equal:
            self._equal[key] = waves.seconds(np.concatenate((np.full(len(contexts), mean), tiles)))
        return max(0.0, waves.seconds(np.concatenate((contexts, tiles))) / self._equal[key] - 1.0)


@cache
def _normal_quantiles(count: int) -> np.ndarray:
    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def _contexts(sequences: int, variation: float, longest: float) -> np.ndarray:
    """Contexts of mean 1 with the given squared coefficient of variation and longest one, falling.

    All but the longest are lognormal, cut off at it; where that cuts off much, mean and variation come out less. Not
    every pair of numbers has such a batch.
    """
    longest = min(longest, float(sequences))
    others = sequences - 1
    mean = (sequences - longest) / others
    if mean <= 0.0:
        return np.array([longest, *[0.0] * others])
    left = max(0.0, (sequences * (1.0 + variation) - longest * longest) / others / (mean * mean) - 1.0)
    sizes = np.exp(np.sqrt(np.log1p(left)) * _normal_quantiles(others))
    sizes = np.minimum(sizes / sizes.mean() * mean, longest)
    return np.concatenate(([longest], sizes[::-1]))


class NeighbourExcess:
    """By the measured unequal batches, the nearer the heavier (inverse distance weighting, Shepard 1968).

    Near means a like number of sequences and of prefill tokens (a factor of two is one unit), variation (0.15) and
    longest over mean (a factor of 1.5).
    """

    def __init__(self, batches: pl.DataFrame) -> None:
        """`batches`: of `unequal_batches`."""
        columns = ("sequences", "variation", "longest", "chunk", "prefix", "excess")
        self._of = {
            beside: {name: part[name].to_numpy() for name in columns}
            for beside in (False, True)
            if len(part := batches.filter((pl.col("chunk") > 0) == beside))
        }

    def __call__(
        self, sequences: int, variation: float, longest: float, prefill: Prefill, *, without: int | None = None
    ) -> float:
        """`without`: a row of those alone, or beside a prefill, to leave out."""
        chunk, prefix = prefill
        rows = self._of.get(chunk > 0)
        if rows is None or variation == 0.0:
            return 0.0
        distance = (
            (np.log2(rows["sequences"] / sequences)) ** 2
            + ((rows["variation"] - variation) / 0.15) ** 2
            + (np.log(rows["longest"] / longest) / np.log(1.5)) ** 2
        )
        if chunk:
            distance += np.log2(rows["chunk"] / chunk) ** 2 + np.log2((rows["prefix"] + 256) / (prefix + 256)) ** 2
        weight = 1.0 / (distance + 0.05) ** 2
        if without is not None:
            weight[without] = 0.0
        if not weight.any():
            return 0.0
        return float((weight * rows["excess"]).sum() / weight.sum())


def unequal_batches(profile: Profile) -> pl.DataFrame:
    """The measured unequal batches of a profile as a model is asked for them.

    Columns beside those of its table: sequences, variation, longest (over the mean), chunk, prefix, and `excess`.
    """
    n, big = pl.col("n_decode").cast(pl.Float64), pl.col("n_long").cast(pl.Float64)
    mean = (big * pl.col("kv_long") + (n - big) * pl.col("kv_short")) / n
    square = (big * pl.col("kv_long").cast(pl.Float64) ** 2 + (n - big) * pl.col("kv_short").cast(pl.Float64) ** 2) / n
    return profile.table("skew").with_columns(
        sequences=n,
        variation=square / mean**2 - 1,
        longest=pl.col("kv_long") / mean,
        chunk=pl.col("prefill_chunk"),
        prefix=pl.col("kv_prefill"),
        excess=pl.col("seconds") / pl.col("equal_seconds") - 1,
    )


def wave_excess(profile: Profile) -> WaveExcess | None:
    """The wave model of a profile's device; None where the device, its kernel or its table do not allow it."""
    device = device_like(profile.device)
    if device is None or device.flash_attention != 2 or device.multiprocessors is None or profile.model is None:
        return None
    waves = waves_of(profile.table("attention"), profile.shape.shard(profile.tp), device.multiprocessors)
    return None if waves is None else WaveExcess(*waves)


class PagedExcess:
    """The same for the reference engine's kernel, which runs by itself, beside a prefill or not."""

    def __init__(self, waves: PagedWaves) -> None:
        self._waves = waves

    def __call__(self, sequences: int, variation: float, longest: float, prefill: Prefill) -> float:
        return self._waves.excess(_contexts(sequences, variation, longest) * _TYPICAL_CONTEXT)


def paged_excess(profile: Profile) -> PagedExcess | None:
    """The reference engine's kernel on a profile's device; None where the profile does not hold what it takes."""
    device, rate = device_like(profile.device), profile.grid.get("lone_block_rate")
    if device is None or device.multiprocessors is None or rate is None or profile.model is None:
        return None
    rank = profile.shape.shard(profile.tp)
    return PagedExcess(PagedWaves.of(profile.table("attention"), rank.kv_heads, device.multiprocessors, rate))


def judge(profile: Profile, *, sample: int = 400) -> dict[str, dict[str, float]]:
    """Absolute relative errors of attention on a profile's unequal batches.

    "mean_context" is what one gets without a model of skew. At most `sample` batches are asked, evenly spread over the
    table, alone and beside a prefill.

    Returns:
        Model → {"points", "median", "p90"}.
    """
    batches = unequal_batches(profile)
    neighbours, waves = NeighbourExcess(batches), wave_excess(profile)
    errors: dict[str, list[float]] = {"mean_context": [], "neighbours": []}
    if waves:
        errors["waves"] = []
    for beside in (False, True):
        part = batches.filter((pl.col("chunk") > 0) == beside)
        for index in range(0, len(part), max(1, -(-len(part) // sample))):
            batch = part.row(index, named=True)
            measured, prefill = 1.0 + batch["excess"], (batch["chunk"], batch["prefix"])
            guesses = {
                "mean_context": 0.0,
                "neighbours": neighbours(
                    batch["n_decode"], batch["variation"], batch["longest"], prefill, without=index
                ),
            }
            if waves:
                counts = [batch["n_long"], batch["n_decode"] - batch["n_long"]]
                contexts = np.repeat([float(batch["kv_long"]), float(batch["kv_short"])], counts)
                guesses["waves"] = waves.of_contexts(contexts, prefill)
            for model, guess in guesses.items():
                errors[model].append(abs((1.0 + guess) / measured - 1.0))
    return {
        model: {
            "points": float(len(found)),
            "median": float(np.median(found)),
            "p90": float(np.percentile(found, 90)),
        }
        for model, found in errors.items()
    }


def skew_of(profile: Profile) -> tuple[Skew, str] | None:
    """The skew model that a profile names (`grid["skew_model"]`), and its name; None where it names none.

    Raises:
        UserError: the profile names a model that it cannot have.
    """
    name = profile.grid.get("skew_model")
    if name is None:
        return None
    if name == "waves" and (waves := wave_excess(profile)):
        return Skew(waves), name
    if name == "paged_waves" and (paged := paged_excess(profile)):
        return Skew(paged), name
    if name == "neighbours":
        return Skew(NeighbourExcess(unequal_batches(profile))), name
    expected = "waves or paged_waves where its device and attention table allow, or neighbours"
    raise UserError(f"profile {profile.name}: grid.skew_model is {name!r}; expected {expected}")
