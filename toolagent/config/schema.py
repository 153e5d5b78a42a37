"""What can be written in a section: the keyword arguments of `AlgorithmConfig`'s methods, typed.

The types are RLlib's own hints, put into what YAML can write, and checked strictly: True is no
integer, '64' is none, 1 is a float. Classes and functions are written as text,
'package.module:Name'; they are imported only when a config is built.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import inspect
import itertools
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, with_config
from pydantic import ValidationInfo as Info
from typing_extensions import TypedDict

from toolagent.config.source import KeyPath, Source, shown
from toolagent.config.validation import validated
from toolagent.errors import nearest

IMPORT = "import"  # as the context of a validation: what the values name is imported


def _schedule(points: list[list[float]]) -> list[list[float]]:
    """RLlib finds some of these faults as it builds, and some never."""
    fault = None
    if len(points) < 2 or any(len(point) != 2 for point in points):
        fault = "expected two or more [env step, value]"
    elif not all(0 <= number < float("inf") for point in points for number in point):
        fault = "steps and values must be at least 0 and finite"
    elif points[0][0] != 0:
        fault = "the first step must be 0"
    elif any(after[0] <= before[0] for before, after in itertools.pairwise(points)):
        fault = "each step must be greater than the one before"
    if fault:
        raise ValueError(f"{fault}, such as [[0, 0.003], [1000000, 0.0003]]")
    return points


def _new_stack(value: bool) -> bool:
    if not value:
        raise ValueError("only true: toolagent is built on RLlib's new API stack")
    return value


_Count: Any = Annotated[int, Field(ge=0)]
_Positive: Any = Annotated[int, Field(ge=1)]
_Amount: Any = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share: Any = Annotated[float, Field(ge=0, le=1)]
_Schedule: Any = Annotated[list[list[int | float]], AfterValidator(_schedule)]
_DEPRECATED: Any = Annotated[Any, "deprecated in RLlib"]

# Where RLlib's hint is narrower than what RLlib takes, or where RLlib takes any value and fails on
# it later, in an actor, or learns nonsense.
_CORRECTED: dict[str, Any] = {
    "num_env_runners": _Count | Literal["auto"],
    "num_cpus_per_env_runner": _Amount,
    "num_gpus_per_env_runner": _Amount,
    "num_envs_per_env_runner": Annotated[int, Field(ge=1, le=1_000_000)],
    "max_requests_in_flight_per_env_runner": _Positive,
    "gym_env_vectorize_mode": Literal["sync", "async", "vector_entry_point"],
    "num_learners": _Count,
    "num_cpus_per_learner": _Amount | Literal["auto"],
    "num_gpus_per_learner": _Amount,
    "num_aggregator_actors_per_learner": _Count,
    "evaluation_num_env_runners": _Count,
    "evaluation_duration_unit": Literal["episodes", "timesteps"],
    "num_offline_eval_runners": _Count,
    "num_cpus_per_offline_eval_runner": _Amount | None,
    "num_gpus_per_offline_eval_runner": _Amount | None,
    "offline_evaluation_type": str | None,
    "off_policy_estimation_methods": dict[str, Any],
    "offline_sampling": bool | str | None,
    "gamma": _Share,
    "lambda_": _Share,
    "lr": _Amount | _Schedule,
    "grad_clip": _Amount | None,
    "clip_param": _Amount | None,
    "entropy_coeff": _Amount | _Schedule,
    "vf_loss_coeff": _Amount,
    "train_batch_size": _Positive,
    "train_batch_size_per_learner": _Positive | None,
    "minibatch_size": _Positive | None,
    "num_epochs": _Positive,
    "clip_rewards": bool | float | list[float] | None,
    "delay_between_env_runner_restarts_s": _Amount,
    "num_consecutive_env_runner_failures_tolerance": int,
    "log_level": Literal["DEBUG", "INFO", "WARN", "ERROR"],
    "tf_session_args": dict[str, Any],
    "local_tf_session_args": dict[str, Any],
    "framework": Literal["torch"],
    "enable_rl_module_and_learner": Annotated[bool, AfterValidator(_new_stack)],
    "enable_env_runner_and_connector_v2": Annotated[bool, AfterValidator(_new_stack)],
}

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

# What RLlib's hint leaves open ('a class'), and RLlib finds out only when it builds.
_BASES = {
    "callbacks_class": "ray.rllib.callbacks.callbacks:RLlibCallback",
    "env_runner_cls": "ray.rllib.env.env_runner:EnvRunner",
    "learner_class": "ray.rllib.core.learner.learner:Learner",
    "offline_data_class": "ray.rllib.offline.offline_data:OfflineData",
    "prelearner_class": "ray.rllib.offline.offline_prelearner:OfflinePreLearner",
}

_LISTS = (
    list,
    set,
    frozenset,
    collections.abc.Collection,
    collections.abc.Iterable,
    collections.abc.Sequence,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@functools.cache
def sections_of(config_class: type) -> dict[str, dict[str, Any]]:
    """Section -> option -> type: every method that takes RLlib's options."""
    from ray.rllib.utils.from_config import NotProvided

    sections: dict[str, dict[str, Any]] = {}
    for name, _ in inspect.getmembers(config_class, inspect.isfunction):
        parameters: list[inspect.Parameter] = []
        options: dict[str, Any] = {}
        # Through its **kwargs, a method takes the parameters of those that it overrides.
        for method in (vars(base)[name] for base in config_class.__mro__ if name in vars(base)):
            own = inspect.signature(method).parameters.values()
            parameters.extend(own)
            options = options_of(method) | options
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
                break
        # 'Leave as it is' as a default is what tells an option method from any other method.
        if not name.startswith("_") and any(p.default is NotProvided for p in parameters):
            sections[name] = options
    own = getattr(config_class, "OPTIONS", None)  # toolagent's (`learning.options`)
    if own is not None:
        hints = typing.get_type_hints(own, include_extras=True)
        sections["training"] |= {name: hints[name] for name in own.model_fields}
    return sections


