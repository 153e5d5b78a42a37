"""Gymnasium's contract beyond `check_env`: the native vector env against its `SyncVectorEnv`."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from answering import PeekTask
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

import toolagent  # noqa: F401  (registers the ids)
from toolagent.envs import env_id, register_task, register_with_rllib
from toolagent.envs.single import ToolEnv
from toolagent.envs.vector import ToolVectorEnv
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, MUL, STO

register_task(PeekTask)
NAMES = ["tutorial", "calculator", "expression"]
N = 4


def both(name, **arguments):
    """The native vector env of N, and Gymnasium's of N single ones."""
    sync = SyncVectorEnv([lambda: ToolEnv(name, **arguments) for _ in range(N)])
    return ToolVectorEnv(N, name, **arguments), sync


def assert_same_infos(native, sync):
    """Where the native one has no `acc`, the single one's is None."""
    for key in sync.keys() | native.keys():
        assert key in sync or not native[f"_{key.removeprefix('_')}"].any()
    if "acc" in sync:
        accs = zip(native["acc"].tolist(), native["_acc"].tolist(), strict=True)
        assert sync["acc"].tolist() == [value if filled else None for value, filled in accs]
        assert not (native["_acc"] & ~sync["_acc"]).any()
    if "solved" in sync:
        for key in ("solved", "_solved"):
            assert native[key].dtype == sync[key].dtype == bool
            assert np.array_equal(native[key], sync[key])


