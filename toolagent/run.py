"""Trains an agent: `python -m toolagent.run --num-env-runners 16`."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolagent import cli
from toolagent.config.settings import MAX_SEED
from toolagent.errors import UserError
from toolagent.session.folder import RunFolder
from toolagent.session.interrupt import Interrupt
from toolagent.session.output import finish, new_run, run_to_resume
from toolagent.session.ray_session import Cluster, listen_on_loopback, quiet, ray_session
from toolagent.session.recording import (
    check_recording,
    check_records,
    finish_recording,
    recording_of,
)

if TYPE_CHECKING:
    from toolagent.models.base import AgentNetwork
    from toolagent.policy import Policy
    from toolagent.session.trackers import Trackers

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


class CountOrAuto(click.IntRange):
    """A number, or 'auto'."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """'auto' stays as it is."""
        return value if value == "auto" else super().convert(value, param, ctx)


_COUNT, _LIMIT = click.IntRange(min=0), click.IntRange(min=1)
_SHARE, _TIME = click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)
_FIXED = ("task", "algorithm", "seed")  # what a resumed run can't change


@click.command()
@click.option("--config", metavar="FILE", help="A YAML file, or the name of a shipped config.")
@click.option(
    "--num-env-runners",
    type=CountOrAuto(min=0),
    metavar="N",
    help="Processes that play episodes; auto: as many as the cluster has CPUs for and can use.",
)
@click.option("--num-learners", type=_COUNT, metavar="N", help="Remote learners; 0: none, local.")
@click.option("--num-gpus-per-learner", type=_SHARE, metavar="X", help="0: learn on the CPU.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="S", help="Seeds everything.")
@click.option("--stop-env-steps", type=_LIMIT, metavar="N", help="Stop after N env steps.")
@click.option("--stop-time-s", type=_TIME, metavar="X", help="Stop after X seconds of training.")
@click.option(
    "--output-dir",
    metavar="DIR",
    help="New folder for results, also s3://... or gs://... Default: runs/...",
)
@click.option("--resume", metavar="DIR", help="Continue the run in DIR from its last checkpoint.")
@click.option("--init-from", metavar="CHECKPOINT", help="Start from a checkpoint's weights.")
@click.option(
    "--address",
    metavar="A",
    envvar="RAY_ADDRESS",
    help="Join the Ray cluster there. Default: start one.",
)
@click.option("--record-episodes", metavar="DIR", help="Record training episodes as Parquet.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="section.key=value",
    help="Change any configuration value; can be repeated.",
)
def command(
    config: str | None,
    output_dir: str | None,
    resume: str | None,
    init_from: str | None,
    address: str | None,
    overrides: tuple[str, ...],
    **shorthands: Any,
) -> int:
    """Train an agent through the curriculum until every stage is certified solved."""
    quiet()
    if address is None:
        listen_on_loopback()
    overrides = (*overrides, *_as_overrides(shorthands))
    console = cli.console()
    if resume is not None:
        for flag, given in (
            ("--config", config),
            ("--output-dir", output_dir),
            ("--init-from", init_from),
        ):
            if given is not None:
                raise UserError(f"{flag}: can't be given with --resume, which continues a run")
    from toolagent.config import build_algorithm_config, load_settings
    from toolagent.session.trackers import Trackers

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True)

    with contextlib.ExitStack() as stack:
        if resume is not None:
            # Read before anything is started: a wrong path is answered at once.
            folder, named = stack.enter_context(run_to_resume(resume, tell))
            config = str(folder.config)
        settings = load_settings(config, overrides)
        algorithm_config = build_algorithm_config(settings)
        _check_local_resources(algorithm_config, address)
        check_recording(settings.run.record_episodes)
        check_records(settings, algorithm_config)
        start = Start()
        if resume is not None:
            before = load_settings(config)
            start = _resumed(folder, named, settings, before, algorithm_config)
        else:
            folder = stack.enter_context(new_run(output_dir, settings.task, tell))
            if init_from is not None:
                start = Start(policy=_policy("--init-from", init_from, settings, algorithm_config))
        # Starting Ray can't be cut short, but a signal is remembered.
        with (
            Interrupt() as interrupt,
            Trackers(settings.run.trackers, folder) as trackers,  # refuses before Ray is started
            ray_session(address, settings.run.dashboard, settings.sections) as cluster,
        ):
            interrupt.take_over()
            interrupt.check()
            code = _run(
                console, settings, algorithm_config, cluster, folder, start, trackers, interrupt
            )
        return code if finish(folder) else code or 1


@dataclass(frozen=True)
class Start:
    """What a run begins with: nothing, a policy's weights, or a checkpoint of its own."""

    policy: Policy | None = None
    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)  # of `session.training.RunState`
    resumed: bool = False  # a run that is there already, with a checkpoint or not yet
    notes: tuple[str, ...] = ()  # what is to be told of how it was found


