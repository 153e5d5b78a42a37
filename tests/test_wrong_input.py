"""Whatever a user gets wrong: exit code 2, one line on stderr, and nothing written anywhere.

A row for each check that a command makes of its arguments and of the folders they name. What is
wrong inside of a file is tried where that file is read: `test_config`, `test_search`,
`test_policy`, `test_evaluate`, `test_report_page`, `test_security`.
"""

from __future__ import annotations

import math
import shlex
import shutil
from dataclasses import asdict

import click
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from refusals import COMMANDS, refusal, snapshot
from run_folders import PROGRESS, edit_json, list_files, write_run, write_state
from trained import (
    is_refusal,
    run_modules,
    untrained_expression_network,
    untrained_network,
)

from toolagent.checkpoints.policy import save_policy
from toolagent.checkpoints.run_files import RunState
from toolagent.cluster.address import check_address
from toolagent.cluster.token import prepare_token
from toolagent.errors import UserError
from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import get_task


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with everything that the wrong command lines below name."""
    folder = tmp_path_factory.mktemp("prepared")
    save_policy(folder / "good", untrained_network(embedding_size=96), "calculator")
    save_policy(folder / "narrow", untrained_network(embedding_size=8), "calculator")
    save_policy(folder / "tutorial", untrained_network(embedding_size=96), "tutorial")
    # Two networks for one task, and the configuration of the second.
    other = StageGRUNetwork(get_task("expression").interface)
    save_policy(folder / "gru", other, "expression")
    save_policy(folder / "planner", untrained_expression_network(), "expression")
    planner = "task: expression\nrl_module: {model_config: {network: encoder_decoder, "
    planner += "embedding_size: 8, num_heads: 2, num_counters: 1}}\n"
    (folder / "planner.yaml").write_text(planner)
    (folder / "expressions.yaml").write_text("task: expression\n")
    (folder / "nul.yaml").write_text('run: {record_episodes: "a\\0b"}\n')
    (folder / "good.csv").write_text("stage,a,b,c,d,e\n0,1,2,3,,\n")
    (folder / "bad.csv").write_text("stage,a,b,c,d,e\n0,1,x,3,,\n")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    (folder / "no-token").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "garbage").write_bytes(bytes(range(256)))
    shutil.copytree(folder / "good", folder / "garbled")
    (folder / "garbled" / "policy.json").write_bytes(bytes(range(256)))
    write_runs(folder)
    return folder


def write_runs(folder):
    """A run that can be resumed, and some that can't, each for another reason."""
    write_run(folder / "run")
    write_run(folder / "run-of-tutorial", "tutorial")
    write_state(write_run(folder / "run-of-old"), {"iteration": 3})
    write_state(
        write_run(folder / "run-of-text"), asdict(RunState(3, 1000, 1.0)) | {"iteration": "3"}
    )
    other_format = write_run(folder / "run-of-other-format")
    edit_json(other_format / "policy.json", format=99)
    list_files(other_format)
    (write_run(folder / "run-without-manifest") / "manifest.json").unlink()
    (write_run(folder / "run-that-is-torn") / "run.json").write_text("{}")
    for file in ("run.json", "state.json"):
        checkpoint = write_run(folder / f"run-with-cut-{file}")
        (checkpoint / file).write_text('{"iter')
        list_files(checkpoint)
    (write_run(folder / "run-with-garbled-manifest") / "manifest.json").write_bytes(b"\x80\x04")
    finished = asdict(RunState(3, 1000, 1.0, stopped_by="solved"))
    write_state(write_run(folder / "run-that-is-solved"), finished)
    write_run(folder / "run-without-checkpoint")
    shutil.rmtree(folder / "run-without-checkpoint" / "checkpoints")
    (folder / "run-without-checkpoint" / "progress.jsonl").write_text('{"iteration": 1}\n')
    write_run(folder / "told", config="task: calculator\nalgorithm: toolagent\nseed: 0\n")
    (folder / "told" / "progress.jsonl").write_text(PROGRESS)


@pytest.fixture
def refused(prepared, monkeypatch, capfd):
    """Calls a command that must refuse, and name the given parts; returns its line."""
    monkeypatch.chdir(prepared)

    def call(name, line, *named):
        return refusal(capfd, name, shlex.split(line), named)

    return call


