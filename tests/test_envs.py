"""The single and the vector environment: two views of one machine, and how they are seeded."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from ray.rllib.env.env_context import EnvContext

import toolagent  # noqa: F401  (registers the ids)
from toolagent.envs import env_id
from toolagent.envs.registration import create_for_rllib
from toolagent.envs.single import ToolEnv
from toolagent.envs.vector import ToolVectorEnv, draw_stages
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, EOS, MUL, STO, SUB

NAMES = ["tutorial", "calculator", "expression"]


def test_the_ids():
    assert [env_id(name) for name in NAMES] == [
        "toolagent/Tutorial-v0",
        "toolagent/Calculator-v0",
        "toolagent/Expression-v0",
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [None, 0, -1])
def test_gymnasium_finds_nothing_to_complain_about(name, place):
    stage = None if place is None else get_task(name).stages[place]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id(name), stage=stage).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_stage_it_is_the_task_s_first(name):
    first = {"tutorial": 0, "calculator": 0, "expression": 1}[name]
    for arguments in ({}, {"stage": None}):
        env, envs = ToolEnv(name, **arguments), ToolVectorEnv(2, name, **arguments)
        assert env.stage == envs.stage == first
        assert env.reset(seed=0)[0]["stage"] == first
        assert envs.reset(seed=0)[0]["stage"].tolist() == [first, first]
    # Every encoder takes the number for the index: it begins at 0 and has room for the last stage.
    assert env.observation_space["stage"] == gym.spaces.Discrete(get_task(name).stages[-1] + 1)


@pytest.mark.parametrize("name", NAMES)
def test_make_vec_gives_the_native_vector_env(name):
    envs = gym.make_vec(env_id(name), num_envs=3, stage=1)
    assert type(envs.unwrapped) is ToolVectorEnv
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    assert observations["stage"].tolist() == [1, 1, 1]


def test_one_episode_as_a_person_would_check_it():
    env = gym.make("toolagent/Calculator-v0")
    observation, info = env.reset(options={"stage": 0, "digits": [3, 4, 5, 0, 0]})
    assert observation["context"].tolist() == [3, 4, 5, CTX, EOS, EOS]
    assert (observation["stage"], observation["previous_token"]) == (0, CTX)
    assert info == {"acc": None}
    observation, reward, terminated, truncated, info = env.step(MUL)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"acc": 12})
    assert observation["previous_token"] == MUL
    assert env.step(ADD)[4] == {"acc": 17}
    _, reward, terminated, truncated, info = env.step(ANS)
    assert (terminated, truncated) == (True, False)
    assert reward == pytest.approx(1 + 0.2 * 0.5)
    assert info == {"acc": 17, "solved": True}
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(MUL)


def test_one_expression_as_a_person_would_check_it():
    env = gym.make("toolagent/Expression-v0")
    observation, info = env.reset(options={"expression": "(3+4)*2"})
    assert observation["context"].tolist() == [18, 3, ADD, 4, 19, MUL, 2, CTX] + [EOS] * 22
    assert (observation["stage"], observation["previous_token"]) == (3, CTX)
    assert info == {"acc": None}
    accs = []
    for token in (3, 4, ADD, 2, MUL):
        observation, reward, terminated, truncated, info = env.step(token)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert env.observation_space.contains(observation)
        accs.append(info["acc"])
    assert accs == [3, 4, 7, 2, 14]
    _, reward, terminated, truncated, info = env.step(ANS)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"acc": 14, "solved": True}


def test_the_tutorial_rewards_the_wrong_target_and_says_that_it_is_not_solved():
    env = gym.make("toolagent/Tutorial-v0")
    env.reset(options={"stage": 0, "digits": [3, 4, 5, 0, 0]})
    env.step(MUL)
    _, reward, _, _, info = env.step(ANS)
    assert reward == pytest.approx(1 + 0.2 * 0.25)
    assert info == {"acc": 12, "solved": False}


def test_the_limit_may_be_reported_as_termination():
    env = ToolEnv("calculator", limit_terminates=True)
    env.reset(seed=0)
    ends = [env.step(STO)[1:4] for _ in range(7)]
    assert ends == [(0.0, False, False)] * 6 + [(0.0, True, False)]


# One semantics, two views ----------------------------------------------------------------------


def test_acc_is_an_integer_for_whoever_reads_it():
    env = ToolEnv("calculator")
    env.reset(options={"digits": [3, 4, 5, 0, 0]})
    acc = env.step(MUL)[4]["acc"]
    assert isinstance(acc, int) and acc == 12
    assert json.dumps({"acc": acc}) == '{"acc": 12}' and f"{acc}" == "12"


def test_observations_and_flags_of_earlier_steps_stay_as_they_were():
    envs = ToolVectorEnv(64, "calculator")
    rng = np.random.default_rng(0)
    observations, infos = envs.reset(seed=0)
    kept = []
    for _ in range(20):
        results = envs.step(rng.choice([MUL, ADD, ANS], 64))
        arrays = [*results[0].values(), *results[1:4], *results[4].values()]
        kept.append((arrays, [array.copy() for array in arrays]))
    for arrays, copies in kept:
        assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))
    assert (observations["previous_token"] == CTX).all() and not infos["_acc"].any()


# Options -------------------------------------------------------------------------------------


def test_the_vector_env_poses_given_problems_of_given_stages():
    envs = ToolVectorEnv(3, "calculator")
    digits = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [0, 0, 1, 1, 1]])
    observations, _ = envs.reset(seed=0, options={"stage": np.array([0, 1, 2]), "digits": digits})
    assert observations["stage"].tolist() == [0, 1, 2]
    assert observations["context"].tolist() == [
        [1, 2, 3, CTX, EOS, EOS],
        [9, 8, 7, 6, CTX, EOS],
        [0, 0, 1, 1, 1, CTX],
    ]
    # Chosen stages hold for the episodes that follow, given problems only for the first.
    envs.step(np.full(3, ANS))
    observations, *_ = envs.step(np.full(3, ANS))
    assert observations["stage"].tolist() == [0, 1, 2]
    assert observations["context"].tolist()[2] != [0, 0, 1, 1, 1, CTX]
    # Also where one row alone begins its next episode.
    envs.step(np.array([MUL, MUL, ANS]))
    assert envs.step(np.array([MUL, MUL, ANS]))[0]["stage"].tolist() == [0, 1, 2]
    # The next call without a stage goes back to the env's own.
    assert envs.reset()[0]["stage"].tolist() == [0, 0, 0]


def test_options_may_hold_one_stage_for_all():
    envs = ToolVectorEnv(3, "calculator")
    assert envs.reset(options={"stage": 2})[0]["stage"].tolist() == [2, 2, 2]
    env = ToolEnv("calculator")
    assert env.reset(seed=0, options={"stage": 1})[0]["stage"] == 1
    assert env.reset()[0]["stage"] == 0


def test_the_vector_env_poses_given_expressions_whose_stages_follow():
    envs = ToolVectorEnv(3, "expression", stage=2)
    texts = ["7", "(3+4)*2", "8 - (3 - 2)"]
    observations, infos = envs.reset(seed=0, options={"expression": texts})
    assert observations["stage"].tolist() == envs.stages.tolist() == [1, 3, 3]
    assert envs.task.read(observations["context"])["expression"].tolist() == [
        "7",
        "(3+4)*2",
        "8-(3-2)",
    ]
    assert not infos["_acc"].any()
    for actions in ([7, 3, 8], [ANS, 4, 3], [5, ADD, 2], [ANS, 2, SUB]):
        _, rewards, terminated, _, _ = envs.step(np.array(actions))
    _, rewards, terminated, truncated, infos = envs.step(np.array([ANS, MUL, SUB]))
    _, rewards, terminated, truncated, infos = envs.step(np.array([ANS, ANS, ANS]))
    assert rewards[1:].tolist() == [1.0, 1.0] and terminated[1:].all() and not truncated.any()
    assert infos["acc"][1:].tolist() == [14, 7] and infos["solved"][1:].all()
    # The episodes that follow are of the env's own stage.
    observations, *_ = envs.step(np.full(3, ANS))
    assert observations["stage"][1:].tolist() == [2, 2]
    # Chosen stages have to be the expressions', and then hold for those that follow as well.
    envs.reset(options={"expression": texts, "stage": [1, 3, 3]})
    envs.step(np.full(3, ANS))
    assert envs.step(np.full(3, ANS))[0]["stage"].tolist() == [1, 3, 3]


def test_a_refused_reset_leaves_the_episodes_as_they_were():
    envs = ToolVectorEnv(2, "expression", stage=3)
    envs.reset(seed=0, options={"stage": 4})
    before = envs._problems.context.copy()
    with pytest.raises(ValueError, match="is of stage 1"):
        envs.reset(options={"stage": 2, "expression": ["1+1", "1"]})
    assert np.array_equal(envs._problems.context, before)
    envs.step(np.full(2, ANS))
    assert envs.step(np.full(2, ANS))[0]["stage"].tolist() == [4, 4]


BAD_EXPRESSIONS = [
    ({"expression": ["1+", "1"]}, r"'1\+': expected a digit"),
    ({"expression": ["1", "1", "1"]}, "3 problems were given; expected [12]"),
    ({"expression": 12}, "is a text such as .*, not 12"),
    ({"digits": [1, 2, 3, 4, 5]}, "posed by 'expression'.*not by 'digits'"),
    ({"stage": 0}, r"stages are 1\.\.8"),
    ({"stage": 2, "expression": ["7", "7"]}, "7 is of stage 1, its number of operands, not of"),
]


@pytest.mark.parametrize(("options", "message"), BAD_EXPRESSIONS)
def test_wrong_expressions_are_refused_with_what_would_be_right(options, message):
    for env in (ToolEnv("expression"), ToolVectorEnv(2, "expression")):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)


def test_a_stage_that_contradicts_the_expression_is_refused():
    env = ToolEnv("expression", stage=5)
    assert env.reset(options={"expression": "1+1", "stage": 2})[0]["stage"] == 2
    with pytest.raises(ValueError, match=r"1\+1 is of stage 2, its number of operands, not of st"):
        env.reset(options={"expression": "1+1", "stage": 3})
    # The env's own stage contradicts nothing: it is for the episodes that are drawn.
    assert env.reset(options={"expression": "1+1"})[0]["stage"] == 2
    assert env.reset()[0]["stage"] == 5


BAD_OPTIONS = [
    ({"stage": 3}, r"stages are 0\.\.2"),
    ({"stage": -1}, r"stages are 0\.\.2"),
    ({"digits": [1, 2, 3]}, r"expected \(2, 5\)|expected \(1, 5\)"),
    ({"digits": [[0, 1, 2, 3, 10]] * 2}, r"integers 0\.\.9|expected \(1, 5\)"),
    ({"digit": [1, 2, 3, 4, 5]}, "posed by 'digits'.*not by 'digit'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_wrong_options_are_refused_with_what_would_be_right(options, message):
    for env in (ToolEnv("calculator"), ToolVectorEnv(2, "calculator")):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)


def test_as_many_stages_as_environments():
    with pytest.raises(ValueError, match="expected one integer or 3"):
        ToolVectorEnv(3, "calculator").reset(options={"stage": [0, 1]})
    with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
        ToolVectorEnv(2, "calculator").reset(options={"stage": [0, 3]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "at least 1"),
        ({"earlier_stage_share": 1.5}, r"in 0\.\.1"),
        ({"earlier_stage_share": -0.1}, r"in 0\.\.1"),
        ({"stage": 3}, r"stages are 0\.\.2"),
        ({"stage": 0, "task": "expression"}, r"stages are 1\.\.8"),
        ({"task": "calculater"}, "did you mean 'calculator'"),
    ],
)
def test_wrong_constructor_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToolVectorEnv(**{"num_envs": 2, "task": "calculator"} | arguments)


@pytest.mark.parametrize("bad", [-1, 18, 255, 1.0, True, None, "MUL"])
def test_a_bad_token_raises_and_is_never_worth_0(bad):
    env = ToolEnv("calculator")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0\.\.17"):
        env.step(bad)
    envs = ToolVectorEnv(2, "calculator")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"0\.\.17"):
        envs.step(np.array([MUL, bad]) if type(bad) is int else np.array([bad, bad]))


def test_another_number_of_actions_raises():
    envs = ToolVectorEnv(2, "calculator")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(2,\)"):
        envs.step(np.array([MUL, MUL, MUL]))


def test_a_bad_token_raises_also_where_the_action_is_ignored():
    envs = ToolVectorEnv(2, "calculator")
    envs.reset(seed=0)
    envs.step(np.array([ANS, MUL]))
    with pytest.raises(ValueError, match="action 99"):
        envs.step(np.array([99, MUL]))


def test_stepping_before_the_first_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded):
        ToolEnv("calculator").step(MUL)
    with pytest.raises(gym.error.ResetNeeded):
        ToolVectorEnv(2, "calculator").step(np.array([MUL, MUL]))


# Seeds ---------------------------------------------------------------------------------------


def problem_stream(envs, seed, steps=4):
    """The contexts of the first episodes: every second step starts new ones."""
    contexts = [envs.reset(seed=seed)[0]["context"]]
    for _ in range(steps):
        envs.step(np.full(envs.num_envs, ANS))
        contexts.append(envs.step(np.full(envs.num_envs, ANS))[0]["context"])
    return np.concatenate(contexts)


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    first, second = (problem_stream(ToolVectorEnv(8, "calculator", stage=2), 5) for _ in "ab")
    other = problem_stream(ToolVectorEnv(8, "calculator", stage=2), 6)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.array_equal(first[:8], problem_stream(ToolVectorEnv(8, "calculator", stage=2), 5, 0))


def test_no_two_runners_of_rllib_share_a_problem_stream():
    """RLlib seeds runner i with `seed + i`, evaluation with a million more (`EnvRunner`)."""
    starts = {}
    for seed in range(4):
        for evaluation in (False, True):
            for worker in range(4):
                env_config = {"task": "calculator", "stage": 2, "seed": seed, "num_envs": 8}
                envs = create_for_rllib(env_config | {"evaluation": evaluation})
                assert type(envs) is ToolVectorEnv
                handed_over = seed + worker + 1_000_000 * evaluation
                stream = problem_stream(envs, handed_over, 0)
                starts[seed, evaluation, worker] = stream.tobytes()
    # 8 problems of 100,000: two different streams agree on them with probability 1e-40.
    assert len(set(starts.values())) == len(starts) == 32
    # A vacuous test would pass with streams that forget their seed: the same again is the same.
    again = create_for_rllib({"task": "calculator", "stage": 2, "seed": 3, "num_envs": 8})
    assert problem_stream(again, 5, 0).tobytes() == starts[3, False, 2]


def test_nor_do_the_single_envs_of_two_runners():
    """RLlib's `sync` mode: Gymnasium gives env j of a runner the seed of the runner plus j."""
    starts = {}
    for seed in range(3):
        for evaluation in (False, True):
            for worker in range(1, 4):
                settings = {"task": "calculator", "stage": 2, "seed": seed}
                context = EnvContext(settings | {"evaluation": evaluation}, worker_index=worker)
                for j in range(4):
                    env = create_for_rllib(context)
                    first = env.reset(seed=seed + worker + j + 1_000_000 * evaluation)[0]
                    following = [env.reset()[0] for _ in range(4)]
                    stream = [o["context"].tolist() for o in (first, *following)]
                    starts[seed, evaluation, worker, j] = str(stream)
    assert len(set(starts.values())) == len(starts) == 72


