"""Whatever a user gets wrong: exit code 2, one line on stderr, and nothing written anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import socket
import time
from dataclasses import asdict
from unittest import mock

import pytest
import torch
from trained import (
    is_refusal,
    run_modules,
    untrained_expression_network,
    untrained_network,
)

from toolagent import cli
from toolagent.benchmark import __main__ as benchmark
from toolagent.checkpoints import manifest
from toolagent.checkpoints.manifest import write_manifest
from toolagent.checkpoints.policy import save_policy
from toolagent.checkpoints.state_files import encode_state
from toolagent.evaluate import __main__ as evaluate
from toolagent.explain import __main__ as explain
from toolagent.export import __main__ as export
from toolagent.models.network import NetworkSizes, StageGRUNetwork
from toolagent.report import __main__ as report
from toolagent.run import __main__ as run
from toolagent.run.training import RunState
from toolagent.serve import __main__ as serve
from toolagent.tune import __main__ as tune

COMMANDS = {
    module.__name__.split(".")[1]: module.command
    for module in (run, evaluate, explain, serve, benchmark, tune, report, export)
}


def write_run(folder, task="calculator", config="task: calculator\n", network=None):
    """What a run leaves that could be resumed, as far as it is looked at before Ray starts."""
    checkpoint = folder / "checkpoints" / "checkpoint_000003"
    save_policy(checkpoint, network or untrained_network(embedding_size=96), task)
    for name, content in encode_state({}).items():
        (checkpoint / name).write_bytes(content)
    write_state(checkpoint, asdict(RunState(3, 1000, 1.0)))
    (folder / "config.yaml").write_text(config)
    return checkpoint


def write_state(checkpoint, state):
    (checkpoint / "run.json").write_text(json.dumps(state))
    list_files(checkpoint)


def list_files(checkpoint):
    """Writes the manifest of whatever is in the checkpoint now."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    write_manifest(checkpoint, {"config_sha256": None})


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# A row of `progress.jsonl`, as far as a report needs it.
PROGRESS = json.dumps(
    {
        "iteration": 1, "time_s": 1.0, "env_steps": 10, "env_steps_per_s": 10.0, "stage": 0,
        "next_stage": 0, "measured": True, "accuracy": {"0": 0.5},
    }
) + "\n"  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with everything that the wrong command lines below name."""
    folder = tmp_path_factory.mktemp("prepared")
    save_policy(folder / "good", untrained_network(embedding_size=96), "calculator")
    save_policy(folder / "narrow", untrained_network(embedding_size=8), "calculator")
    save_policy(folder / "tutorial", untrained_network(embedding_size=96), "tutorial")
    # Two networks for one task, and the configuration of the second.
    other = NetworkSizes(*untrained_expression_network().sizes[:2], embedding_size=96)
    save_policy(folder / "gru", StageGRUNetwork(other), "expression")
    save_policy(folder / "planner", untrained_expression_network(), "expression")
    planner = "task: expression\nrl_module: {model_config: {network: encoder_decoder, "
    planner += "embedding_size: 8, num_heads: 2, num_counters: 1}}\n"
    (folder / "planner.yaml").write_text(planner)
    (folder / "expressions.yaml").write_text("task: expression\n")
    write_run(folder / "run-of-planner", "expression", planner, untrained_expression_network())
    for name in ("old", "torn", "no-weights"):
        shutil.copytree(folder / "good", folder / name)
    edit_json(folder / "old" / "policy.json", format=99)
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "no-weights" / "model.safetensors").unlink()
    (folder / "empty").mkdir()
    (folder / "pickles").mkdir()
    (folder / "pickles" / "state.pkl").write_bytes(b"\x80\x04.")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    write_run(folder / "run")
    write_run(folder / "run-of-tutorial", "tutorial")
    write_state(write_run(folder / "run-of-old"), {"iteration": 3})
    other_format = write_run(folder / "run-of-other-format")
    edit_json(other_format / "policy.json", format=99)
    list_files(other_format)
    (write_run(folder / "run-without-manifest") / "manifest.json").unlink()
    torn = write_run(folder / "run-that-is-torn")
    (torn / "run.json").write_text("{}")
    finished = asdict(RunState(3, 1000, 1.0, stopped_by="solved"))
    write_state(write_run(folder / "run-that-is-solved"), finished)
    write_run(folder / "run-without-checkpoint")
    shutil.rmtree(folder / "run-without-checkpoint" / "checkpoints")
    (folder / "run-without-checkpoint" / "progress.jsonl").write_text('{"iteration": 1}\n')
    (folder / "unknown-key.yaml").write_text("task: calculator\ntrainin:\n  lr: 1.0\n")
    (folder / "unknown-option.yaml").write_text("task: calculator\ntraining:\n  learning_rate: 1\n")
    (folder / "wrong-type.yaml").write_text("task: calculator\ntraining:\n  lr: fast\n")
    (folder / "wrong-stage.yaml").write_text("curriculum:\n  levels:\n    - stage: 3\n")
    (folder / "not-yaml.yaml").write_text("task: [calculator\n")
    (folder / "not-text.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.yaml").write_text("")
    (folder / "wrong-column.csv").write_text("stage,a,b,c,d,x\n0,1,2,3,,\n")
    (folder / "wrong-digit.csv").write_text("stage,a,b,c,d,e\n0,1,2,13,,\n")
    (folder / "wrong-stage.csv").write_text("stage,a,b,c,d,e\n3,1,2,3,4,5\n")
    (folder / "empty.csv").write_text("")
    write_odd_files(folder)
    write_odd_runs(folder)
    write_odd_searches(folder)
    return folder


def write_odd_files(folder):
    """Garbage, links and what YAML could be misused for."""
    (folder / "loop").symlink_to("loop")
    (folder / "garbage").write_bytes(bytes(range(256)))
    (folder / "nul.csv").write_bytes(b"stage,a,b,c,d,e\n0,1,\x00,3,,\n")
    (folder / "long.csv").write_text(f"stage,a,b,c,d,e\n0,{'9' * 200_000},2,3,,\n")
    (folder / "good.csv").write_text("stage,a,b,c,d,e\n0,1,2,3,,\n")
    (folder / "object.yaml").write_text("task: !!python/object/apply:os.system ['touch x']\n")
    (folder / "alias.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    (folder / "twice.yaml").write_text("task: calculator\ntask: tutorial\n")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "large.yaml").write_text("a" * 300_000)
    (folder / "nul.yaml").write_text('run: {record_episodes: "a\\0b"}\n')
    for name, content in (("garbled", bytes(range(256))), ("nested", b"[" * 100_000)):
        shutil.copytree(folder / "good", folder / name)
        (folder / name / "policy.json").write_bytes(content)
    shutil.copytree(folder / "run", folder / "run-led-away")
    (folder / "run-led-away" / "summary.json").write_text('{"checkpoint": "../good"}')


def write_odd_runs(folder):
    """Runs whose checkpoints are whole by their sums, and yet none that a run writes."""
    for name, changes in (
        ("text", {"iteration": "3"}),
        ("null", {"env_steps": None}),
        ("negative", {"iteration": -3}),
        ("nan", {"time_s": float("nan")}),
        ("huge", {"env_steps": 10**400}),
        ("list", {"first_solved": [0]}),
    ):
        state = asdict(RunState(3, 1000, 1.0)) | changes
        write_state(write_run(folder / f"state-{name}"), state)
    for name, content in (("garbled", b"\xff"), ("nested", b"[" * 100_000), ("cut", b'{"iter')):
        for file in ("run.json", "state.json"):
            checkpoint = write_run(folder / f"{file}-{name}")
            (checkpoint / file).write_bytes(content)
            list_files(checkpoint)
    for name, edit in (
        ("no-sums", lambda found: found | {"files": {"run.json": {"bytes": 1}}}),
        ("a-list", lambda found: found | {"files": [1, 2]}),
        ("a-path", lambda found: found | {"files": {"../../x": {"bytes": 1, "sha256": "0"}}}),
    ):
        file = write_run(folder / f"manifest-with-{name}") / "manifest.json"
        found = json.loads(file.read_text())
        del found["sha256"]
        file.write_bytes(manifest._rendered(edit(found)))
    (write_run(folder / "manifest-garbled") / "manifest.json").write_bytes(b"\x80\x04\x95")


def write_odd_searches(folder):
    space = "space: {{training.lr: {{{}}}}}\ntrial: {{max_env_steps: 1000}}\n"
    for name, drawn in (
        ("tiny-step", "quniform: [0.001, 0.002, 1.0e-320]"),
        ("empty-range", "uniform: [2, 1]"),
        ("no-range", "uniforn: [1, 2]"),
        ("infinite", "uniform: [0, .inf]"),
    ):
        (folder / f"{name}.yaml").write_text(space.format(drawn))
    for name in ("search", "base"):
        (folder / f"garbled-{name}").mkdir()
        for file in ("search", "base"):
            content = space.format("uniform: [0.1, 0.2]") if file == "search" else "seed: 0\n"
            (folder / f"garbled-{name}" / f"{file}.yaml").write_text(content)
        (folder / f"garbled-{name}" / f"{name}.yaml").write_bytes(b"\xff\x00")


def snapshot(folder):
    """Every path below the folder, with the digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(prepared, monkeypatch, capfd):
    """Calls a command that must refuse; returns the one line, without its 'error: '."""

    def call(name, *arguments):
        monkeypatch.chdir(prepared)
        before = snapshot(prepared)
        code = cli.main(COMMANDS[name], list(arguments))
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: "), captured.err
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
        assert captured.err.rstrip("\n").isprintable()
        assert code == 2
        assert snapshot(prepared) == before
        return captured.err.removeprefix("error: ")

    return call


