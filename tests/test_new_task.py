"""A task is one file, its name in `tasks/__init__.py` and one config: here a tiny one is added to a
copy of the checkout, and every command works on it. `TASK` below is also an example to start from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from trained import ROOT

TASK = '''\
"""Task `largest`: read one or two digits, write the larger one down, answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolagent.tasks.base import Problems, Registers, Task, Transition
from toolagent.tasks.tokens import ANS, CTX, EOS, NUM_TOKENS


@dataclass
class LargestProblems(Problems):
    """Two digits each."""

    digits: np.ndarray  # (B, 2) int8: always two; stage 0 shows the first


@dataclass
class LargestRegisters(Registers):
    """What was written down."""

    acc: np.ndarray  # (B,) int8, -1 where empty


class LargestTask(Task):
    """A digit writes itself into acc. `ANS` ends the episode: 1 if acc is right, else 0.

    Stage 0 shows one digit and asks for it, stage 1 shows two and asks for the larger one.
    """

    name = "largest"
    num_stages = 2
    formulas = ("a", "max(a,b)")
    context_length = 3
    context_vocabulary = NUM_TOKENS
    max_actions = 2
    problem_columns = ("a", "b")
    posed_by = "pair"

    # Problems -------------------------------------------------------------------------------

    def sample(
        self, rng: np.random.Generator, stage: np.ndarray, split: str = "all"
    ) -> LargestProblems:
        return _problems(stage, rng.integers(0, 10, (len(stage), 2)))

    def pose(self, stage: np.ndarray | None, **given: Any) -> LargestProblems:
        stage = np.atleast_1d(self.check_stage(stage))
        digits = np.atleast_2d(given.get("pair", ()))
        if given.keys() != {"pair"} or digits.shape != (len(stage), 2):
            raise ValueError(f"task '{self.name}' is posed by 'pair', two per problem")
        if digits.dtype.kind not in "iu" or ((digits < 0) | (digits > 9)).any():
            raise ValueError(f"digits are integers 0..9, not {digits.tolist()}")
        return _problems(stage, digits)

    def num_problems(self, stage: int) -> int:
        return 10 ** (1 + int(self.check_stage(stage)))

    def problems(self, stage: int, start: int, stop: int) -> LargestProblems:
        index = np.arange(start, min(stop, self.num_problems(stage)))
        return _problems(np.full(len(index), stage), np.stack([index % 10, index // 10], axis=1))

    def shown_columns(self, stage: int) -> tuple[str, ...]:
        return self.problem_columns[: 1 + int(self.check_stage(stage))]

    def read(self, context: np.ndarray) -> dict[str, Any]:
        return {"pair": np.where(context[:, :2] < 10, context[:, :2], 0)}

    def describe(self, problems: LargestProblems, row: int) -> str:
        stage, (a, b) = problems.stage[row], problems.digits[row]
        given = f"max({a},{b})" if stage else f"{a}"
        return f"{self.formula(stage)} = {given} = {max(a, b) if stage else a}"

    def target(self, problems: LargestProblems) -> np.ndarray:
        first, largest = problems.digits[:, 0], problems.digits.max(axis=1)
        return np.where(problems.stage == 0, first, largest).astype(np.int64)

    # Machine --------------------------------------------------------------------------------

    def start(self, problems: LargestProblems) -> LargestRegisters:
        size = len(problems)
        return LargestRegisters(steps=np.zeros(size, np.int8), acc=np.full(size, -1, np.int8))

    def step(
        self, problems: LargestProblems, registers: LargestRegisters, actions: np.ndarray
    ) -> Transition:
        steps = registers.steps + np.int8(1)
        terminated = actions == ANS
        solved = terminated & (registers.acc == self.target(problems))
        return Transition(
            registers=LargestRegisters(
                steps=steps,
                acc=np.where(actions < 10, actions, registers.acc).astype(np.int8),
            ),
            rewards=solved.astype(np.float64),
            terminated=terminated,
            truncated=~terminated & (steps >= self.max_actions),
            solved=solved,
        )

    def accumulator(self, registers: LargestRegisters) -> tuple[np.ndarray, np.ndarray]:
        return registers.acc.astype(np.int64), registers.acc >= 0

    def show(self, registers: LargestRegisters, row: int) -> dict[str, int | str | None]:
        acc = int(registers.acc[row])
        return {"acc": acc if acc >= 0 else None}

    num_statuses = 2

    def status(self, registers: LargestRegisters) -> np.ndarray:
        return (registers.acc >= 0).astype(np.int8)

    # Optional: without it, nobody is shown what would be right ------------------------------

    def plan(self, problems: LargestProblems, row: int) -> tuple[int, ...]:
        return (int(self.target(problems)[row]), ANS)


def _problems(stage: np.ndarray, digits: np.ndarray) -> LargestProblems:
    """With their contexts: `a CTX EOS` in stage 0, `a b CTX` in stage 1."""
    stage, digits = np.asarray(stage, np.int8), digits.astype(np.int8)
    context = np.full((len(stage), LargestTask.context_length), CTX, np.int8)
    context[:, :2] = digits
    context[stage == 0, 1:] = CTX, EOS
    return LargestProblems(stage, context, digits)
'''

CONFIG = """\
task: largest

curriculum:
  levels:
    - {stage: 0, advance_at_accuracy: 0.95}
    - {stage: 1}
  earlier_stage_share: 0.3
"""

PROBLEMS = "stage,a,b\n0,7,\n1,3,8\n1,9,9\n"

GYMNASIUM = """\
import gymnasium, numpy, toolagent
from gymnasium.utils.env_checker import check_env

check_env(gymnasium.make("toolagent/Largest-v0").unwrapped, skip_render_check=True)
envs = gymnasium.make_vec("toolagent/Largest-v0", num_envs=3)
envs.reset(seed=0, options={"stage": 1, "pair": [[3, 8], [9, 9], [4, 0]]})
envs.step(numpy.array([8, 9, 0]))
_, rewards, terminated, _, info = envs.step(numpy.array([14, 14, 14]))
assert terminated.all() and rewards.tolist() == info["solved"].tolist() == [1, 1, 0]
assert info["acc"].tolist() == [8, 9, 0]
print(toolagent.__file__)
"""


def fingerprints(folder):
    """What is in each source file below the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml", ".toml")
    }


def replace_once(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old!r}"
    path.write_text(text.replace(old, new))


def python(checkout, *arguments):
    """What a command run in the checkout's place prints; it writes nothing on stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout.parent,
        env={**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with one more task, in which an agent has learned it."""
    copy = tmp_path_factory.mktemp("new") / "checkout"
    for folder in ("toolagent", "rllib_configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprints(copy)
    tasks = copy / "toolagent" / "tasks"
    (tasks / "largest.py").write_text(TASK)
    (copy / "rllib_configs" / "tiny.yaml").write_text(CONFIG)
    replace_once(
        tasks / "__init__.py",
        "from toolagent.tasks.tutorial import TutorialTask\n",
        "from toolagent.tasks.largest import LargestTask\n"
        "from toolagent.tasks.tutorial import TutorialTask\n",
    )
    replace_once(tasks / "__init__.py", "(TutorialTask, ", "(LargestTask, TutorialTask, ")
    after = fingerprints(copy)
    assert {name for name in after if after[name] != before.get(name)} == {
        "toolagent/tasks/largest.py",
        "toolagent/tasks/__init__.py",
        "rllib_configs/tiny.yaml",
    }
    python(
        copy,
        *("-m", "toolagent.run", "--config", "tiny", "--num-env-runners", 1),
        *("--stop-time-s", 200, "--output-dir", "run", "--record-episodes", "episodes"),
        *("--set", "run.dashboard=false"),
    )
    assert fingerprints(copy) == after
    return copy


def test_a_run_certifies_every_stage(checkout):
    summary = json.loads((checkout.parent / "run" / "summary.json").read_text())
    assert (summary["task"], summary["stopped_by"]) == ("largest", "solved")
    assert [(row["problems"], row["solved"]) for row in summary["stages"]] == [(10, 10), (100, 100)]
    episodes = pq.read_table(checkout.parent / "episodes")
    assert sum(map(len, episodes["actions"].to_pylist())) >= 0.9 * summary["env_steps"]
    assert set(map(len, episodes["pair"].to_pylist())) == {2}


def test_the_agent_is_evaluated(checkout):
    out = python(checkout, "-m", "toolagent.evaluate", "run")
    assert "max(a,b)" in out
    assert "solved 110/110 (every problem there is)" in out
    assert "shortest plan" not in out  # each problem has one of its own


def test_the_agent_answers_a_file_of_problems(checkout):
    (checkout.parent / "problems.csv").write_text(PROBLEMS)
    result = checkout.parent / "answers.json"
    python(
        *(checkout, "-m", "toolagent.evaluate", "run"),
        *("--problems", "problems.csv", "--json", result),
    )
    assert [
        (row["problem"], row["tokens"], row["answer"])
        for row in json.loads(result.read_text())["answers"]
    ] == [
        ("7", ["7", "ANS"], 7),
        ("max(3,8)", ["8", "ANS"], 8),
        ("max(9,9)", ["9", "ANS"], 9),
    ]


def test_the_agent_is_explained(checkout):
    out = python(checkout, "-m", "toolagent.explain", "run", "--pair", "3,8")
    assert "stage 1: max(a,b) = max(3,8) = 8" in out
    assert "answers 8 = max(3,8): right" in out
    assert "shortest program: 8 ANS" in out


def test_the_environments_are_registered(checkout):
    assert python(checkout, "-c", GYMNASIUM).startswith(str(checkout))
