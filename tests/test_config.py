"""Configuration: what loads, what is refused and in which words, and what reaches RLlib."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from ray.rllib.callbacks.callbacks import RLlibCallback

import toolagent
from toolagent import cli
from toolagent.config import (
    ALGORITHMS,
    RunSettings,
    Settings,
    add_callbacks,
    algorithm_config_class,
    build_algorithm_config,
    check_placement,
    config_folder,
    config_sha256,
    find_config,
    load_settings,
    share_cpus,
    shipped_configs,
    to_yaml,
)
from toolagent.config import documents as yaml_documents
from toolagent.config.schema import checked_sections, section_type, sections_of
from toolagent.config.settings import RecordingSettings
from toolagent.config.source import Source
from toolagent.config.validation import RENAMED, validated
from toolagent.curriculum.callback import CurriculumCallback
from toolagent.curriculum.rule import CurriculumSettings
from toolagent.errors import UserError
from toolagent.learning.options import PipelineOptions
from toolagent.models.registry import NETWORKS
from toolagent.models.rl_module import NetworkModule
from toolagent.run import __main__ as run
from toolagent.tasks import TASKS

PPO = "algorithm: PPO\n"
EXPRESSION = PPO + "task: expression\n"


class EpisodeCallback(RLlibCallback):
    """What a config may name."""

    def on_episode_end(self, **arguments):
        """Never called where episodes are played in batches."""


@pytest.fixture
def load(tmp_path):
    """Loads the given YAML text with the given overrides."""

    def load_text(text: str, *overrides: str) -> Settings:
        path = tmp_path / "given.yaml"
        path.write_text(text)
        return load_settings(path, overrides)

    return load_text


@pytest.fixture(scope="module")
def ppo_config():
    """A PPO config as RLlib has it, to be copied."""
    from ray.rllib.algorithms.ppo import PPOConfig

    return PPOConfig()


def refusal(function, *arguments) -> str:
    """The message of the UserError that the call must raise: a single printable line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2100
    return message


# Good cases -------------------------------------------------------------------------------


def test_importing_the_configuration_loads_neither_ray_nor_torch():
    code = (
        "import sys, toolagent.config as c; "
        "s = c.load_settings(sys.argv[1]); "
        "c.to_yaml(s); c.config_sha256(s); "
        "print([name for name in ('ray', 'torch') if name in sys.modules])"
    )
    path = os.pathsep.join(filter(None, (str(Path(toolagent.__file__).parent.parent),
                                         os.environ.get("PYTHONPATH"))))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "/dev/stdin"],
        input="seed: 3",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_defaults(load):
    loaded = load("seed: 3\nalgorithm: PPO\ntraining:\nrun:\n")
    assert (loaded.task, loaded.algorithm, loaded.seed) == ("calculator", "PPO", 3)
    assert loaded.run == RunSettings()
    assert loaded.sections == {"training": {}}
    assert loaded.curriculum.levels[0].stage == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("007", "007"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", 1000),
        ("0x1f", 31),
        ("~", None),
        ("", None),
        ("on", True),
        ("'3e-4'", "3e-4"),
        ("1e", "1e"),
        ("=", "="),
    ],
)
def test_scalars_as_yaml_1_2_reads_them(text, value):
    parsed = yaml_documents.parse(f"key: {text}", "test")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_values_of_every_kind_reach_rllib(load):
    given = load(
        PPO
        + """
seed: 5
task: tutorial
curriculum: {earlier_stage_share: 0.25}
environment: {env_config: {stage: 1}, clip_rewards: 2.0}
env_runners: {num_env_runners: 3, num_cpus_per_env_runner: 0.5}
learners: {num_learners: 1, custom_resources_per_learner: {special: 1}}
training: {lr: [[0, 3e-4], [1e6, 0]], entropy_coeff: [[0, 0.1], [100, 0.0]],
           lambda_: 1, minibatch_size: null, vf_clip_param: .inf}
evaluation: {evaluation_interval: 2, evaluation_config: {explore: false, seed: 3, env_config:
            {stage: 2}}}
rl_module: {model_config: {embedding_size: 32}}
fault_tolerance: {delay_between_env_runner_restarts_s: 7}
callbacks: {callbacks_class: "ray.rllib.callbacks.callbacks:RLlibCallback"}
reporting: {min_time_s_per_iteration: 0.5}
"""
    )
    config = build_algorithm_config(given)

    assert config.env == "toolagent/Tutorial-v0"
    assert config.env_config == {
        "task": "tutorial",
        "seed": 5,
        "stage": 1,
        "earlier_stage_share": 0.25,
    }
    assert (config.num_env_runners, config.num_cpus_per_env_runner) == (3, 0.5)
    assert config.lr == [[0, 3e-4], [1e6, 0]]
    assert config.minibatch_size is None
    assert config.vf_clip_param == math.inf
    assert config.seed == 5
    assert config.rl_module_spec.module_class is NetworkModule
    assert config.rl_module_spec.model_config == {
        "task": "tutorial",
        "network": "stage_gru",
        "embedding_size": 32,
        "max_seq_len": 8,
    }
    assert config.gym_env_vectorize_mode == "vector_entry_point"
    assert config.restart_failed_env_runners is True
    assert config.delay_between_env_runner_restarts_s == 7
    [curriculum] = config.callbacks_class
    assert curriculum.func is CurriculumCallback
    assert curriculum.args == (given.curriculum,)
    assert add_callbacks(config.copy(), [dict, list]).callbacks_class[1:] == [dict, list]
    evaluation = config.get_evaluation_config_object()
    assert evaluation.explore is False
    assert evaluation.env_config == config.env_config | {"stage": 2, "evaluation": True}
    config.training(lr=0.1)  # not frozen: run.py adds its callbacks