# One row: the arguments after --output-dir new, and what the message must say.
RUN = [
    ("--num-env-runner 3", "no option '--num-env-runner'; did you mean '--num-env-runners'?"),
    ("--stop-env-step=3", "did you mean '--stop-env-steps'?"),
    ("surplus", "unexpected extra argument (surplus)"),
    ("--num-env-runners many", "'many' is not a valid integer"),
    ("--num-env-runners 1.5", "'1.5' is not a valid integer"),
    ("--num-env-runners -1", "'--num-env-runners': -1 is not in the range x>=0"),
    ("--num-learners -1", "'--num-learners': -1"),
    ("--num-gpus-per-learner -0.5", "'--num-gpus-per-learner': -0.5"),
    ("--seed -1", "'--seed': -1"),
    ("--seed 99999999999", "'--seed': 99999999999"),
    ("--stop-env-steps 0", "'--stop-env-steps': 0"),
    ("--stop-time-s 0", "'--stop-time-s': 0"),
    ("--stop-time-s -1", "'--stop-time-s': -1"),
    ("--stop-time-s nan", "stop_time_s"),
    ("--stop-time-s inf", "stop_time_s"),
    ("--stop-time-s", "option '--stop-time-s' requires an argument"),
    ("--config tutorail", "no config file 'tutorail'; did you mean 'tutorial.yaml'?"),
    ("--config missing/file.yaml", "no config file 'missing/file.yaml'"),
    ("--config full", "no config file 'full'"),
    ("--config unknown-key.yaml", "trainin: unknown; did you mean 'training'?"),
    ("--config unknown-option.yaml", "training.learning_rate: unknown"),
    ("--config wrong-type.yaml", "training.lr: expected"),
    ("--config wrong-stage.yaml", "stage: 3 is not in the task; its stages are 0..2"),
    ("--config not-yaml.yaml", "not-yaml.yaml: line"),
    ("--config not-text.yaml", "not UTF-8 text"),
    ("--config empty.yaml", "the file is empty"),
    ("--set training.lr", "expected section.key=value"),
    ("--set training.lr=", "has no value"),
    ("--set training.lr=fast", "--set training.lr: expected"),
    ("--set training.lrr=1.0", "--set training.lrr: unknown; did you mean 'lr'?"),
    ("--set trainin.lr=1.0", "with --set: trainin: unknown; did you mean 'training'?"),
    ("--set task=calculater", "did you mean 'calculator'?"),
    ("--set algorithm=ppo", "no algorithm 'ppo'; known: BC, MARWIL, PPO, toolagent"),
    ("--set curriculum.levels.9.stage=0", "no entry '9'; the list has entries 0..2"),
    ("--set curriculum.levels.0.stage=3", "3 is not in the task; its stages are 0..2"),
    ("--set curriculum.levels.0.advance_at_accuracy=1.5", "must be less than 1"),
    ("--set curriculum.measure_problems=20", "can't be proved by 20 problems"),
    ("--set run.keep_checkpoints=0", "must be greater than or equal to 1"),
    ("--set env_runners.num_envs_per_env_runner=-4", "num_envs_per_env_runner"),
    ("--set training.episodes_per_update=0", "episodes_per_update"),
    ("--set rl_module.model_config.embedding_size=0", "must be at least 1"),
    ("--set rl_module.model_config.embeding_size=8", "did you mean 'embedding_size'?"),
    ("--num-gpus-per-learner 64", "asks for 64 GPUs"),
    ("--num-learners 64 --num-gpus-per-learner 1", "asks for 64 GPUs"),
    ("--init-from missing", "no checkpoint 'missing'"),
    ("--init-from empty", "no checkpoint in 'empty'"),
    ("--init-from tutorial", "is a checkpoint of task 'tutorial', not 'calculator'"),
    ("--init-from old", "has format 99; this version of toolagent"),
    ("--init-from torn", "is damaged"),
    ("--init-from narrow", "its network has embedding_size 8, the configuration 96"),
    ("--record-episodes file", "file is a file"),
    ("--record-episodes file/below", "file is a file"),
    ("--address nonsense", "no Ray cluster answers there"),
]


