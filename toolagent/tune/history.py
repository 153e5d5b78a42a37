"""What the trials of a search have reported, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.tune import ExperimentAnalysis
from ray.tune.experiment import Trial


def reports_of(analysis: ExperimentAnalysis, trial: Trial) -> list[dict[str, Any]]:
    """The trial's results, oldest first, each iteration once.

    A trial that was resumed from a checkpoint reports the iterations after it again.
    """
    reports: list[dict[str, Any]] = []
    frame = analysis.trial_dataframes[trial.trial_id]
    for report in reversed(frame.to_dict("records")):
        if not reports or report["training_iteration"] < reports[-1]["training_iteration"]:
            reports.append(report)
    return reports[::-1]


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
