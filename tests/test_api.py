"""The functions of `toolagent` for programs: agents that are loaded, what they play, certifying."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from trained import ROOT, is_refusal, run_modules, trained_network, untrained_expression_network

import toolagent
from toolagent.checkpoints.policy import Policy, save_policy
from toolagent.errors import UserError
from toolagent.examples.own_task.bells import BellsTask
from toolagent.models.registry import network_class
from toolagent.rollouts.play import play
from toolagent.run.launch import override
from toolagent.tasks import Problems, Registers, Task, Transition, Vocabulary, get_task
from toolagent.tasks.tokens import CTX

toolagent.register_task(BellsTask)


class EchoTask(Task):
    """The tool answers with how many actions there were, and the second token is a digit again."""

    name = "echo"
    vocabulary = Vocabulary(
        actions=("ASK", "END"), observed=tuple("012345"), start="ASK", pad="0", answer="END"
    )
    num_stages, context_length, max_actions, response_length = 2, 1, 4, 2

    def sample(self, rng, stage, split="all"):
        context = 2 + rng.integers(0, 3, (len(stage), 1))
        return Problems(np.asarray(stage, np.int8), context.astype(np.int8))

    def start(self, problems):
        return Registers(np.zeros(len(problems), np.int8))

    def step(self, problems, registers, actions):
        steps = registers.steps + np.int8(1)
        ended = actions == 1
        response = np.stack([2 + steps, problems.context[:, 0]], 1)
        out = ~ended & (steps >= self.max_actions)
        return Transition(Registers(steps), ended * 1.0, ended, out, ended, response)

    def target(self, problems):
        return problems.context[:, 0].astype(np.int64)


toolagent.register_task(EchoTask)


def agent_of(reference, seed=0, scale=3.0, network="stage_gru"):
    """An agent with random weights, so large that its tokens vary."""
    task = get_task(reference)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = network_class(network)(task.interface, (16,))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(scale)
    return toolagent.Agent(Policy(built.eval(), task, {}, ROOT), seed=1)


def programs(task, batch):
    return [tuple(row[:length]) for row, length in zip(batch.actions, batch.lengths, strict=True)]


ECHO, BELLS = (f"{task.__module__}:{task.__name__}" for task in (EchoTask, BellsTask))


PLAYED = [(task, "stage_gru") for task in ("calculator", "tutorial", "expression", ECHO, BELLS)]
# Networks that keep something of each context token: contexts differ in length.
PLAYED += [("expression", "encoder_decoder"), ("expression", "answer_attention")]


@pytest.mark.parametrize(("reference", "network"), PLAYED)
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_acting_in_a_vector_environment_is_playing(reference, network, autoreset):
    """Against the rollout loop: each episode's actions are those of `play` on its problem."""
    agent, task = agent_of(reference, network=network), get_task(reference)
    stage = int(task.stages[-1])
    envs = vector(reference, autoreset, 40, stage)
    observation, _ = envs.reset(seed=3)
    state, running, whole = None, [[] for _ in range(40)], []
    shown = [row for row in observation["context"]]
    waiting = np.zeros(40, bool)  # the action is ignored: the episode was over
    for _ in range(60):
        actions, state = agent.act(observation, state)
        assert actions.shape == (40,) and actions.dtype == np.int64
        for row in np.flatnonzero(~waiting):
            running[row].append(actions[row])
        observation, _, terminated, truncated, _ = envs.step(actions)
        done = terminated | truncated
        for row in np.flatnonzero(done):
            whole.append((shown[row], tuple(running[row])))
            running[row] = []
        begun = done if autoreset == "same_step" else waiting
        for row in np.flatnonzero(begun):
            shown[row] = observation["context"][row]
        waiting = done if autoreset != "same_step" else np.zeros(40, bool)
    contexts = np.array([context for context, _ in whole])
    assert len(whole) > 100
    problems = posed(task, stage, contexts)
    assert programs(task, play(agent.policy.network, task, problems)) == [p for _, p in whole]
    if reference in ("calculator", ECHO):  # agents that write `start`, and run out of actions
        start = task.vocabulary.start_token
        assert any(start in program for _, program in whole)


