"""Figures from measured blocks, as pure functions: medians, time shares, what limits a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ENOUGH_IDLE = 0.15  # a side that waits less than this counts as busy


@dataclass(frozen=True)
class Block:
    """One timed stretch of training of one row."""

    env_steps: int  # sampled and learned from
    episodes: int
    seconds: float
    memory_mib: float  # of all the row's processes, at the end of the block
    pipeline: Mapping[str, float] = field(default_factory=dict)  # sums over the block

    @property
    def env_steps_per_s(self) -> float:
        """Of wall time."""
        return self.env_steps / self.seconds


def row_figures(name: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """A row of the table: the median of the blocks, and how far they spread."""
    rates = [block.env_steps_per_s for block in blocks]
    episodes = [block.episodes / block.seconds for block in blocks]
    return {
        "name": name,
        "env_steps_per_s": statistics.median(rates),
        "episodes_per_s": statistics.median(episodes),
        "min": min(rates),
        "max": max(rates),
        "repeats": len(blocks),
        "episode_len_mean": sum(b.env_steps for b in blocks) / sum(b.episodes for b in blocks),
        "memory_mib": max(block.memory_mib for block in blocks),
        "memory_growth_mib": blocks[-1].memory_mib - blocks[0].memory_mib,
    }


def add_ratios(rows: Sequence[dict[str, Any]], blocks: Mapping[str, Sequence[Block]]) -> None:
    """Puts `ratio_to_<reference>` into the rows, for the references that were measured.

    The ratio is the median over the rounds of the ratio within a round: what slows the machine
    down for a while slows a whole round.
    """
    for reference in ("bare_loop", "stock_rllib"):
        if reference not in blocks:
            continue
        base = [block.env_steps_per_s for block in blocks[reference]]
        for row in rows:
            rates = [block.env_steps_per_s for block in blocks[row["name"]]]
            row[f"ratio_to_{reference}"] = statistics.median(
                rate / one for rate, one in zip(rates, base, strict=True)
            )


def total(blocks: Sequence[Block]) -> dict[str, float]:
    """The pipeline's sums over all blocks, and `seconds`, the wall time."""
    names = blocks[0].pipeline
    sums = {name: sum(block.pipeline[name] for block in blocks) for name in names}
    return sums | {"seconds": sum(block.seconds for block in blocks)}


def time_split(
    sums: Mapping[str, float], runners: int, transfer_s_per_fragment: float
) -> dict[str, float]:
    """Shares of the wall time, of two timelines that run side by side where runners are remote.

    Driver: `learner` (gradient steps), `sync` (publishing weights), `idle` (waiting for
    episodes), `driver_other` (RLlib's own bookkeeping between updates). Runners, on average:
    `inference`, `machine`, `sampler_other` (metrics, taking weights over), `sampler_idle`.
    Without remote runners both are one timeline, and nothing idles. `transfer` is the time to
    serialise and read a fragment, measured apart, times the number of fragments; it is a part of
    the driver's and the runner's figures, not an addition to them.
    """
    wall = sums["seconds"]
    each = wall * max(1, runners)
    driver = sums["wait_s"] + sums["learn_s"] + sums["sync_s"]
    return {
        "machine": sums["machine_s"] / each,
        "inference": sums["inference_s"] / each,
        "sampler_other": (sums["busy_s"] - sums["inference_s"] - sums["machine_s"]) / each,
        "sampler_idle": max(0.0, 1 - sums["busy_s"] / each) if runners else 0.0,
        "transfer": sums["fragments"] * transfer_s_per_fragment / wall if runners else 0.0,
        "learner": sums["learn_s"] / wall,
        "sync": sums["sync_s"] / wall,
        "idle": sums["wait_s"] / wall if runners else 0.0,
        "driver_other": max(0.0, 1 - driver / wall),
    }


def exploration_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """What was done besides the counted steps, from the sums of a row with a trained policy.

    `explorer_env_steps_per_s` are sampled and not learned from, of wall time; too old episodes,
    should there be any, are among them.
    """
    return {
        "explorer_env_steps_per_s": (sums["env_steps"] - sums["trained_env_steps"])
        / sums["seconds"],
        "replayed_episodes_per_update": sums["replayed_episodes"] / sums["updates"],
    }


def what_limits(split: Mapping[str, float]) -> tuple[str, str]:
    """The part that a run waits for: its name, and a sentence with the figures behind it.

    Args:
        split: of `batched_runners`, from `time_split`.
    """
    driver = split["sync"] + split["driver_other"]
    idle, sampler_idle = split["idle"], split["sampler_idle"]
    shares = f"the learner waits {idle:.0%} of the time, the samplers {sampler_idle:.0%}"
    if driver > split["learner"]:
        return "driver sync", f"the driver: {driver:.0%} of its time is neither; {shares}"
    if idle > _ENOUGH_IDLE and sampler_idle > _ENOUGH_IDLE:
        return "hand-over", f"the hand-over between them: {shares}"
    if idle <= _ENOUGH_IDLE and sampler_idle <= _ENOUGH_IDLE:
        return "cores", f"the cores, both sides are busy: {shares}"
    if idle <= sampler_idle:
        return "learner", f"the learner: it learns {split['learner']:.0%} of the time; {shares}"
    return "samplers", f"the samplers: {shares}"
