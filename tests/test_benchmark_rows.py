"""The benchmark of a finished run: its configuration, its trained weights, and real replay."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import yaml
from ray.rllib.core import DEFAULT_MODULE_ID
from refusals import refusal
from rich.console import Console
from trained import (
    run_modules,
    trained_network,
    untrained_expression_network,
    untrained_network,
)

from toolagent.benchmark import PIPELINE_ROWS, trained_run
from toolagent.benchmark.bare_loop import BareLoop
from toolagent.benchmark.constants import fragment_transfer_s
from toolagent.benchmark.figures import Block, exploration_figures, row_figures, total
from toolagent.benchmark.report import print_benchmark
from toolagent.benchmark.trained_run import TrainedRow, TrainedRun
from toolagent.checkpoints.policy import save_policy

EPISODES, REPLAYED, UPDATES = 64, 16, 2
CALCULATOR = {
    "task": "calculator",
    "curriculum": {
        "levels": [{"stage": 0, "advance_at_accuracy": 0.9}, {"stage": 1}],
        "earlier_stage_share": 0.25,
    },
    "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": EPISODES},
    "training": {
        "episodes_per_update": EPISODES,
        "updates_per_iteration": UPDATES,
        "lr": [[0, 0.01], [1000, 0.001]],
        "weight_decay": 0.01,
        "explorer_share": 0.25,
        "replay_coeff": 0.5,
        "replay_episodes": REPLAYED,
        "explore_until_solved": 0.5,
    },
    "rl_module": {"model_config": {"embedding_size": 32}},
}
EXPRESSION = {
    "task": "expression",
    "curriculum": {"levels": [{"stage": 5}]},
    "env_runners": CALCULATOR["env_runners"],
    "training": CALCULATOR["training"] | {"explorer_kind": "detours", "group_size": 8},
    "rl_module": {
        "model_config": {
            "network": "encoder_decoder",
            "embedding_size": 8,
            "num_heads": 2,
            "num_counters": 1,
        }
    },
}


def write_run(folder, config, network=None, task=None):
    """What a finished run leaves, as far as the benchmark reads it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config if isinstance(config, str) else yaml.dump(config))
    if network is not None:
        checkpoint = folder / "checkpoints" / "checkpoint_000007"
        save_policy(checkpoint, network, task or "calculator", env_steps=12_345)
    return folder


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """The folder of a run whose agent solves the calculator."""
    return write_run(tmp_path_factory.mktemp("solved") / "run", CALCULATOR, trained_network())


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """The folder of a run whose agent solves nothing, on problems that are not solved by luck."""
    folder = tmp_path_factory.mktemp("lost") / "run"
    return write_run(folder, EXPRESSION, untrained_expression_network(), "expression")


# What is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("row", PIPELINE_ROWS)
def test_a_row_is_the_run_s_configuration_on_its_last_stage_at_learning_rate_0(solved, row):
    config = TrainedRun.read(solved).config(row)
    assert config.lr == 0.0
    env = config.env_config
    assert (env["task"], env["stage"], env["earlier_stage_share"]) == ("calculator", 1, 0.25)
    assert config.num_env_runners == (0 if row.endswith("_local") else 1)
    assert (config.episodes_per_update, config.entropy_coeff) == (EPISODES, 0.01)
    assert config.rl_module_spec.model_config["embedding_size"] == 32
    exploring = row.startswith("batched")
    assert config.explorer_share == (0.25 if exploring else 0.0)
    assert config.replay_coeff == (0.5 if exploring else 0.0)
    assert config.replay_episodes == REPLAYED
    assert 0.999999 < config.explore_until_solved < 1  # it never ends


@pytest.fixture
def measured(cluster, monkeypatch):
    """Measures one block of a row without env runners: the row and its figures."""
    monkeypatch.setattr(trained_run, "SETTLED_UPDATES", 6)
    monkeypatch.setattr(trained_run, "WARM_UP_LIMIT_S", 60.0)
    rows = []

    def measure(folder, name):
        run = TrainedRun.read(folder)
        row = run.row(name, run.config(name), 2.0)
        rows.append(row)
        row.warm_up(0.0)
        blocks = [row.block(0.05)]
        return row, row_figures(name, blocks) | row.more_figures(total(blocks))

    yield measure
    for row in rows:
        row.close()