@pytest.mark.parametrize(("arguments", "message"), RUN, ids=[row[0] for row in RUN])
def test_run_refuses(refused, arguments, message):
    assert message in refused("run", "--output-dir", "new", *arguments.split())


OUTPUT = [
    ("--output-dir full", "--output-dir full: is not empty"),
    ("--output-dir file", "--output-dir file: is a file"),
    ("--output-dir run", "continue that run with --resume run"),
    ("--resume run --output-dir new", "--output-dir: can't be given with --resume"),
    ("--resume run --config ppo", "--config: can't be given with --resume"),
    ("--resume run --init-from good", "--init-from: can't be given with --resume"),
    ("--resume missing", "--resume missing: there is no such folder"),
    ("--resume file", "--resume file: there is no such folder"),
    ("--resume empty", "--resume empty: holds no run"),
    ("--resume good", "--resume good: holds no run"),
    ("--resume run-without-checkpoint", "no complete checkpoint in"),
    ("--resume run --set task=tutorial", "its task is calculator; it can't become tutorial"),
    ("--resume run --set algorithm=PPO", "its algorithm is toolagent; it can't become PPO"),
    ("--resume run --seed 1", "its seed is 0; it can't become 1"),
    (
        "--resume run --set rl_module.model_config.embedding_size=8",
        "its network has embedding_size 96, the configuration 8",
    ),
    ("--resume run --stop-time-s -1", "'--stop-time-s': -1"),
    ("--resume run-of-tutorial", "is a checkpoint of task 'tutorial', not 'calculator'"),
    ("--resume run-of-old", "written by another version of toolagent"),
    ("--resume run-of-other-format", "has format 99"),
    ("--resume run-without-manifest", "or was written by an older version of toolagent"),
    ("--resume run-that-is-torn", "checkpoint_000003: run.json has 2 bytes, not"),
    (
        "--resume run-that-is-torn/checkpoints/checkpoint_000003",
        "--resume run-that-is-torn/checkpoints/checkpoint_000003: run.json has 2 bytes, not",
    ),
    ("--resume run/checkpoints/checkpoint_000009", "there is no such checkpoint"),
    ("--resume run-that-is-solved", "to train on, add --set run.stop_when_solved=false"),
    ("--resume run --stop-env-steps 900", "it has made 1,000 env steps; raise --stop-env-steps"),
    ("--resume run --stop-time-s 1", "it has trained for 1 s; raise --stop-time-s"),
    ("--resume run --set run.stop_iterations=3", "it has made 3 iterations; raise run.stop_iter"),
]