def test_a_users_callbacks_are_called_beside_the_runs_own(load):
    one = load(PPO + "callbacks: {callbacks_class: 'test_config:EpisodeCallback'}")
    two = load(PPO + "callbacks: {callbacks_class: ['test_config:EpisodeCallback']}")
    for settings_of_a_user in (one, two):
        config = build_algorithm_config(settings_of_a_user)
        add_callbacks(config, [dict])
        curriculum, *others = config.callbacks_class
        assert curriculum.func is CurriculumCallback
        assert [c.__name__ for c in others] == ["dict", "EpisodeCallback"]


@pytest.mark.parametrize(
    ("callbacks", "fault"),
    [
        (
            "on_episode_end: 'os:getcwd'",
            "on_episode_end: on_episode_end would never be called: episodes are",
        ),
        (
            "callbacks_class: 'test_config:EpisodeCallback'",
            "callbacks_class: on_episode_end would never be called: episodes are",
        ),
    ],
)
def test_callbacks_for_single_episodes_are_refused_where_batches_are_played(load, callbacks, fault):
    message = refusal(lambda: build_algorithm_config(load(f"callbacks: {{{callbacks}}}")))
    assert f"callbacks.{fault} played in batches" in message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "training: {train_batch_size_per_learner: 4000}",
            "training.train_batch_size_per_learner: train_batch_size_per_learner would change "
            "nothing here: use episodes_per_update",
        ),
        ("training: {train_batch_size: 4000}", "training.train_batch_size: "),
        ("env_runners: {rollout_fragment_length: 100}", "env_runners.rollout_fragment_length: "),
        ("env_runners: {batch_mode: truncate_episodes}", "env_runners.batch_mode: batch_mode wou"),
        (
            "env_runners: {env_to_module_connector: 'os:getcwd'}",
            "env_runners.env_to_module_connector: env_to_module_connector would change nothing "
            "here: episodes are columns from end to end, and no connector sees them",
        ),
        ("learners: {learner_connector: 'os:getcwd'}", "learners.learner_connector: "),
        (
            "training: {minibatch_size: 65, episodes_per_update: 128}\n"
            "learners: {num_learners: 2}\nenv_runners: {num_envs_per_env_runner: 128}",
            "training.minibatch_size: minibatch_size is 65; a learner has 64 episodes in an update",
        ),
        ("environment: {clip_rewards: true}", "environment.clip_rewards: "),
        ("learners: {num_aggregator_actors_per_learner: 1}", "and there is nothing to aggregate"),
        ("evaluation: {num_offline_eval_runners: 2}", "evaluation.num_offline_eval_runners: num_"),
        ("evaluation: {offline_evaluation_interval: 2}", "evaluation.offline_evaluation_interval"),
        (
            "env_runners: {env_runner_cls: 'ray.rllib.env.single_agent_env_runner:"
            "SingleAgentEnvRunner'}",
            "env_runners.env_runner_cls: env_runner_cls is SingleAgentEnvRunner; it must be a "
            "subclass of toolagent.rollouts.env_runner:BatchedEnvRunner",
        ),
        (
            "learners: {learner_class: 'ray.rllib.core.learner.torch.torch_learner:TorchLearner'}",
            "learners.learner_class: learner_class is TorchLearner; it must be a subclass of",
        ),
    ],
)
def test_what_the_batched_pipeline_would_not_look_at_is_refused(load, text, fault):
    for algorithm in ("toolagent", "tutorial"):
        refused = load(f"{text}\nalgorithm: {algorithm}")
        assert fault in refusal(lambda refused=refused: build_algorithm_config(refused))


