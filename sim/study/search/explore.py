"""Look for the best settings of a scenario: propose, simulate, stop what is hopeless, compare what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from ground.folder import open_folder
from sim.study.points import Point
from sim.study.search.ranking import chosen, costs_of, feasible, front, ranked
from sim.study.search.sampler import Answer, Sampler
from sim.study.search.space import Setting
from sim.study.search.study import SearchStudy
from sim.study.search.trials import Trial, Trials
from sim.study.workers import Workers
from traces.streams import stream

BASELINE = 0


@dataclass
class Found:
    """All trials by their number, and what the best of them did under seeds that the search had not seen.

    `whole`: every setting of the space was tried. `front` and `winners`: numbers, best first. `audited`: trials that
    had been stopped and were simulated whole afterwards. `fresh`: of winners and baseline.
    """

    study: SearchStudy
    whole: bool
    trials: dict[int, Trial] = field(default_factory=dict)
    front: list[int] = field(default_factory=list)
    winners: list[int] = field(default_factory=list)
    audited: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)  # of those, the ones that would have won
    fresh: dict[int, Trial] = field(default_factory=dict)
    requests: int = 0  # simulated of proposed points, parts included; not of baseline, audit and fresh seeds

    @property
    def baseline(self) -> int | None:
        return BASELINE if self.trials[BASELINE].status == "ok" else None


def search(
    study: SearchStudy,
    folder: Path,
    *,
    workers: Workers | None = None,
    on_run: Callable[[Point], None] = lambda _: None,
) -> Found:
    """Search `study`, and go on where `folder` says that it was; results do not depend on `workers`.

    `runs.jsonl` in it gets every finished run (a setting under one seed and trace). Nothing else is needed to go on:
    the sampler is asked again and told again, and only what the log does not hold is simulated. `on_run` is told of
    every finished run, also of those found.

    Raises:
        UserError: `folder` holds something else, or another search; or it cannot be written; or a worker was killed;
            or the space needs a sampler and Optuna is missing.
    """
    open_search_folder(study, folder)
    space = study.space
    whole = space.size(study.points) is not None
    sampler = None
    if not whole:
        sampler = Sampler(space, study.wanted, study.method, batch=study.batch, seed=study.seed)
    trials = Trials(study, folder / "runs.jsonl", workers=workers, on_run=on_run)
    found = Found(study, whole)
    (found.trials[BASELINE],) = trials.run([study.baseline])
    for batch in _batches(study, sampler):
        for trial in _halved(study, trials, batch, found):
            found.trials[len(found.trials)] = trial
            if sampler is not None:
                sampler.tell(trial.setting, _answer(study, trial))
    _audit(study, trials, found)
    found.front = front(found.trials, study.wanted, study.limits)
    found.winners = _winners(study, found)
    compared = list(dict.fromkeys([*found.winners, *([BASELINE] if found.baseline is not None else [])]))
    again = trials.run([found.trials[number].setting for number in compared], fresh=True)
    found.fresh = dict(zip(compared, again, strict=True))
    if sampler is not None:
        sampler.write(folder / "optuna.journal")
    return found


def open_search_folder(study: SearchStudy, folder: Path) -> None:
    """Make `folder` that of `study`, unless it is already.

    Raises:
        UserError: it holds something else, or another search; or it cannot be written.
    """
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    open_folder(folder, "search.yaml", text)


def expected_runs(study: SearchStudy) -> int:
    """How many runs a search takes if none fails, is refused, or is proposed twice."""
    size = study.space.size(study.points)
    batches = [size] if size is not None else [study.batch] * (study.points // study.batch)
    if size is None:
        batches.append(study.points % study.batch)
    trials = 1 + sum(_runs_of_batch(study, batch) for batch in batches if batch)
    audit = 0 if study.stop_early is None else study.stop_early.audit
    return study.seeds * max(1, len(study.traces)) * (trials + audit + study.winners + 1)


def _runs_of_batch(study: SearchStudy, batch: int) -> int:
    total = 0
    for _ in study.parts:
        total += batch
        batch = study.kept(batch)
    return total + batch


def _batches(study: SearchStudy, sampler: Sampler | None) -> Iterator[list[Setting]]:
    """Settings that are proposed together: all of a small space, else what the sampler says until points run out."""
    if sampler is None:
        yield list(study.space.settings())
        return
    left = study.points
    while left > 0 and (batch := sampler.ask(min(study.batch, left))):
        left -= len(batch)
        yield batch


def _halved(study: SearchStudy, trials: Trials, batch: list[Setting], found: Found) -> list[Trial]:
    """The batch, in its order. After each part of the trace only the best go on to the next."""
    ended: dict[int, Trial] = {}
    alive = list(range(len(batch)))
    for share in study.parts:
        tried = trials.run([batch[place] for place in alive], share=share)
        found.requests += sum(trial.requests for trial in tried)
        order = ranked(tried, study.wanted, study.limits)
        going = set(order[: study.kept(len(alive))])
        for place, trial in enumerate(tried):
            if place not in going:
                ended[alive[place]] = replace(trial, status="stopped") if trial.status == "ok" else trial
        alive = [alive[place] for place in sorted(going)]
    ended |= zip(alive, trials.run([batch[place] for place in alive]), strict=True)
    found.requests += sum(ended[place].requests for place in alive)
    return [ended[place] for place in range(len(batch))]


def _answer(study: SearchStudy, trial: Trial) -> Answer:
    values = [trial.mean(each.metric) for each in study.wanted] if trial.status == "ok" else None
    return Answer(values, trial.violations(study.limits))


def _audit(study: SearchStudy, trials: Trials, found: Found) -> None:
    """Simulate some of the stopped whole, drawn by the search's seed: how often was it wrong to stop?"""
    stopped = [number for number, trial in found.trials.items() if trial.status == "stopped"]
    count = min(len(stopped), study.stop_early.audit if study.stop_early is not None else 0)
    if not count:
        return
    drawn = stream(study.seed, "audit").choice(stopped, size=count, replace=False)
    found.audited = sorted(int(number) for number in drawn)
    best = {number: found.trials[number] for number in front(found.trials, study.wanted, study.limits)}
    whole = trials.run([found.trials[number].setting for number in found.audited])
    for number, trial in zip(found.audited, whole, strict=True):
        if number in front({**best, number: trial}, study.wanted, study.limits):
            found.missed.append(number)
        found.trials[number] = trial


def _winners(study: SearchStudy, found: Found) -> list[int]:
    """The best of one objective; of several, some of the front."""
    if len(study.wanted) > 1:
        return chosen(found.front, study.winners)
    able = feasible(found.trials, study.limits)
    return sorted(able, key=lambda number: (costs_of(found.trials[number], study.wanted), number))[: study.winners]