# The command, its arguments, and what must be named. `run` writes into `new` where it says nothing.
WRONG = [
    # The configuration, beyond what `test_config` tries.
    ("run", "--config tutorail", "tutorail", "'tutorial'"),
    ("run", "--config experssion", "'experssion'", "did you mean 'expression'?"),
    ("run", "--set trackers=[]", "did you mean 'run.trackers'?"),
    ("run", "--set training.num_env_runner=1", "did you mean 'env_runners.num_env_runners'?"),
    ("run", "--set run.stop_timer_s=1", "did you mean 'stop_time_s'?"),
    ("run", "--set run.measure_problem=1", "did you mean 'curriculum.measure_problems'?"),
    ("run", "--config nul.yaml", "nul.yaml", "NUL"),
    ("run", "--set algorithm=ppo", "algorithm", "'ppo'", "PPO"),
    ("run", "--set training.lrr=1.0", "--set training.lrr", "'lr'"),
    ("run", "--num-env-runners 99999999999999999999", "63 bits"),
    ("run", "--stop-time-s inf", "stop_time_s"),
    ("run", "--num-learners 64 --num-gpus-per-learner 1", "num_gpus_per_learner", "64 GPUs"),
    # Where to write.
    ("run", "--output-dir ''", "--output-dir"),
    ("run", "--output-dir full", "--output-dir full", "not empty"),
    ("run", "--output-dir run", "--output-dir run", "--resume run"),
    ("run", "--output-dir file", "--output-dir file", "a file"),
    ("run", "--output-dir file/below", "--output-dir file/below", "file is a file"),
    ("run", "--output-dir loop", "--output-dir loop", "link to nothing"),
    ("run", "--output-dir s3:/bucket", "s3:/bucket", "'s3://...'"),
    ("run", "--output-dir ftp://host/x", "'ftp'", "s3://"),
    ("run", "--output-dir good/new --init-from good", "good/new", "checkpoint good"),
    ("run", "--record-episodes file/below", "--record-episodes file/below", "file is a file"),
    # What to begin with.
    ("run", "--init-from missing", "'missing'"),
    ("run", "--init-from garbled", "garbled/policy.json"),
    ("run", "--init-from tutorial", "'tutorial'", "'calculator'"),
    # What to go on with.
    ("run", "--resume run --output-dir new", "--output-dir", "--resume"),
    ("run", "--resume run --config ppo", "--config", "--resume"),
    ("run", "--resume run --init-from good", "--init-from", "--resume"),
    ("run", "--resume missing", "--resume missing"),
    ("run", "--resume empty", "--resume empty", "config.yaml"),
    ("run", "--resume run/checkpoints/checkpoint_000009", "checkpoint_000009"),
    ("run", "--resume run-without-checkpoint", "run-without-checkpoint/checkpoints"),
    ("run", "--resume run --set task=tutorial", "--resume run", "calculator", "tutorial"),
    ("run", "--resume run --seed 1", "--resume run", "seed is 0"),
    ("run", "--resume run-of-tutorial", "'tutorial'", "'calculator'"),
    ("run", "--resume run-of-old", "run-of-old", "another version"),
    ("run", "--resume run-of-text", "run.json: iteration"),
    ("run", "--resume run-of-other-format", "format 99"),
    ("run", "--resume run-without-manifest", "run-without-manifest", "older version"),
    ("run", "--resume run-that-is-torn", "checkpoint_000003", "run.json has 2 bytes"),
    (
        "run",
        "--resume run-that-is-torn/checkpoints/checkpoint_000003",
        "--resume run-that-is-torn/checkpoints/checkpoint_000003",
        "run.json has 2 bytes",
    ),
    ("run", "--resume run-with-cut-state.json", "checkpoint_000003", "state of an algorithm"),
    ("run", "--resume run-that-is-solved", "--set run.stop_when_solved=false"),
    ("run", "--resume run --stop-env-steps 900", "1,000 env steps", "--stop-env-steps"),
    ("run", "--resume run --stop-time-s 1", "1 s", "--stop-time-s"),
    ("run", "--resume run --set run.stop_iterations=3", "3 iterations", "run.stop_iterations"),
    # A cluster that is there.
    ("run", "--address ''", "--address", "HOST:PORT"),
    ("run", "--address 999.999.999.999:6379", "--address 999.999.999.999:6379", "host"),
    ("run", "--address ray://127.0.0.1:10001", "ray://127.0.0.1:10001", "HOST:PORT", "submit.sh"),
    ("run", "--address http://127.0.0.1:8265", "http://127.0.0.1:8265", "HOST:6379"),
    # The other commands: that they look, and say which flag.
    ("evaluate", "good --problems missing.csv", "missing.csv"),
    ("evaluate", "good --problems good.csv --json good.csv", "--json good.csv", "--problems"),
    ("evaluate", "good --problems bad.csv --json new", "bad.csv, line 2"),
    ("evaluate", "good --json good/new.json", "good/new.json", "checkpoint good"),
    ("evaluate", "good --json loop", "loop"),
    ("evaluate", "good --reasoning-gym nothing", "--reasoning-gym", "'calculator'"),
    ("explain", "good --html new --json new", "--html", "--json"),
    ("explain", "good --html good/policy.json", "good/policy.json", "checkpoint good"),
    ("explain", "planner --expression ((1", "--expression", "'('"),
    ("serve", "missing --port 0", "'missing'"),
    ("serve", "good tutorial/../good --port 0", "good", "twice"),
    ("serve", f"{'good ' * 9}--port 0", "9 checkpoints", "1 to 8"),
    ("serve", "good tutorial --port 0", "one task"),
    ("serve", "good --host ''", "--host"),
    ("serve", "good --host 203.0.113.7", "203.0.113.7:8000"),
    ("serve", "good --allow-host http://x/", "--allow-host", "http://x/"),
    ("benchmark", "--seconds inf", "--seconds", "inf"),
    ("benchmark", "--rows stock_rlib", "--rows", "'stock_rllib'"),
    ("benchmark", "--plot x.png", "--plot", "--learning"),
    ("benchmark", "--learning --plot x.txt", "--plot x.txt", "PNG"),
    ("benchmark", "--learning --ablations", "--ablations", "--learning"),
    ("benchmark", "--learning --rows bare_loop", "--rows", "--learning"),
    ("benchmark", "--peers --run runs/a", "--run", "--peers"),
    ("benchmark", "--learning --peers", "--peers", "--learning"),
    ("benchmark", "--peers --peers-limit-s inf", "--peers-limit-s", "inf"),
    ("tune", "--stop-time-s inf", "stop_time_s"),
    ("tune", "--output-dir s3://bucket/x", "s3://bucket/x", "path"),
    ("tune", "--output-dir new --address ''", "--address"),
    ("report", "told --output told/config.yaml", "told/config.yaml"),
    ("report", "told --output told/checkpoints/x.html", "told/checkpoints/x.html"),
    ("export", "good --output-dir s3://bucket/x", "--output-dir s3://bucket/x"),
    ("export", "good --output-dir good/new", "good/new", "checkpoint good"),
    ("export", "garbled --output-dir new", "garbled/policy.json"),
]