def _as_overrides(shorthands: dict[str, Any]) -> list[str]:
    """The shorthand flags as `--set` writes them."""
    result = []
    for name, value in shorthands.items():
        if value is not None:
            result.append(f"{_SHORTHANDS[name]}={json.dumps(value)}")  # JSON is YAML
    return result


def _run(
    console: Any,
    settings: Any,
    algorithm_config: Any,
    cluster: Cluster,
    folder: RunFolder,
    start: Start,
    trackers: Trackers,
    interrupt: Interrupt,
) -> int:
    import torch

    from toolagent.config import config_sha256, documents, to_yaml

    ray_since = time.perf_counter() if start.resumed else None
    from toolagent.curriculum.callback import CurriculumCallback
    from toolagent.rollouts.stock_recorder import RecordEpisodesCallback
    from toolagent.session.checkpoints import restore_checkpoint
    from toolagent.session.display import Display
    from toolagent.session.environment import describe_environment
    from toolagent.session.learning_curve import plot_learning_curve
    from toolagent.session.report import (
        behaviour,
        print_report,
        sample_trajectories,
        summarize,
    )
    from toolagent.session.spread import spread_env_runners
    from toolagent.session.supervision import RunFailed, Supervision
    from toolagent.session.trackers.base import FINISHED, INTERRUPTED
    from toolagent.session.trackers.group import result_files
    from toolagent.session.training import RunState

    algorithm_config, notes = _fitted(settings, algorithm_config, cluster)
    text = to_yaml(settings)
    header = "".join(f"# Here: {note}\n" for note in notes)
    # Of all that could be refused, only a tracker comes after.
    folder.make(header + text, start.resumed)
    trackers.start(
        documents.parse(text, "the configuration"), config_sha256=config_sha256(settings)
    )
    folder.add_environment(
        describe_environment(
            cluster={"cpus": cluster.cpus, "gpus": cluster.gpus, "nodes": cluster.nodes}
        )
    )
    algorithm_config.callbacks(
        callbacks_class=[
            functools.partial(CurriculumCallback, settings.curriculum),
            RecordEpisodesCallback,
        ]
    )
    recording = recording_of(settings, folder.path)
    if recording is not None:
        algorithm_config.environment(env_config={"recording": recording.to_dict()})
    console.print(f"task {settings.task}, algorithm {settings.algorithm}, seed {settings.seed}")
    console.print(f"results in {folder.name}", soft_wrap=True)
    if folder.mirror is not None:
        console.print(f"until they are there, in {folder.path}", soft_wrap=True)
    if cluster.dashboard_url:
        console.print(f"Ray dashboard: http://{cluster.dashboard_url}")
    for note in notes:
        console.print(note)

    state, rows = RunState(**start.state), []
    if start.resumed:
        rows = _taken_up(console, folder, start, state)
    elif start.policy is not None:
        folder.note_origin(start.policy.folder)
    torch.set_num_threads(1)  # the local learner's; more than one gains nothing here

    def build() -> Any:
        with spread_env_runners():
            algorithm = algorithm_config.build_algo()
        quiet()  # RLlib has turned its loggers on again
        return algorithm

    def prepare(algorithm: Any, start: Start) -> None:
        if start.checkpoint is not None:
            restore_checkpoint(algorithm, start.checkpoint)
            _state_losses(console, algorithm)
        elif start.policy is not None:
            _load_weights(algorithm, start.policy)

    recorded: list[str] = []

    def finished(algorithm: Any) -> None:
        recorded.extend(finish_recording(algorithm, recording))

    with Display(console, settings.run.stop_env_steps, settings.run.stop_time_s) as display:
        supervision = Supervision(
            settings, build, prepare, finished, folder, display, trackers, interrupt, ray_since
        )
        try:
            outcome = supervision.run(start, rows)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    summary = summarize(settings, outcome, folder)
    summary["num_env_runners"] = algorithm_config.num_env_runners  # 'auto' is known only now
    folder.write_summary(summary)
    plot_learning_curve(
        outcome.rows,
        folder.learning_curve,
        f"{settings.task}, {settings.algorithm}, seed {settings.seed}",
    )
    samples = sample_trajectories(settings, outcome.network, outcome.task)
    folder.write_behaviour(behaviour(outcome, samples, outcome.task))
    print_report(console, settings, outcome, samples, outcome.task, folder)
    for line in recorded:
        console.print(line, soft_wrap=True)
    _write_report(folder)
    status = INTERRUPTED if outcome.stopped_by == "interrupted" else FINISHED
    trackers.end(status, summary, result_files(folder, outcome.keeper.last or folder.checkpoints))
    if outcome.keeper.fault:
        print(f"error: no final checkpoint ({outcome.keeper.fault})", file=sys.stderr)
        return 1
    if outcome.stopped_by == "interrupted":
        return cli.EXIT_INTERRUPTED
    if outcome.state.env_steps == 0:
        print("error: no env step was trained; see the messages above", file=sys.stderr)
        return 1
    return 0


