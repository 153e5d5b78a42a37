"""What a run does about recorded episodes: before it starts, and when it has ended."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolagent.checkpoints.storage import without_secret
from toolagent.config import Settings
from toolagent.errors import UserError, labelled
from toolagent.files import folder_fault

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from toolagent.rollouts.recorder import RecorderStatus, Recording

FINISH_WITHIN_S = 30.0  # for the last file of every env runner


def check_recording(folder: str | None, task: str) -> None:
    """The folder for recorded episodes is made by runners, whose failures are hard to read.

    Raises:
        UserError: it can't be written, or holds something else; or episodes of the task can't be
            recorded.
    """
    from toolagent.rollouts.record_schema import record_schema
    from toolagent.rollouts.records import check_recording_folder
    from toolagent.tasks import get_task

    if folder is None:
        return
    if (shown := without_secret(folder)) != folder:
        raise UserError(
            f"--record-episodes {shown}: config.yaml holds it, which is no place for a key; "
            "give keys as the store's own variables or files, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if "://" not in folder:
        os.fsencode(folder)  # an error where the locale has not its characters
        if fault := folder_fault(Path(folder)):
            raise UserError(f"--record-episodes {folder}: {fault}")
    with labelled(f"--record-episodes {folder}: "):
        record_schema(get_task(task))
        check_recording_folder(folder)


def check_records(settings: Settings, algorithm_config: AlgorithmConfig) -> list[str]:
    """Reads the episodes that an offline algorithm learns from, before anything is started.

    Returns:
        A line on how many there are; none for an algorithm that plays its own.

    Raises:
        UserError: there are none, or they are not what they should be.
    """
    if algorithm_config.is_online:
        return []
    if settings.run.record_episodes is not None:
        raise UserError(
            f"--record-episodes {settings.run.record_episodes}: algorithm {settings.algorithm} "
            "learns from recorded episodes and plays none"
        )
    from toolagent.learning.record_choice import choose_episodes
    from toolagent.rollouts.records import read_episodes

    config: Any = algorithm_config  # an offline one, whose options pyright does not see
    os.fsencode(str(config.input_))
    with labelled("offline_data.input_: "):
        episodes = read_episodes(str(config.input_), settings.task)
        stages = choose_episodes(episodes, config).stage
    drawn = min(config.max_episodes or len(episodes), len(episodes))
    counts = [
        f"stage {level.stage}: {int((stages == level.stage).sum()):,}"
        for level in settings.curriculum.levels
    ]
    return [f"learns from {len(stages):,} of {drawn:,} recorded episodes ({', '.join(counts)})"]


def recording_of(settings: Settings, run_folder: Path) -> Recording | None:
    """The `Recording` that is asked for; None for none.

    Its run id is the name of the run's folder and eight random digits: each start of the command
    has its own, also that of a resumed run.
    """
    from toolagent.rollouts.recorder import Recording
    from toolagent.rollouts.records import recording_uri

    if settings.run.record_episodes is None:
        return None
    name = re.sub(r"[^A-Za-z0-9_.]+", "_", run_folder.resolve().name)[:60]
    return Recording(
        folder=recording_uri(settings.run.record_episodes),
        run_id=f"{name}-{uuid.uuid4().hex[:8]}",
        **settings.recording.model_dump(),
    )


def finish_recording(algorithm: Algorithm, recording: Recording | None) -> list[str]:
    """Has every env runner write what it holds; says in a line or more what was recorded."""
    from toolagent.rollouts.records import count_episodes

    group = algorithm.env_runner_group
    if recording is None or group is None:
        return []
    # One that hangs is ended soon after, with what it has not written.
    finished = group.foreach_env_runner(_finish, timeout_seconds=FINISH_WITHIN_S)
    statuses = [status for status in finished if status is not None]
    episodes, size = count_episodes(recording.folder, recording.run_id)
    full = any(status.full for status in statuses)
    limit = ", and no more: a limit of 'recording' is reached" if full else ""
    lines = [
        f"recorded {episodes:,} episodes ({size / 1e6:,.1f} MB) in {recording.folder}, run_id "
        f"{recording.run_id}{limit}"
    ]
    faults = {status.fault for status in statuses if status.fault}
    return lines + [f"recording stopped early: {fault}" for fault in sorted(faults)]


def _finish(env_runner: Any) -> RecorderStatus | None:
    recorder = getattr(env_runner, "recorder", None)
    if recorder is None:
        return None
    recorder.flush()
    return recorder.status()
