"""One session of a run, from what was asked for to its results: what the command does, and
`toolagent.train`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from toolagent import cli
from toolagent.checkpoints.output import finish, new_run, run_to_resume
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import Preload, cluster_to_join, ray_session
from toolagent.errors import UserError
from toolagent.phases import main_phase, recording
from toolagent.run.ahead import FOR_ACTORS, FOR_TRAINING, import_ahead
from toolagent.run.display import Display
from toolagent.run.recording import check_recording, check_records
from toolagent.run.start import (
    Start,
    check_local_resources,
    policy_of,
    resumed_start,
)

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from toolagent.config import Settings
    from toolagent.trackers import Trackers

# What --num-env-runners and its like mean in the configuration.
_SHORTHANDS = {
    "num_env_runners": "env_runners.num_env_runners",
    "num_learners": "learners.num_learners",
    "num_gpus_per_learner": "learners.num_gpus_per_learner",
    "seed": "seed",
    "stop_env_steps": "run.stop_env_steps",
    "stop_time_s": "run.stop_time_s",
    "record_episodes": "run.record_episodes",
}


@dataclass(frozen=True)
class Request:
    """What is asked for, as the flags of `python -m toolagent.run` say it."""

    config: str | None = None  # a YAML file, or the name of a shipped config
    output_dir: str | None = None
    resume: str | None = None
    init_from: str | None = None
    address: str | None = None
    overrides: tuple[str, ...] = ()  # 'section.key=value'
    profile: bool = False  # write where the time of each process went


@dataclass(frozen=True)
class Result:
    """What a session came to."""

    exit_code: int
    faults: tuple[str, ...]  # why it has failed; they are on stderr too
    folder: RunFolder  # gone from this machine if it is on storage
    summary: dict[str, Any] | None  # as in `summary.json`; None without results


def override(key: str, value: Any) -> str:
    """'section.key=value' of a Python value: numbers, text, lists, mappings, paths, and NumPy's.

    Raises:
        UserError: YAML can't say such a value.
    """
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UserError(
            f"--set {key}: {value!r:.60} can't be written in YAML; expected a number, text, a list "
            "or a mapping; name code as 'my_module:my_function'"
        ) from None
    return f"{key}={text}"  # JSON is YAML


def shorthand_overrides(**given: Any) -> tuple[str, ...]:
    """The overrides that `num_env_runners` and its like stand for; None says nothing."""
    return tuple(
        override(_SHORTHANDS[name], value) for name, value in given.items() if value is not None
    )


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError


def given_with_resume(request: Request) -> None:
    """Raises UserError for what a resumed run can't be given."""
    for flag, given in (
        ("--config", request.config),
        ("--output-dir", request.output_dir),
        ("--init-from", request.init_from),
    ):
        if given is not None:
            raise UserError(f"{flag}: can't be given with --resume, which continues a run")


def checked(request: Request) -> tuple[Settings, AlgorithmConfig, list[str]]:
    """The settings of a request and what is built from them, before anything is started; and what
    is to be told of them.

    Raises:
        UserError: they can't be met.
    """
    from toolagent.config import load_settings

    address = cluster_to_join(request.address)
    settings = load_settings(request.config, request.overrides)
    return settings, *_built(settings, address)


def _built(settings: Settings, address: str | None) -> tuple[AlgorithmConfig, list[str]]:
    """RLlib's configuration, and what is to be told of it; imports RLlib."""
    from toolagent.config import build_algorithm_config

    algorithm_config = build_algorithm_config(settings)
    check_local_resources(algorithm_config, address)
    check_recording(settings.run.record_episodes, settings.task)
    return algorithm_config, check_records(settings, algorithm_config)