def test_streams_differ_where_seeds_coincide():
    a = problem_stream(ToolVectorEnv(8, "calculator", stage=2, stream=(1, 0, 0)), 7)
    b = problem_stream(ToolVectorEnv(8, "calculator", stage=2, stream=(0, 1, 0)), 7)
    assert not np.array_equal(a, b)


def test_rllib_gets_a_single_env_where_it_does_not_ask_for_several():
    env = create_for_rllib({"task": "tutorial", "stage": 1, "seed": 3, "earlier_stage_share": 0.5})
    assert type(env) is ToolEnv
    assert (env.task.name, env.stage) == ("tutorial", 1)


# Stages --------------------------------------------------------------------------------------


def test_set_stage_holds_for_the_episodes_that_start_from_then_on():
    envs = ToolVectorEnv(3, "calculator")
    envs.reset(seed=0)
    envs.step(np.array([ANS, MUL, MUL]))
    envs.set_stage(2)
    assert envs.stages.tolist() == [0, 0, 0]
    observations, *_ = envs.step(np.array([MUL, ADD, SUB]))
    assert observations["stage"].tolist() == envs.stages.tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
        envs.set_stage(3)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_share_of_episodes_comes_evenly_from_the_earlier_stages(stage):
    envs = ToolVectorEnv(20_000, "calculator", stage=stage, earlier_stage_share=0.3)
    counts = np.bincount(envs.reset(seed=1)[0]["stage"], minlength=3)
    expected = np.array([0.3 / stage] * stage + [0.7] + [0.0] * (2 - stage))
    # 5 standard deviations of a binomial count.
    assert (np.abs(counts - 20_000 * expected) <= 5 * np.sqrt(20_000 * 0.25)).all()
    assert counts[stage + 1 :].sum() == 0


