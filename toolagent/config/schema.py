"""What can be written in a section: the keyword arguments of `AlgorithmConfig`'s methods, typed.

The types are RLlib's own hints and the types of its defaults, put into what YAML can write, and
checked strictly: True is no integer, '64' is none, 1 is a float, and no number is below 0. Classes
and functions are written as text, 'package.module:Name', and imported.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import importlib
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, with_config
from typing_extensions import TypedDict

from toolagent.config.settings import OWN_KEYS, own_places
from toolagent.config.source import Source, shown
from toolagent.config.validation import RENAMED, unknown_key, validated

_Options = dict[str, Any]  # option -> type


def typed_dict(name: str, options: Mapping[str, Any]) -> Any:
    """A type of mappings that hold any of these keys, and no others."""
    strict = ConfigDict(extra="forbid", strict=True)
    return with_config(strict)(TypedDict(name, dict(options), total=False))  # type: ignore[operator]


def refused(reason: str) -> Any:
    """A type that no value has."""

    def refuse(_: object) -> None:
        raise ValueError(reason)

    return Annotated[Any, BeforeValidator(refuse)]


def named_code(base: type | str | None = None) -> Any:
    """The type of 'package.module:Name', the name of a class or function, which is imported.

    Args:
        base: the class that it must inherit from, or that class's own name.
    """
    return Annotated[str, AfterValidator(functools.partial(_code, base=base))]


def _code(name: str, base: type | str | None) -> object:
    if ":" not in name or "://" in name:
        raise ValueError(f"expected 'package.module:Name', got {shown(name)}")
    found = _imported(name)
    if base is None:
        if not callable(found):
            raise ValueError(f"expected a class or a function, got {name}")
        return found
    wanted = _imported(base) if isinstance(base, str) else base
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


def _ascending(points: list[list[float]]) -> list[list[float]]:
    steps = [point[0] for point in points if point]
    if any(after <= before for before, after in itertools.pairwise(steps)):
        raise ValueError("each step must be greater than the one before")
    return points


def _new_stack(value: bool) -> bool:
    if not value:
        raise ValueError("only true: toolagent is built on RLlib's new API stack")
    return value


_OBJECT = refused("takes an object, which YAML cannot write")
_DEPRECATED = refused("is deprecated in RLlib, without effect or replaced by another option")
_Count: Any = Annotated[int, Field(ge=0)]
_Positive: Any = Annotated[int, Field(ge=1)]
_Amount: Any = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share: Any = Annotated[float, Field(ge=0, le=1)]
_Scheduled: Any = _Amount | Annotated[list[list[_Amount]], AfterValidator(_ascending)]
_NewStack: Any = Annotated[bool, AfterValidator(_new_stack)]

# Where RLlib's hint is narrower than what RLlib takes, or where RLlib takes any value and fails on
# it later, in an actor, or learns nonsense; and options that have another place here.
_CORRECTED: dict[str, Any] = {
    "num_env_runners": _Count | Literal["auto"],
    "num_cpus_per_env_runner": _Amount,
    "num_gpus_per_env_runner": _Amount,
    "num_envs_per_env_runner": Annotated[int, Field(ge=1, le=1_000_000)],
    "max_requests_in_flight_per_env_runner": _Positive,
    "gym_env_vectorize_mode": Literal["sync", "async", "vector_entry_point"],
    "env_runner_cls": named_code("ray.rllib.env.env_runner:EnvRunner") | None,
    "num_learners": _Count,
    "num_cpus_per_learner": _Amount | Literal["auto"],
    "num_gpus_per_learner": _Amount,
    "num_aggregator_actors_per_learner": _Count,
    "learner_class": named_code("ray.rllib.core.learner.learner:Learner") | None,
    "evaluation_num_env_runners": _Count,
    "evaluation_duration_unit": Literal["episodes", "timesteps"],
    "offline_data_class": named_code("ray.rllib.offline.offline_data:OfflineData") | None,
    "prelearner_class": named_code("ray.rllib.offline.offline_prelearner:OfflinePreLearner") | None,
    "gamma": _Share,
    "lambda_": _Share,
    "lr": _Scheduled,
    "entropy_coeff": _Scheduled,
    "train_batch_size": _Positive,
    "train_batch_size_per_learner": _Positive | None,
    "minibatch_size": _Positive | None,
    "num_epochs": _Positive,
    "log_level": Literal["DEBUG", "INFO", "WARN", "ERROR"],
    "framework": Literal["torch"],
    "enable_rl_module_and_learner": _NewStack,
    "enable_env_runner_and_connector_v2": _NewStack,
    "env": refused("the environment follows from the top-level 'task'"),
    "seed": refused("the seed is the top-level 'seed'"),
    "rl_module_spec": refused("the module is toolagent's; use rl_module.model_config"),
    "model": refused("belongs to RLlib's old API stack; use rl_module.model_config"),
    "policies": refused("there is one agent here, with one policy"),
    "policies_to_train": refused("there is one policy here, and it is trained"),
    "custom_stats_cls_lookup": refused("RLlib's own ways to reduce metrics are needed here"),
    "num_gpus": refused("belongs to RLlib's old API stack; use learners.num_gpus_per_learner"),
}


@functools.cache
def sections_of(config_class: type) -> dict[str, _Options]:
    """Section -> option -> type: every method that takes RLlib's options."""
    from ray.rllib.utils.from_config import NotProvided

    defaults, sections = vars(config_class()), {}
    for name, _ in inspect.getmembers(config_class, inspect.isfunction):
        parameters: list[inspect.Parameter] = []
        options: _Options = {}
        # Through its **kwargs, a method takes the parameters of those that it overrides.
        for method in (vars(base)[name] for base in config_class.__mro__ if name in vars(base)):
            own = inspect.signature(method).parameters.values()
            parameters.extend(own)
            options = options_of(method, defaults) | options
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


