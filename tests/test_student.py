"""The second phase of a run: lessons, what is learned of them, and the phase as a whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from trained import run_modules, trained_network, untrained_expression_network, untrained_network

from toolagent.config import build_algorithm_config, load_settings
from toolagent.curriculum.callback import curriculum_of
from toolagent.curriculum.rule import CurriculumSettings, CurriculumState, LevelSettings, decide
from toolagent.errors import UserError
from toolagent.learning import lessons as lessons_module
from toolagent.learning.distillation import weights_of_ways
from toolagent.learning.lessons import Lessons, moved, with_tools_of
from toolagent.rollouts.play import GivenTokens, play
from toolagent.tasks import get_task

EXPRESSION = get_task("expression")
ADD, MUL, ANS = (EXPRESSION.vocabulary.token(name) for name in ("ADD", "MUL", "ANS"))
CONFIG = """
task: calculator
curriculum:
  levels: [{stage: 0, advance_at_accuracy: 0.95}]
env_runners: {num_env_runners: 0, num_envs_per_env_runner: 128}
training: {episodes_per_update: 128, lr: 0.005}
run: {dashboard: false, checkpoint_every_s: 1000}
rl_module: {model_config: {embedding_size: 96}}
student:
  rl_module: {model_config: {network: encoder_decoder, embedding_size: 12}}
  training:
    {updates: 40, updates_per_iteration: 10, retell_after: 20, begin_anew_after: 10,
     begin_anew_below: 0.0, episodes_per_update: 32, lessons: 600, lr: 0.01}
