"""`python -m toolagent`: the commands under one name, and what every command's help has."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import click
import pytest
from refusals import COMMANDS

from toolagent import __main__ as overview
from toolagent import cli


def test_every_command_is_listed_and_there():
    assert set(overview.COMMANDS) == set(COMMANDS)
    assert all(find_spec(f"toolagent.{name}.__main__") for name in overview.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_command_the_commands_are_listed(arguments, capsys):
    assert overview.main(arguments) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.split("Commands:")[1].splitlines()[1:9]] == [
        *overview.COMMANDS
    ]


def test_a_command_that_is_none_is_refused_with_the_nearest(capsys):
    assert overview.main(["evalute", "x"]) == 2
    assert capsys.readouterr().err == "error: no command 'evalute'; did you mean 'evaluate'?\n"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_called_as_it_was_typed_and_has_an_example(name, flag, monkeypatch, capsys):
    monkeypatch.setattr(cli, "program", lambda: "/some/where/bin/toolagent")
    assert overview.main([name, flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: toolagent {name} ")
    # What the example names are options and arguments that the command takes.
    line = out.rpartition("Example:")[2].split(f"python -m toolagent.{name}")[1]
    parsed = COMMANDS[name].make_context(name, line.split(), help_option_names=["-h", "--help"])
    assert parsed.params


def test_metavars_are_of_one_style():
    for name, command in COMMANDS.items():
        context = click.Context(command, help_option_names=["-h", "--help"])
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Argument) or not parameter.is_flag:
                shown = parameter.make_metavar(context)
                assert shown == shown.upper() and "[" not in shown, (name, parameter.name, shown)


@pytest.mark.parametrize("name", ["run", "tune"])
def test_the_shipped_configs_are_listed_with_what_they_are(name, capsys):
    from toolagent.config import shipped_configs, shipped_searches

    assert cli.main(COMMANDS[name], ["--list-configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split() for line in lines if not line.startswith(" ")]
    files = shipped_configs() if name == "run" else shipped_searches()
    assert [f"{words[0]}.yaml" for words in listed] == files
    assert all(len(words) > 2 for words in listed)


def test_the_overview_loads_neither_ray_nor_torch():
    code = (
        "import sys; from toolagent.__main__ import main; assert main(['-h']) == 0\n"
        "assert not {'ray', 'torch', 'yaml', 'pydantic'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)


def test_the_installed_script_finds_modules_where_python_m_does(tmp_path, monkeypatch):
    """Its own folder comes first otherwise, and `--task my_module:MyTask` is not found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/some/where/bin", *sys.path[1:]])
    monkeypatch.setattr(sys, "argv", ["/some/where/bin/toolagent", "-h"])
    assert overview.script() == 0
    assert sys.path[0] == str(tmp_path)
