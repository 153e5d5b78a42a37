"""From settings to RLlib's `AlgorithmConfig`: toolagent's defaults under the user's sections."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from toolagent.config.callbacks import add_callbacks, check_callbacks
from toolagent.config.schema import checked_sections, typed_dict
from toolagent.config.settings import AUTO, AUTO_KEY, Settings, algorithm_place
from toolagent.config.source import KeyPath, one_line, shown
from toolagent.config.validation import validated
from toolagent.errors import UserError
from toolagent.outside import raised
from toolagent.tasks import get_task

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_ENV_CONFIGS = (
    ("environment", "env_config"),
    ("evaluation", "evaluation_config", "env_config"),
)
_MODEL_CONFIG = ("rl_module", "model_config")
_NETWORK = (*_MODEL_CONFIG, "network")
_MOST_WEIGHTS = 10**9
_PLAINLY_SMALL = 256  # an option of a network
_LONGEST_MESSAGE = 300
_SUPPRESS = "To suppress all validation errors"  # RLlib's advice, appended to every message


def algorithm_config_class(name: str) -> type[AlgorithmConfig]:
    """The AlgorithmConfig subclass of that name (`algorithm_place`). Imports Ray."""
    module, _, attribute = algorithm_place(name).partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_algorithm_config(settings: Settings) -> AlgorithmConfig:
    """The settings as a validated `AlgorithmConfig`, with the curriculum among its callbacks.

    It is not frozen: further callbacks can be added (`add_callbacks`).

    Raises:
        UserError: RLlib refuses a value; its message in one line, with the key.
    """
    from ray.util import log_once

    from toolagent.curriculum.callback import CurriculumCallback
    from toolagent.envs.registration import create_for_rllib, register_with_rllib

    config_class: Any = algorithm_config_class(settings.algorithm)
    checked = checked_sections(config_class, settings.sections, settings.source)
    model_config = _model_config(settings)
    register_with_rllib()
    config = config_class()
    # RLlib would warn, once, that the new API stack is on by default. Here it is on by intent.
    log_once(f"{getattr(config.algo_class, '__name__', None)}_on_new_api_stack")
    _apply_defaults(config, settings, model_config)
    for section, options in checked.items():
        if options.get(AUTO_KEY[1]) == AUTO:
            options[AUTO_KEY[1]] = 1  # until the cluster is known
        for merged in ("env_config", "model_config"):  # into the defaults, just above
            options.pop(merged, None)
        with _refusals(settings, section):
            getattr(config, section)(**options)
    if settings.curriculum.earlier_stages == "forgotten" and settings.algorithm != "toolagent":
        raise settings.source.error(
            ("curriculum", "earlier_stages"),
            f"'forgotten' is for algorithm toolagent; the env runners of {settings.algorithm} are "
            "told the stage only, so use 'evenly'",
        )
    check_callbacks(config, settings.sections.get("callbacks", {}), settings.source)
    add_callbacks(config, [functools.partial(CurriculumCallback, settings.curriculum)])
    for path in _ENV_CONFIGS:  # one episode wide: the environment knows best what it refuses
        with _refusals(settings, *path):
            create_for_rllib({**config.env_config, **settings.written(*path), "num_envs": 1})
    with _refusals(settings):
        config.validate()
        config.get_evaluation_config_object()  # applies evaluation_config, to a copy
    _check_importable(settings, config, model_config["network"])
    if settings.student is not None:
        student: Any = build_algorithm_config(settings.student_settings)
        student.teacher = model_config
        student.stages = settings.curriculum.trained_stages(get_task(settings.task).stages)
        student.earlier_share = settings.curriculum.earlier_stage_share
        config.student = student
    return config


def _check_importable(settings: Settings, config: AlgorithmConfig, network: str) -> None:
    """Refuses a task or network of the program itself where other processes have to import it."""
    actors = ("num_env_runners", "num_learners", "evaluation_num_env_runners")
    remote = [name for name in actors if getattr(config, name)]
    for path, reference in ((("task",), settings.task), (_NETWORK, network)):
        local = reference.startswith("__main__:") or "<locals>" in reference
        if local and remote:
            raise settings.source.error(
                path,
                f"{reference} can't be imported by the processes of {remote[0]} "
                f"({getattr(config, remote[0])}); move the class into a module, such as "
                f"my_module.py, or set {remote[0]} to 0",
            )


def _model_config(settings: Settings) -> dict[str, Any]:
    """The options of the network, which is built: it knows best what it refuses. One of another
    module is then tried out."""
    import torch

    from toolagent.models.check import check_network
    from toolagent.models.registry import DEFAULT_NETWORK, network_class
    from toolagent.models.rl_module import build_network
    from toolagent.outside import file_of, is_outside

    given, source = settings.written(*_MODEL_CONFIG), settings.source
    name = given.get("network", DEFAULT_NETWORK)
    if not isinstance(name, str):
        raise source.error(_NETWORK, f"expected a name, got {shown(name)}")
    try:
        chosen = network_class(name)
        options = chosen.Options._field_defaults
    except UserError as error:
        raise source.error(_NETWORK, str(error)) from error
    validated(_model_config_type(name), given, _MODEL_CONFIG, source)
    # An episode and the value after it stay in one piece in the learner.
    length = get_task(settings.task).max_actions + 1
    model_config = {"task": settings.task, "network": name, **options, "max_seq_len": length}
    model_config |= given
    outside = is_outside(name)
    # torch's own RuntimeError is for sizes beyond 64 bits.
    refusals = (ValueError, OverflowError, *(() if outside else (RuntimeError,)))
    # Sizes that may be beyond the memory are tried without storage; for that, torch loads its
    # compiler, which takes as long as torch itself.
    sizes = [value for value in model_config.values() if type(value) is int]
    small = not outside and max(sizes) <= _PLAINLY_SMALL
    try:
        with torch.random.fork_rng(devices=[]) if small else torch.device("meta"):
            network = build_network(model_config)
        weights = sum(tensor.numel() for tensor in network.state_dict().values())
        if weights > _MOST_WEIGHTS:
            raise ValueError(f"makes {weights:,} weights; at most {_MOST_WEIGHTS:,} can be trained")
    except refusals as error:
        # A network's own message begins with the option: 'num_heads is 0; it must be at least 1'.
        culprit = [option for option in options if str(error).startswith(f"{option} ")]
        raise source.error((*_MODEL_CONFIG, *culprit), str(error)) from error
    except Exception as error:
        if not outside:
            raise
        where = f"{file_of(chosen)}: network {chosen.__name__}"
        fault = raised(where, "its constructor, run on torch's device 'meta',", error)
        raise source.error(_NETWORK, str(fault)) from error
    if outside:
        try:
            check_network(chosen, functools.partial(build_network, model_config))
        except UserError as error:
            raise source.error(_NETWORK, str(error)) from error
    return model_config


@functools.cache
def _model_config_type(network: str) -> Any:
    from toolagent.models.registry import network_class

    defaults = network_class(network).Options._field_defaults
    options = {option: type(value) for option, value in defaults.items()}
    return typed_dict(
        "model_config", {"network": str, **options, "max_seq_len": Annotated[int, Field(ge=1)]}
    )


def _apply_defaults(
    config: AlgorithmConfig, settings: Settings, model_config: dict[str, Any]
) -> None:
    """toolagent's own settings, over RLlib's defaults and under the user's sections."""
    import gymnasium as gym
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from toolagent.envs.registration import env_id
    from toolagent.envs.single import ToolEnv
    from toolagent.models.rl_module import NetworkModule

    config.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
    config.framework("torch")
    # RLlib sets its logger's level once more as it builds: a lost node would be told of in pages.
    verbose = os.environ.get("TOOLAGENT_VERBOSE") == "1"
    # No figures of the system: nobody reads them, and an algorithm that ends waits for the thread
    # that takes them, which sleeps.
    level = "WARN" if verbose else "CRITICAL"
    config.debugging(seed=settings.seed, log_level=level, log_sys_usage=False)
    config.environment(
        env_id(settings.task),
        env_config={
            "task": settings.task,
            "seed": settings.seed,
            "stage": settings.curriculum.levels[0].stage,
            "earlier_stage_share": settings.curriculum.earlier_stage_share,
            **settings.written(*_ENV_CONFIGS[0]),
        },
    )
    if not config.is_online:  # without env runners, nobody else tells the spaces
        env = ToolEnv(settings.task)
        config.environment(observation_space=env.observation_space, action_space=env.action_space)
    config.env_runners(gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT.value)
    config.rl_module(
        rl_module_spec=RLModuleSpec(module_class=NetworkModule, model_config=model_config)
    )
    # RLlib's 60 s between a runner's death and its restart suit machines that are slow to come.
    # Lost runners are asked in each iteration whether they are back: with RLlib's 30 s for an
    # answer, the others would wait that long, again and again, until a node is there for them.
    config.fault_tolerance(
        restart_failed_env_runners=True,
        delay_between_env_runner_restarts_s=1.0,
        env_runner_health_probe_timeout_s=0.2,
    )
    # Evaluation draws from a problem stream of its own.
    config.evaluation(evaluation_config={"env_config": {"evaluation": True}})


@contextlib.contextmanager
def _refusals(settings: Settings, *path: str) -> Iterator[None]:
    """Turns whatever RLlib (or the environment) raises inside the block into a `UserError`.

    Every exception type: an odd value can end in a KeyError or TypeError just as well as in the
    ValueError that RLlib words with care.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = one_line(str(error).split(_SUPPRESS)[0], _LONGEST_MESSAGE).rstrip("\\ ")
        if not isinstance(error, ValueError):
            message = f"refused: {type(error).__name__}: {message}"
        raise settings.source.error(_culprit(settings, path, message), message) from error


def _culprit(settings: Settings, path: KeyPath, message: str) -> KeyPath:
    """The written option that the message mentions first, or else as far as is known."""
    found = [
        (match.start(), (section, name))
        for section, options in settings.sections.items()
        if path in ((), (section,))
        for name in options
        if (match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message))
    ]
    return min(found)[1] if found else path
