"""The options of `training()` that RLlib does not have: each declared once, in a model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray.rllib.algorithms.algorithm_config import NotProvided

MOST_EPISODES = 10_000_000  # in an update: a gigabyte


class UpdateOptions(BaseModel):
    """What all algorithms on columns of whole episodes have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    episodes_per_update: int = Field(
        default=512,
        ge=1,
        le=MOST_EPISODES,
        description="whole episodes in one gradient step (over all learners)",
    )
    updates_per_iteration: int = Field(
        default=20, ge=1, description="gradient steps in one `train()` call"
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description=(
            "added to the gradient, times the weights; it acts where the losses have little left "
            "to say, and makes what was learned hold for longer problems"
        ),
    )


class PipelineOptions(UpdateOptions):
    """Options of `ToolAgent`."""

    group_size: int = Field(
        default=1,
        ge=1,
        description="how often each problem is played; the episodes of one problem are a group",
    )
    advantage_estimator: Literal["gae", "leave_one_out"] = Field(
        default="gae",
        description=(
            '"gae" (with the value head), or "leave_one_out": against the other episodes of the '
            "same problem; then group_size is at least 2"
        ),
    )
    failed_problem_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "share of the current stage's problems that are drawn from those that were mostly "
            "failed before (`FailedProblems`)"
        ),
    )
    practice_problems: bool = Field(
        default=False,
        description=(
            "train on the problems that the task recommends (`Task.practice`); accuracy is always "
            "measured on all kinds"
        ),
    )
    lambda_: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="trace decay of the advantage estimates; 1 uses whole returns",
    )
    vf_loss_coeff: float = Field(default=0.5, ge=0, description="weight of the value loss")
    entropy_coeff: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    entropy_follows_return: bool = Field(
        default=False,
        description=(
            "once a stage is mostly solved, no bonus where nothing succeeds (`Exploration`); then "
            "group_size is at least 2"
        ),
    )
    normalize_advantages: bool = Field(
        default=True, description="mean 0, standard deviation 1 over the batch"
    )
    clip_param: float | None = Field(
        default=0.2,
        ge=0,
        description=(
            "clip of the probability ratio that corrects older data; None: no correction (plain "
            "A2C; then max_staleness must be 0 and num_epochs 1)"
        ),
    )
    max_staleness: int = Field(
        default=1,
        ge=0,
        description=(
            "how many updates old the weights that played an episode may be when it is learned "
            "from; 0 is strictly on-policy (sampling waits for the learner)"
        ),
    )
    explorer_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the episodes that explorers play (`Exploration`); 0: none",
    )
    explorer_kind: Literal["trials", "detours"] = Field(
        default="trials",
        description=(
            '"trials" of tokens that are known to do something (`TrialTable`), or "detours" from '
            "the policy's own way (`Detours`); then group_size is at least 2"
        ),
    )
    explore_until_solved: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description=(
            "explorers and replay end for a stage once the policy solves this share of its "
            "training episodes: there is nothing left to find"
        ),
    )
    replay_coeff: float = Field(
        default=0.0,
        ge=0,
        description=(
            "weight of the self-imitation loss on replayed solved episodes (`SuccessReplay`; what "
            "explorers found on detours: `VerifiedReplay`); 0: none"
        ),
    )
    replay_episodes: int = Field(
        default=128, ge=0, description="solved episodes replayed in an update"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> PipelineOptions:
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
        return self


class OfflineOptions(UpdateOptions):
    """Options of behaviour cloning and MARWIL."""

    solved_only: bool = Field(
        default=False, description="learn from the solved episodes among the recorded ones"
    )
    min_program_success: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "learn from episodes whose actions solved at least this share of the recorded "
            "episodes of their stage; see `record_choice.program_success`"
        ),
    )
    max_episodes: int | None = Field(
        default=None,
        ge=1,
        description="as if only so many had been recorded, drawn at random; None: all",
    )


class OptionsMixin:
    """For an `AlgorithmConfig`: a model's fields as attributes and as arguments of `training()`.

    A subclass that names a model, `class C(OptionsMixin, AlgorithmConfig, options=Model)`, has
    `training()` with the model's fields in its signature and docstring, beside RLlib's own options.
    """

    OPTIONS: ClassVar[type[BaseModel]]

    def __init_subclass__(cls, options: type[BaseModel] | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if options is None:
            return
        cls.OPTIONS = options

        def training(self: Any, **given: Any) -> Any:
            own = {name: given.pop(name) for name in options.model_fields if name in given}
            super(cls, self).training(**given)  # type: ignore[misc]
            for name, value in own.items():
                if value is not NotProvided:
                    setattr(self, name, value)
            return self

        training.__qualname__ = f"{cls.__qualname__}.training"
        training.__module__ = cls.__module__
        training.__doc__ = _documented(options)
        training.__signature__ = _signature(options)  # type: ignore[attr-defined]
        cls.training = training  # type: ignore[attr-defined]

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)  # type: ignore[call-arg]
        for name, field in self.OPTIONS.model_fields.items():
            setattr(self, name, field.default)

    if TYPE_CHECKING:

        def training(self, **options: Any) -> Self:
            """Stands for the one made above."""
            ...

    def validate(self) -> None:
        """As RLlib does it, and the options against their model.

        Raises:
            ValueError: an option has a wrong value, or two do not go together.
        """
        super().validate()  # type: ignore[misc]
        try:
            self.OPTIONS.model_validate(
                {name: getattr(self, name) for name in self.OPTIONS.model_fields}
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "value_error":
                raise ValueError(str(first.get("ctx", {}).get("error"))) from None
            name, wanted = first["loc"][0], first["msg"].replace("Input should be", "it must be")
            raise ValueError(f"{name} is {first['input']!r}; {wanted}") from None


def check_enough_episodes(config: Any) -> None:
    """Whether an update has an episode for each learner.

    Raises:
        ValueError: it has fewer.
    """
    if config.episodes_per_update < max(1, config.num_learners or 0):
        raise ValueError(
            f"episodes_per_update is {config.episodes_per_update}; {config.num_learners} learners "
            "need at least one each"
        )


def _signature(options: type[BaseModel]) -> inspect.Signature:
    keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            name,
            keyword,
            default=NotProvided,  # RLlib's mark for an argument that was not given
            annotation=Annotated[field.annotation, *field.metadata]
            if field.metadata
            else field.annotation,
        )
        for name, field in options.model_fields.items()
    ]
    return inspect.Signature(
        [
            inspect.Parameter("self", positional),
            *parameters,
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
    )


def _documented(options: type[BaseModel]) -> str:
    lines = [f"{options.__doc__}\n", "Args:"]
    for name, field in options.model_fields.items():
        lines.append(f"    {name}: {field.description} (default: {field.default}).")
    lines.append(
        "    kwargs: those of RLlib's `training()` (lr, gamma, grad_clip, num_epochs, ...)."
    )
    return "\n".join(lines)
