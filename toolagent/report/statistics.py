"""Figures over several seeds: median, interquartile mean and its bootstrap interval.

The method is that of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice", and of their package `rliable`: the mean of the middle half of all scores,
and percentiles of the same mean over bootstrap samples in which the runs of each stage are drawn
apart ("stratified").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_SAMPLES = 5000  # of the bootstrap
_TRIMMED = 0.25  # at each end


@dataclass(frozen=True)
class Estimate:
    """What several runs came to. A figure is infinite where too many runs never got there."""

    values: tuple[float, ...]  # of the runs, in their order
    median: float
    iqm: float  # interquartile mean
    low: float  # of the interval around it
    high: float

    @classmethod
    def of(cls, scores: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
        """The estimate from a table of scores.

        Args:
            scores: (runs, stages), at least one of each; infinity for what was never reached.
            seed: of the bootstrap: the same scores give the same interval.
        """
        table = np.array(scores, float)
        runs, stages = table.shape
        rng = np.random.default_rng(seed)
        drawn = rng.integers(runs, size=(_SAMPLES, runs, stages))
        samples = np.take_along_axis(table[None], drawn, axis=1)
        outside = 50 * (1 - CONFIDENCE)
        # Not interpolated: between a number and infinity there is nothing.
        low, high = np.percentile(
            interquartile_mean(samples.reshape(_SAMPLES, -1)),
            [outside, 100 - outside],
            method="inverted_cdf",
        )
        return cls(
            tuple(table.mean(axis=1).tolist()),
            float(np.median(table.mean(axis=1))),
            float(interquartile_mean(table.reshape(-1))),
            float(low),
            float(high),
        )

    def record(self) -> dict[str, Any]:
        """As JSON has it; None stands for infinity."""
        return {
            "median": _finite(self.median),
            "interquartile_mean": _finite(self.iqm),
            "interval": [_finite(self.low), _finite(self.high)],
            "values": [_finite(value) for value in self.values],
        }


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of what is left without the lowest and the highest quarter.

    Args:
        scores: (..., n); of each end n // 4 scores are left out, as in `scipy.stats.trim_mean`.

    Returns:
        (...,)
    """
    cut = int(_TRIMMED * scores.shape[-1])
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(axis=-1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