def vector(reference, autoreset, size, stage=0):
    identifier = toolagent.envs.registration.env_id(reference)
    if autoreset == "next_step":
        return gym.make_vec(identifier, num_envs=size, stage=stage)
    made = [lambda: gym.make(identifier, stage=stage)] * size
    return gym.vector.SyncVectorEnv(made, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def posed(task, stage, contexts):
    """The problems with these contexts."""
    stages = np.full(len(contexts), stage, np.int8)
    if isinstance(task, BellsTask):
        return task.pose(stages, floor=contexts[:, 0] - task.vocabulary.token("F0"))
    if isinstance(task, EchoTask):
        return Problems(stages, contexts.astype(np.int8))
    return task.pose(stages, **task.read(contexts.astype(np.int8)))


def test_a_single_environment_gives_plain_integers_and_begins_anew_with_each_problem():
    agent = agent_of("calculator")
    env = gym.make("toolagent/Calculator-v0", stage=1)
    state, episodes = None, []
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        problem, tokens, done = observation["context"], [], False
        while not done:
            action, state = agent.act(observation, state)  # the last episode's: it is noticed
            assert type(action) is int
            observation, _, terminated, truncated, _ = env.step(action)
            tokens.append(action)
            done = terminated or truncated
        episodes.append(tuple(tokens))
        fresh = agent.act(env.reset(seed=seed)[0], None)[0]
        assert fresh == tokens[0]
        digits = posed(agent.task, 1, problem[None])
        assert programs(agent.task, play(agent.policy.network, agent.task, digits)) == [
            episodes[-1]
        ]


def observed(previous, context=(1, 2, 3, CTX, 17, 17), stage=0):
    return {"context": np.array(context), "stage": stage, "previous_token": previous}


def test_start_that_the_agent_wrote_is_no_beginning():
    """`CTX` is the previous token at the beginning, and an action."""
    agent = agent_of("calculator")
    context = (1, 2, 3, CTX, 17, 17)
    _, state = agent.act(observed(CTX))
    wrote = toolagent.AgentState(**{**vars(state), "action": np.array([CTX])})
    _, goes_on = agent.act(observed(CTX), wrote)
    assert goes_on.steps.tolist() == [2]
    for other in (observed(CTX, (*context[:2], 4, *context[3:])), observed(CTX, stage=1)):
        assert agent.act(other, wrote)[1].steps.tolist() == [1]
    ended = toolagent.AgentState(**{**vars(wrote), "ends": np.array([True])})
    assert agent.act(observed(CTX), ended)[1].steps.tolist() == [1]
    # What it wrote was another token: an environment that was reset.
    wrote = toolagent.AgentState(**{**vars(state), "action": np.array([5])})
    assert agent.act(observed(CTX), wrote)[1].steps.tolist() == [1]


def test_states_are_not_changed_and_can_be_gone_back_to():
    agent, envs = agent_of("calculator"), vector("calculator", "next_step", 8)
    observation, _ = envs.reset(seed=0)
    actions, first = agent.act(observation)
    hidden = first.hidden.clone()
    observation, *_ = envs.step(actions)
    once, again = agent.act(observation, first), agent.act(observation, first)
    assert (once[0] == again[0]).all() and torch.equal(first.hidden, hidden)


def test_sampled_actions_follow_the_distribution_and_the_seed():
    def drawn(seed):
        agent = toolagent.Agent(agent_of("calculator", scale=1.0).policy, seed)
        size = 20_000
        many = {name: np.repeat([column], size, 0) for name, column in observed(CTX).items()}
        actions, _ = agent.act(many, greedy=False)
        network = agent.policy.network
        encoding, hidden = network.begin(
            torch.from_numpy(many["context"][:1]), torch.from_numpy(many["stage"][:1])
        )
        logits, _, _ = network.step(network.step_table(), torch.tensor([CTX]), encoding, hidden)
        return actions, torch.softmax(logits[0], 0).numpy()

    actions, expected = drawn(5)
    shares = np.bincount(actions, minlength=len(expected)) / len(actions)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(actions))
    assert (drawn(5)[0] == actions).all() and (drawn(6)[0] != actions).any()


def wrong_observations():
    good = observed(CTX)
    yield good | {"context": good["context"][:4]}, "shape"
    yield good | {"context": good["context"] * 1.0}, "float64"
    yield good | {"previous_token": 99}, "outside 0..17"
    yield {"context": good["context"]}, "previous_token"
    yield np.zeros(8), "dictionary"
    yield good | {"previous_token": 3}, "has begun already"


@pytest.mark.parametrize(("observation", "said"), wrong_observations())
def test_what_is_no_observation_is_refused(observation, said):
    with pytest.raises(ValueError, match=said):
        agent_of("calculator").act(observation)


