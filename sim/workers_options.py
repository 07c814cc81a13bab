"""Who simulates the runs of a command: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os

from ground.errors import UserError
from sim.study.workers import LocalWorkers, Workers


def workers_of(engine: str, count: int | None, address: str | None) -> Workers:
    """What the options --engine, --workers and --address ask for.

    Raises:
        UserError: they do not fit each other; Ray is missing, or its cluster.
    """
    if engine == "local":
        if address is not None:
            raise UserError("--address is given and --engine is local; expected --engine ray")
        return LocalWorkers(count or os.cpu_count() or 1)
    if count is not None:
        raise UserError("--workers is given and --engine is ray; expected none, as the cluster's CPUs say how many")
    from sim.study.ray_workers import RayWorkers

    return RayWorkers(address)
