"""From a search to Tune's `Tuner`: searcher, scheduler, names, limits."""

from __future__ import annotations

import functools
import math
import re
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator

from toolagent.config import documents
from toolagent.errors import UserError
from toolagent.tune.folder import SearchFolder
from toolagent.tune.progress import SearchProgress
from toolagent.tune.search import ASHA, GRID, OPTUNA, PBT, Search
from toolagent.tune.space import short_names, value_text
from toolagent.tune.trial import SCORE

_LONGEST_DIRECTORY = 120


def new_tuner(search: Search, folder: SearchFolder, trainable: Any, at_once: int) -> tune.Tuner:
    """A search from its beginning. Writes Tune's folder."""
    settings = search.settings
    names = functools.partial(_name, short_names(list(search.space)))
    searcher = _searcher(search, at_once)
    return tune.Tuner(
        trainable,
        param_space=_param_space(search),
        tune_config=tune.TuneConfig(
            metric=SCORE,
            mode="max",
            search_alg=searcher,
            scheduler=_scheduler(search),
            num_samples=settings.num_samples,
            # A BasicVariantGenerator knows its own limit; Tune would refuse to wrap it.
            max_concurrent_trials=at_once if settings.search == OPTUNA else None,
            trial_name_creator=names,
            trial_dirname_creator=functools.partial(_directory, names),
        ),
        run_config=tune.RunConfig(
            name=folder.trials.name,
            storage_path=str(folder.path.resolve()),
            stop=SearchLimit(folder.search.resolve()),
            callbacks=[SearchProgress(search.num_trials, list(search.space))],
            # All are kept: PBT copies older ones, and the best trial's last is the result.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    )


def restored_tuner(search: Search, folder: SearchFolder, trainable: Any) -> tune.Tuner:
    """The search in the folder, to be continued: unfinished trials from their last checkpoints.

    Tune restores searcher, names, limits and callbacks from its own state. A scheduler begins
    anew: ASHA compares a trial with what it sees from here on.

    Raises:
        UserError: the search is not the one that Tune's state is about.
    """
    try:
        return tune.Tuner.restore(
            str(folder.trials.resolve()),
            trainable=trainable,
            resume_unfinished=True,
            param_space=_param_space(search),
        )
    except ValueError:  # Tune compares the keys and the Algorithm's class with its own state
        raise UserError(
            f"--resume {folder.path}: {folder.search.name} or {folder.base.name} is not that of "
            "the trials in it; was it changed?"
        ) from None


class SearchLimit(tune.Stopper):
    """Ends the search after `stop_time_s`, which is read from the search's file when it begins:
    a resumed search may have been given another limit."""

    def __init__(self, search_file: Path):
        self._file = search_file
        self._end: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials end themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether the time is up."""
        now = time.monotonic()
        if self._end is None:
            text = self._file.read_text(encoding="utf-8")
            limit = documents.parse(text, self._file.name)["stop_time_s"]
            self._end = now + (math.inf if limit is None else float(limit))
        return now >= self._end


def check_searcher(search: Search) -> None:
    """Refuses a search whose package is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    if search.settings.search == OPTUNA:
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UserError(
                "search: optuna is not installed; pip install 'toolagent[tune]', or use "
                "'search: random'"
            ) from None


def _param_space(search: Search) -> dict[str, Any]:
    grid = search.settings.search == GRID
    return {key: distribution.domain(grid) for key, distribution in search.space.items()}


def _searcher(search: Search, at_once: int) -> Any:
    settings = search.settings
    if settings.search == OPTUNA:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return OptunaSearch(seed=settings.seed)
    return BasicVariantGenerator(max_concurrent=at_once, random_state=settings.seed)


def _scheduler(search: Search) -> TrialScheduler:
    settings = search.settings
    time_attr, budget = settings.budget
    if settings.scheduler == ASHA:
        return ASHAScheduler(
            time_attr=time_attr,
            max_t=budget,  # type: ignore[arg-type]  # any number; so is the next
            grace_period=budget * settings.asha.grace_share,  # type: ignore[arg-type]
            reduction_factor=settings.asha.reduction_factor,
        )
    if settings.scheduler == PBT:
        return PopulationBasedTraining(
            time_attr=time_attr,
            perturbation_interval=budget * settings.pbt.interval_share,
            quantile_fraction=settings.pbt.quantile_fraction,
            hyperparam_mutations={
                key: distribution.domain() for key, distribution in search.space.items()
            },
        )
    return FIFOScheduler()


def _name(names: dict[str, str], trial: Trial) -> str:
    """'lr=0.0021 episodes_per_update=512': the trial's settings."""
    return " ".join(f"{names[key]}={value_text(trial.config[key])}" for key in names)


def _directory(name: Any, trial: Trial) -> str:
    """The name as a folder's, and the trial's id, which makes it unique."""
    text = re.sub(r"[^A-Za-z0-9_.=+-]+", ",", name(trial)).strip(",")
    return f"{text[:_LONGEST_DIRECTORY]},{trial.trial_id}"
