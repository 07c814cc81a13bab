"""From a scenario's weight cache to one for each replica: which models its requests name, and how large they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from calibrate.model import ModelShape
from ground.assumption import Assumption
from sim.fleet.weights.cache import WeightCache
from sim.fleet.weights.models import Models, models_asked
from sim.fleet.weights.peers import WeightPeers
from sim.fleet.weights.settings import WeightCacheSettings
from traces.table import Trace


class HostWeights:
    def __init__(self, settings: WeightCacheSettings, model: ModelShape, trace: Trace, seed: int) -> None:
        """Raises UserError: a host's memory for weights is too small for one of the models, or for those preloaded."""
        asked = models_asked(trace.requests, model.name)
        named = trace.requests["model"].count() if "model" in trace.requests.columns else 0
        size = settings.model_bytes or model.weight_bytes()
        models = Models(size, settings.bytes_of, update_every=settings.update_every, seed=seed)
        settings.check_fit(models, asked)
        peers = None if settings.peer_bandwidth is None else WeightPeers()
        self.make: Callable[..., WeightCache] = partial(WeightCache, settings, models, asked, peers=peers)
        self.assumptions: list[Assumption] = settings.assumptions(model.name, size, len(asked) - named, asked)