def test_a_tilde_is_the_home_folder(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/a/user")
    settings_of_a_user = load("run: {record_episodes: ~/episodes}")
    assert settings_of_a_user.run.record_episodes == "/home/of/a/user/episodes"


def test_a_network_is_chosen_by_name_and_configured_by_its_own_options(load):
    given = "{network: encoder_decoder, num_heads: 2, reading: operands, sees_digits: true}"
    config = build_algorithm_config(load(EXPRESSION + f"rl_module: {{model_config: {given}}}"))
    spec = config.rl_module_spec
    assert spec.module_class is NetworkModule
    assert spec.model_config == {
        **NETWORKS["encoder_decoder"].Options._field_defaults,
        "task": "expression",
        "network": "encoder_decoder",
        "num_heads": 2,
        "reading": "operands",
        "sees_digits": True,
        "max_seq_len": TASKS["expression"].max_actions + 1,
    }
    # What reaches RLlib is what the network is made of.
    from toolagent.envs.spaces import action_space, observation_space

    spec.observation_space = observation_space(TASKS["expression"]())
    spec.action_space = action_space(TASKS["expression"]())
    network = spec.build().network
    assert network.interface == TASKS["expression"]().interface
    assert network.options._asdict().items() >= {"num_heads": 2, "reading": "operands"}.items()


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("network", [None, *sorted(NETWORKS)])
def test_every_network_can_be_configured_for_every_task(load, task, network):
    chosen = f"rl_module: {{model_config: {{network: {network}}}}}" if network else ""
    config = build_algorithm_config(load(f"{PPO}task: {task}\n{chosen}"))
    network = network or "stage_gru"  # the default
    assert config.rl_module_spec.model_config == {
        "task": task,
        "network": network,
        **NETWORKS[network].Options._field_defaults,
        "max_seq_len": TASKS[task].max_actions + 1,
    }
    assert config.env_config["stage"] == TASKS[task].first_stage


def test_a_curriculum_without_levels_begins_and_ends_with_the_task_s_first_stage(load):
    for text in (
        "task: expression",
        "task: expression\ncurriculum: {measure_problems: 60}",
        "task: expression\ncurriculum:",
    ):
        loaded = load(text)
        assert [level.stage for level in loaded.curriculum.levels] == [1]
        assert load(to_yaml(loaded)) == loaded
    assert [level.stage for level in load("task: tutorial").curriculum.levels] == [0]
    # Levels that are the defaults can be reached into, whichever way the task was chosen.
    accuracy = "curriculum.levels.0.advance_at_accuracy=0.9"
    for loaded in (
        load("task: expression", accuracy),
        load("seed: 1", accuracy, "task=expression"),
        load("task: calculator", "task=tutorial", "task=expression", accuracy),
    ):
        (level,) = loaded.curriculum.levels
        assert (level.stage, level.advance_at_accuracy) == (1, 0.9)
    assert load("task: expression", accuracy, "task=tutorial").curriculum.levels[0].stage == 0


def test_a_task_s_wrong_name_is_the_fault_also_where_its_levels_are_reached_into(load):
    for overrides in (("task=expresion",), ("task=[1]",), ("task=null",)):
        message = refusal(load, "seed: 1", *overrides, "curriculum.confidence=0.9")
        assert message.startswith("--set task: ")


def test_building_changes_nothing_in_the_settings(load):
    loaded = load(PPO + "environment: {env_config: {stage: 1}}\nlearners: {num_learners: 0}")
    before = to_yaml(loaded)
    first, second = build_algorithm_config(loaded), build_algorithm_config(loaded)
    first.env_config["stage"] = 2
    assert second.env_config["stage"] == 1
    assert to_yaml(loaded) == before


def test_every_section_is_a_method_of_the_config_class(ppo_config):
    sections = sections_of(type(ppo_config))
    assert {"environment", "training", "rl_module", "fault_tolerance", "api_stack"} <= set(sections)
    assert not {"copy", "build_algo", "validate", "freeze", "rollouts"} & set(sections)
    # Through **kwargs the options of the overridden method belong to the section too.
    assert {"kl_coeff", "lr", "minibatch_size"} <= set(sections["training"])


def test_rllib_s_own_defaults_are_accepted(ppo_config):
    """The table of corrected hints is complete, as far as RLlib's own defaults show."""
    plain, refused = (bool, int, float, str, list, dict), []
    for section, options in sections_of(type(ppo_config)).items():
        for name in options:
            default = vars(ppo_config).get(name)
            if type(default) in plain:
                try:
                    checked_sections(type(ppo_config), {section: {name: default}}, Source())
                except UserError as error:
                    if "is deprecated" not in str(error):
                        refused.append((section, name))
    assert set(refused) <= {
        ("multi_agent", "policies"),
        ("resources", "num_gpus"),
        ("training", "model"),
    }


# Overrides --------------------------------------------------------------------------------


def test_overrides(load):
    loaded = load(
        PPO + "training: {lr: 1.0}\nseed: 1",
        "training.lr=3e-4",
        "rl_module.model_config.embedding_size=64",
        "curriculum.levels.0.advance_at_accuracy=0.9",
        "run.stop_time_s=5",
        "seed=2",
        "seed=3",
        "env_runners={num_env_runners: 2}",
        "run.record_episodes=a=b",
    )
    assert loaded.sections == {
        "training": {"lr": 3e-4},
        "rl_module": {"model_config": {"embedding_size": 64}},
        "env_runners": {"num_env_runners": 2},
    }
    assert loaded.curriculum.levels[0].advance_at_accuracy == 0.9
    assert (loaded.seed, loaded.run.stop_time_s, loaded.run.record_episodes) == (3, 5, "a=b")


# Writing ----------------------------------------------------------------------------------


def test_written_settings_are_complete_and_load_back(load):
    loaded = load(
        PPO + "training: {lr: 3e-4, vf_clip_param: .inf}\n"
        "callbacks: {callbacks_class: 'ray.rllib.callbacks.callbacks:RLlibCallback'}\n"
        "python_environment: {extra_python_environs_for_worker: {A: '3e-4', B: 'yes', C: '007',"
        " D: '', E: '1:30', F: \"two\\nlines\", G: 'null', H: \"\\u2028ü\"}}",
        "run.stop_iterations=3",
    )
    text = to_yaml(loaded)
    assert load(text) == loaded
    assert to_yaml(load(text)) == text
    assert set(yaml.safe_load(text)["run"]) == set(RunSettings.model_fields)
    assert "measure_problems" in text


def test_the_hash_is_of_the_values_alone(load):
    one = load(PPO + "training: {lr: 0.1, gamma: 1.0}")
    other = load(PPO + "seed: 0\ntraining: {gamma: 1.0}", "training.lr=1e-1")
    assert one == other
    assert config_sha256(one) == config_sha256(other)
    assert re.fullmatch("[0-9a-f]{64}", config_sha256(one))
    assert config_sha256(one) != config_sha256(load(PPO, "seed=1"))


# Files ------------------------------------------------------------------------------------


def test_a_bare_name_is_a_shipped_config_unless_there_is_such_a_file(tmp_path, monkeypatch):
    package = tmp_path / "toolagent"
    package.mkdir()
    monkeypatch.setattr(toolagent, "__file__", str(package / "__init__.py"))
    assert "rllib_configs" in refusal(config_folder)

    inside = package / "rllib_configs"
    inside.mkdir()
    (inside / "default.yaml").write_text("seed: 1")
    (inside / "tutorial.yaml").write_text("seed: 2")
    assert config_folder() == inside
    assert find_config(None) == inside / "default.yaml"
    assert find_config("tutorial") == find_config("tutorial.yaml") == inside / "tutorial.yaml"
    assert shipped_configs() == ["default.yaml", "tutorial.yaml"]
    assert load_settings("tutorial").seed == 2

    monkeypatch.chdir(tmp_path)
    Path("tutorial.yaml").write_text("seed: 3")
    assert load_settings("tutorial.yaml").seed == 3
    Path("tutorial").mkdir()  # a folder is no config
    assert find_config("tutorial") == inside / "tutorial.yaml"
    assert "did you mean 'tutorial'" in refusal(find_config, "tutoral.yml")
    assert "known: default, tutorial" in refusal(find_config, "missing")

    beside = tmp_path / "rllib_configs"
    beside.mkdir()
    assert config_folder() == beside


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"- a\n", "expected a mapping such as 'task: calculator'; got ['a']"),
        (b"just text", "expected a mapping"),
        (b"training: {lr: 3e-4", "line 1"),
        (b"training:\n  lr: 3e-4\n bad", "line 3"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: \x00", "not YAML"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (
            b"seed: 1\nrun: {}\nseed: 2\n",
            "line 3, column 1: duplicate key 'seed' (first on line 1)",
        ),
        (b"training:\n  lr: 1\n  lr: 2\n", "duplicate key 'lr' (first on line 2)"),
        (b"seed: &a 1\nb: *a", "line 2, column 4: aliases"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"a: !!binary aGk=", "could not determine a constructor"),
        (b"a: !!int x", "not a valid int"),
        (b"a: !!bool x", "not a valid bool"),
        (b"a: .nan", "NaN"),
        (b"a: 99999999999999999999", "63 bits"),
        (b'a: "\\ud800"', "not a valid str"),
        (b"1: 2", "the key '1' is not text; quote it"),
        (b"? [a]\n: 2", "the key"),
        (b"a: 1\n---\na: 2\n", "single document"),
        (b"a: " + b"[" * 40 + b"]" * 40, "nested deeper"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested deeper"),
        (b"a: 1\n" * 100_000, "larger than 256 kB"),
    ],
)
def test_files_that_are_no_configs(tmp_path, content, fragment):
    path = tmp_path / "torn.yaml"
    path.write_bytes(content)
    message = refusal(load_settings, path)
    assert message.startswith(f"{path}: ")
    assert fragment in message


