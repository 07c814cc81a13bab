"""Independent calls in processes of their own, which end with their parent however it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Protocol, TypeVar

from ground.errors import UserError

Result = TypeVar("Result")

# Seconds. Once polars is imported its signal handler makes waits go on after Ctrl-C, so none may be long.
INTERRUPTIBLE = 0.1


class Workers(Protocol):
    """Who makes independent calls. A context manager: what was started for the calls ends with it."""

    def each(self, call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Generator[Result, None, None]:
        """Yield `call(*a)` for each of `arguments`, as they finish. `call` is a function of a module.

        Where the generator is closed before its end, as by Ctrl-C, the calls under way are ended, not waited for.

        Raises:
            UserError: a worker was lost, and its call with it.
        """
        ...

    def __enter__(self) -> Workers: ...

    def __exit__(self, *_: object) -> None: ...


class LocalWorkers:
    """Processes of this machine. They start when first needed and stay for the calls that follow; one worker, or one
    call alone, needs no other process than this."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()

    def each(self, call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Generator[Result, None, None]:
        if self._count == 1 or len(arguments) < 2:
            return (call(*each) for each in arguments)
        return self._in_processes(call, arguments)

    def _in_processes(
        self, call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> Generator[Result, None, None]:
        pool = self._pool or self._start()
        todo = iter(arguments)
        running: set[Future[Result]] = set()
        try:
            while True:
                # A few in hand, not all: each is pickled when it is handed over.
                for each in islice(todo, 2 * self._count - len(running)):
                    with _interrupts_blocked():
                        running.add(pool.submit(call, *each))
                if not running:
                    return
                finished, running = wait(running, INTERRUPTIBLE, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            self._end(at_once=False)
            raise UserError(
                "a worker was killed, perhaps for want of memory; the same command goes on, fewer --workers need less"
            ) from error
        except BaseException:
            self._end(at_once=True)
            raise

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(at_once=False)

    def _start(self) -> ProcessPoolExecutor:
        self._others = set(active_children())
        # A fresh interpreter each: forking a process that runs polars' threads can hang.
        self._pool = ProcessPoolExecutor(self._count, mp_context=get_context("spawn"), initializer=_end_with_parent)
        return self._pool

    def _end(self, *, at_once: bool) -> None:
        if self._pool is None:
            return
        if at_once:
            for worker in set(active_children()) - self._others:
                worker.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._pool = None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A worker started meanwhile never sees Ctrl-C, which a terminal sends to all: the parent ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """In a worker: a parent that is killed cannot stop its workers, and they would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
