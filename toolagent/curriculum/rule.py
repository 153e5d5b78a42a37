"""When to go on to the next stage: declared levels and a pure rule with its own small state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LevelSettings(BaseModel):
    """One level: what is trained, and what ends it. Of several endings the first to hold counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stage: int = Field(ge=0, description="the stage trained on")
    advance_at_accuracy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="greedy accuracy that the stage must provably exceed (lower bound)",
    )
    advance_after_env_steps: int | None = Field(
        default=None, gt=0, description="env steps on this level, learned or not"
    )
    advance_after_iterations: int | None = Field(
        default=None, gt=0, description="training iterations on this level, learned or not"
    )
    demote_below_accuracy: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="back to the level before if its stage's accuracy is provably below this",
    )
    begin_anew_after_env_steps: int | None = Field(
        default=None,
        gt=0,
        description="env steps on this level after which, if it is not passed, another network "
        "begins, at the first level",
    )
    min_env_steps: int = Field(
        default=0, ge=0, description="dwell: neither advance nor demotion before"
    )

    @property
    def can_end(self) -> bool:
        """Whether anything but the run's end ends it."""
        return bool(
            self.advance_at_accuracy
            or self.advance_after_env_steps
            or self.advance_after_iterations
        )


class CurriculumSettings(BaseModel):
    """The levels in order, and how sure the rule must be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    levels: tuple[LevelSettings, ...] = Field(default=(LevelSettings(stage=0),), strict=False)
    earlier_stage_share: float = Field(
        default=0.0, ge=0, le=1, description="share of episodes drawn from earlier stages"
    )
    earlier_stages: Literal["evenly", "forgotten"] = Field(
        default="evenly",
        description="which of them: all alike, or the more often the lower its measured accuracy",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="one-sided confidence of the accuracy bounds"
    )
    measure_problems: int = Field(
        default=500, ge=20, description="fresh problems a stage in one measurement"
    )
    measure_every_iterations: int = Field(
        default=1, ge=1, description="training iterations between measurements"
    )

    @model_validator(mode="after")
    def _can_work(self) -> CurriculumSettings:
        if not self.levels:
            raise ValueError("levels: needs at least one level")
        for index, level in enumerate(self.levels):
            last = index + 1 == len(self.levels)
            where = f"levels.{index}"
            if not last and not level.can_end:
                raise ValueError(
                    f"{where}: can never end; give it advance_at_accuracy, "
                    "advance_after_env_steps or advance_after_iterations"
                )
            # Hysteresis: what was good enough to advance must not be bad enough to come back.
            if level.demote_below_accuracy is not None:
                if index == 0:
                    raise ValueError(f"{where}.demote_below_accuracy: there is no level before it")
                entered_at = self.levels[index - 1].advance_at_accuracy
                if entered_at is not None and level.demote_below_accuracy >= entered_at:
                    raise ValueError(
                        f"{where}.demote_below_accuracy: {level.demote_below_accuracy} must be "
                        f"below {entered_at}, the accuracy at which the level before is left"
                    )
            reachable = lower_bound(self.measure_problems, self.measure_problems, self.confidence)
            if level.advance_at_accuracy is not None and level.advance_at_accuracy >= reachable:
                raise ValueError(
                    f"{where}.advance_at_accuracy: {level.advance_at_accuracy} can't be proved by "
                    f"{self.measure_problems} problems (at best {reachable:.4f}); raise "
                    "curriculum.measure_problems"
                )
        return self

    @property
    def stages(self) -> set[int]:
        """The stages of the levels; training is complete when all of them are solved."""
        return {level.stage for level in self.levels}

    def check_stages(self, stages: range) -> None:
        """Raises ValueError where a level names a stage that is not among the task's."""
        for index, level in enumerate(self.levels):
            if level.stage not in stages:
                raise ValueError(
                    f"levels.{index}.stage: {level.stage} is not in the task; its stages are "
                    f"{stages[0]}..{stages[-1]}"
                )

    def trained_stages(self, stages: range) -> list[int]:
        """Those of the task's stages that episodes can be of: the levels', and where a share is
        drawn from earlier stages, those before them. In ascending order."""
        trained = self.stages
        if self.earlier_stage_share > 0:
            trained.update(range(stages[0], max(trained)))
        return sorted(trained)


