"""A 95 % interval by resampling whole documents (the percentile bootstrap; Efron and Tibshirani, 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrate.quality import Estimate

_RESAMPLES = 2000


def estimate(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0) -> Estimate:
    """The statistic of all documents, and where 95 % of its resampled values lie.

    Args:
        sums: [documents, columns], what each document adds up to. Tokens of one document are alike: so documents are
            drawn with replacement, as many as there are, and not tokens.
        statistic: from totals [..., columns] to a number each, [...].
    """
    documents = len(sums)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(documents, np.full(documents, 1 / documents), size=_RESAMPLES)
    low, high = np.quantile(statistic(drawn @ sums), (0.025, 0.975))
    return Estimate(mean=float(statistic(sums.sum(axis=0))), low=float(low), high=float(high))
