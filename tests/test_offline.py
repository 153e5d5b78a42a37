"""Learning from recorded episodes: the data, the loss, and agents that come of it."""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from test_recorder import record
from trained import ROOT, run_modules, trained_network

from toolagent.config import build_algorithm_config, load_settings
from toolagent.curriculum.callback import CurriculumCallback
from toolagent.errors import UserError
from toolagent.learning.offline import OfflineBCConfig
from toolagent.learning.record_choice import program_success
from toolagent.learning.recorded_data import RecordedEpisodesData
from toolagent.rollouts.certification import certify
from toolagent.rollouts.play import PlayDetails, play
from toolagent.rollouts.recorder import EpisodeRecorder, Recording
from toolagent.rollouts.records import read_episodes
from toolagent.run.faults import FaultCounts
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, MUL, SUB


def experts(folder, episodes, wrong=0, programs=((MUL, ANS),) * 3):
    """Records of an agent that solves everything, and `wrong` ones of one that plays `programs`."""
    task, rng = get_task("calculator"), np.random.default_rng(0)
    recorder = EpisodeRecorder(Recording(str(folder), "experts"), task)
    for count, network in ((episodes, trained_network()), (wrong, trained_network(programs))):
        if count:
            problems = task.sample(rng, rng.integers(0, 3, count).astype(np.int8))
            details = PlayDetails.empty(count, task.max_actions)
            recorder.add(play(network, task, problems, observer=details), details, 1)
    recorder.flush()


def built(config, folder, *overrides):
    """An algorithm in this process, and its curriculum's callback."""
    settings = load_settings(config, (f"offline_data.input_={folder}", *overrides))
    algorithm_config = build_algorithm_config(settings)
    algorithm_config.callbacks(
        callbacks_class=functools.partial(CurriculumCallback, settings.curriculum)
    )
    algorithm = algorithm_config.build_algo()
    callbacks = algorithm.callbacks
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return algorithm, next(c for c in callbacks if isinstance(c, CurriculumCallback))


def data_of(folder, seed=0, **options):
    config = OfflineBCConfig().environment(env_config={"task": "calculator"})
    config.debugging(seed=seed).offline_data(input_=str(folder)).training(**options)
    return RecordedEpisodesData(config)


def test_every_episode_is_drawn_once_an_epoch(tmp_path):
    record(tmp_path)
    data = data_of(tmp_path, solved_only=False)
    episodes = read_episodes(str(tmp_path), "calculator")
    batches = [data.sample(35)[0] for _ in range(4)]
    drawn = [batch[DEFAULT_MODULE_ID] for batch in batches]

    def keys(columns):
        return sorted(
            (tuple(context), tuple(actions[:length]), length)
            for context, actions, length in zip(
                columns["context"].tolist(), columns["actions"].tolist(), columns["lengths"],
                strict=True,
            )
        )  # fmt: skip

    whole = keys(dict(episodes.columns()))
    assert sorted(key for part in drawn for key in keys(part)) == whole
    assert sum(batch.env_steps() for batch in batches) == episodes.lengths.sum()
    first = [keys(part[DEFAULT_MODULE_ID]) for part in data.sample(35, num_shards=2)]
    assert [len(part) for part in first] == [18, 17]


def test_episodes_are_chosen_and_the_stream_is_restored(tmp_path):
    record(tmp_path)
    episodes = read_episodes(str(tmp_path), "calculator")
    assert 20 < episodes.solved.sum() < 140
    assert data_of(tmp_path).episodes.solved.all()
    assert len(data_of(tmp_path)) == episodes.solved.sum()
    some = data_of(tmp_path, max_episodes=70)
    drawn = data_of(tmp_path, max_episodes=70, solved_only=False).episodes
    assert len(drawn) == 70 and 0 < len(some) == drawn.solved.sum() < 70
    again, other = data_of(tmp_path, max_episodes=70), data_of(tmp_path, 1, max_episodes=70)
    np.testing.assert_array_equal(some.episodes.context, again.episodes.context)
    assert not np.array_equal(some.episodes.context, other.episodes.context)
    some.sample(7)
    again.set_state(some.get_state())
    for left, right in zip(some.sample(30), again.sample(30), strict=True):
        np.testing.assert_array_equal(
            left[DEFAULT_MODULE_ID]["actions"], right[DEFAULT_MODULE_ID]["actions"]
        )
    with pytest.raises(ValueError, match="one at a time"):
        some.sample(7, return_iterator=True)