def deprecated_of(config_class: type, section: str) -> set[str]:
    """The section's options that RLlib has deprecated: it refuses or ignores them."""
    options = sections_of(config_class)[section]
    return {name for name, kind in options.items() if kind is _DEPRECATED}


def check_section_names(
    config_class: type, given: Collection[str], others: Collection[str], source: Source
) -> None:
    """Refuses the first top-level key that is neither a section nor one of the others.

    Raises:
        UserError: with the nearest right key, wherever it belongs.
    """
    known = sections_of(config_class)
    for name in given:
        if name not in known and name not in others:
            right = _owners(config_class).get(name)
            hint = f"did you mean '{right}'?" if right else nearest(name, [*others, *known])
            raise source.error((name,), f"unknown; {hint}")


def checked_options(
    config_class: type,
    section: str,
    options: Mapping[str, Any],
    source: Source,
    context: Any = None,
) -> dict[str, Any]:
    """A section's options, before RLlib sees any of them; with `IMPORT` what they name, imported.

    Raises:
        UserError: an unknown option, or a value of the wrong type or out of range.
    """
    kind = section_type(config_class, section)
    owners = _owners(config_class)
    return validated(kind, options, (section,), source, owners=owners, context=context)


def yaml_type(hint: Any, base: str | None = None) -> Any:
    """A type hint as the type of what YAML can write.

    Args:
        hint: of one of RLlib's arguments.
        base: 'module:Class' that a class which is named must inherit from.
    """
    if hint in (Any, object) or isinstance(hint, (str, typing.ForwardRef, typing.TypeVar)):
        return Any
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if origin in (typing.Union, types.UnionType):
        members = [yaml_type(member, base) for member in arguments]
        written = [member for member in members if member is not _OBJECT]
        members = written if set(written) - {None} else [_OBJECT, None]
        # What names code comes first: as plain text it would pass unchecked.
        members.sort(key=lambda member: not _names_code(member))
        return functools.reduce(operator.or_, members)
    if origin is typing.Annotated or origin is Literal or hint in (bool, int, float, str):
        return hint
    if hint is None or hint is type(None):
        return None
    if kind is type or kind is collections.abc.Callable or kind is typing.Callable:
        return Annotated[str, AfterValidator(functools.partial(_code, base=base)), "code"]
    if kind in _LISTS:
        return list[yaml_type(arguments[0], base)] if arguments else list
    if kind is tuple:
        items = tuple(item if item is ... else yaml_type(item) for item in arguments)
        return Annotated[tuple[items] if items else tuple, Strict(False)]  # YAML has lists
    if kind in _MAPPINGS:
        return dict[str, yaml_type(arguments[1])] if arguments else dict[str, Any]
    return _OBJECT


def typed_dict(name: str, options: Mapping[str, Any]) -> Any:
    """A type of mappings that hold any of these keys, and no others."""
    strict = ConfigDict(extra="forbid", strict=True)
    return with_config(strict)(TypedDict(name, dict(options), total=False))  # type: ignore[operator]


