"""What the preset `transformers-5.24` claims: where blocks suffice, our scheduler forms transformers' own batches.

Both are driven step by step, in no time at all, and every batch is compared: who computes how many tokens.
"""

from importlib.metadata import PackageNotFoundError, version
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.model import ModelShape
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler

try:
    installed = version("transformers")
except PackageNotFoundError:
    installed = ""
pytestmark = pytest.mark.skipif(not installed.startswith("5.24."), reason="transformers 5.24 is not installed")

MODEL = ModelShape("one layer", 16, 1, 2, 1, 8, 16, 97, max_context=512, dtype_bytes=4)
PAGE = 4
AMPLE = 2000  # blocks, of which no test fills the fifteen percent that stop admissions when only they are left


class Job(NamedTuple):
    """A request that comes before step `step`; its first `shared` pages are those of its `family`."""

    step: int
    family: int
    shared: int
    own: int
    outputs: int

    @property
    def tokens(self) -> int:
        return PAGE * self.shared + self.own

    def prompt(self, number: int) -> list[int]:
        pages, own = Random(f"family {self.family}"), Random(f"request {number}")
        shared = [pages.randrange(97) for _ in range(PAGE * self.shared)]
        return shared + [own.randrange(97) for _ in range(self.own)]

    def pages(self) -> list[int]:
        return [1000 * self.family + i for i in range(self.shared)]


Batches = list[dict[int, int]]


def theirs(config: EngineConfig, jobs: list[Job]) -> Batches:
    """Batch by batch, request → tokens; an empty one where nothing is inside."""
    import torch

    from validate.replay.transformers_manager import build

    manager = build(MODEL, config, device="cpu", dtype=torch.float32, seed=0, weights=None).manager
    processor = manager.batch_processor
    coming, batches = list(enumerate(jobs)), []
    with torch.no_grad():
        while True:
            while coming and coming[0][1].step <= len(batches):
                number, job = coming.pop(0)
                name = str(number)
                manager.add_request(job.prompt(number), request_id=name, max_new_tokens=job.outputs, eos_token_id=-1)
            if processor.prepare_next_batch():
                inside = processor.inputs_and_outputs.requests_in_batch
                batches.append({int(one.state.request_id): one.query_length for one in inside})
                processor._generation_step(manager.model)
                processor.update_batch()
            elif coming:
                batches.append({})
            else:
                return batches


def ours(config: EngineConfig, jobs: list[Job]) -> Batches:
    scheduler = Scheduler(config)
    coming, batches = list(enumerate(jobs)), []
    while True:
        while coming and coming[0][1].step <= len(batches):
            number, job = coming.pop(0)
            pages = job.pages() if config.enable_prefix_caching else ()
            request = Request(number, float(job.step), job.tokens, job.outputs, pages, PAGE)
            scheduler.add(request)
        plan = scheduler.schedule(float(len(batches)))
        if plan is not None:
            chunks = {chunk.request.request_id: chunk.tokens for chunk in plan.chunks}
            batches.append(chunks | {request.request_id: 1 for request in scheduler.decoding(plan)})
            scheduler.finish(plan, float(len(batches)))
        elif coming:
            batches.append({})
        else:
            return batches


def engine(seats: int, budget: int, *, caching: bool) -> EngineConfig:
    return EngineConfig(
        block_size=PAGE,
        kv_blocks=AMPLE,
        max_num_batched_tokens=max(seats, budget),
        max_num_seqs=seats,
        enable_prefix_caching=caching,
    )


unshared = st.builds(Job, st.integers(0, 30), st.just(0), st.just(0), st.integers(1, 60), st.integers(1, 20))


@settings(max_examples=15, deadline=None)
@given(st.lists(unshared, min_size=1, max_size=12), st.sampled_from([1, 2, 4, 16]), st.sampled_from([16, 32, 64, 512]))
def test_batches_are_the_same_whatever_the_budget_and_the_seats(jobs: list[Job], seats: int, budget: int) -> None:
    jobs.sort()
    config = engine(seats, budget, caching=False)
    batches = theirs(config, jobs)
    assert batches == ours(config, jobs)
    computed = sum(sum(batch.values()) for batch in batches)
    assert computed == sum(job.tokens + job.outputs - 1 for job in jobs)  # nothing twice, and nothing for the last


family = st.builds(Job, st.just(0), st.integers(1, 2), st.integers(0, 10), st.integers(1, 30), st.integers(2, 12))


@settings(max_examples=15, deadline=None)
@given(st.lists(family, min_size=2, max_size=8), st.sampled_from([16, 64, 512]))
def test_a_prompt_finds_the_pages_of_those_before_it(jobs: list[Job], budget: int) -> None:
    """One prompt at a time, each of at least two output tokens; the others may still be decoding."""
    wait = 1 + -(-70 // budget)  # the steps of the longest prompt
    jobs = [job._replace(step=wait * i) for i, job in enumerate(jobs)]
    config = engine(16, budget, caching=True)
    assert theirs(config, jobs) == ours(config, jobs)


def first_tokens(batches: Batches, number: int) -> int:
    return next(batch[number] for batch in batches if number in batch)


def test_equal_prompts_in_one_step_are_computed_twice_there_and_once_here() -> None:
    """A page is known to others when the step that computed it has ended; vLLM's when it is scheduled."""
    jobs = [Job(0, 1, 10, 1, 2), Job(0, 1, 10, 2, 2)]
    config = engine(16, 512, caching=True)
    assert first_tokens(theirs(config, jobs), 1) == 42
    assert first_tokens(ours(config, jobs), 1) == 2


def test_a_request_that_ends_with_its_first_token_leaves_no_pages_there() -> None:
    jobs = [Job(0, 1, 10, 1, 1), Job(5, 1, 10, 2, 2)]
    config = engine(16, 512, caching=True)
    assert first_tokens(theirs(config, jobs), 1) == 42
    assert first_tokens(ours(config, jobs), 1) == 2