def test_a_state_of_another_problem_or_of_more_environments_is_refused():
    agent = agent_of("calculator")
    action, state = agent.act(observed(CTX))
    other = 3 if action != 3 else 4
    ongoing = toolagent.AgentState(**{**vars(state), "ends": np.array([False])})
    with pytest.raises(ValueError, match="another problem"):
        agent.act(observed(other, (9, 9, 9, CTX, 17, 17)), ongoing)
    with pytest.raises(ValueError, match="1 environments"):
        agent.act(vector("calculator", "next_step", 2).reset()[0], state)


# Checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_policy(folder, trained_network(), "calculator", trained_stages=[0, 1, 2])
    return folder


def test_an_agent_plays_a_problem(checkpoint):
    episode = toolagent.load_agent(checkpoint).play(stage=2, digits=[3, 4, 5, 6, 7])
    assert episode.tokens == ("MUL", "ADD", "STO", "MUL", "RCL", "SUB", "ANS")
    assert (episode.problem, episode.answer, episode.target) == ("3*4+5-6*7", -25, -25)
    assert episode.solved is True
    first, last = episode.steps[0], episode.steps[-1]
    assert (first.token, first.registers["acc"], first.response) == ("MUL", 12, ())
    assert 0.5 < first.probability <= 1 and last.reward >= 1
    assert str(episode).startswith("3*4+5-6*7: MUL[")


def test_problems_are_posed_as_in_the_environment_or_drawn(checkpoint, tmp_path):
    agent = toolagent.load_agent(str(checkpoint))
    assert agent.play(stage=0, digits=(3, 4, 5)).problem == "3*4+5"
    assert agent.play(digits=[3, 4, 5, 6, 7]).stage == 2
    assert (agent.play().stage, agent.play(stage=1).stage) == (2, 1)
    save_policy(tmp_path, untrained_expression_network(), "expression")
    expression = toolagent.load_agent(tmp_path).play(expression="(3+4)*2")
    assert (expression.problem, expression.stage, expression.target) == ("(3+4)*2", 3, 14)
    assert agent_of(BELLS).play(stage=0, floor=3).target == 3
    echo = agent_of(ECHO).play(stage=1)
    assert echo.stage == 1 and echo.answer is None
    assert echo.steps[0].response == ("1", EchoTask.vocabulary.names[echo.target])


@pytest.mark.parametrize(
    "given",
    [{"stage": 7}, {"digit": [1, 2, 3]}, {"digits": [1, 2]}, {"digits": 7}, {"stage": "x"}],
)
def test_what_is_no_problem_is_refused(checkpoint, given):
    with pytest.raises(UserError):
        toolagent.load_agent(checkpoint).play(**given)
    with pytest.raises(UserError, match="pose"):
        agent_of(ECHO).play(digits=[1])