@dataclass(frozen=True)
class CurriculumState:
    """Where the curriculum stands; plain integers, part of every checkpoint."""

    level: int = 0
    entered_env_steps: int = 0  # lifetime env steps when the level was entered
    entered_iteration: int = 0
    networks: int = 1  # begun so far

    def to_dict(self) -> dict[str, int]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> CurriculumState:
        """From a checkpoint."""
        return cls(**{name: int(value) for name, value in state.items()})


@dataclass(frozen=True)
class Decision:
    """The state after an iteration and, where the level changed, why."""

    state: CurriculumState
    reason: str | None = None
    passed: str | None = None  # why the last level is passed; the state stays as it is


def decide(
    settings: CurriculumSettings,
    state: CurriculumState,
    *,
    env_steps: int,
    iteration: int,
    measured: Mapping[int, tuple[int, int]] | None = None,
) -> Decision:
    """The curriculum's rule: a pure function of what was declared and what was measured.

    Args:
        settings: the levels.
        state: where the curriculum stands.
        env_steps: env steps sampled in the whole run so far.
        iteration: training iterations so far.
        measured: stage -> (solved, problems) of a measurement on fresh problems, if there is one.

    Returns:
        The state from now on; one level at most is gained or lost at a time, but for a network that
        begins anew.
    """
    level = settings.levels[state.level]
    steps, iterations = env_steps - state.entered_env_steps, iteration - state.entered_iteration
    if steps < level.min_env_steps:
        return Decision(state)

    def move(to: int, reason: str) -> Decision:
        return Decision(
            replace(state, level=to, entered_env_steps=env_steps, entered_iteration=iteration),
            reason,
        )

    measured = measured or {}
    if level.demote_below_accuracy is not None and state.level > 0:
        before = settings.levels[state.level - 1].stage
        if before in measured:
            bound = upper_bound(*measured[before], settings.confidence)
            if bound < level.demote_below_accuracy:
                return move(state.level - 1, f"stage {before} fell to at most {bound:.3f}")
    reason = None
    if level.advance_at_accuracy is not None and level.stage in measured:
        bound = lower_bound(*measured[level.stage], settings.confidence)
        if bound > level.advance_at_accuracy:
            reason = f"stage {level.stage} is right on at least {bound:.3f}"
    if level.advance_after_env_steps is not None and steps >= level.advance_after_env_steps:
        reason = reason or f"{steps:,} env steps on stage {level.stage}"
    if level.advance_after_iterations is not None and iterations >= level.advance_after_iterations:
        reason = reason or f"{iterations} iterations on stage {level.stage}"
    if reason is None:
        limit = level.begin_anew_after_env_steps
        if limit is None or steps < limit:
            return Decision(state)
        reason = f"network {state.networks} did not pass stage {level.stage} in {steps:,} env steps"
        return Decision(CurriculumState(0, env_steps, iteration, state.networks + 1), reason)
    if state.level + 1 == len(settings.levels):
        return Decision(state, passed=reason)
    return move(state.level + 1, reason)


def lower_bound(solved: int, problems: int, confidence: float) -> float:
    """The Wilson score lower bound of an accuracy, one-sided.

    (p + z²/2n - z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), with p = solved/n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    return _wilson(solved, problems, confidence, -1.0)


def upper_bound(solved: int, problems: int, confidence: float) -> float:
    """The Wilson score upper bound of an accuracy, one-sided (see `lower_bound`)."""
    return _wilson(solved, problems, confidence, 1.0)


def _wilson(solved: int, problems: int, confidence: float, sign: float) -> float:
    if not 0 <= solved <= problems or problems < 1:
        raise ValueError(f"{solved} of {problems} is no count of solved problems")
    z = NormalDist().inv_cdf(confidence)
    share, z2 = solved / problems, z * z
    spread = z * math.sqrt(share * (1 - share) / problems + z2 / (4 * problems**2))
    return (share + z2 / (2 * problems) + sign * spread) / (1 + z2 / problems)