@pytest.mark.full
def test_a_trained_policy_is_measured_and_stays_what_it_is_while_it_explores(solved, measured):
    row, figures = measured(solved, "batched_local")
    assert figures["warm_up_updates"] == 6
    exploration = figures["exploration"]
    assert exploration["replayed_episodes_per_update"] == exploration["replay_episodes"] == REPLAYED
    assert exploration["explorer_env_steps_per_s"] > 0
    # It answers at once what it was taught: 3 steps in stage 0, 4 in stage 1, and now and then one
    # that was drawn otherwise. A fresh one would take twice as many.
    assert 3 < figures["episode_len_mean"] < 5
    weights = row.algorithm.get_weights()[DEFAULT_MODULE_ID]
    taught = trained_network().state_dict()
    assert weights.keys() == {f"network.{name}" for name in taught}
    for name, tensor in taught.items():
        np.testing.assert_array_equal(weights[f"network.{name}"], tensor.numpy(), err_msg=name)


def test_a_plain_row_learns_from_all_that_it_samples_and_replays_nothing(solved, measured):
    _, figures = measured(solved, "plain_local")
    assert figures["warm_up_updates"] == 6
    exploration = figures["exploration"]
    assert exploration["explorer_share"] == exploration["replay_coeff"] == 0.0
    assert exploration["explorer_env_steps_per_s"] == 0.0
    assert exploration["replayed_episodes_per_update"] == 0.0


def test_where_there_is_nothing_to_replay_the_warm_up_ends_all_the_same(
    lost, measured, monkeypatch
):
    monkeypatch.setattr(trained_run, "WARM_UP_LIMIT_S", 1.0)
    row, figures = measured(lost, "batched_local")
    assert row.warm_up_updates >= UPDATES
    assert figures["exploration"]["replayed_episodes_per_update"] == 0.0
    assert figures["exploration"]["explorer_env_steps_per_s"] > 0
    assert fragment_transfer_s("expression", 8) > 0  # a task whose first stage is not 0


def test_several_passes_over_a_batch_replay_an_episode_once(solved, measured, tmp_path):
    training = CALCULATOR["training"] | {"num_epochs": 2, "minibatch_size": 40}
    folder = write_run(tmp_path / "run", CALCULATOR | {"training": training}, trained_network())
    _, figures = measured(folder, "batched_local")
    assert figures["exploration"]["replayed_episodes_per_update"] == REPLAYED


def test_the_warm_up_lasts_until_something_is_replayed_or_the_time_is_up(monkeypatch):
    class Algorithm:
        config = type("Config", (), {"replay_coeff": 0.5, "replay_episodes": 16})
        config.updates_per_iteration = 20

        def __init__(self, *replayed):
            self.replayed = iter(replayed)

        def train(self):
            return {"learners": {DEFAULT_MODULE_ID: {"replayed_episodes": next(self.replayed)}}}

    def updates(*replayed):
        row = TrainedRow.__new__(TrainedRow)
        row.algorithm, row.warm_up_updates = Algorithm(*replayed), 0
        row.warm_up(1.0)
        return row.warm_up_updates

    monkeypatch.setattr(trained_run, "SETTLED_UPDATES", 60)
    assert updates(16, 0, 0) == 60
    assert updates(0, 0, 0, 0, 3) == 100
    monkeypatch.setattr(trained_run, "WARM_UP_LIMIT_S", -1.0)
    assert updates(0) == 20


# What is said -------------------------------------------------------------------------------------


def test_exploration_figures_worked_out_by_hand():
    sums = {
        "env_steps": 1_000.0,
        "trained_env_steps": 700.0,
        "seconds": 2.0,
        "replayed_episodes": 96.0,
        "updates": 3.0,
    }
    assert exploration_figures(sums) == {
        "explorer_env_steps_per_s": 150.0,
        "replayed_episodes_per_update": 32.0,
    }


def shown(capsys, *rows, **result):
    blocks = [Block(12_000, 1_000, 0.5, 900.0), Block(13_000, 1_000, 0.5, 900.0)]
    rows = [row_figures(name, blocks) | more for name, more in rows]
    print_benchmark(Console(width=80, markup=False, highlight=False), {"rows": rows} | result)
    return capsys.readouterr().out


def exploring(**changes):
    figures = {"replay_coeff": 0.3, "replay_episodes": 64, "explorer_share": 0.3}
    figures |= {"explorer_env_steps_per_s": 9_876.5, "replayed_episodes_per_update": 64.0}
    return {"warm_up_updates": 1_200, "exploration": figures | changes}


