"""What can be written in a section: the keyword arguments of `AlgorithmConfig`'s methods."""

from __future__ import annotations

import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from toolagent.config.hints import describe, fits
from toolagent.config.placement import AUTO, AUTO_KEY
from toolagent.config.source import KeyPath, Source, shown
from toolagent.errors import nearest

Options = Mapping[str, "Option"]

_SCHEDULE = float | list[list[int | float]]

# Where RLlib's hint is narrower than what RLlib takes, or says less than its documentation.
_CORRECTED: dict[str, Any] = {
    "num_cpus_per_env_runner": float | None,
    "num_cpus_per_offline_eval_runner": float | None,
    "num_gpus_per_offline_eval_runner": float | None,
    "entropy_coeff": _SCHEDULE | None,
    "clip_rewards": bool | float | list[float] | None,
    "offline_evaluation_type": str | None,
    "offline_sampling": bool | str | None,
    "gym_env_vectorize_mode": Literal["sync", "async", "vector_entry_point"],
    "evaluation_duration_unit": Literal["episodes", "timesteps"],
    "log_level": Literal["DEBUG", "INFO", "WARN", "ERROR"],
}

# Where RLlib takes any number and fails on it later, in an actor, or learns nonsense: [low, high].
_INFINITY = float("inf")
_RANGES: dict[str, tuple[float, float]] = {
    "num_env_runners": (0, _INFINITY),
    "num_cpus_per_env_runner": (0, _INFINITY),
    "num_gpus_per_env_runner": (0, _INFINITY),
    "num_envs_per_env_runner": (1, 1_000_000),
    "max_requests_in_flight_per_env_runner": (1, _INFINITY),
    "num_learners": (0, _INFINITY),
    "num_cpus_per_learner": (0, _INFINITY),
    "num_gpus_per_learner": (0, _INFINITY),
    "num_aggregator_actors_per_learner": (0, _INFINITY),
    "evaluation_num_env_runners": (0, _INFINITY),
    "num_offline_eval_runners": (0, _INFINITY),
    "gamma": (0, 1),
    "lambda_": (0, 1),
    "lr": (0, _INFINITY),
    "grad_clip": (0, _INFINITY),
    "clip_param": (0, _INFINITY),
    "entropy_coeff": (0, _INFINITY),
    "vf_loss_coeff": (0, _INFINITY),
    "train_batch_size": (1, _INFINITY),
    "train_batch_size_per_learner": (1, _INFINITY),
    "minibatch_size": (1, _INFINITY),
    "num_epochs": (1, _INFINITY),
    "delay_between_env_runner_restarts_s": (0, _INFINITY),
}
# Of these, the ones that can follow a schedule: [[env step, value], ...].
_SCHEDULED = ("lr", "entropy_coeff")
# Of these, the ones where null has a meaning.
_MAY_BE_NULL = ("clip_param", "grad_clip", "minibatch_size", "train_batch_size_per_learner")
# Without a range, and RLlib fails on null as it builds or later, though its hints allow it.
_NEVER_NULL = (
    "local_tf_session_args",
    "num_consecutive_env_runner_failures_tolerance",
    "off_policy_estimation_methods",
    "tf_session_args",
)

_NOT_HERE: dict[KeyPath, str] = {
    ("environment", "env"): "the environment follows from the top-level 'task'",
    ("debugging", "seed"): "the seed is the top-level 'seed'",
    ("rl_module", "rl_module_spec"): "the module is toolagent's; use rl_module.model_config",
    ("training", "model"): "belongs to RLlib's old API stack; use rl_module.model_config",
    ("multi_agent", "policies"): "there is one agent here, with one policy",
    ("multi_agent", "policies_to_train"): "there is one policy here, and it is trained",
    ("reporting", "custom_stats_cls_lookup"): "RLlib's own ways to reduce metrics are needed here",
    ("resources", "num_gpus"): (
        "belongs to RLlib's old API stack; use learners.num_gpus_per_learner"
    ),
}
_ONLY: dict[KeyPath, Any] = {
    ("framework", "framework"): "torch",
    ("api_stack", "enable_rl_module_and_learner"): True,
    ("api_stack", "enable_env_runner_and_connector_v2"): True,
}