def test_files_that_cannot_be_read(tmp_path):
    assert "no such config file" in refusal(load_settings, tmp_path)
    assert "no such config file" in refusal(load_settings, tmp_path / "missing.yaml")
    assert "no such config file" in refusal(load_settings, "x" * 5000)
    assert "no such config file" in refusal(load_settings, "a\0b")
    assert "no such config file" in refusal(load_settings, "")
    assert "larger than" in refusal(load_settings, "/dev/zero")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 4\r\n")
    assert load_settings(path).seed == 4


# Wrong input ------------------------------------------------------------------------------

# A row for each class of error: what is written, the key that is named, and what is said.
WRONG_FILE = [
    ("sed: 1", "sed", "unknown; did you mean 'seed'?"),
    ("lr: 1", "lr", "unknown; did you mean 'training.lr'?"),
    ("build_algo: {}", "build_algo", "unknown"),
    ("env_runners: {num_env_runer: 1}", "env_runners.num_env_runer", "'num_env_runners'?"),
    ("training: {num_learners: 1}", "training.num_learners", "mean 'learners.num_learners'?"),
    ("run: {stop_when_solvd: true}", "run.stop_when_solvd", "did you mean 'stop_when_solved'?"),
    ("curriculum: {levels: [{stage: 0, stag: 1}]}", "curriculum.levels.0.stag", "mean 'stage'?"),
    ("environment: {env_config: {stge: 1}}", "environment.env_config.stge", "mean 'stage'?"),
    ("evaluation: {evaluation_config: {explor: 1}}", "evaluation.evaluation_config.explor",
     "did you mean 'explore'?"),
    ("evaluation: {evaluation_config: {env_config: {stge: 1}}}",
     "evaluation.evaluation_config.env_config.stge", "did you mean 'stage'?"),
    ("rl_module: {algorithm_config_overrides_per_module: {p: {lrr: 1}}}",
     "rl_module.algorithm_config_overrides_per_module.p.lrr", "did you mean 'lr'?"),
    ("rl_module: {model_config: {embeding_size: 3}}", "rl_module.model_config.embeding_size",
     "did you mean 'embedding_size'?"),
    ("rl_module: {model_config: {reading: learned}}", "rl_module.model_config.reading",
     "unknown; known: embedding_size, max_seq_len, network"),
    ("training: {zzzzzz: 1}", "training.zzzzzz",
     "unknown; the keys are listed in rllib_configs/README.md"),
    ("training: 5", "training", "expected a valid dictionary, got 5"),
    ("curriculum: {levels: [{}]}", "curriculum.levels.0.stage", "missing"),
    # Types and ranges; of a union, the member that was meant is told of.
    ("training: {use_gae: 1}", "training.use_gae", "expected a valid boolean, got 1"),
    ("training: {lr: fast}", "training.lr", "expected a valid number or a valid list, got 'fast'"),
    ("training: {lr: -1}", "training.lr", "must be greater than or equal to 0, got -1"),
    ("training: {lr: [[0, 0.1]]}", "training.lr", "Must be a list of 2 or more tuples"),
    ("training: {lr: [[5, 0.1], [6, 0.2]]}", "training.lr", "the first timestep must be 0"),
    ("training: {lr: [[0, 0.1], [0, 0.2]]}", "training.lr", "must be greater than the one before"),
    ("training: {lr: [[0, 0.1], [2, -1]]}", "training.lr.1.1", "or equal to 0, got -1"),
    ("training: {lr: [[0, a], [2, 1]]}", "training.lr.0.1", "expected a valid number, got 'a'"),
    ("env_runners: {num_env_runners: automatic}", "env_runners.num_env_runners",
     "expected a valid integer or 'auto', got 'automatic'"),
    ("environment: {observation_space: 3}", "environment.observation_space", "an object, which"),
    ("seed: -1", "seed", "must be greater than or equal to 0, got -1"),
    # What has another place here.
    ("training: {model: {fcnet_hiddens: [1]}}", "training.model", "belongs to RLlib's old API"),
    ("environment: {env_config: {task: tutorial}}", "environment.env_config.task", "top-level"),
    # RLlib's own words, with the key.
    ("training: {grad_clip_by: size}", "training.grad_clip_by", "`grad_clip_by` (size) must be"),
    ("training: {minibatch_size: 9999}", "training.minibatch_size", "`minibatch_size` (9999)"),
    ("env_runners: {num_rollout_workers: 2}", "env_runners.num_rollout_workers",
     "renamed to env_runners.num_env_runners"),
    ("learners: {custom_resources_per_learner: {GPU: 1}}", "learners.custom_resources_per_learner",
     "Do not"),
    # ... and what it would ignore.
    ("training: {vf_share_layers: true}", "training.vf_share_layers", "is deprecated in RLlib"),
    # Classes and functions.
    ("env_runners: {env_runner_cls: 'no.such:Class'}", "env_runners.env_runner_cls", "cannot impo"),
    ("callbacks: {callbacks_class: ['os:system']}", "callbacks.callbacks_class.0",
     "expected a subclass of RLlib's RLlibCallback, got os:system"),
    ("learners: {learner_class: 'os:getcwd'}", "learners.learner_class", "of RLlib's Learner, got"),
    ("env_runners: {env_runner_cls: Runner}", "env_runners.env_runner_cls",
     "expected 'package.module:Name', got 'Runner'"),
    ("callbacks: {on_train_result: 'os:name'}", "callbacks.on_train_result", "a class or a functi"),
    # What the environment, the network, the task and the curriculum say.
    ("environment: {env_config: {stage: 7}}", "environment.env_config", "stage 7 is not in task"),
    ("evaluation: {evaluation_config: {env_config: {stage: 9}}}",
     "evaluation.evaluation_config.env_config", "stage 9"),
    ("rl_module: {model_config: {embedding_size: 0}}", "rl_module.model_config.embedding_size",
     "embedding_size is 0; it must be at least 1"),
    ("rl_module: {model_config: {embedding_size: 4611686018427387904}}", "rl_module.model_config",
     ""),
    ("rl_module: {model_config: {embedding_size: 100000}}", "rl_module.model_config",
     "makes 60,004,600,019 weights; at"),
    ("rl_module: {model_config: {network: encoder}}", "rl_module.model_config.network",
     "no network 'encoder'; did you mean 'encoder_decoder'?"),
    ("rl_module: {model_config: {network: null}}", "rl_module.model_config.network",
     "expected a name, got null"),
    ("task: calculater", "task", "no task 'calculater'; did you mean 'calculator'?"),
    ("task: [calculator]", "task", "got ['calculator']"),
    ("task: expression\ncurriculum: {levels: [{stage: 9}]}", "curriculum.levels.0.stage",
     "9 is not in the task; its stages are 1..8"),
    ("curriculum: {levels: []}", "curriculum.levels", "needs at least one level"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "fault"), WRONG_FILE)
