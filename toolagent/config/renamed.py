"""Keys of older versions: refused with the name that they have now, or why they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolagent.config.source import KeyPath, Source

# Old dotted key -> new dotted key. A key of a list's entries is written without the index:
# 'curriculum.levels.stage'. What is renamed in a section is also renamed in evaluation_config.
RENAMED: dict[str, str] = {
    "rollouts": "env_runners",  # of older RLlib versions
    "exploration": "env_runners",
    "training.episodes_per_problem": "training.group_size",
    "training.max_policy_age": "training.max_staleness",
    "training.replay_coefficient": "training.replay_coeff",
}

# Old dotted key -> why it is gone and what to use instead.
_NOVELTY = "removed: the novelty bonus is gone; use training.explorer_share"
REMOVED: dict[str, str] = {
    "training.novelty_coefficient": _NOVELTY,
    "training.novelty_cap": _NOVELTY,
}

_OVERRIDES = ("evaluation", "evaluation_config")  # holds options of all sections side by side


def check_renamed(document: dict[str, Any], source: Source) -> None:
    """Refuses a key that has another name now, or none.

    Args:
        document: a configuration, not checked yet.
        source: where it comes from.

    Raises:
        UserError: it has such a key; the message names the new key.
    """
    faults = {old: f"renamed to {new}" for old, new in RENAMED.items()} | REMOVED
    for old, fault in faults.items():
        section, *rest = old.split(".")
        places = [(section, *rest)]
        if rest:
            places.append((*_OVERRIDES, *rest))
        for place in places:
            for path in _written(document, place):
                raise source.error(path, fault)


def _written(node: Any, place: KeyPath, before: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths in the document that the place stands for."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _written(item, place, (*before, str(index)))
    elif isinstance(node, dict) and place[0] in node:
        path = (*before, place[0])
        if len(place) == 1:
            yield path
        else:
            yield from _written(node[place[0]], place[1:], path)