def launch(request: Request, console: Console) -> Result:
    """Checks the request, starts or joins Ray, trains and writes the results.

    Raises:
        UserError: the request can't be met; nothing is written then, and Ray has ended.
        KeyboardInterrupt: a signal came before anything was trained, or a second one.
    """
    address = cluster_to_join(request.address)
    if request.resume is not None:
        given_with_resume(request)
    from toolagent.config import load_settings
    from toolagent.tasks import get_task

    def tell(line: str) -> None:
        cli.say(console, line)

    config, named, interrupt = request.config, None, Interrupt()
    with contextlib.ExitStack() as stack:
        if request.profile:
            stack.enter_context(recording())
            main_phase("reading what is asked for")
        display = stack.enter_context(Display(console, interrupt))
        if request.resume is not None:
            # Read before anything is started: a wrong path is answered at once.
            folder, named = stack.enter_context(run_to_resume(request.resume, tell))
            config = str(folder.config)
        settings = load_settings(config, request.overrides)
        if request.resume is None:
            task_name = get_task(settings.task).name
            folder = stack.enter_context(new_run(request.output_dir, task_name, tell))
        with contextlib.ExitStack() as within:
            prepare = functools.partial(
                _prepare, request, settings, address, folder, named, within.enter_context
            )
            # What RLlib refuses is refused before Ray is started, if RLlib is there already. Else
            # Ray starts while it is imported: that is a third of the time to the first update.
            prepared = prepare() if "ray.rllib" in sys.modules else None
            display.loading("torch", "ray.rllib")
            within.enter_context(interrupt)  # a signal while Ray starts is remembered
            display.doing("starting Ray and loading RLlib" if prepared is None else "starting Ray")
            imports: list[Thread] = []
            cluster = within.enter_context(
                ray_session(
                    *(address, settings.run.dashboard, settings.document()),
                    meanwhile=lambda: imports.append(import_ahead(FOR_TRAINING)),
                    preload=Preload(_remote_actors(settings), FOR_ACTORS),
                )
            )
            interrupt.check()
            if prepared is None:
                display.doing("loading RLlib")
                with interrupt.at_once():
                    imports[0].join()
                    prepared = prepare()
            display.doing("starting env runners and learners")
            from toolagent.run.execution import execute
            from toolagent.run.profile import Profile
            from toolagent.run.session import Session

            algorithm_config, start, trackers = prepared
            session = Session(
                *(display, settings, algorithm_config, cluster),
                *(folder, start, trackers, interrupt),
                Profile() if request.profile else None,
            )
            code = execute(session)
            display.doing("ending Ray")
        if session.profile is not None:
            session.profile.finish(folder, session.console)
        code = code if finish(folder) else code or 1
        display.end()
        session.print_results()  # last of all: the prompt comes with it
    return Result(code, tuple(session.faults), folder, session.summary)


def _remote_actors(settings: Settings) -> int:
    """How many env runners and learners have processes of their own; at least one of 'auto'."""
    learners, runners = settings.written("learners", "num_learners"), 1
    if not settings.auto_runners:
        runners = settings.written("env_runners", "num_env_runners")
    return (runners or 0) + (learners or 0)


def _prepare(
    request: Request,
    settings: Settings,
    address: str | None,
    folder: RunFolder,
    named: Path | None,
    enter: Callable[[Trackers], Trackers],
) -> tuple[AlgorithmConfig, Start, Trackers]:
    """RLlib's configuration, what the run begins with, and its trackers; writes nothing yet.

    Raises:
        UserError: what was asked for can't be.
    """
    from toolagent.config import load_settings
    from toolagent.trackers import Trackers

    algorithm_config, notes = _built(settings, address)
    start = Start()
    if request.resume is not None:
        before = load_settings(folder.config)
        start = resumed_start(folder, named, settings, before, algorithm_config)
    elif request.init_from is not None:
        policy = policy_of("--init-from", request.init_from, settings, algorithm_config)
        policy.check_outside(folder.path)
        start = Start(policy=policy)
    start = dataclasses.replace(start, notes=(*start.notes, *notes))
    return algorithm_config, start, enter(Trackers(settings.run.trackers, folder))
