"""What a run begins with, and whether it may: refused before anything is started."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolagent.checkpoints.run_files import RunState
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.config import Settings
from toolagent.errors import UserError, labelled

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from rich.console import Console

    from toolagent.checkpoints.policy import Policy
    from toolagent.models.base import AgentNetwork

_FIXED = ("task", "algorithm", "seed")  # what a resumed run can't change


@dataclass(frozen=True)
class Start:
    """What a run begins with: nothing, a policy's weights, or a checkpoint of its own."""

    policy: Policy | None = None
    checkpoint: Path | None = None
    state: RunState = field(default_factory=RunState)  # copied by who changes it
    handover: dict[str, Any] | None = None  # of the phase before (`learning.distillation`)
    resumed: bool = False  # a run that is there already, with a checkpoint or not yet
    notes: tuple[str, ...] = ()  # what is to be told of how it was found


def check_local_resources(algorithm_config: AlgorithmConfig, address: str | None) -> None:
    """More than this machine has is refused before anything is started or written."""
    if address is not None:
        return
    import torch

    from toolagent.config import check_placement

    # CPUs are shared as soon as Ray has counted them.
    here = {"CPU": math.inf, "GPU": torch.cuda.device_count()}
    check_placement(algorithm_config, [here], here)


def resumed_start(
    folder: RunFolder,
    named: Path | None,
    settings: Settings,
    before: Settings,
    algorithm_config: AlgorithmConfig,
) -> Start:
    """The named or else the newest checkpoint, if these settings can continue from it.

    Args:
        folder: of the run.
        named: a checkpoint in it.
        settings: to go on with, and `algorithm_config` made of them.
        before: the run's own.
    """
    from toolagent.checkpoints.manifest import TornCheckpoint, read_manifest
    from toolagent.checkpoints.training_state import (
        finish_replacing,
        never_wrote_one,
        newest_checkpoint,
        read_algorithm_state,
        read_run_state,
    )
    from toolagent.config import config_sha256

    for key in _FIXED:
        was, now = getattr(before, key), getattr(settings, key)
        if was != now:
            raise UserError(f"--resume {folder.path}: its {key} is {was}; it can't become {now}")
    if len(settings.curriculum.levels) != len(before.curriculum.levels):
        raise UserError(f"--resume {folder.path}: the number of curriculum.levels can't change")
    folder.lock("--resume")
    finish_replacing(folder.checkpoints)
    if never_wrote_one(folder.checkpoints) and not folder.summary.exists():
        folder.check_origin()
        folder.check_files()
        return Start(resumed=True)
    notes: list[str] = []
    if named is None:
        checkpoint, state = newest_checkpoint(folder.checkpoints, notes.append)
    else:
        with labelled(f"--resume {named}: ", TornCheckpoint):
            checkpoint, state = named, read_run_state(named)
    folder.check_files()
    configured: Any = algorithm_config
    policy_of("--resume", checkpoint, settings, configured.student if state.phase else configured)
    with labelled(f"--resume {checkpoint}: ", TornCheckpoint):
        read_algorithm_state(checkpoint)  # now, while nothing is changed yet
    done = nothing_left(settings, state)
    if done:
        raise UserError(f"--resume {folder.path}: nothing is left to do: {done}")
    if read_manifest(checkpoint).config_sha256 != config_sha256(before):
        notes.append(f"config.yaml has changed since {checkpoint.name} was written")
    return Start(checkpoint=checkpoint, state=state, resumed=True, notes=tuple(notes))


def take_up(console: Console, folder: RunFolder, start: Start) -> list[dict[str, Any]]:
    """Brings a run's folder to where it is continued from; returns the rows of its progress."""
    from toolagent.checkpoints.training_state import set_aside_later

    state = start.state
    folder.summary.unlink(missing_ok=True)  # of the session before
    # First of all: a kill in between must leave no checkpoint whose rows are gone.
    aside = set_aside_later(folder.checkpoints, state.iteration)
    rows = folder.cut_progress(state.finished_iterations)
    if start.checkpoint is None:
        console.print("there is no checkpoint yet: begins anew")
        return rows
    for path in aside:
        console.print(f"set aside as {path.name}: later than the checkpoint, or not whole")
    if len(rows) < state.finished_iterations:
        console.print(f"progress.jsonl lacks {state.finished_iterations - len(rows)} rows")
    console.print(f"continues from {start.checkpoint.name} at {state.env_steps:,} env steps")
    return rows