def test_the_table_shows_what_was_measured_and_says_what_was_explored(capsys):
    run = {"folder": "x", "checkpoint": "checkpoint_000007", "env_steps": 12_345}
    out = shown(
        capsys,
        ("bare_loop", {"ratio_to_bare_loop": 1.0}),
        ("batched_local", {"ratio_to_bare_loop": 0.887} | exploring()),
        (
            "batched_runners",
            {"ratio_to_bare_loop": 1.1} | exploring(replayed_episodes_per_update=0),
        ),
        ("plain_runners", {"ratio_to_bare_loop": 1.2} | exploring(replay_coeff=0)),
        run=run | {"task": "expression", "stage": 5},
    )
    assert "12,345 env steps" in out and "stage 5" in out
    assert "25,000" in out and "/bare" in out and "0.89" in out and "/stock" not in out
    assert "replays 64.0 of 64 episodes" in out and "9,876 steps/s" in out
    assert "NOTHING WAS REPLAYED" in out and "plain_runners: no explorers, no replay" in out
    assert max(map(len, out.splitlines()[2:-3])) <= 80


@pytest.mark.full
def test_the_command_measures_a_run_and_writes_what_it_measured(solved, tmp_path):
    arguments = ["--run", str(solved), "--repeats", "2", "--seconds", "0.1", "--json", "out.json"]
    (result,) = run_modules(["-m", "toolagent.benchmark", *arguments], cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "checkpoint_000007, trained for 12,345 env steps" in result.stdout
    assert f"replays {REPLAYED}.0 of {REPLAYED} episodes an update" in result.stdout
    assert "plain_runners: no explorers, no replay" in result.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["run"]["task"], written["run"]["stage"]) == ("calculator", 1)
    assert [row["name"] for row in written["rows"]] == ["batched_runners", "plain_runners"]
    for row in written["rows"]:
        assert row["env_steps_per_s"] > 0 and row["repeats"] == 2 and row["warm_up_updates"] >= 90
    assert "scaling" not in written and "startup" not in written


# What is refused ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with everything that the wrong command lines below name."""
    folder = tmp_path_factory.mktemp("prepared")
    network = functools.partial(untrained_network, embedding_size=32)
    write_run(folder / "good", CALCULATOR, network())
    write_run(folder / "ppo", "algorithm: PPO\n", network())
    write_run(folder / "unfinished", CALCULATOR)
    write_run(folder / "other-task", CALCULATOR, network(), "tutorial")
    write_run(folder / "other-size", CALCULATOR, untrained_network(embedding_size=8))
    write_run(folder / "faulty", "training: {learning_rate: 1}\n", network())
    gpu = CALCULATOR | {"learners": {"num_gpus_per_learner": 1}}
    write_run(folder / "gpu", gpu, network())
    torn = write_run(folder / "torn", CALCULATOR, network()) / "checkpoints" / "checkpoint_000007"
    (torn / "model.safetensors").write_bytes(b"")
    (folder / "empty").mkdir()
    return folder


# A row for each check: the folder of the run and more, and what must be named.
REFUSED = [
    ("good --rows plain_local,stock_rllib", "--rows", "'stock_rllib'", "plain_local"),
    ("good --rows batched_loca", "--rows", "'batched_local'"),
    ("good --rows ,", "--rows", "batched_local"),
    ("good --learning", "--run", "--learning"),
    ("missing", "--run missing"),
    ("empty", "--run empty", "config.yaml"),
    ("ppo", "--run ppo", "PPO", "toolagent"),
    ("unfinished", "'unfinished'"),
    ("other-task", "'tutorial'", "'calculator'"),
    ("other-size", "checkpoint_000007", "config.yaml"),
    ("faulty", "training.learning_rate"),
    ("gpu", "--run gpu", "num_gpus_per_learner"),
    ("torn", "model.safetensors"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_the_benchmark_refuses(prepared, monkeypatch, capfd, row):
    monkeypatch.chdir(prepared)
    line, *named = row
    refusal(capfd, "benchmark", ["--run", *line.split(), "--json", "new.json"], named)


# The reference loop -------------------------------------------------------------------------------


def test_the_bare_loop_plays_no_stage_that_a_task_does_not_have():
    """The first stage of `expression` is 1."""
    training = {"lr": 0.0, "episodes_per_update": 32}
    loop = BareLoop("expression", 2, 1.0, training, embedding_size=8)
    drawn = []
    sample = loop.task.sample
    loop.task.sample = lambda rng, stages: drawn.extend(stages) or sample(rng, stages)
    env_steps, episodes = loop.update()
    assert episodes == 32 <= env_steps
    assert set(drawn) == {1}
