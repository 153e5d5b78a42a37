"""Trains an agent: `python -m toolagent.run --num-env-runners 2`."""

from __future__ import annotations

import sys
from typing import Any

import click

from toolagent import cli
from toolagent.checkpoints.run_folder import holds_seeds
from toolagent.config.folder import descriptions, shipped_configs
from toolagent.config.settings import MAX_SEED
from toolagent.errors import UserError
from toolagent.run.launch import Request, launch, shorthand_overrides


class CountOrAuto(cli.IntRange):
    """A number, or 'auto'."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """'auto' stays as it is."""
        return value if value == "auto" else super().convert(value, param, ctx)


_COUNT, _LIMIT = cli.IntRange(min=0), cli.IntRange(min=1)
_SHARE, _TIME = cli.FloatRange(min=0), cli.FloatRange(min=0, min_open=True)


@click.command(epilog=cli.examples("python -m toolagent.run --num-env-runners 4 --stop-time-s 60"))
@click.option(
    "--config", metavar="FILE", type=cli.PATH, help="A YAML file, or the name of a shipped config."
)
@click.option(
    "--list-configs", is_flag=True, help="Print the shipped configs and what they are, and end."
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
@click.option(
    "--seeds",
    metavar="LIST",
    help="Run once for each of these seeds, as in 0-4 or 0,3,7, and compare them.",
)
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
    metavar="HOST:PORT",
    envvar="RAY_ADDRESS",
    help="Join the Ray cluster there. Default: start one.",
)
@click.option("--record-episodes", metavar="DIR", help="Record training episodes as Parquet.")
@click.option(
    "--profile", is_flag=True, help="Write where the time of each process goes: table and trace."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change any configuration value; can be repeated.",
)
def command(
    config: str | None,
    list_configs: bool,
    output_dir: str | None,
    resume: str | None,
    seeds: str | None,
    init_from: str | None,
    address: str | None,
    profile: bool,
    overrides: tuple[str, ...],
    **shorthands: Any,
) -> int:
    """Train an agent through the curriculum until every stage is certified solved."""
    if list_configs:
        cli.print_descriptions(descriptions(shipped_configs()))
        return 0
    if seeds is not None:
        for flag, given in (("--seed", shorthands["seed"]), ("--resume", resume)):
            if given is not None:
                raise UserError(f"{flag}: can't be given with --seeds")
    overrides += shorthand_overrides(**shorthands)
    request = Request(config, output_dir, resume, init_from, address, overrides, profile)
    if seeds is not None or (resume is not None and holds_seeds(resume)):
        if profile:
            raise UserError("--profile: is of one run; give it with --seed")
        from toolagent.run.seeds import resume_seeds, run_seeds, seeds_of

        if seeds is None:
            return resume_seeds(request, cli.console())
        return run_seeds(request, seeds_of(seeds), cli.console())
    return launch(request, cli.console()).exit_code


if __name__ == "__main__":
    sys.exit(cli.main(command))
