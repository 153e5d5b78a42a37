"""From settings to RLlib's `AlgorithmConfig`: toolagent's defaults under the user's sections."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from toolagent.config.callbacks import add_callbacks, check_callbacks
from toolagent.config.schema import IMPORT, checked_options, deprecated_of, typed_dict
from toolagent.config.settings import AUTO, AUTO_KEY, Settings
from toolagent.config.source import KeyPath
from toolagent.config.validation import check_name, validated
from toolagent.errors import UserError
from toolagent.tasks import TASKS

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

# Name in the YAML -> 'module:class' of the AlgorithmConfig; imported when it is needed.
ALGORITHMS: dict[str, str] = {
    "toolagent": "toolagent.learning.algorithm:ToolAgentConfig",
    "PPO": "toolagent.learning.stock:StockPPOConfig",
    "tutorial": "toolagent.learning.tutorial:TutorialConfig",
    "BC": "toolagent.learning.offline:OfflineBCConfig",
    "MARWIL": "toolagent.learning.offline:OfflineMARWILConfig",
}

_ENV_CONFIGS = (
    ("environment", "env_config"),
    ("evaluation", "evaluation_config", "env_config"),
)
_MODEL_CONFIG = ("rl_module", "model_config")
_DEFAULT_NETWORK = "stage_gru"  # a name of `toolagent.models.rl_module.MODULES`
_MOST_WEIGHTS = 10**9
_LONGEST_MESSAGE = 300
_SUPPRESS = "To suppress all validation errors"  # RLlib's advice, appended to every message


def algorithm_config_class(name: str) -> type[AlgorithmConfig]:
    """The AlgorithmConfig subclass of that name in `ALGORITHMS`. Imports Ray."""
    module, _, attribute = ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_algorithm_config(settings: Settings) -> AlgorithmConfig:
    """The settings as a validated `AlgorithmConfig`, with the curriculum among its callbacks.

    It is not frozen: further callbacks can be added (`add_callbacks`).

    Raises:
        UserError: RLlib refuses a value; its message in one line, with the key.
    """
    from ray.util import log_once

    from toolagent.curriculum.callback import CurriculumCallback
    from toolagent.envs.registration import register_with_rllib

    checked = _checked(settings, IMPORT)
    _check_network(settings)
    register_with_rllib()
    config = algorithm_config_class(settings.algorithm)()
    # RLlib would warn, once, that the new API stack is on by default. Here it is on by intent.
    log_once(f"{getattr(config.algo_class, '__name__', None)}_on_new_api_stack")
    _apply_defaults(config, settings)
    for section, options in checked.items():
        if options.get(AUTO_KEY[1]) == AUTO:
            options[AUTO_KEY[1]] = 1  # until the cluster is known
        for merged in ("env_config", "model_config"):  # into the defaults, just above
            options.pop(merged, None)
        with _Refusals(settings, (section,)):
            getattr(config, section)(**options)
        for name in deprecated_of(type(config), section) & set(options):  # RLlib took it in silence
            raise settings.source.error(
                (section, name),
                "is deprecated in RLlib, without effect or replaced by another option",
            )
    check_callbacks(config, settings.sections.get("callbacks", {}), settings.source)
    add_callbacks(config, [functools.partial(CurriculumCallback, settings.curriculum)])
    _try_environment(config, settings)
    with _Refusals(settings, ()):
        config.validate()
        config.get_evaluation_config_object()  # applies evaluation_config, to a copy
    return config


def check_options(settings: Settings) -> None:
    """Names and types of all options in the sections. Imports Ray.

    Raises:
        UserError: an unknown option, or a value of the wrong type or out of range.
    """
    _checked(settings)
    _check_network(settings)


def _checked(settings: Settings, context: str | None = None) -> dict[str, dict[str, Any]]:
    config_class = algorithm_config_class(settings.algorithm)
    return {
        section: checked_options(
            config_class, section, copy.deepcopy(options), settings.source, context
        )
        for section, options in settings.sections.items()
    }


def _check_network(settings: Settings) -> None:
    given = settings.written(*_MODEL_CONFIG)
    if not given:
        return
    network = _network_name(settings)
    validated(_model_config_type(network), given, _MODEL_CONFIG, settings.source)
    _try_network(settings, _model_config_defaults(settings.task, network) | given)


def _network_name(settings: Settings) -> str:
    """The key of `MODULES` that the model config names, or the default."""
    from toolagent.models.rl_module import MODULES

    name = settings.written(*_MODEL_CONFIG).get("network", _DEFAULT_NETWORK)
    return check_name(name, (*_MODEL_CONFIG, "network"), MODULES, settings.source)


@functools.cache
def _model_config_type(network: str) -> Any:
    defaults = _model_config_defaults(next(iter(TASKS)), network)  # of one type for every task
    options: dict[str, Any] = {name: type(value) for name, value in defaults.items()}
    return typed_dict("model_config", options | {"max_seq_len": Annotated[int, Field(ge=1)]})


def _model_config_defaults(task: str, network: str) -> dict[str, Any]:
    """What the module can be told, with that network: the options of its sizes, and two more."""
    from toolagent.models.rl_module import MODULES

    sizes = MODULES[network].network_class.Sizes
    return {
        "network": network,
        **{name: sizes._field_defaults[name] for name in sizes._fields[2:]},
        # An episode and the value after it stay in one piece in the learner.
        "max_seq_len": TASKS[task].max_actions + 1,
    }


def _try_network(settings: Settings, model_config: dict[str, Any]) -> None:
    """Builds the network without storage for its weights: it knows best what it refuses."""
    import torch

    from toolagent.models.rl_module import MODULES

    task = TASKS[settings.task]()
    network_class = MODULES[model_config["network"]].network_class
    sizes = network_class.Sizes
    options = {name: model_config[name] for name in sizes._fields[2:]}
    try:
        with torch.device("meta"):
            network = network_class(sizes(task.context_vocabulary, task.stages.stop, **options))
        weights = sum(tensor.numel() for tensor in network.state_dict().values())
        if weights > _MOST_WEIGHTS:
            raise ValueError(f"makes {weights:,} weights; at most {_MOST_WEIGHTS:,} can be trained")
    except (ValueError, RuntimeError, OverflowError) as error:  # torch's own: beyond 64 bits
        # A network's own message begins with the option: 'num_heads is 0; it must be at least 1'.
        culprit = [name for name in options if str(error).startswith(f"{name} ")]
        raise settings.source.error((*_MODEL_CONFIG, *culprit), str(error)) from error


def _apply_defaults(config: AlgorithmConfig, settings: Settings) -> None:
    """toolagent's own settings, over RLlib's defaults and under the user's sections."""
    import gymnasium as gym
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from toolagent.envs.registration import env_id
    from toolagent.envs.single import ToolEnv
    from toolagent.models.rl_module import MODULES

    network = _network_name(settings)
    config.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
    config.framework("torch")
    # RLlib sets its logger's level once more as it builds: a lost node would be told of in pages.
    verbose = os.environ.get("TOOLAGENT_VERBOSE") == "1"
    config.debugging(seed=settings.seed, log_level="WARN" if verbose else "CRITICAL")
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
        rl_module_spec=RLModuleSpec(
            module_class=MODULES[network],
            model_config=_model_config_defaults(settings.task, network)
            | settings.written(*_MODEL_CONFIG),
        )
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