def test_wrong_files(load, tmp_path, text, key, fault):
    message = refusal(lambda: build_algorithm_config(load(PPO + text)))
    assert message.startswith(f"{tmp_path / 'given.yaml'}: {key}: ")
    assert fault in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr", "--set training.lr: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("training..lr=3", "--set training..lr=3: expected section.key=value"),
        ("training.lr=fast", "--set training.lr: expected a valid number"),
        ("training.lr=#1", "--set training.lr: has no value; write null to mean none"),
        ("training.lr=[1", "--set training.lr: line 1"),
        ("training.lr.x=1", "--set training.lr.x: 'training.lr' is 0.5, which has no entries"),
        ("learners.num_learners.x=1", "with --set: learners.num_learners: expected a valid int"),
        ("sed=1", "--set sed: unknown; did you mean 'seed'?"),
        ("run.stop_time_s=-1", "--set run.stop_time_s: must be greater than 0, got -1"),
        ("curriculum.levels.3.stage=0", "--set curriculum.levels.3.stage: no entry '3'; the list"),
        ("curriculum.levels.-1.stage=0", "--set curriculum.levels.-1.stage: no entry '-1'"),
        ("curriculum.levels.0.stage=9", "--set curriculum.levels.0.stage: 9 is not in the task"),
        ("training.grad_clip_by=x", "--set training.grad_clip_by: `grad_clip_by` (x) must be"),
        (".".join("a" * 40) + "=1", "nested deeper than 30 levels"),
    ],
)
def test_wrong_overrides(load, override, message):
    text = PPO + "task: calculator\ntraining: {lr: 0.5}"
    assert message in refusal(lambda: build_algorithm_config(load(text, override)))