def test_other_people_s_code_is_imported_only_if_it_is_named(tmp_path, monkeypatch):
    """In a fresh process: here the task is registered."""
    agent = agent_of(BELLS)
    save_policy(tmp_path, agent.policy.network, BELLS)
    code = (
        "import sys, toolagent\n"
        "def refused(**given):\n"
        "    try: toolagent.load_agent(sys.argv[1], **given)\n"
        "    except toolagent.errors.UserError as error: return str(error)\n"
        "assert '--task' in refused()\n"
        f"assert {BELLS.partition(':')[0]!r} not in sys.modules\n"
        f"assert refused(task={BELLS!r}) is None\n"
        f"assert toolagent.certify(sys.argv[1], task={BELLS!r})['stages'][1]['stage'] == 1\n"
        f"from {BELLS.partition(':')[0]} import BellsTask\n"
        "assert refused(task=BellsTask) is None and refused() is None\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60)
    assert done.returncode == 0


@pytest.mark.full
def test_certifying_gives_what_evaluate_writes(checkpoint, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("stage,a,b,c,d,e\n0,1,2,3,,\n2,3,4,5,6,7\n")
    run_modules(
        ["-m", "toolagent.evaluate", str(checkpoint), "--json", "all.json"],
        ["-m", "toolagent.evaluate", str(checkpoint), "--problems", str(file), "--json", "g.json"],
        cwd=tmp_path,
    )
    threads = torch.get_num_threads()
    for name, problems in (("all", None), ("g", file)):
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert toolagent.certify(checkpoint, problems) == written
    assert torch.get_num_threads() == threads
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        toolagent.certify(checkpoint, tmp_path / "nowhere.csv")


# Training -----------------------------------------------------------------------------------


def test_python_values_become_configuration_values():
    from toolagent.config.overrides import parse_override

    given = [1e-3, 1e-05, 7, True, None, "a: b # c", "é😀", [1, 2.5], {"a": {"b": None}}]
    given += [np.float32(0.5), np.int64(3), np.arange(2), (1, 2), ROOT]
    expected = [*given[:9], 0.5, 3, [0, 1], [1, 2], str(ROOT)]
    for value, plain in zip(given, expected, strict=True):
        parsed = parse_override(override("training.lr", value))
        assert (parsed.path, parsed.value) == (("training", "lr"), plain)
        assert type(parsed.value) is type(plain)


@pytest.mark.parametrize(
    "given",
    [
        {"config": "defalt"},
        {"config": {"task": "calculator"}},
        {"overrides": {"trainng.lr": 1}},
        {"overrides": {"training.lr": float("nan")}},
        {"overrides": {"training.lr": print}},
        {"overrides": ["training.lr=1"]},
        {"stop_env_steps": 0},
        {"num_env_runners": -1},
        {"seed": "x"},
        {"output_dir": ROOT},
        {"output_dir": 7},
    ],
    ids=str,
)
def test_what_the_command_refuses_is_a_user_error(given, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError):
        toolagent.train(**given)


def test_a_task_that_only_a_notebook_has_is_refused_with_remote_runners(monkeypatch):
    local = type("LocalTask", (BellsTask,), {"name": "local", "__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    toolagent.register_task(local)
    with pytest.raises(UserError, match="__main__:LocalTask"):
        toolagent.train(
            overrides={"task": "local", "curriculum.levels": [{"stage": 0}]}, num_env_runners=2
        )


TRAINING = """\
import contextlib, os, signal, sys, threading, warnings
import ray
import torch
import toolagent

SHORT = {"run.dashboard": False, "run.sample_trajectories": 0}

def settings():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    return handlers, list(warnings.filters), torch.get_num_threads()

def addresses():
    '''Where the processes below this one listen.'''
    import psutil
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    yield connection.laddr.ip.removeprefix('::ffff:')

def main():
    torch.set_num_threads(2)
    before = settings()
    first = toolagent.train(
        output_dir="first", num_env_runners=1, seed=7, stop_env_steps=9000,
        overrides=SHORT | {"training.lr": 2e-3},
    )
    assert settings() == before and not ray.is_initialized()
    assert first.summary["seed"] == 7 and first.summary["stopped_by"] == "env_steps"
    assert (first.folder / "summary.json").exists() and first.checkpoint.is_dir()
    assert "lr: 0.002" in (first.folder / "config.yaml").read_text()
    assert toolagent.load_agent(first.checkpoint).play(stage=0).tokens

    # In another thread, which can handle no signals; nothing listens on the network.
    runs, seen = [], set()
    train = lambda: runs.append(toolagent.train(num_env_runners=1, stop_time_s=3, overrides=SHORT))
    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        seen |= {*addresses()}
        thread.join(2)
    assert runs and runs[0].folder.parent.name == "runs" and settings() == before
    assert seen and seen <= {"127.0.0.1", "::1"}, seen

    # Ctrl-C leaves a checkpoint, and the program goes on.
    timer = threading.Timer(1, lambda: None)
    def interrupt():
        while not os.path.exists("third/progress.jsonl"):
            timer.finished.wait(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        toolagent.train(output_dir="third", num_env_runners=0, overrides=SHORT | {
            "run.stop_when_solved": False})
    except KeyboardInterrupt as error:
        assert "third" in str(error)
    else:
        raise AssertionError("not interrupted")
    assert toolagent.load_agent("third").play(stage=0).tokens and settings() == before

    # A cluster of the program's own is not taken away.
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        toolagent.train(output_dir="fourth")
    except toolagent.errors.UserError as error:
        assert "ray.shutdown()" in str(error)
    assert ray.is_initialized() and not os.path.exists("fourth")
    print("done")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_trainings_in_one_program(tmp_path):
    (tmp_path / "program.py").write_text(TRAINING)
    (done,) = run_modules(["program.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.slow
def test_a_run_that_failed_raises_what_was_wrong(tmp_path):
    """As the command's exit code 1: here the disk takes no results."""
    code = (
        "import toolagent\n"
        "from toolagent.checkpoints.run_folder import RunFolder\n"
        "def full(self, summary): raise OSError(28, 'No space left on device')\n"
        "RunFolder.write_summary = full\n"
        "try:\n"
        "    toolagent.train(output_dir='run', num_env_runners=0, stop_env_steps=3000,\n"
        "                    overrides={'run.dashboard': False})\n"
        "except RuntimeError as error:\n"
        "    print('raised', error)\n"
    )
    (done,) = run_modules(["-c", code], cwd=tmp_path)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("raised results in run") and "No space left" in last
    assert not is_refusal(done)
