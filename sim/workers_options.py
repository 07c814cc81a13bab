"""Who simulates the runs of a command: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ground.errors import UserError

if TYPE_CHECKING:
    from sim.study.workers import Workers

_OPTIONS = (
    click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a core."),
    click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", help="Where the runs are simulated."
    ),
    click.option(
        "--address", help="Of the Ray cluster's head; default: the one that RAY_ADDRESS or this machine names."
    ),
)


def workers_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that `workers_of` takes: `workers`, `engine` and `address`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def workers_of(engine: str, count: int | None, address: str | None) -> Workers:
    """What the options --engine, --workers and --address ask for.

    Raises:
        UserError: they do not fit each other; Ray is missing, or its cluster.
    """
    if engine == "local":
        from sim.study.workers import LocalWorkers

        if address is not None:
            raise UserError("--address is given and --engine is local; expected --engine ray")
        return LocalWorkers(count or os.cpu_count() or 1)
    if count is not None:
        raise UserError("--workers is given and --engine is ray; expected none, as the cluster's CPUs say how many")
    from sim.study.ray_workers import RayWorkers

    return RayWorkers(address)