@pytest.mark.parametrize("name", ["missing.yaml", "myppo.yaml", "a/tutorial.yaml", "./tutorail"])
def test_a_missing_file_is_not_answered_with_a_config_that_looks_alike(refused, name):
    said = refused("run", f"--output-dir new --config {name}")
    assert said == f"no such config file '{name}'"


@pytest.mark.parametrize("row", WRONG, ids=lambda row: f"{row[0]} {row[1]}")
def test_a_refusal_names_what_is_wrong(refused, row):
    name, line, *named = row
    if name == "run" and not {"--output-dir", "--resume"} & set(line.split()):
        line += " --output-dir new"
    refused(name, line, *named)


# Every command's options, with what none of them can be. Click refuses it before a file is opened.

QUICK = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]
NUMBERS = [
    (name, option)
    for name, option in OPTIONS
    if isinstance(option.type, click.IntRange | click.FloatRange)
]
GIVEN = {"evaluate": ["x"], "explain": ["x"], "serve": ["x"], "report": ["x"],
         "export": ["x", "--output-dir", "y"]}  # fmt: skip


def no_such_number(kind):
    """Text that an option of click's type must refuse."""
    texts = st.text(min_size=1, max_size=8).filter(lambda text: text.strip() not in ("", "auto"))
    wrong = texts.filter(lambda text: not is_a_number(text))
    if isinstance(kind, click.IntRange):
        wrong |= st.floats(-1e6, 1e6).filter(lambda value: value % 1 != 0).map(str)
    if kind.min is not None:
        below = math.ceil(kind.min) - (0 if kind.min_open else 1)
        wrong |= st.integers(max_value=below).map(str)
    if kind.max is not None:
        wrong |= st.integers(min_value=math.floor(kind.max) + 1).map(str)
    return wrong


def is_a_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@QUICK
@given(data=st.data())
def test_no_option_takes_a_number_that_is_none_or_out_of_range(tmp_path, monkeypatch, capfd, data):
    monkeypatch.chdir(tmp_path)
    name, option = data.draw(st.sampled_from(NUMBERS))
    value = data.draw(no_such_number(option.type))
    refusal(capfd, name, [*GIVEN.get(name, []), f"{option.opts[0]}={value}"], option.opts)


