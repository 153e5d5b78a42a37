"""A run that is killed at any moment and resumed ends as if nothing had happened, to the last bit.

Killed means SIGKILL of the command. The runs join a cluster of the test's own, which saves the
time of starting one for each.
"""

from __future__ import annotations

import errno
import functools
import json
import operator
import os
import random
import signal
import time

import numpy as np
import processes
import pytest
import ray
from small_disk import mounted, remount
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trained import ROOT

from toolagent.checkpoints.manifest import verify
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.state_files import encode_state, read_state
from toolagent.checkpoints.training_state import list_checkpoints, newest_checkpoint
from toolagent.cluster.ray_session import listen_on_loopback, quiet
from toolagent.config import build_algorithm_config, load_settings
from toolagent.curriculum.callback import CurriculumCallback
from toolagent.learning.algorithm import PIPELINE

# What a clock decides and nothing else.
CLOCK = {"time_s", "env_steps_per_s", "learner_idle_share", "sampler_idle_share"}
CLOCK |= {"wall_time_s", "first_solved_s", "checkpoints_s", "checkpoints_written"}
CLOCK |= {"best_checkpoint"}  # of those that there was time to write

COMMON = (
    *("run.dashboard=false", "run.sample_trajectories=0", "run.stop_when_solved=false"),
    "run.checkpoint_every_s=0.001",  # after every iteration: kills come while one is written
)
CALCULATOR = (
    *("env_runners.num_env_runners=0", "env_runners.num_envs_per_env_runner=64"),
    *("training.episodes_per_update=64", "training.updates_per_iteration=4"),
    *("rl_module.model_config.embedding_size=16", "curriculum.measure_problems=100"),
    *("curriculum.levels.0.advance_after_iterations=6", "curriculum.measure_every_iterations=2"),
    "curriculum.levels.1.advance_after_iterations=6",
)
SHUFFLED = (  # by the process's own random stream
    *CALCULATOR,
    *("training.num_epochs=2", "training.minibatch_size=32"),
    "training.shuffle_batch_per_epoch=true",
)
SYNCHRONOUS = (  # with remote runners, which wait for the learner
    *CALCULATOR,
    *("env_runners.num_env_runners=2", "env_runners.num_envs_per_env_runner=16"),
    "training.max_staleness=0",
)
OVERLAPPED = (*CALCULATOR, "env_runners.num_env_runners=1")
EXPRESSION = (
    *("task=expression", "curriculum.measure_problems=100"),
    *("env_runners.num_env_runners=0", "env_runners.num_envs_per_env_runner=256"),
    *("training.episodes_per_update=256", "training.updates_per_iteration=6"),
    *("rl_module.model_config.embedding_size=16", "rl_module.model_config.num_heads=2"),
    *("curriculum.levels.0.advance_after_iterations=5", "training.lr=[[0, 0.002], [99999, 0.0]]"),
    "curriculum.levels.1.advance_after_iterations=5",
)


@pytest.fixture(scope="module")
def address():
    """A cluster that the runs join; killing them leaves it as it is."""
    quiet()
    listen_on_loopback()
    context = ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


# In one process: every part of the state --------------------------------------------------------


def build(name, overrides):
    settings = load_settings(name, (*COMMON, *overrides))
    config = build_algorithm_config(settings)
    config.callbacks(callbacks_class=[functools.partial(CurriculumCallback, settings.curriculum)])
    return config.build_algo()


def lasting(state, path=""):
    """The state's leaves by path, without what measures time."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from lasting(value, f"{path}/{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from lasting(value, f"{path}/{index}")
    elif "metrics" not in path and "/times/" not in path and not path.endswith(("y_s", "e_s")):
        yield path, state


def leaves(algorithm):
    """All that has to be equal, as bytes."""
    return {
        path: b"".join(encode_state(value).values())
        for path, value in lasting(algorithm.get_state())
    }


def differing(one, two):
    return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def env_steps_of(algorithm):
    """What RLlib has counted, which is up to the last whole iteration."""
    return algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"))


def rows(results):
    """What an iteration's result says that no clock decides."""
    kept = []
    for result in results:
        runners, learner = result["env_runners"], result["learners"]["default_policy"]
        kept.append(
            {
                "curriculum": result["curriculum"],
                "return": runners["episode_return_mean"],
                "steps": runners["num_env_steps_sampled_lifetime"],
                "loss": learner["policy_loss"],
                "age": result["pipeline"]["policy_age_max"],
            }
        )
    return kept


