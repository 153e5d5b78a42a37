"""Classes and functions that a config names, 'package.module:Name', imported.

Building from a config can thus run code that the config names; loading one cannot.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from toolagent.config.hints import describe, names_code, takes_text
from toolagent.config.options import Option
from toolagent.config.source import KeyPath, Source, shown

# What RLlib's hint leaves open ('a class'), and RLlib finds out only when it builds.
_BASES = {
    "callbacks_class": "ray.rllib.callbacks.callbacks:RLlibCallback",
    "env_runner_cls": "ray.rllib.env.env_runner:EnvRunner",
    "learner_class": "ray.rllib.core.learner.learner:Learner",
    "offline_data_class": "ray.rllib.offline.offline_data:OfflineData",
    "prelearner_class": "ray.rllib.offline.offline_prelearner:OfflinePreLearner",
}


def with_code(value: Any, option: Option, path: KeyPath, source: Source) -> Any:
    """The value with what it names imported, where the option takes a class or a function.

    Raises:
        UserError: there is nothing of that name, or it is not what is wanted.
    """
    if not names_code(option.hint):
        return value
    if isinstance(value, list):  # of callbacks, for one
        return [with_code(item, option, path, source) for item in value]
    if not isinstance(value, str):
        return value
    # 'input_' may be a class or a place, and the place a URI.
    if ":" not in value or "://" in value:
        if not takes_text(option.hint):
            raise source.error(path, f"expected {describe(option.hint)}, got {shown(value)}")
        return value
    found = _imported(value, path, source)
    if option.name in _BASES:
        base = _imported(_BASES[option.name], path, source)
        made = class_of(found)
        if not (isinstance(made, type) and issubclass(made, base)):
            raise source.error(path, f"expected a subclass of RLlib's {base.__name__}, got {value}")
    elif not callable(found):
        raise source.error(path, f"expected a class or a function, got {value}")
    return found


def class_of(named: Any) -> Any:
    """The class, which may be named with its arguments: as a `functools.partial` of it."""
    return named.func if isinstance(named, functools.partial) else named


def _imported(name: str, path: KeyPath, source: Source) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the user's module raises on import
        raise source.error(path, f"cannot import '{name}': {error}") from None