@pytest.mark.parametrize(("arguments", "message"), OUTPUT, ids=[row[0] for row in OUTPUT])
def test_run_refuses_where_to_write_and_what_to_resume(refused, arguments, message):
    assert message in refused("run", *arguments.split())


BOTH = [
    ("missing", "no checkpoint 'missing'"),
    ("empty", "no checkpoint in 'empty'"),
    ("pickles", "only pickles, which are never opened"),
    ("file", "file is a file"),
    ("old", "has format 99; this version of toolagent"),
    ("torn", "is damaged"),
    ("no-weights", "is missing"),
    ("good surplus", "unexpected extra argument"),
    ("good --jsn x", "no option '--jsn'"),
    ("", "missing argument 'CHECKPOINT'"),
]


@pytest.mark.parametrize("name", ["evaluate", "explain"])
@pytest.mark.parametrize(("arguments", "message"), BOTH, ids=[row[0] for row in BOTH])
def test_evaluate_and_explain_refuse(refused, name, arguments, message):
    assert message in refused(name, *arguments.split())


OTHERS = [
    ("evaluate", "good --problems missing.csv", "missing.csv"),
    ("evaluate", "good --problems wrong-column.csv", "line 1: unknown column 'x'"),
    ("evaluate", "good --problems wrong-digit.csv", "line 2: c is '13'; expected a digit, 0 to 9"),
    ("evaluate", "good --problems wrong-stage.csv", "line 2: stage is '3'"),
    ("evaluate", "good --problems empty.csv", "expected the header stage,a,b,c,d,e"),
    ("evaluate", "good --problems full", "full"),
    ("evaluate", "good --json full", "full: is a folder"),
    ("evaluate", "good --json missing/new.json", "there is no folder 'missing'"),
    ("explain", "good --stage 3", "has no stage 3; its stages are 0..2"),
    ("explain", "good --stage -1", "has no stage -1"),
    ("explain", "good --stage two", "'two' is not a valid integer"),
    ("explain", "good --digits 3,4,5,6,70", "'70' is no digit"),
    ("explain", "good --digits 3,4", "2 digits; stage 2"),
    ("explain", "good --digits a,b,c,d,e", "'a' is no digit"),
    ("explain", "good --expression 1+2", "is posed by --digits"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "message"), OTHERS, ids=[f"{row[0]} {row[1]}" for row in OTHERS]
)
def test_wrong_problems_are_refused(refused, name, arguments, message):
    assert message in refused(name, *arguments.split())