def _write_report(folder: RunFolder) -> None:
    """The page beside the results; they are whole without it, so a full disk ends nothing."""
    from toolagent.reporting.page import write_report
    from toolagent.reporting.run_files import read_run

    try:
        write_report([read_run(folder.path)], folder.report)
    except OSError as error:
        print(f"warning: {folder.report}: {error.strerror}", file=sys.stderr)


def _fitted(settings: Any, algorithm_config: Any, cluster: Cluster) -> tuple[Any, list[str]]:
    """The config as it fits the cluster, and a line for each thing that was changed."""
    from toolagent.config import resolve_resources
    from toolagent.config.placement import check_placement, is_auto, with_auto_runners

    notes = []
    if is_auto(settings):
        algorithm_config, note = with_auto_runners(
            algorithm_config, cluster.offers, cluster.driver, cluster.joined
        )
        notes.append(note)
    algorithm_config, shared = resolve_resources(
        algorithm_config, cluster.cpus, cluster.gpus, cluster.nodes
    )
    check_placement(algorithm_config, cluster.offers, cluster.driver)
    return algorithm_config, [*notes, *shared]


def _check_local_resources(algorithm_config: Any, address: str | None) -> None:
    """More than this machine has is refused before anything is started or written."""
    if address is not None:
        return
    import torch

    from toolagent.config.placement import check_no_custom_resources

    check_no_custom_resources(algorithm_config)
    asked = algorithm_config.num_gpus_per_learner * max(1, algorithm_config.num_learners)
    if asked > torch.cuda.device_count():
        raise UserError(
            f"learners.num_gpus_per_learner: asks for {asked:g} GPUs in all, this machine has "
            f"{torch.cuda.device_count()}; use --num-gpus-per-learner 0"
        )


