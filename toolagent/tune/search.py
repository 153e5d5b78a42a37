"""The description of a search: `rllib_configs/tune_*.yaml`, loaded and checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

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
from toolagent.tune.space import CHOICE, STRICT, Distribution, parts_of

RANDOM, GRID, OPTUNA = "random", "grid", "optuna"
NONE, ASHA, PBT = "none", "asha", "pbt"
# Among a trial's values: its seed, where each setting is tried with several. No key of the
# configuration, as a search may be over that.
SEEDS = "seeds"
ENV_STEPS, SECONDS, ACCURACY = "env_steps", "seconds", "accuracy"

_MUTABLE = "training"  # the only section that can change in the middle of a run
_OF_THE_TRIAL = "run"  # a section that says nothing about learning: the search sets the limits


class TrialLimits(BaseModel):
    """What ends a trial that has not certified every stage."""

    model_config = STRICT

    max_env_steps: int | None = Field(default=None, ge=1, description="env steps")
    max_time_s: float | None = Field(default=None, gt=0, description="seconds of training")

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.max_env_steps is None and self.max_time_s is None:
            raise ValueError("set max_env_steps, max_time_s or both")
        return self


class ASHASettings(BaseModel):
    """Asynchronous successive halving (`ray.tune.schedulers.ASHAScheduler`)."""

    model_config = STRICT

    grace_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of a trial's budget before it may be stopped"
    )
    reduction_factor: int = Field(default=3, ge=2, description="one trial in so many goes on")


class PBTSettings(BaseModel):
    """Population-based training (`ray.tune.schedulers.PopulationBasedTraining`)."""

    model_config = STRICT

    interval_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of a trial's budget between perturbations"
    )
    quantile_fraction: float = Field(
        default=0.25, gt=0, le=0.5, description="share of trials replaced by copies of the best"
    )


class SearchSettings(BaseModel):
    """Everything a search file can hold."""

    model_config = STRICT

    base: str = Field(default="default", min_length=1, description="as `run --config` takes it")
    settings: dict[str, Any] = Field(default={}, description="fixed, over the base: key -> value")
    space: dict[str, Distribution] = Field(min_length=1, description="key -> distribution")
    search: Literal["random", "grid", "optuna"] = RANDOM
    scheduler: Literal["none", "asha", "pbt"] = NONE
    objective: Literal["env_steps", "seconds", "accuracy"] = ENV_STEPS
    num_samples: int = Field(
        default=12, ge=1, description="what is drawn, beside the base; with a grid, repetitions"
    )
    seeds: int = Field(default=1, ge=1, description="trials of each setting; its median is ranked")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of what is drawn")
    stop_time_s: float | None = Field(default=None, gt=0, description="seconds, for all trials")
    trials_at_once: int | None = Field(default=None, ge=1, description="None: as many as fit")
    trial: TrialLimits
    asha: ASHASettings = ASHASettings()
    pbt: PBTSettings = PBTSettings()

    @model_validator(mode="after")
    def _entries_go_together(self) -> Self:
        needed = {ENV_STEPS: "max_env_steps", SECONDS: "max_time_s"}.get(self.objective)
        if needed and getattr(self.trial, needed) is None:
            raise ValueError(f"trial.{needed}: missing; objective {self.objective} needs it")
        pbt = self.scheduler == PBT
        if pbt and self.search != RANDOM:
            raise ValueError(
                f"search: pbt chooses its values itself; '{self.search}' can't, use 'random'"
            )
        if self.seeds > 1 and (pbt or self.search == OPTUNA):
            which = "scheduler pbt" if pbt else "search optuna"
            raise ValueError(f"seeds: {which} takes one seed a trial; use 'random' or 'grid'")
        if self.seeds > 1 and "seed" in self.space:
            raise ValueError("space.seed: is what 'seeds' sets; leave one of them out")
        if pbt and self.num_samples < 2:
            raise ValueError("num_samples: a population for pbt has at least 2 trials")
        for key, distribution in self.space.items():
            sections = {part.split(".")[0] for part in parts_of(key)}
            if self.search == GRID and distribution.kind != CHOICE:
                raise ValueError(f"space.{key}: a grid needs 'choice', not '{distribution.kind}'")
            if _OF_THE_TRIAL in sections:
                raise ValueError(
                    f"space.{key}: can't be searched over; see 'trial' for a trial's limits"
                )
            if pbt and sections != {_MUTABLE}:
                raise ValueError(
                    f"space.{key}: pbt changes values in the middle of a run; only {_MUTABLE}.* "
                    "can change there"
                )
        return self

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

    @property
    def space(self) -> dict[str, Distribution]:
        """What is drawn for each trial, by key."""
        return self.settings.space

    @property
    def base_yaml(self) -> str:
        """The configuration that all trials have in common."""
        return to_yaml(self.base)

    @property
    def tries_base(self) -> bool:
        """Whether the base itself is the first trial. Not with PBT, which changes the values of
        every trial on its way."""
        return self.settings.scheduler != PBT

    @property
    def seeds(self) -> list[int]:
        """Those that each setting is tried with; [] for the base's only."""
        count = self.settings.seeds
        return [self.base.seed + number for number in range(count)] if count > 1 else []

    @property
    def base_values(self) -> dict[str, Any]:
        """What the base has where the space has its keys; of keys joined by commas, the first's."""
        values = {}
        for key in self.space:
            place: Any = self.base.document()
            for part in parts_of(key)[0].split("."):
                place = place.get(part) if isinstance(place, dict) else None
            values[key] = place
        return values

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        combinations = 1
        if self.settings.search == GRID:
            combinations = math.prod(len(entry.arguments) for entry in self.space.values())
        return (combinations * self.settings.num_samples + self.tries_base) * self.settings.seeds