def refused(reason: str) -> Any:
    """A type that no value has."""

    def refuse(_: Any) -> None:
        raise ValueError(reason)

    return Annotated[Any, BeforeValidator(refuse)]


_OBJECT = refused("takes an object, which YAML cannot write")


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The named parameters of a function (without `self`), with their types."""
    from toolagent.cluster.ray_internals import deprecated_default

    options = {}
    for parameter in inspect.signature(function).parameters.values():
        name, kind = parameter.name, parameter.kind
        if name == "self" or kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        hinted = parameter.annotation is not inspect.Parameter.empty
        if not hinted and parameter.default == deprecated_default():
            options[name] = _DEPRECATED
        elif function.__module__.startswith("ray.") and name in _CORRECTED:
            options[name] = _CORRECTED[name]
        else:
            options[name] = yaml_type(_resolved(parameter, function), _BASES.get(name))
    return options


@functools.cache
def env_config_type() -> Any:
    """What `env_config` may hold: the environments' arguments and the seed."""
    from toolagent.envs.single import ToolEnv
    from toolagent.envs.vector import ToolVectorEnv

    options = options_of(ToolEnv.__init__) | options_of(ToolVectorEnv.__init__)
    for name in ("num_envs", "stream", "render_mode"):  # given by RLlib
        del options[name]
    task = refused("the task is the top-level 'task'")
    return typed_dict("env_config", options | {"task": task, "seed": int, "evaluation": bool})


@functools.cache
def section_type(config_class: type, section: str) -> Any:
    """A type of what a section may hold."""
    options = dict(sections_of(config_class)[section])
    # RLlib takes any name in these dicts in silence; a mistyped one would change nothing.
    if section == "environment":
        options["env_config"] = env_config_type() | None
    elif section == "evaluation":
        options["evaluation_config"] = _overrides_type(config_class) | None
    elif section == "rl_module":
        per_module = dict[str, _overrides_type(config_class)]
        options["algorithm_config_overrides_per_module"] = per_module | None
    for (where, name), reason in _NOT_HERE.items():
        if where == section and name in options:
            options[name] = refused(reason)
    return typed_dict(section, options)


@functools.cache
def _overrides_type(config_class: type) -> Any:
    """What `evaluation_config` and per-module overrides may set: the config's attributes."""
    properties = {
        name
        for name, member in inspect.getmembers(config_class)
        if isinstance(member, property) and member.fset is not None
    }
    names = {name for name in vars(config_class()) if not name.startswith("_")} | properties
    types_of = {
        n: kind for options in sections_of(config_class).values() for n, kind in options.items()
    }
    options = {name: types_of.get(name, Any) for name in sorted(names)}
    return typed_dict("overrides", options | {"env_config": env_config_type() | None})


@functools.cache
def _owners(config_class: type) -> dict[str, str]:
    """Option -> 'section.option'."""
    return {
        name: f"{section}.{name}"
        for section, options in reversed(sections_of(config_class).items())
        for name, kind in options.items()
        if kind is not _DEPRECATED
    }


def _resolved(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """The annotation with its quoted names looked up; Any where they cannot be."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return Any
    holder = type("holder", (), {"__annotations__": {"value": annotation}})
    known = getattr(function, "__globals__", {})
    try:
        return typing.get_type_hints(holder, globalns=known, include_extras=True)["value"]
    except (NameError, TypeError, AttributeError):
        # Names that RLlib imports for type checkers only; the rest of the hint still tells.
        return annotation


def _names_code(kind: Any) -> bool:
    return "code" in getattr(kind, "__metadata__", ()) or any(
        map(_names_code, typing.get_args(kind))
    )


def _code(name: str, info: Info, base: str | None) -> Any:
    """'package.module:Name', imported in the context `IMPORT`: the name of a class or function."""
    if ":" not in name or "://" in name:
        raise ValueError(f"expected 'package.module:Name', got {shown(name)}")
    if info.context != IMPORT:
        return name
    found = _imported(name)
    if base is None:
        if not callable(found):
            raise ValueError(f"expected a class or a function, got {name}")
        return found
    wanted = _imported(base)
    # A class may be named with its arguments, as a `functools.partial` of it.
    made = found.func if isinstance(found, functools.partial) else found
    if not (isinstance(made, type) and issubclass(made, wanted)):
        raise ValueError(f"expected a subclass of RLlib's {wanted.__name__}, got {name}")
    return found


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the user's module raises on import
        raise ValueError(f"cannot import '{name}': {error}") from None
