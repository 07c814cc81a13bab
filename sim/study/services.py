"""From a scenario's `fleet` to what serves its requests."""

from __future__ import annotations

from dataclasses import replace

from sim.fleet.places.hop import Hop
from sim.fleet.places.mesh import Mesh
from sim.fleet.places.mesh_settings import MeshSettings
from sim.fleet.pool import Pool
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.deployment import Deployment, deploy
from sim.study.disaggregated import disaggregated
from sim.study.placed import placed
from sim.study.pool_parts import PoolParts, kv_blocks_of
from sim.study.scenario import Scenario
from sim.study.serving import Serving
from traces.table import Trace


def serving(scenario: Scenario, trace: Trace, deployment: Deployment | None = None) -> Serving:
    """`deployment`, if it is there already, is of the scenario's own engine settings. Raises UserError: a request can
    never run."""
    if scenario.fleet.disaggregation is not None:
        found = disaggregated(scenario, trace)
    elif scenario.fleet.sites:
        found = placed(scenario, trace)
    else:
        found = _one_pool(scenario, trace, deployment or deploy(scenario))
    return found if scenario.fleet.mesh is None else _behind_mesh(found, scenario.fleet.mesh)


def _behind_mesh(inner: Serving, settings: MeshSettings) -> Serving:
    def make(world: World, on_end: OnEnd) -> Service:
        return Hop(world, Mesh(world.clock, settings, world.seed), lambda ended: inner.make(world, ended), on_end)

    return replace(inner, make=make, assumptions=[*inner.assumptions, *settings.assumptions()])


def _one_pool(scenario: Scenario, trace: Trace, deployment: Deployment) -> Serving:
    parts, fleet = PoolParts(scenario, trace, deployment), scenario.fleet

    def make(world: World, on_end: OnEnd) -> Service:
        def pool(ended: OnEnd) -> Pool:
            return Pool(
                world,
                parts.kind,
                ended,
                replicas=fleet.replicas,
                router=fleet.router,
                routing=fleet.routing,
                admission=fleet.admission,
            )

        return parts.scaling.serve(world, on_end, pool)

    return Serving(make, [parts], kv_blocks_of([parts], [fleet]), parts.assumptions)