# Values from which every option is handed those that the JSON schema of its type refuses. `1.0` is
# not among them: for JSON it is an integer.
VALUES = [None, True, 0, -1, 1, 2**62, -0.5, 1.5, 1e12, "", "text", "64", [], ["a"], [[1]], [1, 2],
          {}, {"a": {}}, {"a": 1}, {"lr": "x"}]  # fmt: skip


def schemas_of(algorithm):
    """Section -> the JSON schema of what it may hold."""
    config_class = algorithm_config_class(algorithm)
    kinds = {name: section_type(config_class, name) for name in sections_of(config_class)}
    kinds |= {"run": RunSettings, "recording": RecordingSettings, "curriculum": CurriculumSettings}
    return {name: TypeAdapter(kind).json_schema() for name, kind in kinds.items()}


def wrong_values(algorithm):
    """(section, option, value) for all values above that a schema refuses."""
    for section, schema in schemas_of(algorithm).items():
        validator = jsonschema.Draft202012Validator(schema)
        for option in schema["properties"]:
            for value in VALUES:
                if not validator.is_valid({option: value}):
                    yield section, option, value


@pytest.mark.parametrize("algorithm", ["toolagent", "PPO", "MARWIL"])
def test_every_option_refuses_what_its_schema_refuses(algorithm):
    source, config_class, count = Source("given.yaml"), algorithm_config_class(algorithm), 0
    models = {"run": RunSettings, "recording": RecordingSettings, "curriculum": CurriculumSettings}
    for section, option, value in wrong_values(algorithm):
        kind = models.get(section) or section_type(config_class, section)
        message = refusal(validated, kind, {option: value}, (section,), source)
        assert re.match(rf"given.yaml: {section}.{re.escape(option)}(\.[\w.]+)?: ", message), (
            message
        )
        count += 1
    assert count > 1500


# A floor for the property above, which knows no more than the types do: what RLlib takes without a
# word and fails on later, or learns nonsense from.
FLOOR = {
    "training": {"lr": -1, "gamma": 1.5, "grad_clip": -1, "num_epochs": 0, "minibatch_size": 0},
    "env_runners": {
        "num_env_runners": -1,
        "num_envs_per_env_runner": 0,
        "num_cpus_per_env_runner": -1,
        "num_gpus_per_env_runner": -1,
        "max_requests_in_flight_per_env_runner": 0,
    },
    "learners": {"num_learners": -1, "num_cpus_per_learner": -1, "num_gpus_per_learner": -1},
    "evaluation": {"evaluation_num_env_runners": -1, "evaluation_duration_unit": "text"},
    "fault_tolerance": {"delay_between_env_runner_restarts_s": -1},
    "debugging": {"log_level": "text"},
}


