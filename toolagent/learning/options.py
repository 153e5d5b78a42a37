"""The options of `training()` that RLlib does not have: each declared once, in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.utils.annotations import override

MOST_EPISODES = 10_000_000  # in an update: a gigabyte

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


class UpdateOptions(BaseModel):
    """What all algorithms on columns of whole episodes have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    episodes_per_update: Annotated[int, Field(ge=1, le=MOST_EPISODES)] = 512
    """Whole episodes in one gradient step (over all learners)."""
    updates_per_iteration: Positive = 20
    """Gradient steps in one `train()` call."""
    weight_decay: NonNegative = 0.0
    """Added to the gradient, times the weights; it acts where the losses have little left to say,
    and makes what was learned hold for longer problems."""

    def check(self) -> None:
        """Raises ValueError where two options do not go together."""


class PipelineOptions(UpdateOptions):
    """Options of `ToolAgent`."""

    group_size: Positive = 1
    """How often each problem is played; the episodes of one problem are a group."""
    advantage_estimator: Literal["gae", "leave_one_out"] = "gae"
    """"gae" (with the value head), or "leave_one_out": against the other episodes of the same
    problem; then group_size is at least 2."""
    failed_problem_share: Share = 0.0
    """Share of the current stage's problems that are drawn from those that were mostly failed
    before (`FailedProblems`)."""
    practice_problems: bool = False
    """Train on the problems that the task recommends (`Task.practice`); accuracy is always measured
    on all kinds."""
    lambda_: Share = 1.0
    """Trace decay of the advantage estimates; 1 uses whole returns."""
    vf_loss_coeff: NonNegative = 0.5
    """Weight of the value loss."""
    entropy_coeff: NonNegative = 0.01
    """Weight of the entropy bonus."""
    entropy_follows_return: bool = False
    """Once a stage is mostly solved, no bonus where nothing succeeds (`Exploration`); then
    group_size is at least 2."""
    normalize_advantages: bool = True
    """Mean 0, standard deviation 1 over the batch."""
    clip_param: NonNegative | None = 0.2
    """Clip of the probability ratio that corrects older data; None: no correction (plain A2C; then
    max_staleness must be 0 and num_epochs 1)."""
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """How many updates old the weights that played an episode may be when it is learned from; 0 is
    strictly on-policy (sampling waits for the learner)."""
    explorer_share: ShareBelowOne = 0.0
    """Share of the episodes that explorers play (`Exploration`); 0: none."""
    explorer_kind: Literal["trials", "detours", "copies"] = "trials"
    """"trials" of tokens that are known to do something (`TrialTable`), "detours" from the
    policy's own way (`Detours`; then group_size is at least 2), or "copies" of what was read, in
    calls that are seldom refused (`CopyingExplorers`; for tasks that define `dataflow`)."""
    explore_until_solved: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Explorers and replay end for a stage once the policy solves this share of its training
    episodes: there is nothing left to find."""
    replay_coeff: NonNegative = 0.0
    """Weight of the self-imitation loss on replayed solved episodes (`SuccessReplay`; what
    explorers found on detours: `VerifiedReplay`); 0: none."""
    replay_episodes: Annotated[int, Field(ge=0)] = 128
    """Solved episodes replayed in an update."""

    @override(UpdateOptions)
    def check(self) -> None:
        group = self.group_size
        if self.episodes_per_update % group:
            raise ValueError(
                f"episodes_per_update is {self.episodes_per_update}; it must be a multiple of "
                f"group_size, {group}"
            )
        for asked, needs_a_group in (
            (self.advantage_estimator == "leave_one_out", "advantage_estimator 'leave_one_out'"),
            (self.entropy_follows_return, "entropy_follows_return"),
            (
                self.explorer_kind == "detours" and self.explorer_share > 0,
                "explorer_kind 'detours'",
            ),
        ):
            if asked and group < 2:
                raise ValueError(
                    f"{needs_a_group} compares episodes of one problem; set group_size "
                    f"to 2 or more, not {group}"
                )
        if self.explorer_share > 0 and self.replay_coeff == 0:
            raise ValueError(
                "explorer_share needs replay_coeff above 0: what explorers find is learned "
                "from by replay only"
            )
        if self.clip_param is None and self.max_staleness > 0:
            raise ValueError(
                "clip_param is None, so data of an older policy can't be corrected; set "
                "max_staleness to 0, or give a clip_param"
            )


class OfflineOptions(UpdateOptions):
    """Options of behaviour cloning and MARWIL."""

    solved_only: bool = False
    """Learn from the solved episodes among the recorded ones."""
    min_program_success: ShareBelowOne = 0.0
    """Learn from episodes whose actions solved at least this share of the recorded episodes of
    their stage; see `record_choice.program_success`."""
    max_episodes: Positive | None = None
    """As if only so many had been recorded, drawn at random; None: all."""


class OptionsMixin:
    """For an `AlgorithmConfig`: the fields of `OPTIONS` as attributes, and as arguments of
    `training()` beside RLlib's own."""

    OPTIONS: ClassVar[type[UpdateOptions]]

    if TYPE_CHECKING:
        num_learners: int

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)  # type: ignore[call-arg]
        for name, field in self.OPTIONS.model_fields.items():
            setattr(self, name, field.default)

    def training(self, **options: Any) -> Self:
        """Sets options of `OPTIONS`, and those of RLlib's `training()` (lr, gamma, ...)."""
        for name in self.OPTIONS.model_fields.keys() & options.keys():
            value = options.pop(name)
            if value is not NotProvided:
                setattr(self, name, value)
        return super().training(**options)  # type: ignore[misc]

    def validate(self) -> None:
        """As RLlib does it, and the options against their model.

        Raises:
            ValueError: an option has a wrong value, or two do not go together.
        """
        super().validate()  # type: ignore[misc]
        values = {name: getattr(self, name) for name in self.OPTIONS.model_fields}
        options = self.OPTIONS.model_validate(values)
        options.check()
        if options.episodes_per_update < (self.num_learners or 0):
            raise ValueError(
                f"episodes_per_update is {options.episodes_per_update}; {self.num_learners} "
                "learners need at least one each"
            )
