"""A task of somebody else's: a folder with a module and a configuration, and every command works.

`outside/elevator.py` has three tools of its own and can be posed and listed; `outside/secret.py`
has only what training needs, and tools that answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from refusals import COMMANDS, refusal
from run_folders import PROGRESS, edit_json
from trained import ROOT

from toolagent import cli
from toolagent.checkpoints.policy import save_policy
from toolagent.cluster.code_transport import python_path, runtime_environment
from toolagent.config import build_algorithm_config, load_settings
from toolagent.errors import UserError
from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import TASKS, Registers, Task, register_task, task_class
from toolagent.tasks.base import Problems, Transition

OUTSIDE = ROOT / "tests" / "outside"
ELEVATOR, SECRET = "elevator:ElevatorTask", "secret:SecretTask"
SOURCE = (OUTSIDE / "elevator.py").read_text()


@contextlib.contextmanager
def own_imports():
    """What is imported and registered in the block from a test's folder is forgotten at its end."""
    before, path = set(sys.modules), [*sys.path]
    with mock.patch.dict(TASKS), mock.patch.object(sys, "path", path):
        yield
    for name in set(sys.modules) - before:
        if name.startswith(("elevator", "secret", "evil", "outside_")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with both tasks."""
    for file in OUTSIDE.glob("*.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    with own_imports():
        yield tmp_path


# What can be wrong with a task ----------------------------------------------------------------

VOCABULARY = re.search(r"    vocabulary = Vocabulary\(.*?\n    \)\n", SOURCE, re.DOTALL)[0]
SAMPLE = "return self._rides(stage, rng.integers(0, np.where(np.asarray(stage) == 0, 4, 10)))"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('    name = "elevator"\n', "", "task ElevatorTask has no name"),
        (VOCABULARY, "", "has no vocabulary"),
        ("    max_actions = 8\n", "", "has no max_actions"),
        ("    def target(", "    def other(", "has no target"),
        ("    def start(", "    def other(", "has no start"),
        ("    context_length = 2\n", "    context_length = 0\n", "context_length is 0"),
        ("    num_stages = 2\n", "    num_stages = 2.0\n", "num_stages is 2.0; expected a whole"),
        (VOCABULARY, "    vocabulary = 7\n", "vocabulary is 7; expected a toolagent.tasks.Vocab"),
        ('"UP", "LIFT", "RING")', '"UP", "UP", "RING")', "the name 'UP' is there twice"),
        ("range(10))),\n", "range(200))),\n", "205 tokens; at most 128"),
        ('answer="RING"', 'answer="F0"', "answer is 'F0', no name of an action"),
        ('name = "elevator"', 'name = "calculator"', "the name 'calculator' is that of the task"),
        ('name = "elevator"', 'name = "My lift"', "name is 'My lift'; expected lower-case"),
        ("class ElevatorTask(Task)", "class ElevatorTask", "'ElevatorTask' is no Task"),
        ("class ElevatorTask(Task)", "class Other(Task)", "there is no 'ElevatorTask' in it"),
        ("UP, LIFT, RING = range(3)", "UP = 1 / 0", "line 10: elevator:ElevatorTask can't be imp"),
        ("UP, LIFT, RING = range(3)", "UP = (", "line 10: elevator:ElevatorTask can't be imported"),
        ("UP, LIFT, RING = range(3)", "raise SystemExit(0)", "can't be imported: SystemExit"),
        ("import numpy as np", "import numqy as np", "No module named 'numqy'"),
        (SAMPLE, "return None", "sample returns no Problems"),
        (SAMPLE, "return 1 / 0", "sample raised ZeroDivisionError"),
        ('token("F0") + floor', 'token("F0") + 90', "a context has a token outside 0..14"),
        ("return problems.floor\n", "return None\n", "target is a NoneType; expected an array of"),
        ("np.int8), np.zeros(len(problems), np.int64)", "np.int8), 0", "no array of 3 rows as at"),
        ("rewards=solved.astype(float)", "rewards=1.0", "rewards is a float; expected an array"),
        ("solved=solved,\n", "solved=solved, response=solved[:, None],", "response is bool of"),
        ("    max_actions = 8\n", "    max_actions, response_length = 8, 1\n", "no response; r"),
        ("(steps >= self.max_actions)", "False", "is not over after max_actions, 8"),
        ("Elevator(steps, at)", "registers", "step changes the problems or registers"),
        ("min(stop, self.num_problems(stage))", "stop + 1", "problems returns no array of"),
        ("return 4 if stage == 0 else 10", "return 0", "num_problems returns 0; expected a number"),
        ("return registers.at, np", "return np", "accumulator returns no two arrays"),
        (
            "    max_actions = 8\n",
            "    max_actions = 8\n    siblings = lambda self, p, r: self.practice(r, p.stage)\n",
            "siblings returns problems with other contexts",
        ),
        ('return {"floor": context[:, 0] -', "return (context[:, 0] -", "elevator"),
    ],
)  # fmt: skip
def test_a_faulty_task_is_refused_before_ray_starts(folder, capsys, old, new, fault):
    assert SOURCE.count(old) == 1, old
    text = SOURCE.replace(old, new)
    if new == "registers":  # changed in place
        text = text.replace("at = registers.at +", "at = registers.at; at +=")
    (folder / "elevator.py").write_text(text)
    with mock.patch("sys.dont_write_bytecode", True):
        line = refusal(
            capsys, "run", ["--config", "elevator.yaml"], ["elevator.yaml: task: ", fault]
        )
    assert "elevator.py" in line


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("nowhere:MyTask", "there is no module 'nowhere'"),
        ("package.nowhere:MyTask", "there is no module 'package'"),
        ("elevator:", "'elevator:' is no class"),
        ("elevator:np", "elevator.py: 'np' is no Task"),
        ("elevater", "no task 'elevater'"),
    ],
)
def test_a_wrong_reference_is_refused(folder, capsys, reference, fault):
    (folder / "elevator.yaml").write_text(f"task: '{reference}'\n")
    with mock.patch("sys.dont_write_bytecode", True):
        refusal(capsys, "run", ["--config", "elevator.yaml"], ["elevator.yaml: task: ", fault])


def test_a_task_of_the_program_itself_is_for_its_own_process_only(folder):
    class LocalTask(Task):
        name, num_stages, context_length, max_actions = "local", 1, 1, 1
        vocabulary = task_class("calculator").vocabulary

        def sample(self, rng, stage, split="all"):
            return Problems(stage, np.zeros((len(stage), 1), np.int8))

        def start(self, problems):
            return Registers(np.zeros(len(problems), np.int8))

        def step(self, problems, registers, actions):
            over = np.ones(len(actions), bool)
            after = Registers(registers.steps + np.int8(1))
            return Transition(after, np.zeros(len(actions)), over, ~over, ~over)

        def target(self, problems):
            return np.zeros(len(problems), np.int64)

    register_task(LocalTask)
    config = folder / "local.yaml"
    config.write_text(f"task: '{LocalTask.__module__}:{LocalTask.__qualname__}'\n")
    here = load_settings(config, ["env_runners.num_env_runners=0"])
    assert build_algorithm_config(here).num_env_runners == 0
    with pytest.raises(UserError, match="can't be imported by the processes of num_env_runners"):
        build_algorithm_config(load_settings(config, ["env_runners.num_env_runners=2"]))


# Whose code runs ------------------------------------------------------------------------------

EVIL = "import pathlib\npathlib.Path('ran').touch()\n" + SOURCE.replace('"elevator"', '"evil"')


@pytest.fixture
def strange_run(folder):
    """The folder of a run that names, wherever it can, a module that leaves a mark."""
    checkpoint = folder / "run" / "checkpoints" / "checkpoint_000001"
    network = StageGRUNetwork(task_class(ELEVATOR)().interface, (8,))
    save_policy(checkpoint, network, ELEVATOR)
    (folder / "evil.py").write_text(EVIL)
    edit_json(checkpoint / "policy.json", task="evil:ElevatorTask")
    run = folder / "run"
    (run / "config.yaml").write_text("task: evil:ElevatorTask\nalgorithm: toolagent\nseed: 0\n")
    (run / "progress.jsonl").write_text(PROGRESS)
    stages = [{"stage": 0, "formula": "up there", "solved_in": [0, 1]}]
    (run / "behaviour.json").write_text(json.dumps({"stages": stages, "trajectories": []}))
    return checkpoint


def test_a_checkpoint_s_author_can_not_run_code(strange_run, folder, capsys):
    for path in ("run", strange_run):
        refusal(capsys, "evaluate", [path], ["'evil:ElevatorTask'", "--task evil:ElevatorTask"])
    begin = ["--config", "elevator.yaml", "--init-from", "run"]
    refusal(capsys, "run", begin, ["is a checkpoint of task 'evil:ElevatorTask', not 'elevator"])
    edit_json(strange_run / "policy.json", task=ELEVATOR)
    record = json.loads((strange_run / "policy.json").read_text())["network"]
    edit_json(strange_run / "policy.json", network=record | {"class": "evil:Network"})
    refusal(capsys, "evaluate", ["run", "--task", ELEVATOR], ["add --network evil:Network"])
    refusal(capsys, "run", begin, ["add --set rl_module.model_config.network=evil:Network"])
    assert not (folder / "ran").exists()


def test_a_report_shows_what_the_files_hold_and_imports_nothing(strange_run, folder):
    assert cli.main(COMMANDS["report"], ["run"]) == 0
    page = (folder / "run" / "report.html").read_text()
    assert "evil:ElevatorTask" in page and "up there" in page
    assert not (folder / "ran").exists()


def test_the_user_s_word_is_enough(strange_run, folder, capsys):
    assert cli.main(COMMANDS["evaluate"], ["run", "--task", "evil:ElevatorTask"]) == 0
    assert (folder / "ran").exists()
    assert "/14 (every problem there is)" in capsys.readouterr().out


# How the code gets to other processes ---------------------------------------------------------


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """A file and a package without an __init__.py that the driver imported, and what lies there."""
    place = tmp_path / "code"
    (place / "outside_package").mkdir(parents=True)
    (place / "outside_package" / "inner.py").write_text("import outside_helper\n")
    for name in ("outside_helper", "outside_single", "outside_unused"):
        (place / f"{name}.py").touch()
    monkeypatch.syspath_prepend(str(place))
    with own_imports():
        __import__("outside_package.inner")
        yield place


def test_what_is_named_and_what_it_imported_travels_to_a_cluster(own_modules):
    document = {"task": "outside_package.inner:MyTask", "rl_module": {"network": "numpy:ndarray"}}
    carried = runtime_environment(document)["py_modules"]
    names = ("outside_helper.py", "outside_package")
    assert carried == [str(ROOT / "toolagent"), *(str(own_modules / name) for name in names)]


def test_workers_of_a_local_cluster_look_where_the_driver_found_a_module(own_modules):
    before = os.environ.get("PYTHONPATH")
    with python_path({"task": "outside_package.inner:MyTask"}):
        assert str(own_modules) in os.environ["PYTHONPATH"].split(os.pathsep)
    assert os.environ.get("PYTHONPATH") == before


# Commands on it -------------------------------------------------------------------------------


def run_command(folder, *arguments):
    """What a run prints; its working folder is not on Python's path (-P), as under an entry
    point."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolagent.run", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which both tasks were learned by two remote runners, and recorded."""
    place = tmp_path_factory.mktemp("outside")
    for file in OUTSIDE.glob("*.*"):
        shutil.copy(file, place)
    for name in ("elevator", "secret"):
        run_command(
            place,
            *("--config", f"{name}.yaml", "--num-env-runners", 2, "--output-dir", name),
            *("--record-episodes", "records", "--stop-time-s", 200),
            *("--set", "run.dashboard=false"),
        )
    return place


@pytest.fixture
def here(trained, monkeypatch):
    """That folder as the working folder of commands in this process."""
    monkeypatch.chdir(trained)
    with own_imports():
        yield trained


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "reference", "stages"),
    [("elevator", ELEVATOR, [(4, 4), (10, 10)]), ("secret", SECRET, [(10_000, 10_000)])],
)
def test_it_is_learned_and_certified(trained, name, reference, stages):
    summary = summary_of(trained / name)
    assert (summary["task"], summary["stopped_by"]) == (reference, "solved")
    assert [(row["problems"], row["solved"]) for row in summary["stages"]] == stages
    policy = json.loads((trained / name / summary["checkpoint"] / "policy.json").read_text())
    assert policy["task"] == reference
    assert f"task: {reference}" in (trained / name / "config.yaml").read_text()


@pytest.mark.full
def test_its_episodes_are_recorded(trained):
    rides = pq.read_table(trained / "records" / "task=elevator").to_pydict()
    assert set(rides["floor"]) == {*range(10)}
    for actions, floor, solved in zip(
        *(rides[name] for name in ("actions", "floor", "solved")), strict=True
    ):
        rung = actions.index(2) if 2 in actions else None
        at = sum({0: 1, 1: 3}.get(action, 0) for action in actions)
        assert solved == (rung is not None and at == floor)
    secrets = pq.read_table(trained / "records" / "task=secret").to_pydict()
    assert set(map(tuple, secrets["context"])) == {(4,)}
    for actions, responses in zip(secrets["actions"], secrets["response"], strict=True):
        told = [response for (response,) in responses]
        assert [token != 4 for token in told] == [action == 0 for action in actions]


@pytest.mark.full
def test_the_agent_answers_a_file_of_problems(here, capsys):
    (here / "problems.csv").write_text("stage,floor\n0,3\n1,8\n")
    arguments = ["elevator", "--task", ELEVATOR, "--problems", "problems.csv"]
    assert cli.main(COMMANDS["evaluate"], [*arguments, "--json", "answers.json"]) == 0
    answers = json.loads((here / "answers.json").read_text())["answers"]
    assert [(row["problem"], row["answer"], row["solved"]) for row in answers] == [
        ("F3", 3, True),
        ("F8", 8, True),
    ]
    assert cli.main(COMMANDS["explain"], ["elevator", "--task", ELEVATOR, "--floor", "7"]) == 0
    assert "answers 7 = F7: right" in capsys.readouterr().out
    arguments = ["secret", "--task", SECRET, "--problems", "problems.csv"]
    refusal(capsys, "evaluate", arguments, ["task 'secret'", "defines no `pose`"], Path("secret"))


@pytest.mark.full
def test_what_is_not_defined_is_not_shown(here, capsys):
    assert cli.main(COMMANDS["evaluate"], ["secret", "--task", SECRET]) == 0
    out = capsys.readouterr().out
    assert "solved 10,000/10,000 (a fixed sample)" in out and "stage 0 is measured" in out
    assert "problem " not in out.splitlines()[2] and "stage 0," not in out


@pytest.mark.full
def test_a_copy_is_trained_from_its_records(trained):
    """The records hold what was read and answered: the problems can't be posed again."""
    run_command(trained, "--config", "cloned.yaml", "--output-dir", "cloned")
    assert summary_of(trained / "cloned")["stopped_by"] == "solved"


@pytest.mark.slow
def test_a_run_is_begun_from_it_and_resumed(trained):
    run_command(
        trained,
        *("--config", "elevator.yaml", "--init-from", "elevator", "--output-dir", "next"),
        *("--set", "run.stop_when_solved=false", "--stop-env-steps", 20_000),
        *("--num-env-runners", 0, "--set", "run.dashboard=false"),
    )
    run_command(trained, "--resume", "next", "--stop-env-steps", 40_000)
    summary = summary_of(trained / "next")
    assert summary["env_steps"] >= 40_000 and summary["task"] == ELEVATOR


@pytest.mark.full
def test_two_faults_through_the_command(trained):
    for config, fault in (("nowhere:MyTask", "no module 'nowhere'"), ("secret:np", "is no Task")):
        done = subprocess.run(
            [sys.executable, "-m", "toolagent.run", "--set", f"task={config}"],
            cwd=trained,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and fault in done.stderr
        assert done.stderr.count("\n") == 1