def _resumed(
    folder: RunFolder,
    named: Path | None,
    settings: Any,
    before: Any,
    algorithm_config: Any,
) -> Start:
    """The named or else the newest checkpoint, if these settings can continue from it.

    Args:
        folder: of the run.
        named: a checkpoint in it.
        settings: to go on with.
        before: the run's own.
        algorithm_config: of the settings.
    """
    from toolagent.config import config_sha256
    from toolagent.session.checkpoints import (
        finish_replacing,
        never_wrote_one,
        newest_checkpoint,
        read_run_state,
    )
    from toolagent.session.manifest import TornCheckpoint, read_manifest
    from toolagent.session.training import RunState, nothing_left

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
        return Start(resumed=True)
    notes: list[str] = []
    if named is None:
        checkpoint, state = newest_checkpoint(folder.checkpoints, notes.append)
    else:
        try:
            checkpoint, state = named, read_run_state(named)
        except TornCheckpoint as fault:
            raise UserError(f"--resume {named}: {fault}") from None
    if state.keys() != {entry.name for entry in fields(RunState)}:
        raise UserError(f"--resume {checkpoint}: written by another version of toolagent")
    _policy("--resume", checkpoint, settings, algorithm_config)
    done = nothing_left(settings, RunState(**state))
    if done:
        raise UserError(f"--resume {folder.path}: nothing is left to do: {done}")
    if read_manifest(checkpoint)["config_sha256"] != config_sha256(before):
        notes.append(f"config.yaml has changed since {checkpoint.name} was written")
    return Start(checkpoint=checkpoint, state=state, resumed=True, notes=tuple(notes))


def _taken_up(console: Any, folder: RunFolder, start: Start, state: Any) -> list[dict[str, Any]]:
    """Brings a run's folder to where it is continued from; returns the rows of its progress."""
    from toolagent.session.checkpoints import set_aside_later

    for note in start.notes:
        console.print(note, soft_wrap=True)
    rows = folder.cut_progress(state.iteration)
    folder.summary.unlink(missing_ok=True)  # of the session before
    if start.checkpoint is None:
        console.print("there is no checkpoint yet: begins anew")
        return rows
    for path in set_aside_later(folder.checkpoints, state.iteration):
        console.print(f"set aside as {path.name}: later than the checkpoint, or not whole")
    if len(rows) < state.iteration:
        console.print(f"progress.jsonl lacks {state.iteration - len(rows)} rows")
    console.print(f"continues from {start.checkpoint.name} at {state.env_steps:,} env steps")
    return rows


def _state_losses(console: Any, algorithm: Any) -> None:
    """Says what was under way when the checkpoint was written and is not in it."""
    requests = getattr(algorithm, "lost_at_restore", 0)
    if requests:
        episodes = requests * algorithm.config.num_envs_per_env_runner
        console.print(f"lost: {requests} requests under way, so {episodes:,} episodes")


def _policy(flag: str, path: str | Path, settings: Any, algorithm_config: Any) -> Policy:
    """The policy at the path: sound, of the settings' task, and of the configured network."""
    from toolagent.policy import load_policy

    policy = load_policy(path, expected_task=settings.task)
    _check_network(f"{flag} {policy.place}", policy.network, algorithm_config.rl_module_spec)
    return policy


def _check_network(label: str, network: AgentNetwork, spec: Any) -> None:
    """Refuses a network of another class, or with other options, than the configured one."""
    from toolagent.models.rl_module import MODULES

    options = {name: getattr(network.sizes, name) for name in network.sizes._fields[2:]}
    if spec.module_class.network_class is not type(network):
        names = {module.network_class: name for name, module in MODULES.items()}
        name = names[type(network)]
        # As a whole: it takes the place of the other network's options, which this one has not.
        right = ", ".join(f"{key}: {_as_yaml(value)}" for key, value in options.items())
        raise UserError(
            f"{label}: its network is {name}, the configuration's "
            f"{names[spec.module_class.network_class]}; add "
            f"--set 'rl_module.model_config={{network: {name}, {right}}}'"
        )
    differing = [name for name in options if options[name] != spec.model_config[name]]
    if differing:
        faults = [
            f"{name} {_as_yaml(options[name])}, the configuration "
            f"{_as_yaml(spec.model_config[name])}"
            for name in differing
        ]
        right = [
            f"--set rl_module.model_config.{name}={_as_yaml(options[name])}" for name in differing
        ]
        raise UserError(f"{label}: its network has {'; '.join(faults)}; add {' '.join(right)}")


def _as_yaml(value: Any) -> str:
    """An option's value as `--set` takes it: a number, a word, true or false."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _load_weights(algorithm: Any, policy: Policy) -> None:
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


if __name__ == "__main__":
    sys.exit(cli.main(command))
