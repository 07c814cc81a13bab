"""Part 3: on the campaign's own profile predict, then measure: every policy at every load, and a second model.

Every finished replay is kept, so a campaign that was killed goes on with the next one. The second model's kernels are
measured, its host overhead is not: it is the first one's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from calibrate.memory import kv_block_count
from calibrate.microbench.grid import kernels_only
from calibrate.microbench.measure import measure
from calibrate.model import load_model
from calibrate.profile import Profile
from campaign.memory import UTILISATION, room_for_blocks
from campaign.policies import BASELINE, ENGINE, LOADS, POLICIES, REPLAYED, SECONDS
from campaign.profile import grid_of
from campaign.replay import Measured, ReferenceEngine, load, save, scenario_of, write_trace
from campaign.work import BLOCK_SIZE, SECOND_MODELS, Skip, Work, free_memory, write_json
from sim.results.folder import Run, write_table
from sim.results.metric_names import metric
from sim.results.tables import REQUESTS, STEPS
from sim.study.scenario import Scenario
from sim.study.simulate import simulate
from validate.report import write_report
from validate.validation import Policy, Validation, worst

_SECOND = "profile-second"
SECOND_LOADS = ["medium", "overload"]
_HEADLINES = (
    "ttft.mean",
    "ttft.p50",
    "ttft.p99",
    "tpot.mean",
    "tpot.p99",
    "e2e.mean",
    "e2e.p99",
    "throughput.requests",
)


def run(work: Work) -> None:
    if not (work.profile / "profile.json").is_file():
        raise Skip("needs the part profile, which has not been done")
    if work.on_gpu and "kv_blocks" not in work.found:
        work.found["kv_blocks"] = room_for_blocks(Profile.load(work.profile), work.device)
        free_memory(work.device)
    Check(work, work.model, work.profile).run(wanted(work))
    free_memory(work.device)
    model = str(SECOND_MODELS[work.device])
    work.need(90, f"the second model, {load_model(model).name}")
    profile = second_profile(work, model)
    free_memory(work.device)
    Check(work, model, profile).run(wanted_of_second(work))


def wanted(work: Work) -> dict[str, list[str]]:
    """Load → the policies that are replayed at it."""
    replayed = REPLAYED[work.device]
    return {load_name: list(POLICIES[work.device])[: replayed.get(load_name)] for load_name in LOADS}


def wanted_of_second(work: Work) -> dict[str, list[str]]:
    """The same for the second model."""
    return {load_name: list(POLICIES[work.device])[:2] for load_name in SECOND_LOADS}


def write_pages(work: Work) -> None:
    """Tables, validations and reports of the replays that `work.out` holds, on whatever machine.

    Raises:
        Skip: it holds none.
    """
    if not (work.profile / "profile.json").is_file():
        raise Skip("needs the part profile, which has not been done")
    Check(work, work.model, work.profile).write(wanted(work))
    if (second := work.out / _SECOND).is_dir():
        Check(work, str(SECOND_MODELS[work.device]), second).write(wanted_of_second(work))


def second_profile(work: Work, model: str) -> Path:
    """The second model's kernels, with the first one's host overhead."""
    folder = work.out / _SECOND
    if (folder / "profile.json").is_file():
        return folder
    kernels = work.out / "profile-second-kernels"  # until the overhead is in it
    bare = measure(
        load_model(model),
        device=work.device,
        tp=1,
        threads=1,
        grid=kernels_only(grid_of(work)),
        block_size=BLOCK_SIZE,
        out=kernels,
        force=True,
    )
    first = Profile.load(work.profile)
    note = f"{bare.provenance.note}; the host's overhead is that of {first.shape.name}"
    bare.name, bare.provenance = folder.name, replace(bare.provenance, note=note)
    bare.tables["overhead"] = first.table("overhead")
    bare.save(folder, force=True)
    shutil.rmtree(kernels)
    return folder


class Check:
    """All replays of one model."""

    def __init__(self, work: Work, model: str, profile: Path) -> None:
        self._work, self._model, self._profile = work, model, profile
        self._name = load_model(model).name
        self._folder = work.out / "check"
        self._engine = ReferenceEngine(model, work.device, longest=grid_of(work).longest_context)
        self._kv_blocks = self._blocks()
        self._capacities = self._folder / f"{self._name}.capacity.json"

    def run(self, policies: dict[str, list[str]]) -> None:
        """Replay what is missing, write what there is, and say the errors by load and policy.

        Raises:
            TimeUp: what was finished is written all the same.
        """
        try:
            self._replay_all(policies)
        finally:
            self._engine.close()
            errors = self.write(policies)
            found = {"capacity": self._capacity(), "kv_blocks": self._kv_blocks, "errors": errors}
            self._work.found[self._name] = found

    def _replay_all(self, policies: dict[str, list[str]]) -> None:
        self._measure("overload", BASELINE)  # the capacity, on which the other loads depend
        # The baseline at every load first: what is left undone when time is up should be the least.
        for load_name, policy in sorted(
            ((load_name, policy) for load_name, of_load in policies.items() for policy in of_load),
            key=lambda pair: pair[1] != BASELINE,
        ):
            self._measure(load_name, policy)

    def _measure(self, load_name: str, policy: str) -> None:
        if self._kept(load_name, policy) is None:
            self._work.need(SECONDS["cuda"] + 8, f"{self._name}, {load_name} load, {policy}")
            measured = self._engine.measure(self._scenario(load_name, policy))
            save(measured, self._run_folder(load_name, policy))

    def _blocks(self) -> int | None:
        """KV blocks of every replay; those of `ENGINE` where a CPU has no natural number."""
        if not self._work.on_gpu:
            return None
        engine, profile = ENGINE["cuda"], Profile.load(self._profile)
        budget, sequences = engine["max_num_batched_tokens"], engine["max_num_seqs"]
        blocks, _ = kv_block_count(profile, profile.shape, 1, BLOCK_SIZE, UTILISATION, budget, sequences)
        return blocks

    def _scenario(self, load_name: str, policy: str) -> Scenario:
        trace = self._folder / f"{self._name}.{load_name}.trace.parquet"
        if not trace.is_file():
            capacity = self._capacity()
            basis = capacity["predicted"] if load_name == "overload" else capacity["measured"]
            write_trace(trace, self._work.device, rate=LOADS[load_name] * basis, capacity=basis)
        settings = POLICIES[self._work.device][policy]
        return scenario_of(self._model, self._profile, trace, self._work.device, self._kv_blocks, settings)

    def _capacity(self) -> dict[str, float]:
        """Requests a second that the baseline serves under overload: `predicted`, and `measured` once it has been."""
        known: dict[str, float] = {}
        if self._capacities.is_file():
            known = json.loads(self._capacities.read_text(encoding="utf-8"))
        if "predicted" not in known:
            trace = self._folder / f".{self._name}.flood.parquet"
            write_trace(trace, self._work.device, rate=1e6, capacity=200 / SECONDS[self._work.device])
            scenario = scenario_of(self._model, self._profile, trace, self._work.device, self._kv_blocks, {})
            known["predicted"] = _throughput(simulate(scenario))
        if "measured" not in known and (kept := self._kept_capacity_run()) is not None:
            known["measured"] = _throughput(kept.run)
        write_json(self._capacities, known)
        return known

    def _kept_capacity_run(self) -> Measured | None:
        trace = self._folder / f"{self._name}.overload.trace.parquet"
        return self._kept("overload", BASELINE) if trace.is_file() else None

    def _kept(self, load_name: str, policy: str) -> Measured | None:
        return load(self._run_folder(load_name, policy), self._scenario(load_name, policy))

    def _run_folder(self, load_name: str, policy: str) -> Path:
        return self._folder / ".runs" / f"{self._name}.{load_name}.{policy.replace(' ', '-')}"

    def _finished(self, load_name: str, policies: list[str]) -> Iterator[tuple[str, Run, Measured]]:
        """Policy, prediction and measurement of what was replayed at a load."""
        if not (self._folder / f"{self._name}.{load_name}.trace.parquet").is_file():
            return
        for policy in policies:
            kept = self._kept(load_name, policy)
            if kept is not None:
                yield policy, simulate(self._scenario(load_name, policy)), kept

    def write(self, policies: dict[str, list[str]]) -> dict[str, Any]:
        """The tables of all finished replays in one file each, and one validation a load; the errors by both."""
        errors: dict[str, Any] = {}
        requests, steps = [], []
        for load_name, of_load in policies.items():
            finished = list(self._finished(load_name, of_load))
            if not finished:
                continue
            for policy, predicted, measured in finished:
                for said, run in (("predicted", predicted), ("measured", measured.run)):
                    labels = [pl.lit(value).alias(key) for key, value in (("load", load_name), ("policy", policy))]
                    labels.append(pl.lit(said).alias("side"))
                    requests.append(run.requests.select(*labels, *REQUESTS))
                    steps.append(run.steps.select(*labels, *STEPS))
            validation = Validation(
                [
                    Policy(policy, predicted, [measured.run], POLICIES[self._work.device][policy])
                    for policy, predicted, measured in finished
                ],
                engine=finished[0][2].machine,
                lateness=worst([measured.lateness for _, _, measured in finished]),
            )
            validation.write_json(self._folder / f"{self._name}.{load_name}.validation.json")
            with suppress(ModuleNotFoundError):  # a page needs plotly, which a bare machine lacks
                write_report(validation, self._folder / f"{self._name}.{load_name}.report.html")
            errors[load_name] = {
                policy.name: {name: policy.comparison.metrics[name].error for name in _HEADLINES}
                for policy in validation.policies
            }
        if requests:
            write_table(pl.concat(requests), REQUESTS, self._folder / f"{self._name}.requests.parquet")
            write_table(pl.concat(steps), STEPS, self._folder / f"{self._name}.steps.parquet")
        return errors


def _throughput(run: Run) -> float:
    value = metric(run.metrics, "throughput.requests")
    assert value is not None  # some request has finished
    return value