def _try_environment(config: AlgorithmConfig, settings: Settings) -> None:
    """Builds the environment, one episode wide: it knows best what it refuses."""
    from toolagent.envs.registration import create_for_rllib

    for path in _ENV_CONFIGS:
        with _Refusals(settings, path):
            create_for_rllib({**config.env_config, **settings.written(*path), "num_envs": 1})


class _Refusals:
    """Turns whatever RLlib (or the environment) raises inside the block into a `UserError`.

    Every exception type: an odd value can end in a KeyError or TypeError just as well as in the
    ValueError that RLlib words with care.
    """

    def __init__(self, settings: Settings, path: KeyPath):
        self._settings = settings
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError) or not isinstance(error, Exception):
            return
        message = " ".join(str(error).split(_SUPPRESS)[0].split()).rstrip("\\ ")
        if len(message) > _LONGEST_MESSAGE:
            message = message[: _LONGEST_MESSAGE - 3] + "..."
        if not isinstance(error, ValueError):
            message = f"refused: {type(error).__name__}: {message}"
        raise self._settings.source.error(self._culprit(message), message) from error

    def _culprit(self, message: str) -> KeyPath:
        """The written option that the message mentions first, or else as far as is known."""
        found = [
            (match.start(), (section, name))
            for section, options in self._settings.sections.items()
            if not self._path or section == self._path[0]
            for name in options
            if (match := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message))
        ]
        longer = len(self._path) > 1
        return self._path if longer or not found else min(found)[1]
