"""From a scenario's `fleet.sites` to the service of sites far apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import polars as pl

from sim.fleet.links.network import Network
from sim.fleet.placement import PLACEMENTS
from sim.fleet.placement.placement import PlacementSetting
from sim.fleet.places.hop import Hop
from sim.fleet.places.placement_settings import ClassSettings, PlacementSettings, SiteSettings
from sim.fleet.places.site_estimate import ExpectedOutput, SiteEstimate
from sim.fleet.places.sites import Sites, Tasks
from sim.fleet.places.wide_area import Payload, WideArea
from sim.fleet.pool import Pool
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.asked_times import AskedTimes
from sim.study.deployment import deploy
from sim.study.pool_parts import PoolParts, kv_blocks_of
from sim.study.pool_scenario import of_pool, pool_scenarios
from sim.study.scenario import Scenario
from sim.study.serving import Serving
from traces.table import Trace

_UNKNOWN = ClassSettings()


def deadlines(placement: PlacementSettings, requests: pl.DataFrame) -> pl.DataFrame:
    """Of each request, in order of request_id: `slo_class`, and `deadline`, the placement's own or else the trace's."""
    requests = requests.sort("request_id")
    empty = {"slo_class": pl.lit(None, pl.String), "deadline": pl.lit(None, pl.Float64)}
    requests = requests.with_columns(**{name: null for name, null in empty.items() if name not in requests.columns})
    own = {name: each.deadline for name, each in placement.classes.items() if each.deadline is not None}
    set_here = pl.col("slo_class").replace_strict(own, default=None, return_dtype=pl.Float64)
    return requests.select("request_id", "slo_class", deadline=pl.coalesce(set_here, "deadline"))


def placed(scenario: Scenario, trace: Trace) -> Serving:
    """The sites, and what chooses between them.

    Raises:
        UserError: no request is of a class, a class names no site, a price is missing, or a request can never run.
    """
    fleet = scenario.fleet
    placement = fleet.placement or PlacementSettings()
    scenarios = pool_scenarios(scenario)
    wanted = deadlines(placement, trace.requests)
    classes = wanted["slo_class"].to_list()
    placement.check(fleet.sites, set(classes) - {None}, all(own.gpu_hour_price for own in scenarios.values()))
    pools = [PoolParts(own, trace, deploy(own), key) for key, own in scenarios.items()]
    assumptions = [
        *(each for key, parts in zip(scenarios, pools, strict=True) for each in of_pool(key, parts.assumptions)),
        *placement.assumptions(),
    ]
    extra = {name: each.request_bytes for name, each in placement.classes.items()}
    payload = Payload(
        placement.prompt_token_bytes,
        placement.output_token_bytes,
        placement.stream,
        lambda request_id: extra.get(classes[request_id], 0),
    )
    named_sites = {name: each.site for name, each in placement.classes.items() if each.site is not None}
    tasks = Tasks(classes, wanted["deadline"].to_list(), named_sites)

    def make(world: World, on_end: OnEnd) -> Service:
        network = Network(world.clock)
        world.networks.append(network)
        expected = ExpectedOutput(lambda name: placement.classes.get(name or "", _UNKNOWN).expected_output)
        estimates: list[SiteEstimate] = []
        hops: list[Callable[[OnEnd], Hop]] = []
        for (name, site), parts in zip(fleet.sites.items(), pools, strict=True):
            route = WideArea(world.clock, network, name, payload, rtt=site.rtt, up=site.up, down=site.down)
            estimates.append(_estimate(world, route, site, parts, expected, _pool(world, name)))
            hops.append(_hop(world, scenario, name, site, parts, route))
        policy = PLACEMENTS[placement.policy](PlacementSetting(placement.threshold, placement.margin, placement.prefer))
        return Sites(policy, estimates, hops, tasks, expected, on_end)

    return Serving(make, pools, kv_blocks_of(pools, fleet.sites.values()), assumptions)


def _pool(world: World, name: str) -> Callable[[], Pool]:
    """Gives the pool of a site, which is not there yet."""

    @cache
    def pool() -> Pool:
        return next(pool for pool in world.pools if pool.name == name)

    return pool


def _estimate(
    world: World,
    route: WideArea,
    site: SiteSettings,
    parts: PoolParts,
    expected: ExpectedOutput,
    pool: Callable[[], Pool],
) -> SiteEstimate:
    def gone() -> bool:
        """An autoscaler asks for replicas where there are none."""
        return site.autoscaler is None and not pool().members and not pool().starting

    return SiteEstimate(
        world.clock,
        route,
        parts.deployment.config,
        AskedTimes(parts.deployment.step_times),
        expected,
        replicas=lambda: len(pool().members),
        gone=gone,
        gpus=parts.kind.gpus,
        gpu_hour_price=parts.kind.gpu_hour_price,
        capacity=site.capacity,
    )


def _hop(
    world: World,
    scenario: Scenario,
    name: str,
    site: SiteSettings,
    parts: PoolParts,
    route: WideArea,
) -> Callable[[OnEnd], Hop]:
    def pool(on_end: OnEnd) -> Pool:
        return Pool(
            world,
            parts.kind,
            on_end,
            replicas=site.replicas,
            router=site.router,
            routing=site.routing,
            admission=scenario.fleet.admission,
            name=name,
            site=name,
        )

    return lambda on_end: Hop(world, route, lambda ended: parts.scaling.serve(world, ended, pool), on_end)
