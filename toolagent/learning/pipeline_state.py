"""Pending fragments and the runners' streams as plain values, for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toolagent.rollouts.env_runner import BatchedEnvRunner, Fragment
from toolagent.rollouts.play import PlayTimes

# Longest wait for what env runners are asked for when a checkpoint is written. A fragment takes a
# fraction of a second; what takes longer than this is a runner that hangs.
DRAIN_S = 5.0

# Not the number of the request: another process counts from the beginning, and it was answered.
_PLAIN = ("batch", "weights_seq_no", "env_runner", "process", "busy_s", "idle_s")


def fragment_state(fragment: Fragment) -> dict[str, Any]:
    """A fragment as numbers, text and columns."""
    times = fragment.times
    return {name: getattr(fragment, name) for name in _PLAIN} | {
        "times": [times.inference_s, times.machine_s],
        "metrics": metrics_state(fragment.metrics),
    }


def fragment_of(state: Mapping[str, Any], stats_classes: Mapping[str, Any]) -> Fragment:
    """The inverse of `fragment_state`.

    Args:
        state: of the fragment.
        stats_classes: RLlib's classes of metrics, by the name in their states.
    """
    return Fragment(
        **{name: state[name] for name in _PLAIN},
        request=0,
        times=PlayTimes(*state["times"]),
        metrics=metrics_of(state["metrics"], stats_classes),
    )


def metrics_state(metrics: Mapping[str, Any]) -> list[Any]:
    """An env runner's metrics as plain values: a list of [path, state]."""
    return [[path, stats.get_state()] for path, stats in _leaves(metrics)]


def metrics_of(state: list[Any], stats_classes: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `metrics_state`; `stats_classes` as for `fragment_of`."""
    metrics: dict[str, Any] = {}
    for path, saved in state:
        place = metrics
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = stats_classes[saved["stats_cls_identifier"]].from_state(state=saved)
    return metrics


def _leaves(metrics: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Any]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield [*path, name], value


def runner_states(group: Any, runners: list[int]) -> dict[int, dict[str, Any]]:
    """Worker index -> what `BatchedEnvRunner.get_streams` says, of the remote runners that answer
    in time."""
    if not runners:
        return {}
    states = group.foreach_env_runner(
        "get_streams",
        remote_worker_ids=runners,
        local_env_runner=False,
        timeout_seconds=DRAIN_S,
    )
    return {state["worker_index"]: state for state in states}


def restore_runners(
    group: Any, states: Mapping[int, dict[str, Any]], stage: int, updates: int
) -> None:
    """Sets the remote runners to their saved streams; the others get new streams.

    Args:
        group: of env runners.
        states: by worker index.
        stage: of the curriculum.
        updates: so far; the number of those others' streams, so that the same checkpoint is always
            continued from in the same way.
    """
    runners = group.healthy_env_runner_ids()
    strangers = [runner for runner in runners if runner not in states]
    known = [runner for runner in runners if runner in states]
    if known:
        group.foreach_env_runner(
            [_Restore(states[runner] | {"stage": stage}) for runner in known],
            remote_worker_ids=known,
            local_env_runner=False,
        )
    if strangers:
        group.foreach_env_runner(
            "renew_streams",
            kwargs={"number": updates},
            remote_worker_ids=strangers,
            local_env_runner=False,
        )


class _Restore:
    """Carries one runner's state to it."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def __call__(self, env_runner: BatchedEnvRunner) -> None:
        env_runner.set_state(self.state)