@dataclass(frozen=True)
class Option:
    """One keyword argument."""

    name: str
    hint: Any
    deprecated: bool = False


@functools.cache
def sections_of(config_class: type) -> dict[str, Options]:
    """Section -> option name -> option: every method that takes RLlib's options."""
    from ray.rllib.utils.from_config import NotProvided

    sections: dict[str, Options] = {}
    for name, _ in inspect.getmembers(config_class, inspect.isfunction):
        # 'Leave as it is' as a default is what tells an option method from any other method. An
        # override may pass everything on, as MARWIL's `offline_data` does.
        methods = [vars(base)[name] for base in config_class.__mro__ if name in vars(base)]
        parameters = [
            parameter
            for method in methods
            if inspect.isfunction(method)
            for parameter in inspect.signature(method).parameters.values()
        ]
        if not name.startswith("_") and any(p.default is NotProvided for p in parameters):
            sections[name] = _inherited_options(config_class, name)
    return sections


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The named parameters of a function (without `self`), with their hints."""
    from ray._common.deprecation import DEPRECATED_VALUE

    return {
        parameter.name: Option(
            parameter.name,
            _hint_of(parameter, function),
            deprecated=type(parameter.default) is int
            and parameter.default == DEPRECATED_VALUE
            and parameter.annotation is inspect.Parameter.empty,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


@functools.cache
def attributes_of(config_class: type) -> frozenset[str]:
    """The names that `evaluation_config` and per-module overrides may set."""
    properties = {
        name
        for name, member in inspect.getmembers(config_class)
        if isinstance(member, property) and member.fset is not None
    }
    names = {name for name in vars(config_class()) if not name.startswith("_")} | properties
    return frozenset(names)


def check_section_names(
    config_class: type, given: Collection[str], others: Collection[str], source: Source
) -> None:
    """Refuses the first top-level key that is neither a section nor one of the others.

    Raises:
        UserError: with the nearest right key, wherever it belongs.
    """
    known = sections_of(config_class)
    for name in given:
        if name in known or name in others:
            continue
        right = _owner(name, known)
        hint = f"did you mean '{right}'?" if right else nearest(name, [*others, *known])
        raise source.error((name,), f"unknown; {hint}")


def check_sections(
    config_class: type, sections: Mapping[str, Mapping[str, Any]], source: Source
) -> None:
    """Names and types of the options in known sections, before RLlib sees any of them.

    Raises:
        UserError: an unknown option, or a value of the wrong type.
    """
    known = sections_of(config_class)
    for section, options in sections.items():
        for name, value in options.items():
            path = (section, name)
            if name not in known[section]:
                raise source.error(path, f"unknown; {_hint(name, section, known)}")
            _check_ours(path, value, source)
            if known[section][name].deprecated:
                raise source.error(path, _deprecation(config_class, section, name, value))
            check_value(known[section][name], path, value, source)
    _check_nested(config_class, sections, source)


def check_value(option: Option, path: KeyPath, value: Any, source: Source) -> None:
    """Type and range of one value.

    Raises:
        UserError: it does not fit.
    """
    if path == AUTO_KEY and value == AUTO:
        return
    if not fits(value, option.hint):
        raise source.error(path, f"expected {describe(option.hint)}, got {shown(value)}")
    if option.name in _SCHEDULED and isinstance(value, list):
        _check_schedule(path, value, source)
    if value is None and option.name in _NEVER_NULL:
        raise source.error(path, f"expected {describe(option.hint)}, got null")
    low, high = _RANGES.get(option.name, (None, None))
    if low is None or high is None:
        return
    if value is None and option.name not in _MAY_BE_NULL:
        raise source.error(path, f"expected {describe(option.hint)}, got null")
    if isinstance(value, (int, float)) and not (low <= value <= high and value < _INFINITY):
        wanted = f"at least {low:g}" if high == _INFINITY else f"from {low:,.9g} to {high:,.9g}"
        raise source.error(path, f"must be {wanted} and finite, not {shown(value)}")


def _check_schedule(path: KeyPath, points: list[list[float]], source: Source) -> None:
    """RLlib finds some of these faults as it builds, and some never."""
    fault = None
    if len(points) < 2 or any(len(point) != 2 for point in points):
        fault = "expected two or more [env step, value]"
    elif not all(0 <= number < _INFINITY for point in points for number in point):
        fault = "steps and values must be at least 0 and finite"
    elif points[0][0] != 0:
        fault = "the first step must be 0"
    elif any(after[0] <= before[0] for before, after in itertools.pairwise(points)):
        fault = "each step must be greater than the one before"
    if fault:
        raise source.error(path, f"{fault}, such as [[0, 0.003], [1000000, 0.0003]]")


def check_names(
    known: Collection[str], path: KeyPath, given: Mapping[str, Any], source: Source
) -> None:
    """Refuses the first name that is not known.

    Raises:
        UserError: with the nearest known one.
    """
    for name in given:
        if name not in known:
            raise source.error((*path, name), f"unknown; {nearest(name, known)}")


def _check_ours(path: KeyPath, value: Any, source: Source) -> None:
    if path in _NOT_HERE:
        raise source.error(path, _NOT_HERE[path])
    if path in _ONLY and value != _ONLY[path]:
        raise source.error(
            path,
            f"only {shown(_ONLY[path])}: toolagent is built on torch and RLlib's new API stack",
        )


def _deprecation(config_class: type, section: str, name: str, value: Any) -> str:
    """RLlib's words where it refuses the option; it ignores some without a word."""
    try:
        getattr(config_class(), section)(**{name: value})
    except Exception as error:
        return str(error)
    return "is deprecated in RLlib, without effect or replaced by another option"