def test_the_earlier_stages_begin_with_the_task_s_first():
    envs = ToolVectorEnv(20_000, "expression", stage=4, earlier_stage_share=0.3)
    counts = np.bincount(envs.reset(seed=1)[0]["stage"], minlength=9)
    expected = np.array([0, 0.1, 0.1, 0.1, 0.7, 0, 0, 0, 0])
    # 5 standard deviations of a binomial count.
    assert (np.abs(counts - 20_000 * expected) <= 5 * np.sqrt(20_000 * 0.25)).all()
    assert not counts[expected == 0].any()
    envs.set_stage(1)
    assert (envs.reset()[0]["stage"] == 1).all()
    assert (envs.fresh_problems(100).stage == 1).all()
    envs.set_stage(3)
    mixed = envs.fresh_problems(1000, current=400).stage
    assert set(mixed[:600].tolist()) == {1, 2, 3} and (mixed[600:] == 3).all()


def test_no_episode_of_training_has_a_skeleton_that_is_held_out():
    envs = ToolVectorEnv(256, "expression", stage=8, earlier_stage_share=0.5)
    envs.reset(seed=0)
    for _ in range(30):
        assert not envs._problems.held_out.any()
        posed_again = envs.task.pose(None, **envs.task.read(envs._problems.context[:32]))
        assert not posed_again.held_out.any()
        envs.step(np.full(256, ANS))
    # Whoever poses one gets it.
    envs.reset(options={"expression": ["1*(2*3*4)"] * 256})
    assert envs._problems.held_out.all()