class Left(Exception):
    """Leaves `train()`."""


def leave_in_the_middle(algorithm, updates):
    """Leaves the next iteration after so many of its updates."""

    def leave():
        if algorithm.updates_done == updates:
            raise Left

    algorithm.between_updates = leave
    with pytest.raises(Left):
        algorithm.train()
    del algorithm.between_updates


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "overrides", "iterations"),
    [
        ("default", SHUFFLED, 7),
        ("default", SYNCHRONOUS, 7),
        ("default", OVERLAPPED, 7),
        ("expression", EXPRESSION, 12),
    ],
    ids=["shuffled", "two-synchronous-runners", "one-overlapped-runner", "expression"],
)
def test_every_part_of_the_state_is_restored(address, tmp_path, name, overrides, iterations):
    first = build(name, overrides)
    for _ in range(iterations):
        first.train()
    leave_in_the_middle(first, 3)
    assert first.env_steps > env_steps_of(first)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file, content in encode_state(first.get_state()).items():
        (folder / file).write_bytes(content)
    saved = leaves(first)
    expected = rows([first.train() for _ in range(4)])
    end = leaves(first)
    first.stop()

    second = build(name, overrides)
    second.train()  # what it was before does not matter
    second.set_state(read_state(folder))
    assert second.updates_done == 3
    assert differing(leaves(second), saved) == []
    assert rows([second.train() for _ in range(4)]) == expected
    assert differing(leaves(second), end) == []
    second.stop()
    assert len([path for path in end if "optimizer" in path and "exp_avg" in path]) > 10
    assert any(path.startswith("/exploration/replay") for path in end)
    if overrides is OVERLAPPED:
        assert any(path.startswith(f"/{PIPELINE}/fragments/0/batch") for path in end)
    if name == "expression":
        assert any(path.endswith("/failed_problems/ring") for path in end)


@pytest.mark.full
def test_a_runner_that_takes_a_dead_one_s_place_plays_other_episodes(address):
    algorithm = build("default", OVERLAPPED)
    group = algorithm.env_runner_group

    def on_runner(action):
        return group.foreach_env_runner(action, local_env_runner=False)

    [first] = on_runner(lambda runner: runner.sample().context)
    [process] = on_runner(lambda runner: os.getpid())
    os.kill(process, signal.SIGKILL)
    deadline, new = time.monotonic() + 200, []
    while time.monotonic() < deadline and new in ([], [process]):
        algorithm.train()
        time.sleep(0.2)
        new = on_runner(lambda runner: os.getpid())
    assert new not in ([], [process])
    state = algorithm.get_state()
    streams = [state[PIPELINE]["env_runners"][1]["problem_stream"]["state"]["inc"]]
    algorithm.stop()
    again = build("default", OVERLAPPED)
    group = again.env_runner_group
    # A PCG64 stream is named by its increment: those of two names never meet, not even later on.
    name = operator.attrgetter("env.np_random.bit_generator.state")
    streams.append(on_runner(lambda runner: name(runner)["state"]["inc"])[0])
    # It goes on with the streams that the checkpoint has, whoever began them.
    again.set_state(state)
    assert on_runner(lambda runner: name(runner)["state"]["inc"])[0] == streams[0]
    # A checkpoint without this runner's streams: it gets new ones, and what is lost is counted.
    without = state | {PIPELINE: {**state[PIPELINE], "env_runners": {}, "lost_requests": 3}}
    for _ in range(2):  # the same ones from the same checkpoint
        again.set_state(without)
        assert again.lost_at_restore == 3
        streams.append(on_runner(lambda runner: name(runner)["state"]["inc"])[0])
    assert streams[2] == streams[3] and len(set(streams)) == 3
    assert again.train()["pipeline"]["lost_requests"] >= 3
    [second] = on_runner(lambda runner: runner.sample().context)
    assert not np.array_equal(first, second)
    again.stop()


# The command, killed and resumed ------------------------------------------------------------------


def start(*arguments, address, cwd):
    return processes.start("toolagent.run", "--address", address, *arguments, cwd=cwd)


def end(process, code=0):
    out, err = processes.output_of(process, 240)
    assert (process.returncode, err) == (code, ""), out
    return out


def sets(*overrides):
    return [word for override in overrides for word in ("--set", override)]


def whole_run(folder, name, overrides, iterations, address):
    limits = sets(*COMMON, *overrides, f"run.stop_iterations={iterations}")
    return start("--config", name, "--output-dir", folder, *limits, address=address, cwd=ROOT)