def load_search(
    path: Path | str | None,
    overrides: Sequence[str] = (),
    num_samples: int | None = None,
    stop_time_s: float | None = None,
) -> Search:
    """Loads a search file, and tries every end of every range on the configuration.

    Values that are right alone and wrong together make a trial fail, which is reported with it.

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
    flags = {"num_samples": num_samples, "stop_time_s": stop_time_s}
    settings = _settings(read_config(file), one_name(file), flags)
    try:
        named = load_settings(settings.base)
        build_algorithm_config(named)  # a fault in it is not one of a value that is tried on it
    except UserError as error:
        raise source.error(("base",), str(error)) from None
    text = to_yaml(named)
    for key, value in settings.settings.items():
        text = to_yaml(_tried(text, key, value, "settings", source))
    base = settings_from_text(text, one_name(settings.base), overrides)
    _check_one_phase(base, ("base",), source)
    build_algorithm_config(base)
    _check_set_once(settings, overrides, source)
    text = to_yaml(base)
    for key, distribution in settings.space.items():
        for value in distribution.extremes:
            _tried(text, key, value, "space", source)
    return Search(settings, base)


def search_from_texts(search_yaml: str, base_yaml: str, name: str) -> Search:
    """What `search_yaml` and `Search.base_yaml` wrote; their values were checked before.

    Raises:
        UserError: they were changed into something that is no search.
    """
    return Search(_settings(search_yaml, name, {}), settings_from_text(base_yaml, name))


def search_yaml(search: Search) -> str:
    """The search with every value written out; `base` and `settings` are in `base_yaml`."""
    return documents.dump(search.settings.model_dump(mode="json"))


def trial_settings(base_yaml: str, values: dict[str, Any], name: str = "base") -> Settings:
    """The configuration of one trial: the base with the trial's values put in place.

    Args:
        base_yaml: the base.
        values: by key; a key 'a.b, c.d' stands for two with one value.
        name: of the base in messages.

    Raises:
        UserError: together they are no configuration.
    """
    overrides = [
        f"{part}={json.dumps(value)}"  # JSON is YAML
        for key, value in values.items()
        for part in parts_of("seed" if key == SEEDS else key)
    ]
    return settings_from_text(base_yaml, name, overrides)


def _settings(text: str, name: str, flags: dict[str, Any]) -> SearchSettings:
    document = documents.parse(text, name)
    if not isinstance(document, dict):
        raise UserError(f"{name}: expected a search: base, space, trial, ...")
    given = {flag: value for flag, value in flags.items() if value is not None}
    return validated(SearchSettings, document | given, (), Source(name))


def _check_set_once(settings: SearchSettings, overrides: Sequence[str], source: Source) -> None:
    """No key of the space is set a second time, nor a part of it, nor what it is a part of."""
    places = {text.partition("=")[0].strip(): f"--set {text}" for text in overrides}
    places |= {key: f"settings.{key}" for key in settings.settings}
    for key in settings.space:
        for part in parts_of(key):
            for other, place in places.items():
                if f"{part}.".startswith(f"{other}.") or f"{other}.".startswith(f"{part}."):
                    raise source.error(("space", key), f"is also set by {place}")
            places[part] = f"space.{key}"


def _check_one_phase(settings: Settings, place: tuple[str, ...], source: Source) -> None:
    """A trial is one algorithm, which ends where a student would begin."""
    if settings.student is not None:
        raise source.error(
            place,
            "a trial has no second phase, so there can be no 'student'; search over the first "
            "phase alone: --set student=null",
        )


def _tried(base_yaml: str, key: str, value: Any, section: str, source: Source) -> Settings:
    """The base with one value, if RLlib and toolagent take it."""
    try:
        settings = trial_settings(base_yaml, {key: value})
        build_algorithm_config(settings)
    except UserError as error:
        # Without the place, which would be an override that nobody wrote.
        fault = re.sub(r"^(base with --set: |--set |base: )", "", str(error))
        for part in parts_of(key):
            fault = fault.removeprefix(f"{part}: ")
        shows = "" if shown(value) in fault else f" (for {shown(value)})"
        raise source.error((section, key), fault + shows) from None
    if section == "space":
        _check_one_phase(settings, (section, key), source)
    return settings
