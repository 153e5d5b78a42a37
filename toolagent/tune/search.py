"""The description of a search: `rllib_configs/tune_*.yaml`, loaded and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolagent.config import (
    Settings,
    build_algorithm_config,
    documents,
    find_search,
    load_settings,
    settings_from_text,
    to_yaml,
)
from toolagent.config.folder import read_config
from toolagent.config.source import Source, one_name, shown
from toolagent.config.validation import validated
from toolagent.errors import UserError
from toolagent.tune.space import CHOICE, Distribution, parse_distribution, parts_of

RANDOM, GRID, OPTUNA = "random", "grid", "optuna"
NONE, ASHA, PBT = "none", "asha", "pbt"
ENV_STEPS, SECONDS, ACCURACY = "env_steps", "seconds", "accuracy"

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
_MUTABLE = "training"  # the only section that can change in the middle of a run
_OF_THE_TRIAL = ("run",)  # sections that say nothing about learning: the search sets the limits


class TrialLimits(BaseModel):
    """What ends a trial that has not certified every stage."""

    model_config = _STRICT

    max_env_steps: int | None = Field(default=None, ge=1, description="env steps")
    max_time_s: float | None = Field(default=None, gt=0, description="seconds of training")


class ASHASettings(BaseModel):
    """Asynchronous successive halving (`ray.tune.schedulers.ASHAScheduler`)."""

    model_config = _STRICT

    grace_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of a trial's budget before it may be stopped"
    )
    reduction_factor: int = Field(default=3, ge=2, description="one trial in so many goes on")


class PBTSettings(BaseModel):
    """Population-based training (`ray.tune.schedulers.PopulationBasedTraining`)."""

    model_config = _STRICT

    interval_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of a trial's budget between perturbations"
    )
    quantile_fraction: float = Field(
        default=0.25, gt=0, le=0.5, description="share of trials replaced by copies of the best"
    )


class SearchSettings(BaseModel):
    """Everything a search file can hold."""

    model_config = _STRICT

    base: str = Field(default="default", min_length=1, description="as `run --config` takes it")
    settings: dict[str, Any] = Field(default={}, description="fixed, over the base: key -> value")
    space: dict[str, Any] = Field(min_length=1, description="key -> distribution")
    search: Literal["random", "grid", "optuna"] = RANDOM
    scheduler: Literal["none", "asha", "pbt"] = NONE
    objective: Literal["env_steps", "seconds", "accuracy"] = ENV_STEPS
    num_samples: int = Field(default=12, ge=1, description="trials; with a grid, repetitions of it")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of what is drawn")
    stop_time_s: float | None = Field(default=None, gt=0, description="seconds, for all trials")
    trials_at_once: int | None = Field(default=None, ge=1, description="None: as many as fit")
    trial: TrialLimits
    asha: ASHASettings = ASHASettings()
    pbt: PBTSettings = PBTSettings()

    @property
    def budget(self) -> tuple[str, float]:
        """What a trial's progress is counted in, and how much of it there is at most."""
        steps, seconds = self.trial.max_env_steps, self.trial.max_time_s
        if self.objective == SECONDS or steps is None:
            assert seconds is not None  # checked on loading
            return SECONDS, seconds
        return ENV_STEPS, float(steps)


@dataclass(frozen=True)
class Search:
    """A search with every value resolved and checked."""

    settings: SearchSettings
    base: Settings  # what all trials have in common
    space: dict[str, Distribution] = field(default_factory=dict)

    @property
    def base_yaml(self) -> str:
        """The configuration that all trials have in common."""
        return to_yaml(self.base)

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        trials = self.settings.num_samples
        if self.settings.search == GRID:
            for distribution in self.space.values():
                trials *= len(distribution.arguments)
        return trials


def load_search(
    path: Path | str | None,
    overrides: Sequence[str] = (),
    num_samples: int | None = None,
    stop_time_s: float | None = None,
) -> Search:
    """Loads a search file, and tries every end of every range on the configuration.

    Args:
        path: a file, the name of a shipped search, or None for the default one.
        overrides: 'section.key=value' for the configuration of all trials.
        num_samples: instead of the file's.
        stop_time_s: instead of the file's.

    Raises:
        UserError: anything that is wrong, in one line.
    """
    file = find_search(path)
    source = Source(str(file))
    document = documents.parse(read_config(file), one_name(file))
    if not isinstance(document, dict):
        raise UserError(f"{one_name(file)}: expected a search: base, space, trial, ...")
    flags = {"num_samples": num_samples, "stop_time_s": stop_time_s}
    document = document | {name: value for name, value in flags.items() if value is not None}
    settings: SearchSettings = validated(SearchSettings, document, (), source)
    space = {
        key: parse_distribution(value, ("space", key), source)
        for key, value in settings.space.items()
    }
    _check(settings, space, source)
    base = _base(settings, overrides, source)
    _check_keys(space, overrides, settings, source)
    _try_space(base, space, source)
    return Search(settings, base, space)