# More of all commands, `run` with an output folder where it names none.
ANY = [
    ("run", "--config object.yaml", "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is"),
    ("run", "--config alias.yaml", "aliases (*name) are not supported"),
    ("run", "--config twice.yaml", "line 2, column 1: duplicate key 'task'"),
    ("run", "--config deep.yaml", "nested deeper than 30 levels"),
    ("run", "--config large.yaml", "larger than 256 kB"),
    ("run", "--config nul.yaml", "it has a NUL character"),
    ("run", "--config garbage", "not UTF-8 text"),
    ("run", "--config loop", "no config file 'loop'"),
    ("run", "--config /dev/zero", "larger than 256 kB"),
    ("run", "--set training.lr=.nan", "NaN is no setting"),
    ("run", "--set training.lr=1e999", "must be a finite number, got inf"),
    ("run", "--set training.lr=99999999999999999999", "it has more than 63 bits"),
    ("run", "--set .=1", "expected section.key=value"),
    ("run", "--num-env-runners 99999999999999999999", "more than 63 bits"),
    ("run", "--num-gpus-per-learner nan", "expected a valid number"),
    ("run", "--output-dir ''", "--output-dir: is empty"),
    ("run", "--output-dir loop", "--output-dir loop: loop is a link to nothing"),
    ("run", "--output-dir file/below", "--output-dir file/below: file is a file"),
    ("run", "--output-dir s3:/bucket", "expected two slashes, 's3://...'"),
    ("run", "--output-dir ftp://host/x", "no storage 'ftp'; use a path, s3://"),
    ("run", "--output-dir good/new --init-from good", "good/new: is in the checkpoint good"),
    ("run", "--init-from loop", "loop is a link to nothing"),
    ("run", "--init-from garbled", "policy.json: is no JSON"),
    ("run", "--address ''", "--address: is empty; name HOST:PORT"),
    ("run", "--address :6379", "expected HOST:PORT"),
    ("run", "--address 127.0.0.1:", "expected HOST:PORT"),
    ("run", "--address 127.0.0.1:0", "expected HOST:PORT"),
    ("run", "--address 127.0.0.1:-1", "expected HOST:PORT"),
    ("run", "--address 127.0.0.1:abc", "expected HOST:PORT"),
    ("run", "--address [::1]", "expected HOST:PORT"),
    ("run", "--address [::1]:1", "connection refused"),
    ("run", "--address 999.999.999.999:6379", "no such host"),
    ("run", "--address ray://127.0.0.1:10001", "submit a job (cluster/submit.sh)"),
    ("run", "--address http://127.0.0.1:8265", "is a dashboard, to which jobs are submitted"),
    ("run", "--resume loop", "there is no such folder"),
    ("run", "--resume state-text", "run.json: iteration"),
    ("run", "--resume state-null", "run.json: env_steps"),
    ("run", "--resume state-negative", "run.json: iteration"),
    ("run", "--resume state-nan", "run.json: time_s"),
    ("run", "--resume state-huge", "run.json: env_steps"),
    ("run", "--resume state-list", "run.json: first_solved"),
    ("run", "--resume run.json-garbled", "run.json: is no JSON"),
    ("run", "--resume run.json-nested", "run.json: is no JSON"),
    ("run", "--resume run.json-cut", "run.json: is no JSON"),
    ("run", "--resume state.json-garbled", "holds no state of an algorithm"),
    ("run", "--resume state.json-nested", "holds no state of an algorithm"),
    ("run", "--resume state.json-cut", "holds no state of an algorithm"),
    ("run", "--resume manifest-with-no-sums", "manifest.json is damaged"),
    ("run", "--resume manifest-with-a-list", "manifest.json is damaged"),
    ("run", "--resume manifest-with-a-path", "manifest.json is damaged: files.../../x.sha256"),
    ("run", "--resume manifest-garbled", "manifest.json is damaged"),
    ("evaluate", "''", "no checkpoint"),
    ("evaluate", "loop", "loop is a link to nothing"),
    ("evaluate", "garbled", "policy.json: is no JSON"),
    ("evaluate", "nested", "policy.json: is no JSON"),
    ("evaluate", "run-led-away", "names the checkpoint '../good', which does not exist"),
    ("evaluate", f"{'x' * 300}", "File name too long"),
    ("evaluate", "'a\nb'", "no checkpoint 'a b'"),
    ("evaluate", "'\x1b[31m'", "no checkpoint '\\x1b[31m'"),
    ("evaluate", "good --problems garbage", "line 2: not UTF-8 text"),
    ("evaluate", "good --problems nul.csv", "line 2: b is '\\x00'"),
    ("evaluate", "good --problems long.csv", "line 2: not CSV (field larger than"),
    ("evaluate", "good --problems good.csv --json good.csv", "is the file of --problems"),
    ("evaluate", "good --json good/new.json", "good/new.json: is in the checkpoint good"),
    ("evaluate", "good --json loop", "loop: is a link to itself"),
    ("evaluate", "good --reasoning-gym nothing", "task 'calculator' is posed by digits"),
    ("evaluate", "good --size 3", "--size: only with --reasoning-gym"),
    ("explain", "good --stage 99999999999999999999", "has no stage 99999999999999999999"),
    ("explain", "good --digits ''", "'' is no digit"),
    ("explain", "good --digits \u0663,4,5,6,7", "'\u0663' is no digit"),
    ("explain", "good --html new --json new", "name a file for each"),
    ("explain", "good --html good/policy.json", "is in the checkpoint good"),
    ("explain", "planner --expression 1/2", "'/' (character 2) is not understood"),
    ("explain", "planner --expression 10+2", "operands are single digits"),
    ("explain", "planner --expression ((1", "a '(' without its ')'"),
    ("serve", "", "missing argument"),
    ("serve", "missing --port 0", "no checkpoint 'missing'"),
    ("serve", "torn --port 0", "is damaged"),
    ("serve", "pickles --port 0", "only pickles, which are never opened"),
    ("serve", "good good --port 0", "is given twice"),
    ("serve", "good tutorial --port 0", "only checkpoints of one task"),
    ("serve", "good --port -1", "'--port': -1"),
    ("serve", "good --port x", "'x' is not a valid integer"),
    ("serve", "good --por 1", "did you mean '--port'?"),
    ("serve", "good --host ''", "--host: is empty"),
    ("serve", "good --host 1.2.3.4.5 --port 0", "1.2.3.4.5:0 can't be listened at"),
    ("serve", "good --allow-host ''", "--allow-host '': is no name of a server"),
    ("serve", "good --allow-host http://x/", "without a scheme, a port or a path"),
    ("serve", "good --allow-host 'a\nb'", "--allow-host 'a b': is no name of a server"),
    ("benchmark", "--repeats 0", "'--repeats': 0"),
    ("benchmark", "--seconds nan", "--seconds: nan is no length of time"),
    ("benchmark", "--seconds inf", "--seconds: inf is no length of time"),
    ("benchmark", "--rows stock_rlib", "did you mean 'stock_rllib'?"),
    ("benchmark", "--json full", "full: is a folder"),
    ("benchmark", "--json missing/x", "missing/x: there is no folder"),
    ("benchmark", "--plot x.png", "--plot: only with --learning"),
    ("benchmark", "--learning --plot x.txt", "expected the name of a PNG"),
    ("benchmark", "--learning --ablations", "--ablations: can't be given with --learning"),
    ("benchmark", "--learning --rows bare_loop", "--rows: can't be given with --learning"),
    ("benchmark", "--run loop", "--run loop: there is no such folder"),
    ("tune", "--config tiny-step.yaml", "is no multiple of the step"),
    ("tune", "--config empty-range.yaml", "the range from 2 to 1 is empty"),
    ("tune", "--config no-range.yaml", "did you mean 'uniform'?"),
    ("tune", "--config infinite.yaml", "must be finite"),
    ("tune", "--config garbage", "not UTF-8 text"),
    ("tune", "--config deep.yaml", "nested deeper than 30 levels"),
    ("tune", "--resume garbled-search", "search.yaml: not UTF-8 text"),
    ("tune", "--resume garbled-base", "base.yaml: not UTF-8 text"),
    ("tune", "--output-dir loop", "loop is a link to nothing"),
    ("tune", "--output-dir ''", "--output-dir: is empty"),
    ("tune", "--output-dir s3://bucket/x", "a search needs a path"),
    ("tune", "--stop-time-s inf", "stop_time_s: must be a finite number"),
    ("tune", "--output-dir new --address ''", "--address: is empty"),
    ("tune", "--output-dir new --address 127.0.0.1:x", "expected HOST:PORT"),
    ("report", "", "missing argument 'DIR...'"),
    ("report", "loop", "loop: there is no such folder"),
    ("report", "good", "good: holds no run"),
    ("report", "file", "file: is a file; name the folder of a run"),
    ("report", "run run", "is named twice"),
    ("report", "run --outptu x.html", "did you mean '--output'?"),
    ("export", "good", "missing option '--output-dir'"),
    ("export", "good --output-dir ''", "--output-dir: is empty"),
    ("export", "good --output-dir full", "is not empty; name a new folder"),
    ("export", "good --output-dir file/below", "file is a file"),
    ("export", "good --output-dir loop", "loop is a link to nothing"),
    ("export", "good --output-dir s3://bucket/x", "name a folder on this machine"),
    ("export", "good --output-dir good/new", "good/new: is in the checkpoint good"),
    ("export", "garbled --output-dir new", "policy.json: is no JSON"),
]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "arguments", "message"), ANY, ids=[f"{row[0]} {row[1][:60]!a}" for row in ANY]
)
def test_any_command_refuses(refused, name, arguments, message):
    words = shlex.split(arguments)
    if name == "run" and not {"--output-dir", "--resume"} & set(words):
        words += ["--output-dir", "new"]
    with mock.patch.dict(os.environ):  # commands set variables for Ray
        assert message in refused(name, *words)