def test_without_a_share_or_an_earlier_stage_all_are_the_current_one():
    rng = np.random.default_rng(0)
    assert (draw_stages(rng, 100, 2, 0.0) == 2).all()
    assert (draw_stages(rng, 100, 0, 1.0) == 0).all()
    assert (draw_stages(rng, 100, 1, 1.0) == 0).all()
    assert (draw_stages(rng, 100, 1, 1.0, first_stage=1) == 1).all()
    assert (draw_stages(rng, 100, 2, 1.0, first_stage=1) == 1).all()


def test_earlier_stages_are_drawn_by_their_weights():
    rng, weights = np.random.default_rng(0), np.array([1.0, 0.0, 3.0, 9.0])
    drawn = draw_stages(rng, 20_000, 3, 0.5, weights=weights)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.125, 0, 0.375, 0.5], atol=0.015)
    even = np.bincount(draw_stages(rng, 20_000, 2, 1.0, weights=np.zeros(4))) / 20_000
    np.testing.assert_allclose(even, [0.5, 0.5], atol=0.015)
    envs = ToolVectorEnv(4, "calculator")
    for wrong in (np.ones(2), np.array([1.0, -1.0, 1.0])):
        with pytest.raises(ValueError, match="earlier_stage_weights"):
            envs.earlier_stage_weights = wrong
