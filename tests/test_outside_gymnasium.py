"""An outside task's environment in other people's hands: registration, wrappers, processes."""

import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from answering import PeekTask
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TimeAwareObservation,
    TimeLimit,
)
from processes import own_environment

import toolagent
from toolagent.envs import register_task
from toolagent.envs.single import ToolEnv
from toolagent.envs.vector import ToolVectorEnv
from toolagent.errors import UserError
from toolagent.tasks import TASKS

register_task(PeekTask)
PEEK, ID = "answering:PeekTask", "toolagent/Peek-v0"
LOOK, SAY, NONE = 3, 4, 5


@pytest.fixture
def registries():
    """Both as they were, afterwards."""
    tasks, specs = dict(TASKS), dict(gym.registry)
    yield
    for registry, before in ((TASKS, tasks), (gym.registry, specs)):
        registry.clear()
        registry.update(before)


# Registration ----------------------------------------------------------------------------------


def test_a_registered_task_is_made_by_its_id():
    env, envs = gym.make(ID, stage=1), gym.make_vec(ID, num_envs=2, stage=1)
    assert type(env.unwrapped) is ToolEnv and type(envs.unwrapped) is ToolVectorEnv
    assert type(env.unwrapped.task) is type(envs.unwrapped.task) is PeekTask
    assert env.reset(seed=0)[0]["stage"] == 1


def test_its_spec_can_be_written_and_read():
    spec = gym.envs.registration.EnvSpec.from_json(gym.spec(ID).to_json())
    assert type(gym.make(spec).unwrapped.task) is PeekTask


def test_registering_again_does_no_harm(registries):
    before = len(gym.registry), len(TASKS)
    assert toolagent.register_task(PeekTask) is PeekTask
    assert (len(gym.registry), len(TASKS)) == before


def test_a_class_that_is_defined_again_takes_the_place_of_the_first(registries):
    """As a cell of a notebook that is run again."""
    again = type("PeekTask", (PeekTask,), {"max_actions": 3, "__module__": "answering"})
    toolagent.register_task(again)
    env = gym.make(ID)
    env.reset(seed=0)
    assert [env.step(LOOK)[3] for _ in range(3)] == [False, False, True]


def test_another_task_may_not_take_a_name(registries):
    for name in ("peek", "p_eek", "calculator"):
        other = type("Other", (PeekTask,), {"name": name, "__module__": "answering"})
        with pytest.raises(UserError, match=f"the name '{name}' is that of the task"):
            toolagent.register_task(other)
    assert type(gym.make(ID).unwrapped.task) is PeekTask


@pytest.mark.parametrize("name", ["_peek", "peek_", "a__b", "Peek", "p\u00e9ek", ""])
def test_a_name_that_would_make_an_odd_id_is_refused(name):
    other = type("Other", (PeekTask,), {"name": name, "__module__": "answering"})
    with pytest.raises(UserError, match="name is"):
        toolagent.register_task(other)


# Wrappers --------------------------------------------------------------------------------------


STACKS = {
    "flatten": lambda env: FlattenObservation(env),
    "flatten, stack": lambda env: FrameStackObservation(FlattenObservation(env), 3),
    "time": lambda env: TimeAwareObservation(FlattenObservation(TimeLimit(env, 4))),
    "statistics": lambda env: NormalizeReward(RecordEpisodeStatistics(env)),
}


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_of_wrappers_finds_nothing_to_complain_about(stack):
    check_env(STACKS[stack](gym.make(ID).unwrapped), skip_render_check=True)


def test_a_flattened_observation_holds_the_answer():
    env = FlattenObservation(gym.make(ID, stage=1))
    before, _ = env.reset(seed=1)
    after, *_ = env.step(LOOK)
    space = env.unwrapped.observation_space
    seen = [gym.spaces.unflatten(space, flat)["response"].tolist() for flat in (before, after)]
    assert seen[0] == [NONE, NONE] and max(seen[1]) < 3


def test_wrapped_vector_envs_count_alike():
    def statistics(envs):
        found = []
        for _ in range(30):
            episode = envs.step(np.array([LOOK, SAY, LOOK]))[4].get("episode")
            found.append(None if episode is None else (episode["r"] * 1, episode["l"] * 1))
        return found

    native = gym.make_vec(ID, num_envs=3)
    single = SyncVectorEnv([lambda: gym.make(ID)] * 3)
    wrapped = [gym.wrappers.vector.RecordEpisodeStatistics(envs) for envs in (native, single)]
    for envs in wrapped:
        envs.reset(seed=[1, 2, 3])
    for ours, theirs in zip(*map(statistics, wrapped), strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))


def test_processes_that_are_spawned_make_it_by_its_id():
    """They import the task's module themselves; the native one gives the same."""
    spawned = AsyncVectorEnv([_make] * 2, context="spawn")
    native = ToolVectorEnv(2, PEEK)
    try:
        for one, other in zip(
            [spawned.reset(seed=[4, 5]), *(spawned.step(np.array([LOOK, SAY])) for _ in range(3))],
            [native.reset(seed=[4, 5]), *(native.step(np.array([LOOK, SAY])) for _ in range(3))],
            strict=True,
        ):
            for key in one[0]:
                assert np.array_equal(one[0][key], other[0][key]), key
    finally:
        spawned.close()


def _make():
    """In the other process, which has imported this module, and so registered the task."""
    return gym.make(ID)


# RLlib -----------------------------------------------------------------------------------------

STRANGER = """\
import warnings
warnings.simplefilter("ignore")
import ray, toolagent
from answering import PeekTask
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune import register_env
from toolagent.envs.single import ToolEnv

register_env("mine", lambda config: ToolEnv("answering:PeekTask", **config))
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
config = (
    PPOConfig()
    .environment("mine", env_config={"stage": 1})
    .env_runners(
        num_env_runners=1,
        rollout_fragment_length=50,
        env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
    )
    .training(train_batch_size=100, minibatch_size=50, num_epochs=1)
    .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8], use_lstm=True, max_seq_len=8))
)
algorithm = config.build_algo()
print(algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])
algorithm.stop()
"""


@pytest.mark.full
def test_a_stranger_s_rllib_program_trains_on_it(tmp_path):
    """RLlib's own network, learner and remote runner: of this package the environment alone."""
    shutil.copy(sys.modules["answering"].__file__, tmp_path)
    (tmp_path / "program.py").write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, "program.py"],
        **{"cwd": tmp_path, "env": own_environment(), "capture_output": True, "text": True},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) >= 100
