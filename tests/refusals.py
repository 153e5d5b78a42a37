"""What every refusal has in common: exit code 2, one line on stderr, and nothing written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from unittest import mock

from toolagent import cli
from toolagent.benchmark import __main__ as benchmark
from toolagent.evaluate import __main__ as evaluate
from toolagent.explain import __main__ as explain
from toolagent.export import __main__ as export
from toolagent.report import __main__ as report
from toolagent.run import __main__ as run
from toolagent.serve import __main__ as serve
from toolagent.tune import __main__ as tune

COMMANDS = {
    module.__name__.split(".")[1]: module.command
    for module in (run, evaluate, explain, serve, benchmark, tune, report, export)
}


def snapshot(folder):
    """Every path below the folder, with the digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


def refusal(capfd, name, arguments, named=(), folder=None):
    """The line with which the command refuses, without its 'error: '.

    Args:
        capfd: pytest's fixture, or `capsys`.
        name: of the command, such as 'run'.
        arguments: its command line.
        named: what the line must name: the flag, key or file at fault, and what would be right.
        folder: in which nothing may change; by default the current one.
    """
    # A process that has RLlib starts no Ray before it has checked what it was given.
    import ray.rllib  # noqa: F401

    folder = folder or Path.cwd()
    before = snapshot(folder)
    with mock.patch.dict(os.environ):  # commands set variables for Ray
        code = cli.main(COMMANDS[name], [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.endswith("\n") and err[:-1].isprintable(), err
    assert [part for part in named if part not in err] == [], err
    assert snapshot(folder) == before
    return err.removeprefix("error: ").rstrip("\n")
