"""All commands as one: `toolagent run ...` is `python -m toolagent.run ...`.

Loads neither Ray nor torch until a command is named.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from toolagent import cli
from toolagent.errors import UserError, nearest

# Each is a package `toolagent.NAME` whose `__main__` has the `command`.
COMMANDS = {
    "run": "Train an agent through the curriculum.",
    "evaluate": "Certify a checkpoint on every problem there is.",
    "explain": "Show what a checkpoint's agent does on one problem, and why.",
    "serve": "Play with the agents of checkpoints in a browser.",
    "report": "Write one HTML page on what runs learned.",
    "tune": "Search for good settings with Ray Tune.",
    "export": "Write a checkpoint as safetensors and ONNX, with a player.",
    "benchmark": "Measure training throughput.",
}


class Overview(click.Command):
    """The command line without a command: its help lists the commands."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then the options."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        super().format_options(ctx, formatter)


@click.command(
    cls=Overview,
    add_help_option=True,
    options_metavar="COMMAND [OPTIONS]",
    epilog=cli.examples("toolagent run -h", "toolagent run --list-configs"),
)
@click.argument("name", metavar="", required=False)
@click.pass_context
def overview(context: click.Context, name: str | None) -> None:
    """Train small tool-using agents by distributed reinforcement learning.

    `COMMAND -h` describes a command. Each is also `python -m toolagent.COMMAND`.
    """
    if name is not None:
        raise UserError(f"no command '{name}'; {nearest(name, COMMANDS)}")
    print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # An installed script is known by its path.
    program = os.path.basename(cli.program())
    if not given or given[0] not in COMMANDS:
        return cli.main(overview, given[:1], program)
    command = importlib.import_module(f"toolagent.{given[0]}.__main__").command
    return cli.main(command, given[1:], f"{program} {given[0]}")


def script() -> int:
    """The entry point `toolagent`: modules are found in the current folder, as with `python -m`,
    so that `--task my_module:MyTask` means the same."""
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()  # instead of the folder of the script
    return main()


if __name__ == "__main__":
    sys.exit(main())
