"""Every link of the documents leads somewhere, and every command in them runs."""

import importlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import click
import pytest
import yaml

from toolagent.outside import is_outside
from toolagent.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "toolagent").rglob("README.md")),
    ROOT / "rllib_configs" / "README.md",
    ROOT / "cluster" / "README.md",
]
COMMANDS = ("run", "evaluate", "explain", "export", "report", "serve", "tune", "benchmark")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The contents of the page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page):
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(page):
    """The command lines of the page, words as a shell splits them, without environment."""
    lines = []
    for text in blocks(page, "bash"):
        lines += text.replace("\\\n", " ").splitlines()
    for text in blocks(page, "text"):
        lines += re.findall(r"^\$ (.*)$", text, re.M)
    for line in lines:
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0], re.S):
                words.pop(0)
            if words:
                yield words


def own_commands(page):
    """(command, arguments) of each `python -m toolagent.<command>` line."""
    for words in shell_lines(page):
        if re.fullmatch(r"(\.venv/bin/)?python", words[0]) and words[1] == "-m":
            package, _, command = words[2].partition(".")
            if package == "toolagent":
                yield command, words[3 : words.index(">") if ">" in words else None]


def click_command(name):
    return importlib.import_module(f"toolagent.{name}.__main__").command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = prose(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_exists(page):
    named = re.findall(
        r"`((?:toolagent|tests|cluster|rllib_configs)/[\w./-]+(?:\.\w+|/)|\w+/\w+\.py)`",
        prose(page),
    )
    for name in named:
        assert any((base / name).exists() for base in (ROOT, ROOT / "toolagent", page.parent)), name


def test_the_first_page_is_short_and_names_every_command_and_page():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 250
    for command in COMMANDS:
        assert f"python -m toolagent.{command}" in text
    linked = {
        (page.parent / link).resolve()
        for page in (ROOT / "README.md", ROOT / "toolagent" / "README.md")
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    }
    assert set(PAGES) - {ROOT / "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_understood(page, monkeypatch):
    """By the command itself, in the page's folder: flags, their values, and how many arguments
    there are."""
    monkeypatch.chdir(page.parent)
    monkeypatch.syspath_prepend(page.parent)
    for command, arguments in own_commands(page):
        if command.startswith("examples."):
            importlib.import_module(f"toolagent.{command}").arguments(list(arguments))
        else:
            click_command(command).make_context(
                command, list(arguments), help_option_names=["-h", "--help"]
            )
    markers = {"full", "slow", "chaos", "scaling", "cluster_real"}
    for words in shell_lines(page):
        if "pytest" in words:
            files = [word for word in words if word.startswith("tests/")]
            assert all((ROOT / file).is_file() for file in files), words
            after = words[words.index("pytest") :]
            for flag, value in itertools.pairwise(after):
                assert flag != "-m" or set(re.findall(r"\w+", value)) <= markers, words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_of_flags_is_that_of_the_command(command):
    page = ROOT / "toolagent" / command / "README.md"
    rows = re.findall(r"^\| `--.*", prose(page), re.M)
    made = click_command(command)
    own = {name: task for name, task in TASKS.items() if not is_outside(name)}
    with mock.patch.dict(TASKS, own, clear=True):  # the pages' examples have flags of their own
        parameters = made.get_params(click.Context(made, help_option_names=["-h", "--help"]))
    shown = {
        name
        for parameter in parameters
        for name in (parameter.secondary_opts or parameter.opts)
        if name.startswith("--") and not parameter.is_eager
    }
    if rows:  # first cell: `--flag X` or `--one N`, `--two X`
        named = {flag for row in rows for flag in re.findall(r"--[a-z-]+", row.split("|")[1])}
        meaning = {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)", row)}
        assert named <= shown, named - shown
        assert shown <= meaning, shown - meaning


def test_every_key_of_a_run_is_described():
    from toolagent.config.settings import RecordingSettings, RunSettings

    text = (ROOT / "rllib_configs" / "README.md").read_text("utf-8")
    for section, settings in (("run", RunSettings), ("recording", RecordingSettings)):
        for key in settings.model_fields:
            assert f"`{section}.{key}`" in text, f"{section}.{key}"


def test_python_of_the_first_page_runs_without_ray_and_torch():
    trains, *light = blocks(ROOT / "README.md", "python")
    assert "toolagent.train(" in trains  # `test_examples.py` runs it
    code = "\n".join(light)
    code += "\nimport sys\nassert not {'ray', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Short forms of what the pages' commands do; what is not named runs as it stands.
SHORTER = {
    "run": ["--stop-env-steps", "6000", "--set", "run.dashboard=false"],
    "tune": ["--num-samples", "1", "--stop-time-s", "20", "--set", "run.dashboard=false"],
    "benchmark": ["--repeats", "1", "--seconds", "0.2"],
    "evaluate": [],
    "explain": [],
    "export": [],
    "report": [],
}
MINUTES_LONG = {"--learning", "--ablations"}  # the tier `slow` runs them


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_runs_in_the_order_of_the_pages(tmp_path):
    """In one folder, as somebody would who follows the pages; training is cut short."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def call(command, *arguments):
        line = [sys.executable, "-m", f"toolagent.{command}", *arguments]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}\n{done.stderr}"

    # What several pages take for granted.
    (tmp_path / "runs").mkdir()
    for config, folder in (("default", "first-run"), ("expression", "runs/expression")):
        call("run", "--config", config, "--output-dir", folder, *SHORTER["run"])
    for number in range(3):
        call("run", "--seed", str(number), "--output-dir", f"run-{number}", *SHORTER["run"])
    done = {("run", "first-run"), ("run", "runs/expression")}
    for page in PAGES:
        for command, arguments in own_commands(page):
            if (
                MINUTES_LONG & set(arguments)
                or "--address" in arguments
                or "/srv" in str(arguments)
            ):
                continue
            folder = dict(itertools.pairwise(arguments)).get("--output-dir")
            if (command, folder) in done or (command, *arguments) in done:
                continue
            done |= {(command, folder) if folder else (command, *arguments), (command, *arguments)}
            if command == "serve":
                serve_and_stop([*arguments, "--port", "0"], tmp_path, environment)
            elif command == "run" and "--resume" in arguments:
                call(command, *arguments, "--stop-env-steps", "9000")
            elif command == "run" and {"bc", "marwil"} & set(arguments):
                call(command, *arguments, "--set", "run.stop_iterations=1")
            else:
                call(command, *arguments, *SHORTER[command])


def serve_and_stop(arguments, folder, environment):
    line = [sys.executable, "-m", "toolagent.serve", *arguments]
    server = subprocess.Popen(
        line,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for text in server.stdout:
        seen.append(text)
        if "http://127.0.0.1" in text:
            server.send_signal(signal.SIGINT)
            break
    assert server.wait(60) == 130, "".join(seen)


def test_files_that_are_shipped_for_a_page_are_named_on_it():
    """A config or recipe that no page mentions would not be found."""
    configs = (ROOT / "rllib_configs" / "README.md").read_text("utf-8")
    configs += "".join(page.read_text("utf-8") for page in PAGES)
    for path in (ROOT / "rllib_configs").glob("*.yaml"):
        assert path.stem in configs, path.name
        assert yaml.safe_load(path.read_text("utf-8"))