def without_clock(value):
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCK}
    return list(map(without_clock, value)) if isinstance(value, list) else value


def rows_of(folder):
    if not (folder / "progress.jsonl").is_file():
        return []
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def same_end(one, two):
    """Both runs came to the same in everything but time."""
    assert without_clock(rows_of(one)) == without_clock(rows_of(two))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert without_clock(summaries[0]) == without_clock(summaries[1])
    ends = [
        folder / summary["checkpoint"]
        for folder, summary in zip((one, two), summaries, strict=True)
    ]
    for name in ("model.safetensors",):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    states = [dict(lasting(read_state(folder))) for folder in ends]
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        assert encode_state(value) == encode_state(states[1][path]), path
    for folder in list_checkpoints(two / "checkpoints"):
        verify(folder)


def kill(process, folder, moment, iterations):
    """SIGKILL at a random moment, or (`moment` is None) while a checkpoint is being written.

    Returns what was going on.
    """
    checkpoints, deadline = folder / "checkpoints", time.monotonic() + 120
    writing = False
    while process.poll() is None and time.monotonic() < deadline:
        progress = folder / "progress.jsonl"
        seen = progress.read_bytes().count(b"\n") if progress.is_file() else 0
        if moment is not None and seen >= int(moment * iterations):
            time.sleep(moment * iterations % 1 * 0.2)
            break
        if moment is None and seen >= 2 and list(checkpoints.glob(".*.partial/state.safetensors")):
            writing = True
            break
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended before"
    return f"{len(rows_of_torn(folder))} rows" + ", a checkpoint half written" * writing


def rows_of_torn(folder):
    progress = folder / "progress.jsonl"
    return progress.read_bytes().splitlines() if progress.is_file() else []


def check_kills(reference, tmp_path, address, name, overrides, moments):
    iterations = len(rows_of(reference))
    for number, moment in enumerate(moments):
        folder = tmp_path / f"killed-{number}"
        process = whole_run(folder, name, overrides, iterations, address)
        what = kill(process, folder, moment, iterations)
        if not (folder / "config.yaml").exists():  # nothing was written yet: the command again
            print(f"killed at {what}: before it began")
            end(whole_run(folder, name, overrides, iterations, address))
            same_end(reference, folder)
            continue
        out = end(start("--resume", folder, address=address, cwd=ROOT))
        print(f"killed at {what}:", *[line for line in out.splitlines() if "continues" in line])
        assert "continues from checkpoint_" in out or "begins anew" in out
        assert "lost:" not in out
        same_end(reference, folder)


def random_moments(count):
    seed = int(os.environ.get("RESUME_SEED", time.time_ns() % 10**9))
    print(f"RESUME_SEED={seed}")
    rng = random.Random(seed)
    return [rng.random() * 0.9 for _ in range(count)]


@pytest.fixture(scope="module")
def reference(address, tmp_path_factory):
    """The folder of a run of 12 iterations that nobody disturbed."""
    folder = tmp_path_factory.mktemp("twelve") / "run"
    end(whole_run(folder, "default", SHUFFLED, 12, address))
    return folder


@pytest.mark.full
def test_two_kills_and_two_ends_equal_to_the_last_bit(address, reference, tmp_path):
    """One at any moment, one while a checkpoint is being written."""
    check_kills(reference, tmp_path, address, "default", SHUFFLED, [*random_moments(1), None])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("name", "overrides", "kills"),
    [
        ("default", SHUFFLED, 10),
        ("default", SYNCHRONOUS, 8),
        ("default", OVERLAPPED, 6),
        ("expression", EXPRESSION, 6),
    ],
    ids=["shuffled", "two-synchronous-runners", "one-overlapped-runner", "expression"],
)
def test_thirty_kills_and_thirty_equal_ends(address, tmp_path, name, overrides, kills):
    moments = random_moments(kills)
    moments[::3] = [None] * len(moments[::3])
    reference = tmp_path / "reference"
    end(whole_run(reference, name, overrides, 20, address))
    check_kills(reference, tmp_path, address, name, overrides, moments)


