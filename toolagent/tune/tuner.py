"""From a search to Tune: searcher, scheduler, names, limits."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune import ExperimentAnalysis, ResumeConfig
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.tune_state import (
    OptunaTrials,
    SeededVariants,
    TrialsAtOnce,
    has_trials,
    take_over,
)
from toolagent.errors import UserError
from toolagent.installation import install_command
from toolagent.tune.folder import SearchFolder
from toolagent.tune.rows import BASE, is_base, reports_of
from toolagent.tune.search import ASHA as HALVING
from toolagent.tune.search import GRID, OPTUNA, PBT, SEEDS, Search
from toolagent.tune.space import short_names, value_text
from toolagent.tune.trial import SCORE

_LONGEST_DIRECTORY = 120


def earlier_trials(search: Search, folder: SearchFolder) -> ExperimentAnalysis | None:
    """The trials of a search that is to be resumed; None if it has none yet.

    Raises:
        UserError: they can't be read, or are not of this search.
    """
    if not has_trials(folder.trials):
        return None
    earlier = take_over(folder.trials.resolve())
    seed = {SEEDS} if search.seeds else set()
    known = (seed, seed | search.space.keys())  # of the base, and of what is drawn
    if any(trial.config.keys() not in known for trial in earlier.trials or []):
        raise UserError(
            f"--resume {folder.path}: {folder.search.name} is not that of the trials in it; was "
            "it changed?"
        )
    return earlier


def run_trials(
    search: Search,
    folder: SearchFolder,
    trainable: Any,
    at_once: int,
    earlier: ExperimentAnalysis | None,
    callbacks: list[tune.Callback],
) -> None:
    """Runs trials until all have ended, or until a callback ends the search.

    Everything is built from the search and from what is given here. Unfinished trials in
    `earlier` go on from their last checkpoints, failed ones stay failed.
    """
    grid = search.settings.search == GRID
    space = {key: distribution.domain(grid) for key, distribution in search.space.items()}
    seeds = {SEEDS: tune.grid_search(search.seeds)} if search.seeds else {}
    names = short_names(list(search.space))

    def name(trial: Trial) -> str:
        """'lr=0.0021 episodes_per_update=512': the trial's settings; 'base' for none."""
        shown = names | {SEEDS: "seed"}
        text = [f"{shown[key]}={value_text(value)}" for key, value in trial.config.items()]
        return " ".join([BASE, *text] if is_base(trial.config) else text)

    def directory(trial: Trial) -> str:
        """The name as a folder's, and the trial's id, which makes it unique."""
        text = re.sub(r"[^A-Za-z0-9_.=+-]+", ",", name(trial)).strip(",")
        return f"{text[:_LONGEST_DIRECTORY]},{trial.trial_id}"

    def experiment_of(config: dict[str, Any], num_samples: int) -> Experiment:
        return Experiment(
            folder.trials.name,
            trainable,
            config=config,
            num_samples=num_samples,
            storage_path=str(folder.path.resolve()),
            # All are kept: PBT copies older ones, and the best trial's last is the result.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            trial_name_creator=name,
            trial_dirname_creator=directory,
        )

    experiment = experiment_of(space | seeds, search.settings.num_samples)
    # A trial without values: its configuration is the base.
    base = experiment_of(seeds, 1) if search.tries_base else None
    searcher = _searcher(search, at_once, base)
    if earlier is not None:
        searcher.go_on_after(experiment, earlier.trials)
    # Not a Tuner: that one can only be resumed with all that it was when it was made.
    tune.run(
        experiment,  # type: ignore[arg-type]  # its documentation says so, its hint does not
        name=folder.trials.name,
        config=space,
        metric=SCORE,
        mode="max",
        search_alg=searcher,
        scheduler=_scheduler(search, space, earlier),
        resume_config=None if earlier is None else ResumeConfig(),
        callbacks=callbacks,
        raise_on_failed_trial=False,
        verbose=0,
    )


