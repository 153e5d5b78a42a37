"""Trains an agent: `python -m toolagent.run --num-env-runners 16`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from typing import Any

import click

from toolagent import cli
from toolagent.checkpoints.output import finish, new_run, run_to_resume
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import cluster_to_join, ray_session
from toolagent.config.settings import MAX_SEED
from toolagent.errors import UserError
from toolagent.run.recording import check_recording, check_records
from toolagent.run.start import Start, check_local_resources, policy_of, resumed_start

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


class CountOrAuto(cli.IntRange):
    """A number, or 'auto'."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """'auto' stays as it is."""
        return value if value == "auto" else super().convert(value, param, ctx)


_COUNT, _LIMIT = cli.IntRange(min=0), cli.IntRange(min=1)
_SHARE, _TIME = cli.FloatRange(min=0), cli.FloatRange(min=0, min_open=True)


@click.command()
@click.option(
    "--config", metavar="FILE", type=cli.PATH, help="A YAML file, or the name of a shipped config."
)
@click.option(
    "--num-env-runners",
    type=CountOrAuto(min=0),
    metavar="N",
    help="Processes that play episodes; auto: as many as the cluster has CPUs for and can use.",
)
@click.option("--num-learners", type=_COUNT, metavar="N", help="Remote learners; 0: none, local.")
@click.option("--num-gpus-per-learner", type=_SHARE, metavar="X", help="0: learn on the CPU.")
@click.option("--seed", type=cli.IntRange(0, MAX_SEED), metavar="S", help="Seeds everything.")
@click.option("--stop-env-steps", type=_LIMIT, metavar="N", help="Stop after N env steps.")
@click.option("--stop-time-s", type=_TIME, metavar="X", help="Stop after X seconds of training.")
@click.option(
    "--output-dir",
    metavar="DIR",
    type=cli.PATH,
    help="New folder for results, also s3://... or gs://... Default: runs/...",
)
@click.option(
    "--resume",
    metavar="DIR",
    type=cli.PATH,
    help="Continue the run in DIR from its last checkpoint.",
)
@click.option(
    "--init-from", metavar="CHECKPOINT", type=cli.PATH, help="Start from a checkpoint's weights."
)
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
    address = cluster_to_join(address)
    for name, value in shorthands.items():
        if value is not None:
            overrides += (f"{_SHORTHANDS[name]}={json.dumps(value)}",)  # JSON is YAML
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
    from toolagent.trackers import Trackers

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True)

    with contextlib.ExitStack() as stack:
        if resume is not None:
            # Read before anything is started: a wrong path is answered at once.
            folder, named = stack.enter_context(run_to_resume(resume, tell))
            config = str(folder.config)
        settings = load_settings(config, overrides)
        algorithm_config = build_algorithm_config(settings)
        check_local_resources(algorithm_config, address)
        check_recording(settings.run.record_episodes)
        notes = check_records(settings, algorithm_config)
        start = Start()
        if resume is not None:
            before = load_settings(config)
            start = resumed_start(folder, named, settings, before, algorithm_config)
        else:
            folder = stack.enter_context(new_run(output_dir, settings.task, tell))
            if init_from is not None:
                policy = policy_of("--init-from", init_from, settings, algorithm_config)
                policy.check_outside(folder.path)
                start = Start(policy=policy)
        start = dataclasses.replace(start, notes=(*start.notes, *notes))
        # Starting Ray can't be cut short, but a signal is remembered.
        with (
            Interrupt() as interrupt,
            Trackers(settings.run.trackers, folder) as trackers,  # refuses before Ray is started
            ray_session(address, settings.run.dashboard, settings.sections) as cluster,
        ):
            interrupt.check()
            from toolagent.run.execution import execute
            from toolagent.run.session import Session

            session = Session(
                *(console, settings, algorithm_config, cluster),
                *(folder, start, trackers, interrupt),
            )
            code = execute(session)
        return code if finish(folder) else code or 1


if __name__ == "__main__":
    sys.exit(cli.main(command))
