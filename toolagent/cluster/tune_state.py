"""What a resumed search takes from Ray Tune's files, and what it must not take.

`Tuner.restore` unpickles the whole earlier process: the experiment with its absolute paths, the
limit of concurrent trials, stoppers with their deadlines, callbacks. A search that was moved or
copied then writes into the folder it came from, and its time limit never acts. Ray has no option
for it. So a search is always built from its own files and the command that was given, and only
this is taken from Tune's files: its trials (settings, status, results, checkpoints), and what
Optuna has learned.

Tune's classes that are replaced or read here are developer API of Ray 2.60.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint, ExperimentAnalysis
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import ConcurrencyLimiter, SearchGenerator
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.utils.serialization import TuneFunctionEncoder

from toolagent.cluster.ray_internals import trial_without_values
from toolagent.errors import UserError

_TRIALS_FILE = "experiment_state-{}.json"
# Tune reads the file whose name is last in the alphabet. Names hold the local time, which on
# another machine may be an earlier one, so what is taken over gets a name before all of those.
_STATE_FILES = (_TRIALS_FILE, "search_gen_state-{}.json", "searcher-state-{}.pkl")
_FIRST = "0"


def has_trials(folder: Path) -> bool:
    """Whether Tune has written down any trial in its folder."""
    return any(
        '"trial_data": []' not in state.read_text(encoding="utf-8")
        for state in folder.glob(_TRIALS_FILE.format("*"))
    )


def take_over(folder: Path) -> ExperimentAnalysis:
    """Makes the state in Tune's folder this process's own, and returns its trials and results.

    Paths become those of `folder`, wherever it was written; nothing of the earlier process's
    controller is kept.

    Args:
        folder: Tune's folder of a search, absolute, with `has_trials`.

    Raises:
        UserError: it can't be read or written.
    """
    try:
        analysis = ExperimentAnalysis(str(folder))
        # A place of its own for what waits to be copied to `folder`. With the earlier one's, two
        # copies of a search in one running cluster would mix their results.
        staging = uuid.uuid4().hex
        for trial in analysis.trials or []:
            trial.storage._timestamp = staging
            _relocate(trial)
            trial.stub = False
            trial.invalidate_json_state()
            trial.run_metadata.invalidate_cache()
        state = {
            "trial_data": [trial.get_json_state() for trial in analysis.trials or []],
            "runner_data": {"_session_str": _FIRST, "_start_time": 0.0},
            "stats": {"start_time": 0.0},
        }
        text = json.dumps(state, cls=TuneFunctionEncoder)
        for template in _STATE_FILES:
            _keep_newest(folder, template)
        path = folder / _TRIALS_FILE.format(_FIRST)
        waiting = path.with_suffix(".tmp")
        waiting.write_text(text, encoding="utf-8")
        os.replace(waiting, path)
    except Exception as error:  # unpickling can fail in any way
        raise UserError(
            f"--resume {folder.parent}: the trials in {folder.name} can't be taken over "
            f"({type(error).__name__}: {error})"
        ) from None
    return analysis


def _relocate(trial: Trial) -> None:
    """Its checkpoints are in its folder. Tune's own replacement of the path is done twice, which
    fails where the new path ends with the old one."""
    manager = trial.run_metadata.checkpoint_manager
    results = [*manager.best_checkpoint_results, manager.latest_checkpoint_result]
    for result in filter(None, results):
        path = Path(trial.storage.trial_fs_path, Path(result.checkpoint.path).name)
        result.checkpoint = Checkpoint(str(path), trial.storage.storage_filesystem)


def _keep_newest(folder: Path, template: str) -> None:
    """Deletes all but the newest, which gets the name that comes first. Killed in the middle, the
    newest is still the one that is read."""
    *older, newest = sorted(folder.glob(template.format("*"))) or [None]
    for path in older:
        path.unlink()
    if newest is not None:
        os.replace(newest, folder / template.format(_FIRST))


class SeededVariants(BasicVariantGenerator):
    """Random and grid search. Its state is not written down: what was drawn is drawn again.

    Args:
        first: an experiment whose trials come before those that are drawn. Tune's
            `points_to_evaluate` can hold no values outside the space, and replaces samples.
        **options: of `BasicVariantGenerator`.
    """

    def __init__(self, first: Experiment | None = None, **options: Any):
        super().__init__(**options)
        self._first = first

    def add_configurations(self, experiments: Any) -> None:
        """Takes the experiment to draw from."""
        if self._first is not None:
            super().add_configurations([self._first])
        super().add_configurations(experiments)

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Nothing has to be saved."""

    def has_checkpoint(self, dirpath: str) -> bool:
        """Nothing has to be restored."""
        return False

    def go_on_after(self, experiment: Experiment, trials: Sequence[Any]) -> None:
        """Draws the experiment's trials up to those that exist; the next one is new."""
        self._uuid_prefix = trials[0].trial_id.rpartition("_")[0] + "_"
        self.add_configurations([experiment])
        at_once, self.max_concurrent = self.max_concurrent, 0
        for _ in trials:
            self.next_trial()
        self.max_concurrent = at_once
        self._live_trials = {trial.trial_id for trial in trials if not trial.is_finished()}


class OptunaTrials(SearchGenerator):
    """Optuna's search: what it has learned is saved and restored, the experiment is this one's.

    The first trial has no values, so that its configuration is the base, whatever the space.
    Optuna, which knows values of the space only, is not told of it.
    """

    def __init__(self, searcher: Any):
        super().__init__(searcher)
        self._without_values: set[str] = set()  # ids

    def add_configurations(self, experiments: Any) -> None:
        """Takes the experiment, of which Tune counts the samples."""
        super().add_configurations(experiments)
        self._total_samples += 1  # and the first trial

    def go_on_after(self, experiment: Experiment, trials: Sequence[Any]) -> None:
        """The next trial belongs to this experiment; the state follows from Tune's folder."""
        self.add_configurations([experiment])
        self._without_values |= {trial.trial_id for trial in trials if not trial.config}

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        """The first trial, or the next that Optuna suggests."""
        if self._counter:
            return super().create_trial_if_possible(experiment_spec)
        self._counter += 1
        identity = Trial.generate_id()
        self._without_values.add(identity)
        return trial_without_values(experiment_spec, self._parser, identity)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells Optuna."""
        if trial_id not in self._without_values:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna."""
        if trial_id not in self._without_values:
            super().on_trial_complete(trial_id, result, error)

    def get_state(self) -> dict[str, Any]:
        """How many trials were created."""
        return {"counter": self._counter}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`."""
        self._counter = state["counter"]


class TrialsAtOnce(ConcurrencyLimiter):
    """Tune's limit of concurrent trials; the limit itself is that of this process's cluster."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes the trials that are under way."""
        super().set_state(state | {"max_concurrent": self.max_concurrent})
