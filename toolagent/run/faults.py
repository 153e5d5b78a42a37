"""What went wrong in a run and was dealt with, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolagent import figures
from toolagent.figures import FIGURES, PIPELINE

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

# What is counted, by its column in `progress.jsonl`.
FAULTS = {figure.name: figure.key or "" for figure in FIGURES if figure.source == figures.FAULTS}


_WORDS = {
    "env_runner_restarts": ("env runner process", "env runner processes", "replaced"),
    "hung_env_runners": ("env runner", "env runners", "hung"),
    "rejected_batches": ("fragment", "fragments", "rejected"),
    "skipped_updates": ("update", "updates", "skipped"),
    "learner_restarts": ("restart", "restarts", "of learning"),
    "failed_checkpoints": ("checkpoint", "checkpoints", "not written"),
}


class FaultCounts:
    """Adds up what the iterations of one algorithm report.

    Args:
        counts: name -> how many so far in the whole run; added to.
        algorithm: not trained yet.
    """

    def __init__(self, counts: dict[str, int], algorithm: Algorithm):
        self.counts, self._algorithm = counts, algorithm
        self._stock_restarts = 0

    def add(self, name: str, number: int = 1) -> None:
        """Counts it; no number goes down."""
        self.counts[name] = self.counts.get(name, 0) + number

    def add_iteration(self, result: dict[str, Any]) -> None:
        """Counts what is in a result of `Algorithm.train()`."""
        pipeline = result.get(PIPELINE)
        if pipeline is None:  # a stock algorithm: only RLlib's own count
            group = self._algorithm.env_runner_group
            if group is None:  # who learns from records has none
                return
            restarts = group.num_remote_worker_restarts()
            self.add("env_runner_restarts", restarts - self._stock_restarts)
            self._stock_restarts = restarts
            return
        for name in FAULTS.values():
            number = pipeline.get(name)
            if number is not None and number > 0:
                self.add(name, round(float(number)))

    def fields(self) -> dict[str, int]:
        """For a row of `progress.jsonl`."""
        return {column: self.counts.get(name, 0) for column, name in FAULTS.items()}


def faults_line(row: dict[str, Any]) -> str:
    """The faults of a run in words, from its last row; '' if there were none."""
    said = []
    for column, name in FAULTS.items():
        if number := int(row.get(column) or 0):
            one, several, what = _WORDS[name]
            said.append(f"{number:,} {several if number > 1 else one} {what}")
    return f"faults: {', '.join(said)}" if said else ""