def search_from_texts(search_yaml: str, base_yaml: str, name: str) -> Search:
    """What `search_yaml` and `Search.base_yaml` wrote; their values were checked before.

    Raises:
        UserError: they were changed into something that is no search.
    """
    source = Source(name)
    document = documents.parse(search_yaml, name)
    if not isinstance(document, dict):
        raise UserError(f"{name}: holds no search")
    settings: SearchSettings = validated(SearchSettings, document, (), source)
    space = {
        key: parse_distribution(value, ("space", key), source)
        for key, value in settings.space.items()
    }
    _check(settings, space, source)
    return Search(settings, settings_from_text(base_yaml, name), space)


def search_yaml(search: Search) -> str:
    """The search with every value written out; `base` and `settings` are in `base_yaml`."""
    return documents.dump(search.settings.model_dump(mode="json"))


def trial_settings(base_yaml: str, values: dict[str, Any], name: str = "base") -> Settings:
    """The configuration of one trial: the base with the trial's values put in place.

    Raises:
        UserError: together they are no configuration.
    """
    return settings_from_text(base_yaml, name, as_overrides(values))


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Values by key as `--set` writes them. A key 'a.b, c.d' stands for two with one value."""
    return [
        f"{part}={json.dumps(value)}"  # JSON is YAML
        for key, value in values.items()
        for part in parts_of(key)
    ]


def _check(settings: SearchSettings, space: dict[str, Distribution], source: Source) -> None:
    """What pydantic can't see: entries that do not go together."""
    limits = settings.trial
    if limits.max_env_steps is None and limits.max_time_s is None:
        raise source.error(("trial",), "set max_env_steps, max_time_s or both")
    wanted = {ENV_STEPS: "max_env_steps", SECONDS: "max_time_s"}.get(settings.objective)
    if wanted and getattr(limits, wanted) is None:
        raise source.error(("trial", wanted), f"missing; objective {settings.objective} needs it")
    if settings.search == GRID:
        for key, distribution in space.items():
            if distribution.kind != CHOICE:
                raise source.error(
                    ("space", key), f"a grid needs 'choice', not '{distribution.kind}'"
                )
    if settings.scheduler == PBT:
        _check_pbt(settings, space, source)


def _check_pbt(settings: SearchSettings, space: dict[str, Distribution], source: Source) -> None:
    if settings.search != RANDOM:
        raise source.error(
            ("search",), f"pbt chooses its values itself; '{settings.search}' can't, use 'random'"
        )
    if settings.num_samples < 2:
        raise source.error(("num_samples",), "a population for pbt has at least 2 trials")
    for key in space:
        if any(part.split(".")[0] != _MUTABLE for part in parts_of(key)):
            raise source.error(
                ("space", key),
                f"pbt changes values in the middle of a run; only {_MUTABLE}.* can change there",
            )


def _base(settings: SearchSettings, overrides: Sequence[str], source: Source) -> Settings:
    """The base with the file's settings and the command line's overrides, tried on RLlib."""
    try:
        base = load_settings(settings.base)
    except UserError as error:
        raise source.error(("base",), str(error)) from None
    text = to_yaml(base)
    for key, value in settings.settings.items():
        text = to_yaml(_tried(text, key, value, ("settings",), source))
    result = settings_from_text(text, one_name(settings.base), overrides)
    build_algorithm_config(result)
    return result


def _check_keys(
    space: dict[str, Distribution],
    overrides: Sequence[str],
    settings: SearchSettings,
    source: Source,
) -> None:
    """No key is set twice, and none says only how a run ends."""
    fixed = {text.partition("=")[0].strip(): f"--set {text}" for text in overrides}
    fixed |= {key: f"settings.{key}" for key in settings.settings}
    seen: dict[str, str] = {}
    for key in space:
        for part in parts_of(key):
            path = ("space", key)
            if part.split(".")[0] in _OF_THE_TRIAL:
                raise source.error(path, "can't be searched over; see 'trial' for a trial's limits")
            for other, place in (seen | fixed).items():
                if f"{part}.".startswith(f"{other}.") or f"{other}.".startswith(f"{part}."):
                    raise source.error(path, f"is also set by {place}")
            seen[part] = f"space.{key}"


def _try_space(base: Settings, space: dict[str, Distribution], source: Source) -> None:
    """Every choice and both ends of every range, one at a time, the rest as in the base.

    Values that are right alone and wrong together make a trial fail, which is reported with it.
    """
    text = to_yaml(base)
    for key, distribution in space.items():
        for value in distribution.extremes:
            _tried(text, key, value, ("space",), source)


def _tried(
    base_yaml: str, key: str, value: Any, place: tuple[str, ...], source: Source
) -> Settings:
    """The base with one value, if RLlib and toolagent take it."""
    try:
        settings = trial_settings(base_yaml, {key: value})
        build_algorithm_config(settings)
    except UserError as error:
        fault = _fault(error)
        for part in parts_of(key):
            fault = fault.removeprefix(f"{part}: ")
        shows = "" if shown(value) in fault else f" (for {shown(value)})"
        raise source.error((*place, key), fault + shows) from None
    return settings


def _fault(error: UserError) -> str:
    """The message without the place, which would be an override that nobody wrote."""
    message = str(error)
    for mark in ("base with --set: ", "--set ", "base: "):
        if message.startswith(mark):
            return message.removeprefix(mark)
    return message
