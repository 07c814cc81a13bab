"""Independent calls on the machines of a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, TypeVar

from ground.errors import UserError
from sim.study.workers import INTERRUPTIBLE

Result = TypeVar("Result")

_PATIENCE = 5.0  # seconds that a cluster may take to answer at all
RETRIES = 5  # of a call whose worker or machine was lost


class RayWorkers:
    """The CPUs of an existing cluster, one a call. Its machines have the same simctl, and see files under the same
    paths. A call whose worker or machine is lost is made again, on another; since a call's result depends on nothing
    but its arguments, no result depends on what was lost.
    """

    def __init__(self, address: str | None = None) -> None:
        """Raises UserError: Ray is not installed, or no cluster answers at `address` (`auto` if not given)."""
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody unasked
            import ray
        except ImportError as error:
            raise UserError(f"--engine ray needs Ray ({error}); pip install 'simctl[ray]'") from error
        self._ray = ray
        head = address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _check_that_it_listens(head)
            ray.init(address=head, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"--engine ray: no cluster at {head} ({said}); expected one, such as `ray start --head` begins"
            ) from error

    def each(self, call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Generator[Result, None, None]:
        """As `Workers.each`. Raises UserError: a call was lost more than `RETRIES` times."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(call)
        todo = iter(arguments)
        running: list[Any] = []
        try:
            while True:
                # Twice the CPUs there are now, so that machines that join get work and none waits for it.
                wanted = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
                running += [remote.remote(*each) for each in islice(todo, max(0, wanted - len(running)))]
                if not running:
                    return
                finished, running = ray.wait(running, num_returns=1, timeout=INTERRUPTIBLE)
                for reference in finished:
                    yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the Ray cluster lost a run {RETRIES + 1} times ({type(error).__name__}); the same command goes on"
            ) from error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()


def _check_that_it_listens(head: str) -> None:
    """Ray itself takes minutes to find that nobody does.

    Raises:
        OSError: nobody listens at `head`, or it is no address.
    """
    host, colon, port = head.removeprefix("ray://").rpartition(":")
    if head in ("auto", "local"):
        return
    if not colon or not port.isdigit():
        raise OSError("expected HOST:PORT")
    socket.create_connection((host, int(port)), _PATIENCE).close()
