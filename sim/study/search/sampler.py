"""Which settings to try next: Optuna proposes, a batch at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ground.errors import UserError
from sim.study.search.objectives import Objective
from sim.study.search.space import Choice, Setting, Space, exists

if TYPE_CHECKING:
    import optuna

Method = Literal["tpe", "nsga2", "random"]

_WHOLE = "simulated whole"
_TRIES = 20  # proposals a point, before a batch stays smaller: what a sampler proposes again is answered at once


class Sampler:
    """Optuna's samplers behind ask and tell. A batch is asked for before any of it is told, and told in order, so that
    what is proposed depends neither on who simulates nor on what finishes first.

    Nothing of it is stored: with the same seed and answers it proposes the same again, which is how a search goes on.
    TPE (Bergstra et al. 2011; multivariate, and for parameters under others in groups), NSGA-II (Deb et al. 2002; a
    batch is a generation), or uniform draws.
    """

    def __init__(self, space: Space, objectives: Sequence[Objective], method: Method, *, batch: int, seed: int) -> None:
        """Raises UserError: Optuna is not installed."""
        optuna = _optuna()
        self._space = space
        self._known: dict[str, Answer] = {}
        self._open: dict[str, list[Any]] = {}
        samplers = optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: Any
            if method == "tpe":
                sampler = samplers.TPESampler(
                    n_startup_trials=max(batch, 10), multivariate=True, group=True, constant_liar=True, seed=seed
                )
            elif method == "nsga2":
                sampler = samplers.NSGAIISampler(population_size=max(batch, 2), seed=seed)
            else:
                sampler = samplers.RandomSampler(seed=seed)
        self._study = optuna.create_study(
            study_name="search",
            sampler=sampler,
            directions=["minimize" if each.wanted == "min" else "maximize" for each in objectives],
        )

    def ask(self, count: int) -> list[Setting]:
        """Up to `count` settings that were not proposed before; none when the sampler finds no more."""
        batch: list[Setting] = []
        for _ in range(_TRIES * count):
            if len(batch) == count:
                break
            trial = self._study.ask()
            setting = self._choose(trial)
            key = setting_key(setting)
            if key in self._known:
                self._tell(trial, self._known[key])
            elif key in self._open:
                self._open[key].append(trial)
            else:
                self._open[key] = [trial]
                batch.append(setting)
        return batch

    def tell(self, setting: Setting, answer: Answer) -> None:
        """What came of a setting that was asked for."""
        key = setting_key(setting)
        self._known[key] = answer
        for trial in self._open.pop(key):
            self._tell(trial, answer)

    def write(self, path: Path) -> None:
        """The trials as an Optuna journal, for Optuna's own tools; an older one is replaced."""
        optuna = _optuna()
        path.unlink(missing_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        optuna.copy_study(
            from_study_name=self._study.study_name,
            from_storage=self._study._storage,
            to_storage=storage,
        )

    def _choose(self, trial: optuna.trial.Trial) -> Setting:
        setting: Setting = {}
        for key, parameter in self._space:
            if not exists(parameter, setting):
                continue
            if isinstance(parameter, Choice):
                places = len(parameter.values)
                place = (
                    trial.suggest_int(key, 0, places - 1)
                    if parameter.ordered
                    else trial.suggest_categorical(key, list(range(places)))
                )
                setting[key] = parameter.values[place]
            elif parameter.integer:
                setting[key] = trial.suggest_int(key, int(parameter.low), int(parameter.high) - 1, log=parameter.log)
            else:
                setting[key] = trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)
        return setting

    def _tell(self, trial: optuna.trial.Trial, answer: Answer) -> None:
        pruned = _optuna().trial.TrialState.PRUNED
        for name, violation in answer.violations.items():
            trial.set_constraint(name, violation)
        # What did not come to its end is not failed, which a sampler would forget, but breaks a constraint of its own.
        trial.set_constraint(_WHOLE, float(answer.values is None))
        if answer.values is None:
            self._study.tell(trial, state=pruned)
        else:
            self._study.tell(trial, list(answer.values))


class Answer:
    """What a sampler is told: the objectives' values, or none where the setting was not simulated to its end, and by
    how much it misses each constraint."""

    def __init__(self, values: Sequence[float] | None, violations: dict[str, float]) -> None:
        self.values = values
        self.violations = violations


def setting_key(setting: Setting) -> str:
    """The same text for equal settings."""
    return json.dumps(setting, sort_keys=True, default=str)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"simctl search needs Optuna ({error}); pip install 'simctl[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