def test_what_the_schemas_must_not_let_through():
    found = list(wrong_values("toolagent"))
    wrong = {(section, option) for section, option, _ in found}
    assert {("training", name) for name in PipelineOptions.model_fields} <= wrong
    for section, options in FLOOR.items():
        for option, value in options.items():
            assert (section, option, value) in found, option


@pytest.fixture(scope="module")
def wrong_settings():
    """All wrong values, and keys with a letter too many."""
    wrong = list(wrong_values("toolagent"))
    names = sorted({(section, option) for section, option, _ in wrong})
    return wrong + [(section, f"{option}x", 1) for section, option in names]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), flag=st.booleans())
def test_whatever_is_wrong_the_command_says_so_in_one_line(
    wrong_settings, tmp_path, monkeypatch, capfd, data, flag
):
    """Exit code 2, the key is named, and nothing is written; from a file as by `--set`."""
    section, option, value = data.draw(st.sampled_from(wrong_settings))
    written = json.dumps(value)  # JSON is YAML
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.yaml").write_text(
        "seed: 0" if flag else f"{section}: {{{option}: {written}}}"
    )
    before = sorted(tmp_path.iterdir())
    given_flags = ["--set", f"{section}.{option}={written}"] if flag else []
    code = cli.main(run.command, ["--config", "given.yaml", "--output-dir", "new", *given_flags])
    captured = capfd.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1 and captured.err.rstrip("\n").isprintable()
    assert captured.err.startswith("error: ") and f"{section}.{option}" in captured.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {max_policy_age: 1}", "training.max_policy_age"),
        ("evaluation: {evaluation_config: {max_policy_age: 1}}",
         "evaluation.evaluation_config.max_policy_age"),
        ("training:", "--set training.max_policy_age"),
    ],
)  # fmt: skip
def test_keys_of_older_versions_are_named_with_their_new_names(load, text, key):
    overrides = [f"{key.removeprefix('--set ')}=1"] if key.startswith("--set") else []
    message = refusal(lambda: build_algorithm_config(load(text, *overrides)))
    assert message.endswith(f"{key}: renamed to training.max_staleness")


def test_every_new_name_is_a_key():
    sections = sections_of(algorithm_config_class("toolagent"))
    for said in RENAMED.values():
        section, _, name = said.split()[-1].partition(".")
        assert not name or name in sections[section], said


# Fuzzing ----------------------------------------------------------------------------------

KEY_NAMES = """
task algorithm seed curriculum run levels stage advance_at_accuracy environment env_config
env_runners num_env_runners training lr gamma minibatch_size learners num_learners evaluation
evaluation_config explore rl_module model_config embedding_size network num_heads callbacks
callbacks_class multi_agent policies experimental _validate_config api_stack stop_time_s 0 1 x
"""
KEYS = st.sampled_from(KEY_NAMES.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["PPO", "calculator", "expression", "encoder_decoder", "builtins:dict", "auto", 0, 1, 0.5]
    )
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def load_and_build(load, text: str, *overrides: str) -> None:
    """Either it is refused in one line, or it round-trips (and, built, may be refused still)."""
    try:
        loaded = load(text, *overrides)
        assert load(to_yaml(loaded)) == loaded
        build_algorithm_config(loaded)
    except UserError as error:
        assert str(error).isprintable()


@FUZZ
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text(load, text):
    load_and_build(load, text)
    load_and_build(load, PPO + text)


@FUZZ
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree(load, tree):
    load_and_build(load, yaml.safe_dump({"algorithm": "PPO"} | tree))


@FUZZ
@given(st.lists(KEYS, min_size=1, max_size=4), TREES | st.text(max_size=10))
def test_any_override(load, path, value):
    value_text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")
    load_and_build(load, PPO, f"{'.'.join(path)}={value_text}")


@FUZZ
@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_text_as_override(load, overrides):
    load_and_build(load, PPO, *overrides)


@FUZZ
@given(
    st.sampled_from(["stage_gru", "encoder_decoder"]),
    st.sampled_from(sorted(TASKS)),
    st.dictionaries(
        st.sampled_from(["embedding_size", "num_heads", "num_counters", "reading", "max_seq_len"]),
        SCALARS | st.integers(1, 8) | st.sampled_from(["learned", "operands"]),
        max_size=3,
    ),
)
def test_any_options_of_a_network(load, network, task, options):
    model_config = {"network": network} | options
    tree = {"algorithm": "PPO", "task": task, "rl_module": {"model_config": model_config}}
    load_and_build(load, yaml.safe_dump(tree))


@FUZZ
@given(value=TREES, data=st.data())
def test_any_value_of_an_option(load, ppo_config, value, data):
    """A wrong value is refused by us or by RLlib; either way as a UserError."""
    sections = sections_of(type(ppo_config))
    section = data.draw(st.sampled_from(sorted(sections)))
    name = data.draw(st.sampled_from(sorted(sections[section])))
    load_and_build(load, yaml.safe_dump({"algorithm": "PPO", section: {name: value}}))