def test_programs_that_are_right_by_luck_are_not_cloned(tmp_path):
    """`MUL ADD SUB ANS` is right on 19% of stage 2, and on all of stage 1."""
    experts(tmp_path, 600, wrong=3000, programs=((MUL, ADD, SUB, ANS),) * 3)
    episodes = read_episodes(str(tmp_path), "calculator")
    rates, plays, wins = program_success(episodes), Counter(), Counter()
    keys = [
        (int(stage), tuple(actions[:length]))
        for stage, actions, length in zip(
            episodes.stage, episodes.actions.tolist(), episodes.lengths, strict=True
        )
    ]
    for key, solved in zip(keys, episodes.solved, strict=True):
        plays[key] += 1
        wins[key] += bool(solved)
    np.testing.assert_allclose(rates, [wins[key] / (plays[key] + 1) for key in keys])

    lucky = (episodes.stage == 2) & episodes.solved & (episodes.lengths == 4)
    assert 0.15 < rates[lucky].max() < 0.25 and lucky.sum() > 100
    chosen = data_of(tmp_path, min_program_success=0.8).episodes
    assert not ((chosen.stage == 2) & (chosen.lengths == 4)).any()
    assert len(chosen) == episodes.solved.sum() - lucky.sum()
    with pytest.raises(UserError, match=r"none .* reaches min_program_success=0.9999, the best"):
        data_of(tmp_path, min_program_success=0.9999)


def test_what_was_left_out_of_the_draw_says_nothing_about_luck(tmp_path):
    """So many episodes as were drawn decide alone which programs are sound."""
    experts(tmp_path, 600, wrong=3000, programs=((MUL, ADD, SUB, ANS),) * 3)
    chosen = data_of(tmp_path, max_episodes=200, min_program_success=0.8).episodes
    drawn = data_of(tmp_path, max_episodes=200, solved_only=False).episodes
    expected = drawn.take(drawn.solved & (program_success(drawn) >= 0.8))
    np.testing.assert_array_equal(chosen.context, expected.context)
    with pytest.raises(UserError, match="of 3 episodes none is"):
        data_of(tmp_path, max_episodes=3, min_program_success=0.8)


def test_a_program_played_once_is_not_sure(tmp_path):
    record(tmp_path)
    episodes = read_episodes(str(tmp_path), "calculator")
    first = episodes.take(np.flatnonzero(episodes.solved)[:1])
    assert program_success(first).tolist() == [0.5]
    assert program_success(first.take(np.zeros(4, int))).tolist() == [0.8] * 4


def test_nothing_solved_is_nothing_to_clone(tmp_path):
    experts(tmp_path, 0, wrong=40, programs=((ANS,),) * 3)
    with pytest.raises(UserError, match="of 40 episodes none is solved"):
        data_of(tmp_path)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_loss_is_marwil_s(tmp_path, beta):
    record(tmp_path)
    algorithm, _ = built("marwil", tmp_path, f"training.beta={beta}", "training.gamma=0.9")
    learner = algorithm.learner_group._learner
    batch = algorithm.offline_data.sample(50)[0][DEFAULT_MODULE_ID]
    columns = {name: torch.from_numpy(np.array(column)) for name, column in batch.items()}
    out = learner.module[DEFAULT_MODULE_ID].forward_train(columns)
    config = learner.config.get_config_for_module(DEFAULT_MODULE_ID)
    loss = learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID, config=config, batch=columns, fwd_out=out
    )
    algorithm.stop()

    # Wang et al. 2018, step by step.
    logits = out[Columns.ACTION_DIST_INPUTS].detach().numpy()
    log_probabilities, advantages = [], []
    network = learner.module[DEFAULT_MODULE_ID].network
    with torch.no_grad():
        _, values = network.unroll_episodes(
            *(columns[name] for name in ("context", "stage", "actions", "lengths"))
        )
    for row, length in enumerate(batch["lengths"]):
        for step in range(length):
            chosen = logits[row, step] - np.log(np.exp(logits[row, step]).sum())
            log_probabilities.append(chosen[batch["actions"][row, step]])
            ahead = batch["rewards"][row, step:length]
            result = float((ahead * 0.9 ** np.arange(len(ahead))).sum())
            advantages.append(result - float(values[row, step]))
    log_probabilities, advantages = np.array(log_probabilities), np.array(advantages)
    squares = (advantages**2).mean()
    norm = 1.0 + 0.05 * (squares - 1.0)  # the moving average after one batch
    weights = np.exp(beta * advantages / np.sqrt(norm))
    expected = -(weights * log_probabilities).mean() + (0.5 * squares if beta else 0.0)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.full