class SearchEnd(tune.Callback):
    """Ends the search when the user wishes it, or when its time is up, counted from the moment at
    which this process began with it.

    By the signal that Tune takes for it: Tune saves its state, and the trials under way can be
    resumed. A `tune.Stopper` would mark them as ended.
    """

    def __init__(self, interrupt: Interrupt, stop_time_s: float | None):
        self.interrupt = interrupt
        self.stop_time_s = math.inf if stop_time_s is None else stop_time_s
        self.reason: str | None = None  # "interrupted" or "time", once the search was ended
        self._start = time.monotonic()

    def setup(self, stop: Any = None, num_samples: Any = None, **info: Any) -> None:
        """The clock begins."""
        self._start = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks for a reason."""
        if self.reason is not None:
            return
        if self.interrupt.requested:
            self.reason = "interrupted"
        elif time.monotonic() - self._start >= self.stop_time_s:
            self.reason = "time"
        if self.reason is not None:
            signal.raise_signal(signal.SIGUSR1)


class ASHA(ASHAScheduler):
    """ASHA that never stops the base: the others are compared with what it comes to."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """What is to happen with the trial; a trial ends at its limits by itself."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if is_base(trial.config) else decision


class ResumedASHA(ASHA):
    """ASHA that is first told what the trials reported before, so that new ones are compared with
    them: Tune keeps no scheduler's state."""

    def __init__(self, earlier: ExperimentAnalysis, **settings: Any):
        super().__init__(**settings)
        self._earlier = earlier

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune is about to begin, and says what is compared."""
        accepted = super().set_search_properties(metric, mode, **spec)
        controller: Any = None  # none of these methods looks at it
        for trial in self._earlier.trials or []:
            self.on_trial_add(controller, trial)
        for trial, report, ended in in_time(self._earlier):
            (self.on_trial_complete if ended else self.on_trial_result)(controller, trial, report)
        return accepted


def in_time(analysis: ExperimentAnalysis) -> Iterator[tuple[Trial, dict[str, Any], bool]]:
    """Every report of every trial, the oldest first, and whether the trial ended with it.

    Of a trial that will be continued, reports after its last checkpoint are left out: it makes
    them again.
    """
    found = []
    for trial in analysis.trials or []:
        reports = reports_of(analysis, trial)
        if not trial.is_finished():
            checkpoint = trial.latest_checkpoint_result
            last = checkpoint.metrics["training_iteration"] if checkpoint else 0
            reports = [report for report in reports if report["training_iteration"] <= last]
        for report in reports:
            ended = trial.status == Trial.TERMINATED and report is reports[-1]
            found.append((trial, report, ended))
    found.sort(key=lambda row: row[1]["timestamp"])
    yield from found


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
                f"search: optuna is not installed; {install_command('tune')}, or use "
                "'search: random'"
            ) from None


def _searcher(
    search: Search, at_once: int, base: Experiment | None
) -> SeededVariants | OptunaTrials:
    settings = search.settings
    if settings.search == OPTUNA:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return OptunaTrials(TrialsAtOnce(OptunaSearch(seed=settings.seed), max_concurrent=at_once))
    return SeededVariants(
        base,
        max_concurrent=at_once,
        random_state=settings.seed,
        constant_grid_search=bool(search.seeds),  # the same values for all seeds
    )


def _scheduler(
    search: Search, space: dict[str, Any], earlier: ExperimentAnalysis | None
) -> TrialScheduler:
    settings = search.settings
    time_attr, budget = settings.budget
    if settings.scheduler == HALVING:
        rungs: dict[str, Any] = {
            "time_attr": time_attr,
            "max_t": budget,
            "grace_period": budget * settings.asha.grace_share,
            "reduction_factor": settings.asha.reduction_factor,
        }
        return ASHA(**rungs) if earlier is None else ResumedASHA(earlier, **rungs)
    if settings.scheduler == PBT:
        return PopulationBasedTraining(
            time_attr=time_attr,
            perturbation_interval=budget * settings.pbt.interval_share,
            quantile_fraction=settings.pbt.quantile_fraction,
            hyperparam_mutations=space,
        )
    return FIFOScheduler()