def test_a_report_replaces_no_file_of_its_run(prepared, refused):
    write_run(prepared / "told", config="task: calculator\nalgorithm: toolagent\nseed: 0\n")
    (prepared / "told" / "progress.jsonl").write_text(PROGRESS)
    for name in ("config.yaml", "progress.jsonl"):
        assert "is a file of the run" in refused("report", "told", "--output", f"told/{name}")
    said = refused("report", "told", "--output", "told/checkpoints/x.html")
    assert "is where the run's checkpoints are" in said


# Tokens of a cluster that is joined, or of one that would be started.
TOKENS = {
    "missing": "there is no such file",
    "empty.csv": "is empty",
    "full": "Is a directory",
    "loop": "Too many levels of symbolic links",
    "garbage": "holds no token: expected one line of ASCII",
    "good.csv": "holds no token: expected one line of ASCII",
    "/dev/zero": "holds no token: expected one line of ASCII",
}


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_is_none_is_refused(refused, monkeypatch, token):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token)
    for address in ([], ["--address", "127.0.0.1:1"]):
        message = refused("run", "--output-dir", "new", *address)
        assert f"RAY_AUTH_TOKEN_PATH={token}: {TOKENS[token]}" in message


# Another network than the configured one: what is asked for, and how it is said.
MODEL = "rl_module.model_config"
PLANNER = ", ".join(
    f"{name}: {json.dumps(value) if isinstance(value, bool) else value}"
    for name, value in list(untrained_expression_network().sizes._asdict().items())[2:]
)
NETWORKS = [
    (
        "--init-from narrow",
        "--init-from narrow: its network has embedding_size 8, the configuration 96; "
        f"add --set {MODEL}.embedding_size=8",
    ),
    (
        f"--config planner.yaml --init-from planner --set {MODEL}.reading=operands",
        "--init-from planner: its network has reading learned, the configuration operands; "
        f"add --set {MODEL}.reading=learned",
    ),
    (
        f"--config planner.yaml --init-from planner --set {MODEL}.sees_digits=true",
        "--init-from planner: its network has sees_digits false, the configuration true; "
        f"add --set {MODEL}.sees_digits=false",
    ),
    (
        f"--config planner.yaml --init-from planner --set {MODEL}.num_heads=5 "
        f"--set {MODEL}.num_counters=0 --set {MODEL}.max_seq_len=3",
        "--init-from planner: its network has num_heads 2, the configuration 5; "
        "num_counters 1, the configuration 0; "
        f"add --set {MODEL}.num_heads=2 --set {MODEL}.num_counters=1",
    ),
    (
        "--config expressions.yaml --init-from planner",
        "--init-from planner: its network is encoder_decoder, the configuration's stage_gru; "
        f"add --set '{MODEL}={{network: encoder_decoder, {PLANNER}}}'",
    ),
    (
        "--config planner.yaml --init-from gru",
        "--init-from gru: its network is stage_gru, the configuration's encoder_decoder; "
        f"add --set '{MODEL}={{network: stage_gru, embedding_size: 96}}'",
    ),
    (
        f"--resume run-of-planner --set {MODEL}.reading=operands",
        "--resume run-of-planner/checkpoints/checkpoint_000003: its network has reading learned, "
        f"the configuration operands; add --set {MODEL}.reading=learned",
    ),
    (
        f"--resume run --set {MODEL}.network=encoder_decoder",
        "--resume run/checkpoints/checkpoint_000003: its network is stage_gru, the "
        "configuration's encoder_decoder; "
        f"add --set '{MODEL}={{network: stage_gru, embedding_size: 96}}'",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_another_network_is_refused_and_the_advice_is_right(refused, arguments, message):
    asked = arguments.split() + ([] if "--resume" in arguments else ["--output-dir", "new"])
    said = refused("run", *asked).rstrip("\n")
    assert said == message
    # With what it says to add there is nothing left to refuse but an address put there to stop it.
    _, advice = said.split("; add ")
    asked += shlex.split(advice)
    assert "no Ray cluster answers there" in refused("run", *asked, "--address", "127.0.0.1:1")


def test_more_gpus_than_there_are_by_one(refused):
    asked = torch.cuda.device_count() + 1
    message = refused("run", "--output-dir", "new", "--num-gpus-per-learner", str(asked))
    assert f"asks for {asked} GPUs in all" in message


def test_an_address_where_nobody_listens_is_refused_at_once(refused):
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        started = time.monotonic()
        for address in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
            message = refused("run", "--output-dir", "new", "--address", address)
            assert f"--address {address}: no Ray cluster answers there" in message
        assert time.monotonic() - started < 30


@pytest.mark.full
def test_every_command_refuses_as_a_process_too(prepared):
    before = snapshot(prepared)
    results = run_modules(
        ["-m", "toolagent.run", "--output-dir", "full"],
        ["-m", "toolagent.run", "--output-dir", "new", "--address", "127.0.0.1:1"],
        ["-m", "toolagent.run", "--output-dir", "new", "--sett", "a.b=1"],
        ["-m", "toolagent.evaluate", "old"],
        ["-m", "toolagent.explain", "good", "--stage", "7"],
        cwd=prepared,
    )
    assert [result.args[2] for result in results if not is_refusal(result)] == []
    assert snapshot(prepared) == before