"""


# Lessons -----------------------------------------------------------------------------------------


def test_a_moved_token_is_where_it_was_moved_to():
    rng = np.random.default_rng(0)
    programs = rng.integers(0, 50, (40, 7))
    origin, to = rng.integers(0, 7, 40), rng.integers(0, 7, 40)
    for row, program in enumerate(moved(programs, origin, to).tolist()):
        expected = programs[row].tolist()
        expected.insert(to[row], expected.pop(origin[row]))
        assert program == expected


def lessons_of(texts, programs, capacity=50):
    """Lessons of an agent that writes these programs, with the digits of each problem."""
    lessons = Lessons(EXPRESSION, [2, 3], 0.3, 3, capacity, np.random.default_rng(0))
    first = EXPRESSION.pose(None, expression=texts)
    problems = [first, *(EXPRESSION.variants(first, lessons.rng) for _ in range(2))]
    network, played = untrained_expression_network(), []
    for each in problems:
        rows = []
        for row, program in enumerate(programs):
            digits = iter(each.context[row][each.context[row] < 10].tolist())
            names = [str(next(digits)) if name == "d" else name for name in program.split()]
            rows.append([EXPRESSION.vocabulary.token(name) for name in names])
        longest = max(map(len, rows))
        given = np.array([row + [14] * (longest - len(row)) for row in rows])
        played.append(play(network, EXPRESSION, each, chooser=GivenTokens(given)))
    kept, _ = lessons._keep(network, played, problems)
    return lessons, kept.tolist()


def ways_of(lessons, row):
    length = int(lessons.store.lengths[row])
    texts = lessons.ways[row, : lessons.num_ways[row], :length]
    return {EXPRESSION.vocabulary.text(way) for way in texts}


def test_a_lesson_is_every_way_that_is_as_right():
    lessons, kept = lessons_of(
        ["(4+7)*9*5", "8-(9-6)", "3-8+5+9*2"],
        ["d d ADD d d MUL MUL ANS", "d d d SUB SUB ANS", "d d SUB d d d MUL ADD ADD ANS"],
    )
    assert kept == [0, 1, 2]
    assert ways_of(lessons, 0) == {"4 7 ADD 9 5 MUL MUL ANS", "4 7 ADD 9 MUL 5 MUL ANS"}
    # `8 9 SUB 6 SUB` is a move away, and wrong; with another tool in it, it is right.
    assert ways_of(lessons, 1) == {"8 9 6 SUB SUB ANS", "8 9 SUB 6 ADD ANS"}
    assert "3 8 SUB 5 ADD 9 2 MUL ADD ANS" in ways_of(lessons, 2)
    lessons.ways[0, :2] = lessons.ways[0, np.argsort(lessons.ways[0, :2, 3])]  # 9 before MUL
    first = lessons.store.take(np.array([0, 0]))
    first.actions = lessons.ways[0, :2]
    assert lessons.lateness(first).tolist() == [2 + 5 + 6 + 7, 2 + 4 + 6 + 7]
    episodes, lesson = lessons.sample(30, rewritten=False)
    assert (np.diff(lesson) >= 0).all() and len(np.unique(lesson)) == 30
    for row in range(len(episodes)):
        program = episodes.actions[row, : episodes.lengths[row]]
        assert EXPRESSION.vocabulary.text(program) in set().union(
            *(ways_of(lessons, at) for at in range(3))
        )
        problems = EXPRESSION.pose(
            None, expression=EXPRESSION.read(episodes.context[row : row + 1])["expression"]
        )
        judged = EXPRESSION.judge(problems, program[None], episodes.lengths[row : row + 1])
        assert judged["shortest"].all()


def test_a_wrong_program_is_a_lesson_where_a_right_one_is_a_move_away():
    lessons, kept = lessons_of(
        ["8-(9-6)", "4+7+8", "8*(7-2)", "4+7*8"],
        ["d d SUB d SUB ANS", "d MUL MUL d d ANS", "d SUB d d MUL ANS", "d ADD d d MUL ANS"],
    )
    assert kept == [0, 2, 3] and len(lessons) == 3
    assert ways_of(lessons, 0) == {"8 9 6 SUB SUB ANS", "8 9 SUB 6 ADD ANS"}
    assert ways_of(lessons, 1) == {"8 7 2 SUB MUL ANS"}
    assert lessons.store.solved[:2].all() and lessons.store.rewards[0].tolist()[:6] == [0] * 5 + [1]


def test_variants_that_were_written_in_another_way_are_solved_by_the_first_one_s():
    programs = np.array([[4, 7, ADD, 9, 5, MUL, MUL, ANS]])
    others = np.array([[1, 2, ADD, 3, MUL, 6, MUL, ANS]])
    tools = [ADD, MUL]
    assert with_tools_of(programs, others, tools).tolist() == [[1, 2, ADD, 3, 6, MUL, MUL, ANS]]


def test_of_too_many_edits_some_are_tried(monkeypatch):
    programs = np.array([[4, 7, ADD, 9, 5, MUL, MUL, ANS]] * 40, np.int8)
    lessons, lengths = Lessons(EXPRESSION, [5], 0.0, 1, 10, np.random.default_rng(0)), [8] * 40
    rows, edits = lessons._edits(programs, np.array(lengths), replace=True)
    assert len(rows) == 40 * (3 * 7) * (1 + 3)  # moves, each with no tool or one of three replaced
    monkeypatch.setattr(lessons_module, "_MOST_EDITS", 700)
    rows, edits = lessons._edits(programs, np.array(lengths), replace=True)
    assert 300 < len(rows) <= 700 and len(np.unique(rows)) > 20
    for program in edits.of(programs[rows]).tolist():
        assert sorted(set(program) - {ADD, MUL, ANS}) == [4, 5, 7, 9] and program[7] == ANS


def test_actions_that_did_nothing_are_left_out_of_lessons():
    lessons, kept = lessons_of(["3+4", "3+4"], ["d d MUL ADD ANS", "d CTX d ADD ANS"])
    assert kept == [1] and ways_of(lessons, 0) == {"3 4 ADD ANS"}
    assert lessons.store.rewards[0].tolist()[:5] == [0, 0, 0, 1, 0]


def test_lessons_are_what_the_agent_is_right_with_of_the_stages_it_was_trained_on():
    task = get_task("calculator")
    lessons = Lessons(task, [0, 1, 2], 0.4, 3, 900, np.random.default_rng(1))
    env_steps, share = lessons.play(trained_network())
    assert share == 1.0 and len(lessons) == 500 and env_steps > 500 * 3 * 3
    store = lessons.store.take(np.arange(500))
    assert store.solved.all()
    assert abs((store.stage == 2).mean() - 0.6) < 0.1
    _, share = lessons.play(untrained_network())
    assert share < 0.05
    _, share = lessons.play(untrained_network(), trained_network())  # what the first fails at
    assert share == 1.0 and len(lessons) == 900


def test_ways_are_learned_by_their_share_of_the_probability():
    likely = torch.tensor([-1.0, -2.0, -50.0, -50.0, -0.5])
    lesson = torch.tensor([0, 0, 1, 1, 2])
    weights = weights_of_ways(likely, lesson)
    torch.testing.assert_close(weights[:2], torch.softmax(likely[:2], 0))
    torch.testing.assert_close(weights[2:], torch.tensor([0.5, 0.5, 1.0]))


# The curriculum and the configuration ------------------------------------------------------------


def test_the_last_level_is_passed_without_being_left():
    settings = CurriculumSettings(levels=(LevelSettings(stage=3, advance_at_accuracy=0.9),))
    state = CurriculumState()
    for solved, passed in ((500, True), (400, False)):
        decision = decide(settings, state, env_steps=1, iteration=1, measured={3: (solved, 500)})
        assert decision.state == state and (decision.passed is not None) == passed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm=PPO", "student: is for algorithm toolagent, not for PPO"),
        ("curriculum.levels=[{stage: 0}]", "curriculum.levels.0: can never end, so the student"),
        ("student.training.lessons=0", "student.training.lessons: must be"),
        ("student.training.explorer_share=0.1", "student.training.explorer_share: unknown"),
        ("student.training.updates=45", "student.training.updates"),
        ("student.rl_module.model_config.network=stack", "no network 'stack'"),
        ("student.env_runners={num_env_runners: 2}", "num_env_runners is 2"),
    ],
)
def test_students_that_can_not_be(override, words, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(UserError) as error:
        build_algorithm_config(load_settings(tmp_path / "config.yaml", (override,)))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_shipped_config_ends_in_a_network_with_a_stack():
    config = build_algorithm_config(load_settings("expression_long"))
    assert config.student.rl_module_spec.model_config["network"] == "call_stack"
    assert config.student.teacher["network"] == "encoder_decoder"
    assert config.student.stages == [1, 2, 3, 4, 5]


# The phase ---------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path):
    """A student's algorithm in this process, whose agent to imitate is a trained one."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = build_algorithm_config(load_settings(tmp_path / "config.yaml")).student
    config.teacher = {"task": "calculator", "network": "stage_gru", "embedding_size": 32}

    def build(threshold=0.0):
        algorithm = config.copy(copy_frozen=False).training(begin_anew_below=threshold).build_algo()
        weights = trained_network().state_dict()
        algorithm.set_state(
            {
                "training_iteration": 7,
                "env_steps_before": 1000,
                "teacher": {name: value.numpy() for name, value in weights.items()},
            }
        )
        return algorithm

    return build