def checked_sections(
    config_class: type, sections: Mapping[str, Mapping[str, Any]], source: Source
) -> dict[str, _Options]:
    """The options of all sections, with what they name imported, before RLlib sees any of them.

    Raises:
        UserError: an unknown section or option, or a value of the wrong type or out of range.
    """
    known = sections_of(config_class)
    owners = {
        name: f"{section}.{name}"
        for section, options in reversed(known.items())
        for name, kind in options.items()
        if kind is not _DEPRECATED
    } | own_places()
    for section in sections:
        if section not in known:
            raise source.error((section,), unknown_key(section, [*OWN_KEYS, *known], owners))
    return {
        section: validated(section_type(config_class, section), options, (section,), source, owners)
        for section, options in sections.items()
    }


class _Names(dict[str, Any]):
    """Names of a module; those that it imports for type checkers only stand for any value."""

    def __missing__(self, name: str) -> Any:
        return Any


def options_of(
    function: Callable[..., object], defaults: Mapping[str, object] | None = None
) -> _Options:
    """The named parameters of a function (without `self`), with their types.

    Args:
        function: of which the hints are read.
        defaults: parameter -> a value that is right whatever the hint says.
    """
    from toolagent.cluster.ray_internals import deprecated_default

    names = _Names(vars(builtins) | getattr(function, "__globals__", {}))
    hints = typing.get_type_hints(function, localns=names, include_extras=True)
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in hints and parameter.default == deprecated_default():
            options[name] = refused(RENAMED[name]) if name in RENAMED else _DEPRECATED
        elif name in _CORRECTED:
            options[name] = _CORRECTED[name]
        else:
            hint, default = hints.get(name, Any), type((defaults or {}).get(name))
            plain = (bool, int, float, str, list, dict, type(None))
            options[name] = yaml_type(hint | default if default in plain else hint)
    return options


def yaml_type(hint: Any) -> Any:
    """A type hint as the type of what YAML can write."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        # Plain text comes last: it would take the name of a class unchecked.
        members = sorted(map(yaml_type, arguments), key=lambda member: member is str)
        written = [member for member in members if member is not _OBJECT]
        empty = all(member is type(None) for member in written)
        return typing.Union[tuple(members if empty else written)]  # noqa: UP007
    if kind in (Annotated, Literal, bool, str, type(None)):
        return hint
    if kind in (int, float):
        return Annotated[kind, Field(ge=0)]
    if kind is type:
        return named_code(next((base for base in arguments if base is not Any), None))
    if kind is collections.abc.Callable:
        return named_code()
    if kind in (Any, object) or not isinstance(kind, type):
        return Any
    if kind in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        return dict[str, yaml_type(arguments[1])] if arguments else dict[str, Any]
    if kind is tuple:
        items = tuple(item if item is ... else yaml_type(item) for item in arguments)
        return Annotated[tuple[items] if items else tuple, Strict(False)]  # YAML has lists
    if kind in (list, set, frozenset) or kind.__module__ == "collections.abc":
        return list[yaml_type(arguments[0])] if arguments else list
    return _OBJECT


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
        n: kind
        for options in sections_of(config_class).values()
        for n, kind in options.items()
        if kind is not _DEPRECATED
    }
    options = {name: types_of.get(name, Any) for name in sorted(names)}
    # Evaluation may have a seed of its own.
    own = {"env_config": env_config_type() | None, "seed": _Count | None}
    return typed_dict("overrides", options | own)