def _check_nested(
    config_class: type, sections: Mapping[str, Mapping[str, Any]], source: Source
) -> None:
    """RLlib takes any name in these dicts in silence; a mistyped one would change nothing."""
    overrides = sections.get("evaluation", {}).get("evaluation_config")
    _check_attributes(config_class, ("evaluation", "evaluation_config"), overrides, source)
    name = "algorithm_config_overrides_per_module"
    for module, overrides in (sections.get("rl_module", {}).get(name) or {}).items():
        _check_attributes(config_class, ("rl_module", name, module), overrides, source)


def _check_attributes(
    config_class: type, path: KeyPath, overrides: Mapping[str, Any] | None, source: Source
) -> None:
    if overrides is None:
        return
    if not isinstance(overrides, Mapping):
        raise source.error(path, f"expected mapping, got {shown(overrides)}")
    options = {n: o for group in sections_of(config_class).values() for n, o in group.items()}
    check_names(attributes_of(config_class), path, overrides, source)
    for name, value in overrides.items():
        if name in options:
            check_value(options[name], (*path, name), value, source)


def _hint(name: str, section: str, known: Mapping[str, Options]) -> str:
    """The nearest right key: in this section, or the same option in its own section."""
    owner = _owner(name, known)
    if owner:
        return f"did you mean '{owner}'?"
    return nearest(name, [n for n, option in known[section].items() if not option.deprecated])


def _owner(name: str, known: Mapping[str, Options]) -> str | None:
    """'section.name', if some section has an option of that name."""
    for section, options in known.items():
        if name in options and not options[name].deprecated:
            return f"{section}.{name}"
    return None


def _inherited_options(config_class: type, name: str) -> Options:
    """The method's parameters and, through its **kwargs, those of the methods it overrides."""
    options: dict[str, Option] = {}
    for base in config_class.__mro__:
        method = vars(base).get(name)
        if method is None:
            continue
        options = options_of(method) | options
        parameters = inspect.signature(method).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def _hint_of(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    hint = _resolved(parameter.annotation, function)
    if not function.__module__.startswith("ray."):
        return hint
    return _CORRECTED.get(parameter.name, hint)


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """The annotation with its quoted names looked up; Any where they cannot be."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = type("holder", (), {"__annotations__": {"value": annotation}})
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}))["value"]
    except (NameError, TypeError, AttributeError):
        # Names that RLlib imports for type checkers only; the rest of the hint still tells.
        return Any if isinstance(annotation, str) else annotation