def test_a_student_learns_is_saved_and_goes_on_as_it_was(student):
    one, other = student(), student()
    one.train()
    assert one.iteration == 8 and one.env_steps > 1000 and not one.finished
    state = one.get_state()
    other.set_state(state)
    for algorithm in (one, other):
        while not algorithm.finished:
            result = algorithm.train()
        assert algorithm.iteration == 11
        assert 0 <= result["learners"]["default_policy"]["lessons_right"] <= 1
    ends = [curriculum_of(each).refresh_network(each).state_dict() for each in (one, other)]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert one.env_steps == other.env_steps
    assert not curriculum_of(one).network.noisy  # what is measured and kept has no noise


def test_a_student_that_learns_nothing_is_begun_anew(student):
    algorithm = student(threshold=1.0)
    before = curriculum_of(algorithm).refresh_network(algorithm).state_dict()
    before = {name: value.clone() for name, value in before.items()}
    algorithm.train()
    after = curriculum_of(algorithm).refresh_network(algorithm).state_dict()
    assert any(not torch.allclose(value, after[name], atol=0.05) for name, value in before.items())
    assert not algorithm.finished and len(algorithm.news) == 1
    assert "student 2 begins" in algorithm.news[0]


@pytest.mark.slow
def test_a_run_in_two_phases_can_be_resumed_in_the_second(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def run(*arguments):
        command = ["-m", "toolagent.run", *map(str, arguments)]
        (done,) = run_modules(command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    run("--config", tmp_path / "config.yaml", "--output-dir", whole)
    rows = [json.loads(line) for line in (whole / "progress.jsonl").read_text().splitlines()]
    assert any("the student begins" in (row["curriculum_event"] or "") for row in rows)
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    stop = f"run.stop_iterations={len(rows) - 2}"
    run("--config", tmp_path / "config.yaml", "--output-dir", parts, "--set", stop)
    run("--resume", parts, "--set", "run.stop_iterations=null")
    ends = []
    for folder in (whole, parts):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["stopped_by"] == "taught"
        card = json.loads((folder / summary["checkpoint"] / "policy.json").read_text())
        assert card["network"]["class"] == "EncoderDecoderNetwork"
        ends.append((card["weights_sha256"], summary["env_steps"]))
    assert ends[0] == ends[1]