# Resources --------------------------------------------------------------------------------


def asking(config, runners=0, learners=0, evaluators=0, gpus=0.0):
    """A copy of the config with that many actors of a CPU each."""
    config = config.copy(copy_frozen=False)
    config.env_runners(num_env_runners=runners)
    config.learners(num_learners=learners, num_gpus_per_learner=gpus)
    config.evaluation(evaluation_num_env_runners=evaluators)
    return config


def test_sixteen_runners_share_two_cpus(ppo_config):
    config = asking(ppo_config, runners=16)
    changed, lines = share_cpus(config, 2)
    assert lines == ["16 env runners share 2 CPUs (0.12 CPU each)"]
    assert changed.num_cpus_per_env_runner == 0.12
    assert config.num_cpus_per_env_runner == 1


@pytest.mark.parametrize(
    ("cpus", "actors", "lines"),
    [
        (16, {"runners": 16}, []),
        (2, {"runners": 2}, []),
        (1, {}, []),
        (0.5, {"runners": 1}, ["1 env runner share 0.5 CPUs (0.5 CPU each)"]),
        (2, {"runners": 3}, ["3 env runners share 2 CPUs (0.66 CPU each)"]),
        (2, {"runners": 2, "learners": 1}, ["2 env runners share 1 CPU (0.5 CPU each)"]),
        (2, {"runners": 2, "learners": 2},
         ["2 env runners and 2 learners share 2 CPUs (0.5 CPU each)"]),
        (2, {"learners": 4}, ["4 learners share 2 CPUs (0.5 CPU each)"]),
        (2, {"runners": 500}, ["500 env runners share 2 CPUs (0.004 CPU each)"]),
        (4, {"runners": 3, "evaluators": 2},
         ["3 env runners and 2 evaluation runners share 4 CPUs (0.8 CPU each)"]),
    ],
)  # fmt: skip
def test_cpus(ppo_config, cpus, actors, lines):
    config = asking(ppo_config, **actors)
    changed, said = share_cpus(config, cpus)
    assert said == lines
    if not lines:
        assert changed is config


def test_a_learner_on_a_gpu_asks_for_no_cpu(ppo_config):
    config = asking(ppo_config, runners=2, learners=1, gpus=1)
    assert share_cpus(config, 2)[1] == []


def test_evaluation_runners_with_their_own_share(ppo_config):
    config = asking(ppo_config, runners=1, evaluators=1)
    config.evaluation(evaluation_config={"num_cpus_per_env_runner": 4, "explore": False})
    changed, _ = share_cpus(config, 2)
    assert changed.num_cpus_per_env_runner == 1
    assert changed.evaluation_config == {"num_cpus_per_env_runner": 1, "explore": False}


@given(
    nodes=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    runners=st.integers(1, 300),
)
def test_every_runner_finds_a_node(ppo_config, nodes, runners):
    config = asking(ppo_config, runners=runners)
    changed, _ = share_cpus(config, sum(nodes), len(nodes))
    each = changed.num_cpus_per_env_runner
    assert sum(math.floor(cpus / each + 1e-9) for cpus in nodes) >= runners


@pytest.mark.parametrize(
    ("gpus", "actors", "message"),
    [
        (0, {"gpus": 1}, "asks for 1 GPU in all, there are 0"),
        (1, {"gpus": 1, "learners": 2}, "asks for 2 GPUs in all, there are 1"),
    ],
)
def test_more_gpus_than_there_are(ppo_config, gpus, actors, message):
    here = {"CPU": 4, "GPU": gpus}
    refused = refusal(check_placement, asking(ppo_config, **actors), [here], here)
    assert refused.startswith(f"learners.num_gpus_per_learner: {message}")


def test_gpus_of_env_runners(ppo_config):
    config = asking(ppo_config, runners=2, gpus=1)
    config.env_runners(num_gpus_per_env_runner=0.5)
    two, one = {"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 1}
    check_placement(config, [two], two)
    message = refusal(check_placement, config, [one], one)
    assert message.startswith("env_runners.num_gpus_per_env_runner: asks for 1 GPU in all")


def test_more_actors_than_can_share(ppo_config):
    message = refusal(share_cpus, asking(ppo_config, runners=100_000), 2)
    assert message == (
        "env_runners.num_env_runners: 100000 actors are too many for 2 CPUs; use at most 20000"
    )


def test_aggregators_cannot_share(ppo_config):
    config = asking(ppo_config, runners=1)
    config.learners(num_aggregator_actors_per_learner=2)
    assert "num_aggregator_actors_per_learner" in refusal(share_cpus, config, 2)


# Shipped configs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_load_round_trip_and_build(name, tmp_path):
    loaded = load_settings(name)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(loaded))
    assert load_settings(path) == loaded
    assert config_sha256(load_settings(path)) == config_sha256(loaded)
    build_algorithm_config(loaded)
    assert loaded.algorithm in ALGORITHMS