@pytest.mark.slow  # `test_run` resumes one too, and `test_checkpoints` has torn ones
def test_a_finished_run_goes_on_when_its_limits_are_raised(address, reference, tmp_path):
    """From the newest whole checkpoint: the last one is torn."""
    folder = tmp_path / "run"
    end(whole_run(folder, "default", SHUFFLED, 8, address))
    out = start("--resume", folder, address=address, cwd=ROOT)
    assert out.communicate()[1] == (
        f"error: --resume {folder}: nothing is left to do: it has made 8 iterations; raise "
        "run.stop_iterations\n"
    )
    assert out.returncode == 2
    model = folder / "checkpoints" / "checkpoint_000008" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    more = sets("run.stop_iterations=12")
    out = end(start("--resume", folder, *more, address=address, cwd=ROOT))
    assert "passed over checkpoint_000008: model.safetensors has" in out
    assert "set aside as abandoned_000008" in out
    assert "continues from checkpoint_000007" in out
    assert "trains again, " in out and " s after Ray was up" in out
    same_end(reference, folder)
    # Iteration 8 was played twice; TensorBoard shows it once.
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    steps = [event.step for event in read.Scalars("losses/policy_loss")]
    assert steps == [row["env_steps"] for row in rows_of(folder)]


@pytest.mark.full
def test_a_run_stopped_in_the_middle_of_an_iteration_ends_as_one_that_was_not(
    address, reference, tmp_path
):
    folder, before = tmp_path / "run", rows_of(reference)
    stop = sets(f"run.stop_env_steps={before[4]['env_steps'] + 1}")
    limits = sets(*COMMON, *SHUFFLED, "run.stop_iterations=12")
    end(start("--output-dir", folder, *limits, *stop, address=address, cwd=ROOT))
    *whole, last = rows_of(folder)
    assert without_clock(whole) == without_clock(before[:5])
    assert before[4]["env_steps"] < last["env_steps"] < before[5]["env_steps"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "env_steps"
    assert (summary["env_steps"], summary["iterations"]) == (last["env_steps"], 6)
    go_on = sets("run.stop_env_steps=null")
    out = end(start("--resume", folder, *go_on, address=address, cwd=ROOT))
    assert f"continues from checkpoint_000006 at {last['env_steps']:,} env steps" in out
    same_end(reference, folder)


@pytest.mark.slow
def test_a_run_on_storage_goes_on_from_a_checkpoint_asked_for_by_name(address, reference, tmp_path):
    folder = tmp_path / "run"
    uri = f"file://{folder}"
    end(whole_run(uri, "default", SHUFFLED, 8, address))
    named, more = f"{uri}/checkpoints/checkpoint_000007", sets("run.stop_iterations=12")

    def refusal(place):
        process = start("--resume", place, *more, address=address, cwd=ROOT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (2, ""), err
        return err

    assert refusal(f"{uri}/checkpoints/checkpoint_000077") == (
        f"error: --resume {uri}/checkpoints/checkpoint_000077: there is no such checkpoint\n"
    )
    other = RunFolder(folder)
    other.lock("--resume")
    assert refusal(named).endswith(": a run is at work in it; stop that first\n")
    del other
    state = folder / "checkpoints" / "checkpoint_000007" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    torn = refusal(named)
    assert torn.startswith(f"error: --resume {named}: state.safetensors has ")
    assert torn.count("\n") == 1
    state.write_bytes(whole)

    out = end(start("--resume", named, *more, address=address, cwd=ROOT))
    assert "set aside as abandoned_000008" in out
    assert "continues from checkpoint_000007" in out
    same_end(reference, folder)
    assert verify(folder / "checkpoints" / "abandoned_000008")


@pytest.mark.full
def test_a_run_whose_disk_is_full_trains_on_and_can_be_resumed(address, tmp_path):
    with mounted(tmp_path, "size=6m"):
        folder = tmp_path / "run"
        process = whole_run(folder, "default", CALCULATOR, 12, address)
        out, err = process.communicate(timeout=240)
        full = os.strerror(errno.ENOSPC)
        assert (process.returncode, err) == (1, f"error: no final checkpoint ({full})\n"), out
        assert f"warning: no checkpoint could be written ({full}); the last good one is" in out
        assert [row["iteration"] for row in rows_of(folder)] == list(range(1, 13))
        newest, state = newest_checkpoint(folder / "checkpoints")
        assert 1 <= state.iteration < 12
        remount(tmp_path, "size=100m")
        out = end(start("--resume", folder, address=address, cwd=ROOT))
        assert f"continues from {newest.name}" in out
        assert list_checkpoints(folder / "checkpoints")[-1].name == "checkpoint_000012"
        assert [row["iteration"] for row in rows_of(folder)] == list(range(1, 13))