@QUICK
@given(data=st.data())
def test_a_misspelt_option_is_refused_and_the_right_one_offered(tmp_path, monkeypatch, capfd, data):
    monkeypatch.chdir(tmp_path)
    name, option = data.draw(st.sampled_from(OPTIONS))
    right = option.opts[0]
    at = data.draw(st.integers(3, len(right) - 1))
    middle = data.draw(st.sampled_from(["", right[at] * 2, "x"]))
    wrong = right[:at] + middle + right[at + 1 :]
    known = [flag for _, other in OPTIONS for flag in other.opts]
    assume(wrong not in [*known, "--help"])
    line = refusal(capfd, name, [*GIVEN.get(name, []), wrong], [f"'{wrong}'"])
    offered = line.partition("; ")[2]
    assert any(flag in offered for flag in known), line


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda part: getattr(part, "name", part))
def test_an_option_without_its_value_is_refused(tmp_path, monkeypatch, capfd, name, option):
    if not option.is_flag:
        monkeypatch.chdir(tmp_path)
        refusal(capfd, name, [*GIVEN.get(name, []), option.opts[0]], option.opts)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_argument_that_is_missing_or_too_many_is_refused(tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    for parameter in command.params:
        if parameter.required:
            is_argument = isinstance(parameter, click.Argument)
            shown = parameter.metavar or parameter.opts[0].upper()
            shown = shown if is_argument else parameter.opts[0]
            refusal(capfd, name, [] if is_argument else ["x"], [shown])
    if not any(parameter.nargs == -1 for parameter in command.params):
        refusal(capfd, name, [*GIVEN.get(name, []), "surplus"], ["surplus"])


@given(
    host=st.text(max_size=8).filter(lambda host: "://" not in host),
    port=st.text(max_size=6).filter(lambda text: not is_a_number(text))
    | (st.integers(max_value=0) | st.integers(min_value=65536)).map(str),
)
def test_an_address_without_a_port_that_can_be_one_is_refused(host, port):
    assume("://" not in f"{host}:{port}" and ":" not in port)
    with pytest.raises(UserError, match=r"--address .*HOST:PORT"):
        check_address(" ".join(f"{host}:{port}".splitlines()))


# Tokens of a cluster that is joined, or of one that would be started.
TOKENS = {
    "missing": "no such file",
    "no-token": "empty",
    "full": "directory",
    "garbage": "ASCII",
    "/dev/zero": "ASCII",
}


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_is_none_is_refused(refused, monkeypatch, token):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token)
    for address in ("", " --address 127.0.0.1:1"):
        refused("run", f"--output-dir new{address}", f"RAY_AUTH_TOKEN_PATH={token}", TOKENS[token])


def test_a_cluster_s_token_that_is_not_there_is_refused(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no token in .*/\.ray/auth_token"):
        prepare_token(create=False)


# Another network than the configured one, and the label of the line that says so.
MODEL = "rl_module.model_config"
NETWORKS = [
    ("--init-from narrow", "--init-from narrow: "),
    (f"--config planner.yaml --init-from planner --set {MODEL}.reading=operands", "reading"),
    (f"--config planner.yaml --init-from planner --set {MODEL}.sees_digits=true", "sees_digits"),
    (
        f"--config planner.yaml --init-from planner --set {MODEL}.num_heads=5 "
        f"--set {MODEL}.num_counters=0 --set {MODEL}.max_seq_len=3",
        "num_heads",
    ),
    ("--config expressions.yaml --init-from planner", "encoder_decoder"),
    ("--config planner.yaml --init-from gru", "stage_gru"),
    (
        f"--resume run --set {MODEL}.network=encoder_decoder",
        "--resume run/checkpoints/checkpoint_000003: ",
    ),
]


@pytest.mark.parametrize(("line", "named"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_another_network_is_refused_and_the_advice_is_right(refused, line, named):
    line += "" if "--resume" in line else " --output-dir new"
    said = refused("run", line, named)
    # With what it says to add there is nothing left to refuse but an address put there to stop it.
    _, advice = said.split("; add ")
    refused("run", f"{line} {advice} --address 127.0.0.1:1", "--address 127.0.0.1:1")


def test_more_gpus_than_there_are_by_one(refused):
    asked = torch.cuda.device_count() + 1
    line = f"--output-dir new --num-gpus-per-learner {asked}"
    refused("run", line, "num_gpus_per_learner", f"asks for {asked} GPU")


@pytest.mark.full
def test_a_command_refuses_as_a_process_too(prepared):
    before = snapshot(prepared)
    results = run_modules(
        ["-m", "toolagent.run", "--output-dir", "new", "--address", "127.0.0.1:1"],
        ["-m", "toolagent.evaluate", "missing"],
        cwd=prepared,
    )
    assert [result.args[2] for result in results if not is_refusal(result)] == []
    assert snapshot(prepared) == before