def policy_of(
    flag: str, path: str | Path, settings: Settings, algorithm_config: AlgorithmConfig
) -> Policy:
    """The policy at the path: sound, of the settings' task, and of the configured network."""
    from toolagent.checkpoints.policy import load_policy

    policy = load_policy(path, expected_task=settings.task)
    _check_network(f"{flag} {policy.place}", policy.network, algorithm_config.rl_module_spec)
    return policy


def _check_network(label: str, network: AgentNetwork, spec: Any) -> None:
    """Refuses a network of another class, or with other options, than the configured one."""
    from toolagent.models.registry import network_class, network_name

    options, configured = network.options._asdict(), spec.model_config["network"]
    written = {name: json.dumps(value).strip('"') for name, value in options.items()}  # as YAML
    if network_class(configured) is not type(network):
        name = network_name(type(network))
        # As a whole: it takes the place of the other network's options, which this one has not.
        right = ", ".join(f"{key}: {value}" for key, value in written.items())
        raise UserError(
            f"{label}: its network is {name}, the configuration's "
            f"{configured}; add "
            f"--set 'rl_module.model_config={{network: {name}, {right}}}'"
        )
    differing = [name for name in options if options[name] != spec.model_config[name]]
    if differing:
        its = ", ".join(f"{name} {written[name]}" for name in differing)
        other = ", ".join(f"{name} {spec.model_config[name]}" for name in differing)
        right = " ".join(f"--set rl_module.model_config.{n}={written[n]}" for n in differing)
        raise UserError(f"{label}: its network has {its}, the configuration {other}; add {right}")


def load_weights(algorithm: Algorithm, policy: Policy) -> None:
    """Puts a policy's weights into the learners and the env runners."""
    from ray.rllib.core import DEFAULT_MODULE_ID

    from toolagent.learning.algorithm import ToolAgent

    weights = {
        f"network.{name}": tensor.numpy() for name, tensor in policy.network.state_dict().items()
    }
    algorithm.learner_group.set_weights({DEFAULT_MODULE_ID: weights})
    if isinstance(algorithm, ToolAgent):  # each of its requests carries the weights
        algorithm.publish_weights()
    elif algorithm.env_runner_group is not None:
        algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=algorithm.learner_group, inference_only=True
        )


def limit_reached(settings: Settings, state: RunState) -> str | None:
    """The limit of the run that is reached, as in `stopped_by`; None if none is."""
    from toolagent.curriculum.stopping import first_limit_reached

    run = settings.run
    return first_limit_reached(
        (
            ("env_steps", run.stop_env_steps, state.env_steps),
            ("time", run.stop_time_s, state.time_s),
            ("iterations", run.stop_iterations, state.finished_iterations),
        )
    )


def nothing_left(settings: Settings, state: RunState) -> str | None:
    """Why a run that stands there has nothing left to do under these settings, and what would give
    it something; None if it has."""
    if state.stopped_by == "taught":
        return "the student has made all its updates"
    if state.stopped_by == "solved" and settings.run.stop_when_solved:
        advice = "--set run.stop_when_solved=false"
        return f"every stage of the curriculum is solved; to train on, add {advice}"
    return {
        "env_steps": f"it has made {state.env_steps:,} env steps; raise --stop-env-steps",
        "time": f"it has trained for {state.time_s:.0f} s; raise --stop-time-s",
        "iterations": (
            f"it has made {state.finished_iterations:,} iterations; raise run.stop_iterations"
        ),
    }.get(limit_reached(settings, state) or "")
