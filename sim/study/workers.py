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
from threading import Thread
from typing import Any, TypeVar

from ground.errors import UserError

Result = TypeVar("Result")

# Seconds. Once polars is imported its signal handler makes waits go on after Ctrl-C, so none may be long.
_INTERRUPTIBLE = 0.1


def call_each(
    call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Generator[Result, None, None]:
    """Yield `call(*a)` for each of `arguments`, as they finish. `call` is a function of a module.

    Where the generator is closed before its end, as by Ctrl-C, the calls under way are ended, not waited for.

    Raises:
        UserError: a worker was killed.
    """
    others = set(active_children())
    # A fresh interpreter each: forking a process that runs polars' threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    todo = iter(arguments)
    running: set[Future[Result]] = set()
    try:
        while True:
            # A few in hand, not all: each is pickled when it is handed over.
            for each in islice(todo, 2 * workers - len(running)):
                with _interrupts_blocked():
                    running.add(pool.submit(call, *each))
            if not running:
                return
            finished, running = wait(running, _INTERRUPTIBLE, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, perhaps for want of memory; the same command goes on, fewer --workers need less"
        ) from error
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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