def assert_same(native, sync):
    """Two results of `reset` or `step`: equal values and dtypes."""
    assert native[0].keys() == sync[0].keys()
    for key, column in sync[0].items():
        assert native[0][key].dtype == column.dtype and np.array_equal(native[0][key], column), key
    for ours, theirs in zip(native[1:-1], sync[1:-1], strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert_same_infos(native[-1], sync[-1])


SEED = st.integers(0, 2**40)
SEEDS = st.lists(st.none() | SEED, min_size=N, max_size=N)
MASK = st.just([True] * N) | st.lists(st.booleans(), min_size=N, max_size=N).filter(any)
PLACES = st.lists(st.integers(0, 2), min_size=N, max_size=N)
TOKENS = st.lists(
    st.sampled_from([*range(18), *[11, 12, 13, 15, 16] * 4, *[ANS] * 8]), min_size=N, max_size=N
)
OPERATIONS = st.lists(
    st.one_of(
        *[st.tuples(st.just("step"), TOKENS)] * 6,
        st.tuples(st.just("reset"), st.none() | SEEDS),
        st.tuples(st.just("mask"), MASK, st.none() | SEED | SEEDS),
        st.tuples(st.just("stages"), PLACES),
        st.tuples(st.just("stage"), st.integers(0, 2)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("name", [*NAMES, "answering:PeekTask"])
@settings(max_examples=60, deadline=None)
@given(st.lists(SEED, min_size=N, max_size=N), st.booleans(), OPERATIONS)
def test_it_does_what_gymnasiums_vectorization_of_single_envs_does(
    name, seeds, limit_terminates, operations
):
    envs = both(name, limit_terminates=limit_terminates, stream=(5,))
    task = get_task(name)
    stages, actions = task.stages, task.vocabulary.num_actions
    assert_same(*(env.reset(seed=seeds) for env in envs))
    for operation, *given_values in operations:
        if operation == "step":
            results = [env.step(np.array(given_values[0]) % actions) for env in envs]
        elif operation == "reset":
            results = [env.reset(seed=given_values[0]) for env in envs]
        elif operation == "mask":
            mask, seed = given_values
            results = [env.reset(seed=seed, options={"reset_mask": np.array(mask)}) for env in envs]
        else:
            for env in envs:
                if operation == "stages":
                    chosen = [stages[place % len(stages)] for place in given_values[0]]
                    env.set_attr("stage", chosen)
                else:
                    env.call("set_stage", stages[given_values[0] % len(stages)])
            assert envs[0].get_attr("stage") == envs[1].get_attr("stage")
            continue
        assert_same(*results)
        assert envs[0].np_random_seed == envs[1].np_random_seed
        assert envs[0].observation_space.contains(results[0][0])


def contexts(envs, steps=6):
    """(steps, N, L): what the next episodes begin with."""
    found = []
    for _ in range(steps):
        envs.step(np.full(envs.num_envs, ANS))
        found.append(envs.step(np.full(envs.num_envs, ANS))[0]["context"])
    return np.stack(found)


def test_a_seed_of_an_environments_own_leaves_the_others_streams_alone():
    """Also where those have none of their own, but the batch's."""
    envs = ToolVectorEnv(N, "expression", stage=5)
    alone = ToolEnv("expression", stage=5)
    envs.reset(seed=1)
    first = envs.reset(seed=[3, None, None, None])[0]["context"]
    assert np.array_equal(first[0], alone.reset(seed=3)[0]["context"])
    assert len({tuple(row) for row in first.tolist()}) == N
    assert envs.np_random_seed == (3, 1, 1, 1)
    following = contexts(envs)
    assert np.array_equal(following[:, 0], [alone.reset()[0]["context"] for _ in range(6)])
    assert len({tuple(row) for row in following.reshape(-1, 30).tolist()}) == 6 * N
    # One seed for the batch ends it.
    envs.reset(seed=1)
    again = ToolVectorEnv(N, "expression", stage=5)
    again.reset(seed=1)
    assert np.array_equal(contexts(envs), contexts(again)) and envs.np_random_seed == 1


def test_no_seed_at_all_goes_on_in_the_stream():
    envs, again, zero = (ToolVectorEnv(N, "calculator", stage=2) for _ in range(3))
    for env in (envs, again):
        env.reset(seed=9)
    ours, goes_on = envs.reset(seed=[None] * N), again.reset()
    assert np.array_equal(ours[0]["context"], goes_on[0]["context"])
    assert not np.array_equal(ours[0]["context"], zero.reset(seed=[0] * N)[0]["context"])


@pytest.mark.parametrize("stream", [(), (1, 2)])
def test_reading_the_seed_changes_nothing(stream):
    single = ToolEnv("calculator", stage=2, stream=stream)
    for env in (single, ToolVectorEnv(N, "calculator", stage=2, stream=stream)):
        env.reset(seed=7)
        first = env.reset()[0]["context"]
        env.reset(seed=7)
        assert env.np_random_seed == 7
        assert np.array_equal(env.reset()[0]["context"], first)
        env.np_random = np.random.default_rng(1)
        assert env.np_random_seed == -1
        assert env.np_random.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize("seed", [[1, 2], [1] * (N + 1), [], np.arange(2)])
def test_as_many_seeds_as_environments(seed):
    with pytest.raises(ValueError, match=f"expected one integer or {N}"):
        ToolVectorEnv(N, "calculator").reset(seed=seed)


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_a_seed_is_a_non_negative_integer(seed):
    for env in (ToolEnv("calculator"), ToolVectorEnv(1, "calculator")):
        for given_seed in (seed, [seed]):
            with pytest.raises((gym.error.Error, ValueError)):
                env.reset(seed=given_seed)


@pytest.mark.parametrize(
    "mask", [[True] * 3, np.ones(N, int), np.zeros(N, bool), np.ones((N, 1), bool)]
)
def test_a_mask_that_is_none_is_refused(mask):
    envs = ToolVectorEnv(N, "calculator")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask is"):
        envs.reset(options={"reset_mask": mask})


def test_problems_and_stages_under_a_mask():
    envs = ToolVectorEnv(3, "calculator")
    with pytest.raises(gym.error.ResetNeeded):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    before, *_ = envs.step(np.array([MUL, MUL, ANS]))
    digits = np.array([[1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [3, 3, 3, 3, 3]])
    options = {"reset_mask": np.array([False, True, False]), "digits": digits, "stage": 2}
    observations, infos = envs.reset(options=options)
    assert options.keys() == {"reset_mask", "digits", "stage"}  # the caller's own
    assert observations["previous_token"].tolist() == [MUL, CTX, ANS]
    assert observations["stage"].tolist() == [0, 2, 0]
    assert observations["context"][1].tolist() == [2, 2, 2, 2, 2, CTX]
    assert np.array_equal(observations["context"][[0, 2]], before["context"][[0, 2]])
    assert infos["_acc"].tolist() == [False] * 3
    # Row 2 still waits for its next episode, row 0 goes on; row 1 keeps its stage.
    observations, *_, infos = envs.step(np.array([ADD, ANS, ANS]))
    assert observations["previous_token"].tolist() == [ADD, ANS, CTX]
    assert infos["_acc"].tolist()[0] and infos["_solved"].tolist() == [False, True, False]
    assert envs.step(np.array([MUL, MUL, MUL]))[0]["stage"].tolist() == [0, 2, 0]


def test_what_was_returned_before_a_reset_stays_as_it_was():
    envs = ToolVectorEnv(N, "calculator")
    envs.reset(seed=0)
    envs.step(np.full(N, MUL))
    results = envs.step(np.array([ANS, MUL, MUL, MUL]))
    arrays = [*results[0].values(), *results[1:4], *results[4].values()]
    copies = [array.copy() for array in arrays]
    envs.reset(options={"reset_mask": np.array([True, True, False, False])})
    envs.reset()
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


# Attributes --------------------------------------------------------------------------------------


def test_attributes_are_those_of_n_single_envs():
    native, sync = both("expression", stage=3, limit_terminates=True)
    names = ["action_space", "limit_terminates", "observation_space", "render_mode", "spec"]
    for name in [*names, "stage"]:
        assert native.get_attr(name) == native.call(name) == sync.get_attr(name), name
    for name in ("task", "metadata", "np_random", "np_random_seed"):
        assert len(native.get_attr(name)) == len(sync.get_attr(name)) == N
    for env in (native, sync):
        env.set_attr("limit_terminates", False)
        assert env.get_attr("limit_terminates") == (False,) * N
        streams = [np.random.default_rng(row) for row in range(N)]
        env.set_attr("np_random", streams)
        assert env.get_attr("np_random") == tuple(streams)
        assert env.get_attr("np_random_seed") == (-1,) * N
        assert env.call("render") == (None,) * N
    assert_same(native.reset(), sync.reset())


def test_attributes_that_are_not_there_or_differ_are_refused():
    native, sync = both("calculator")
    for env in (native, sync):
        with pytest.raises(AttributeError):
            env.get_attr("stge")
        with pytest.raises(ValueError, match=f"{N} environments|expected {N}"):
            env.set_attr("stage", [0, 1])
        with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
            env.set_attr("stage", [0, 1, 2, 3])
        with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
            env.call("set_stage", 3)
    assert native.get_attr("stage") == (0,) * N
    for name in ("step", "reset", "close"):
        with pytest.raises(AttributeError, match="one by one"):
            native.call(name)
    with pytest.raises(AttributeError, match="can't be set"):
        native.set_attr("task", "tutorial")
    with pytest.raises(ValueError, match="one for all"):
        native.set_attr("limit_terminates", [True, False, True, True])


@pytest.mark.parametrize("stage", [9, -1, 1.5, "1", None, [1, 1]])
def test_a_stage_is_checked_wherever_it_is_set(stage):
    envs = ToolVectorEnv(2, "calculator", stage=1)
    for env in (ToolEnv("calculator", stage=1), envs):
        for assign in (env.set_stage, lambda stage, env=env: setattr(env, "stage", stage)):
            with pytest.raises(ValueError, match="stage"):
                assign(stage)
        assert env.stage == 1
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        envs.earlier_stage_share = 2.0


# Making, copying, wrapping, closing ---------------------------------------------------------------


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_render_mode_none_is_taken_and_any_other_is_not(make):
    env = make("toolagent/Calculator-v0", render_mode=None)
    env.reset(seed=0)
    assert env.render_mode is None and env.unwrapped.render() is None
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        make("toolagent/Calculator-v0", render_mode="human")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_id_is_of_one_task(make):
    for name in NAMES:
        assert make(env_id(name), task=name).unwrapped.task.name == name
    with pytest.raises(ValueError, match=r"'expression'; toolagent/Expression-v0 is"):
        make("toolagent/Calculator-v0", task="expression")
    with pytest.raises(ValueError, match="Tutorial-v0 is not an environment of task 'x'"):
        make("toolagent/Tutorial-v0", task="x")


@pytest.mark.parametrize("more", [{}, {"num_envs": 2}])
def test_an_id_of_rllib_is_of_one_task(more):
    register_with_rllib()
    for name in NAMES:
        create = _global_registry.get(ENV_CREATOR, env_id(name))
        for settings_given in ({}, {"task": name}):
            assert create(EnvContext(settings_given | more, 0)).task.name == name
        with pytest.raises(ValueError, match="not an environment of task 'another'"):
            create(EnvContext({"task": "another"} | more, 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_a_spec_makes_the_same_again_also_from_json(make, name):
    env = make(env_id(name), stage=2)
    read = gym.envs.registration.EnvSpec.from_json(env.unwrapped.spec.to_json())
    again = make(read)
    assert type(again.unwrapped) is type(env.unwrapped)
    assert again.unwrapped.stage == 2 and again.unwrapped.task.name == name


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("seed", [3, [1, None, 2, None]])
def test_a_copy_in_the_middle_of_an_episode_goes_on_alike(duplicate, seed):
    native = ToolVectorEnv(N, "expression", stage=4, earlier_stage_share=0.5)
    single = ToolEnv("expression", stage=4)
    native.reset(seed=seed)
    single.reset(seed=3)
    native.step(np.array([3, ANS, 5, ANS]))
    single.step(3)
    twin, single_twin = duplicate(native), duplicate(single)
    assert np.array_equal(contexts(native), contexts(twin))
    assert single.step(ANS)[1:] == single_twin.step(ANS)[1:]
    ours, theirs = (env.reset()[0]["context"] for env in (single, single_twin))
    assert np.array_equal(ours, theirs)


def test_the_autoreset_mode_of_one_vectorization_is_not_anothers():
    def make(mode):
        return SyncVectorEnv([lambda: ToolEnv("calculator")], autoreset_mode=mode)

    first, second = make(AutoresetMode.SAME_STEP), make(AutoresetMode.DISABLED)
    assert first.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert second.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert ToolVectorEnv(1, "calculator").metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in ToolEnv("calculator").metadata


def test_gymnasiums_wrappers_work_on_both_views():
    wrapped = [
        gym.wrappers.vector.DictInfoToList(gym.wrappers.vector.RecordEpisodeStatistics(envs))
        for envs in both("calculator", stage=1)
    ]
    for envs in wrapped:
        envs.reset(seed=list(range(N)))
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = rng.choice([MUL, STO, ANS], N)
        (*ours, our_infos), (*theirs, their_infos) = (envs.step(actions) for envs in wrapped)
        assert np.array_equal(ours[1], theirs[1])
        for our, their in zip(our_infos, their_infos, strict=True):
            assert our.get("acc") == their["acc"] and our.get("solved") == their.get("solved")
            assert ("episode" in our) == ("episode" in their)
            if "episode" in our:
                assert all(our["episode"][key] == their["episode"][key] for key in ("r", "l"))
    env = gym.wrappers.TimeLimit(gym.make("toolagent/Calculator-v0"), 2)
    env.reset(seed=0)
    assert [env.step(STO)[3] for _ in range(2)] == [False, True]
    limited = gym.make("toolagent/Calculator-v0", max_episode_steps=2)
    limited.reset(seed=0)
    assert [limited.step(STO)[3] for _ in range(2)] == [False, True]
    check_env(gym.wrappers.FlattenObservation(ToolEnv("calculator")), skip_render_check=True)
