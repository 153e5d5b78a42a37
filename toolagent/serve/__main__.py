"""The playground: watch a checkpoint's agent write its programs, in a browser or through an API.

python -m toolagent.serve [NAME=]CHECKPOINT... [--host 127.0.0.1] [--port 8000]
    [--task MODULE:CLASS]
"""

from __future__ import annotations

import contextlib
import ipaddress
import sys
import time

import click

from toolagent import cli
from toolagent.cli.activity import Activity
from toolagent.cli.interrupt import Interrupt
from toolagent.cluster.ray_session import listen_on_loopback, quiet, ray_session
from toolagent.serve import deployment

_LOOK_EVERY_S = 0.1


@click.command(
    epilog=cli.examples(
        "python -m toolagent.serve runs/my-run",
        "python -m toolagent.serve before=runs/first after=runs/second",
    )
)
@click.argument("checkpoints", metavar="CHECKPOINT...", type=cli.PATH, nargs=-1, required=True)
@cli.code_options
@click.option(
    "--host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen at.",
)
@click.option(
    "--port",
    metavar="N",
    type=cli.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen at; 0: any that is free.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Another name that the server may be called by (the Host header); can be repeated.",
)
def command(
    checkpoints: tuple[str, ...],
    task: str | None,
    network: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
) -> int:
    """Serve the agents of one or more checkpoints of one task: a page and a JSON API.

    A CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint). Its agent
    is called NAME, or else as the folder is written. Ctrl-C ends it, with exit code 130.
    """
    quiet()
    listen_on_loopback()
    deployment.check_names(host, names)
    deployment.check_port(host, port)
    port = port or deployment.free_port(host)
    deployment.prepare(port)
    deployment.require_serve()

    if not _is_loopback(host):
        print(
            f"warning: {host} is no loopback address: whoever can reach this machine can use the "
            "playground, there is no password",
            file=sys.stderr,
        )
    console = cli.console()
    with contextlib.ExitStack() as stack:
        with Activity(console) as activity:
            activity.loading("torch", "ray.serve")
            from toolagent.serve.agents import load_agents
            from toolagent.serve.problems import keys_of
            from toolagent.serve.schemas import requests_of

            policies = load_agents(checkpoints, task, network)
            served = next(iter(policies.values())).task
            requests_of(served, keys_of(served))  # refuses what can't be asked
            activity.doing("starting Ray")
            stack.enter_context(ray_session(None, dashboard=False))
            activity.doing("starting the server")
            stack.enter_context(deployment.serving(policies, host, names, task, network))
        shown = f"[{host}]" if ":" in host else host
        cli.say(console, f"task {served.name}: {', '.join(policies)}")
        console.print(f"playground: http://{shown}:{port}/  (Ctrl-C ends it)", soft_wrap=True)
        # Only now: while it starts, Ctrl-C stops it at once.
        with Interrupt() as interrupt:
            while not interrupt.requested:
                time.sleep(_LOOK_EVERY_S)
    return cli.EXIT_INTERRUPTED


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(cli.main(command))