def test_cloning_an_expert_certifies_every_stage_and_survives_a_checkpoint(tmp_path):
    experts(tmp_path / "records", 3000)
    algorithm, callback = built("bc", tmp_path / "records")
    result, faults = {}, FaultCounts({}, algorithm)
    for _ in range(15):
        result = algorithm.train()
        faults.add_iteration(result)  # there is no env runner whose restarts could be counted
        if set(result["curriculum"]["accuracy"].values()) == {1.0}:
            break
    assert result["curriculum"]["stage"] == 2 and result["curriculum"]["reason"] is None
    stages = certify(callback.refresh_network(algorithm), callback.task)
    assert [(row.stage, row.solved) for row in stages] == [(0, 1000), (1, 10_000), (2, 100_000)]

    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    expected, state = algorithm.offline_data.get_state(), algorithm.get_state()
    algorithm.stop()
    for restore in (
        lambda other: other.restore_from_path(str(tmp_path / "checkpoint")),
        lambda other: other.set_state(state),
    ):
        other, callback = built("bc", tmp_path / "records", "training.lr=0.0")
        restore(other)
        np.testing.assert_array_equal(other.offline_data.get_state()["order"], expected["order"])
        again = certify(callback.refresh_network(other), callback.task)
        assert [row.solved for row in again] == [row.solved for row in stages]
        other.stop()


@pytest.mark.full
def test_an_iteration_is_continued_from_its_middle(tmp_path):
    record(tmp_path)

    def figures(result):
        learner = result["learners"][DEFAULT_MODULE_ID]
        steps = result["env_runners"]["num_env_steps_sampled_lifetime"]
        return result["training_iteration"], steps, learner["policy_loss"], learner["vf_loss"]

    def leave():
        if cut.updates_done == 2:
            raise InterruptedError

    cut, _ = built("marwil", tmp_path, "training.updates_per_iteration=3")
    cut.between_updates = leave
    with pytest.raises(InterruptedError):
        cut.train()
    state, steps = copy.deepcopy(cut.get_state()), cut.env_steps  # the weights go on changing
    del cut.between_updates
    expected = [figures(cut.train()) for _ in range(2)]
    cut.stop()
    assert 0 < steps < expected[0][1] and expected[0][0] == 1
    again, _ = built("marwil", tmp_path, "training.updates_per_iteration=3")
    again.set_state(state)
    assert (again.updates_done, again.env_steps) == (2, steps)
    assert [figures(again.train()) for _ in range(2)] == expected
    again.stop()


@pytest.mark.full
def test_marwil_tells_what_went_well_from_what_did_not(tmp_path):
    """Four episodes in five answer too early: cloning all of them clones that."""
    experts(tmp_path, 1200, wrong=4800)
    solved = {}
    for beta in (0.0, 1.0):
        algorithm, callback = built("marwil", tmp_path, f"training.beta={beta}")
        for _ in range(10):
            algorithm.train()
        stages = certify(callback.refresh_network(algorithm), callback.task)
        solved[beta] = [row.accuracy for row in stages]
        algorithm.stop()
    assert min(solved[1.0]) > 0.9 and max(solved[0.0]) < 0.3, solved


def run_command(folder, *arguments):
    """`python -m toolagent.run` there, which has to end well; what it said."""
    command = ["-m", "toolagent.run", *map(str, arguments), "--set", "run.dashboard=false"]
    (done,) = run_modules(command, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.full
def test_the_command_clones_to_a_certified_agent_and_goes_on_when_resumed(tmp_path):
    experts(tmp_path / "records", 1500)
    out = run_command(
        tmp_path,
        *("--config", "bc", "--set", "offline_data.input_=records", "--output-dir", "cloned"),
        *("--set", "run.stop_when_solved=false", "--set", "run.stop_iterations=2"),
    )
    assert "learns from 1,500 of 1,500 recorded episodes (stage 0: " in out
    out = run_command(tmp_path, "--resume", "cloned", "--set", "run.stop_iterations=3")
    assert "continues from checkpoint_000002" in out
    summary = json.loads((tmp_path / "cloned" / "summary.json").read_text())
    assert [stage["solved"] for stage in summary["stages"]] == [1_000, 10_000, 100_000]
    rows = [json.loads(row) for row in (tmp_path / "cloned" / "progress.jsonl").open()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert {row["env_runner_restarts_lifetime"] for row in rows} == {0}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_record_clone_and_go_on_by_reinforcement_learning(tmp_path):
    run = functools.partial(run_command, tmp_path)
    out = run("--output-dir", "first", "--record-episodes", "episodes")
    assert "recorded " in out and "run_id first-" in out
    out = run("--config", "bc", "--set", "offline_data.input_=episodes", "--output-dir", "cloned")
    cloned = json.loads((tmp_path / "cloned" / "summary.json").read_text())
    assert cloned["stopped_by"] == "solved", out
    run("--init-from", "cloned", "--output-dir", "second")
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second")
    )
    assert second["stopped_by"] == "solved"
    assert second["env_steps"] < first["env_steps"] / 2
    assert (ROOT / "rllib_configs" / "bc.yaml").is_file()
