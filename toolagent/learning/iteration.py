"""Iterations of several updates, between which whoever runs the algorithm gets control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from toolagent.phases import timed

_LIFETIME = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)


class IterationMixin:
    """For Algorithms: calls `between_updates` between two updates of an iteration.

    There the algorithm is in a state that `get_state` can save. An exception of `between_updates`
    leaves `train()`; the next `train()` continues the iteration, and so does that of an algorithm
    with the saved state.

    Attributes:
        between_updates: called before each update but the first that this process makes in an
            iteration.
        updates_done: of the iteration under way; 0 between iterations.
    """

    iteration: int  # finished ones; RLlib's own
    metrics: Any
    learner_group: Any

    between_updates: Callable[[], None] = staticmethod(lambda: None)
    updates_done = 0
    _ends_early = False
    _last_updated = -1  # `iteration` at the latest update of this process

    @property
    def env_steps(self) -> int:
        """Sampled in the whole run, those of the iteration under way included."""
        counted = self.metrics.peek(_LIFETIME, default=0)
        return (0 if counted != counted else int(counted)) + self._env_steps_not_counted()

    def end_iteration(self) -> None:
        """For `between_updates`: lets `train()` return now, with the updates made so far."""
        self._ends_early = True

    def _env_steps_not_counted(self) -> int:
        """Those of the iteration under way that RLlib's metrics do not have yet."""
        return 0

    def _may_update(self) -> bool:
        """To be called before each update; False if the iteration ends instead."""
        if self._last_updated == self.iteration:
            self.between_updates()
        self._last_updated = self.iteration
        return not self._ends_early

    def _end_updates(self) -> None:
        """To be called when an iteration's updates are made."""
        self.updates_done, self._ends_early = 0, False

    @timed("learner metrics")
    def _note_learners(self, results: list[dict[str, Any]]) -> None:
        """Takes in what the learners have logged: one dict of each."""
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def _take_learner_metrics(self) -> None:
        """In the middle of an iteration: as its last update does it."""
        results = self.learner_group.foreach_learner(_reduced_metrics)
        logged = [result.get() for result in results if result.ok]
        if logged:  # else they died, which is seen when they are to learn
            self._note_learners(logged)


def _reduced_metrics(learner: Any) -> dict[str, Any]:
    return learner.reduced_metrics()
