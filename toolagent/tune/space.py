"""What a search draws from: one distribution for each key of the configuration.

In YAML a distribution is a mapping with one entry, its name and its arguments. Names and meaning
are Ray Tune's:

| written                     | drawn                                                  |
|-----------------------------|--------------------------------------------------------|
| `{choice: [a, b, ...]}`     | one of the values; with `search: grid`, each in turn   |
| `{uniform: [low, high]}`    | a number                                               |
| `{loguniform: [low, high]}` | a number, evenly on a logarithmic scale                |
| `{quniform: [low, high, q]}`| a multiple of q, high included                         |
| `{randint: [low, high]}`    | an integer from low to high - 1                        |
| `{lograndint: [low, high]}` | the same, evenly on a logarithmic scale                |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolagent.config.source import KeyPath, Source, shown
from toolagent.errors import nearest

CHOICE = "choice"
_INTEGERS = ("randint", "lograndint")
_LOGARITHMIC = ("loguniform", "lograndint")
_NUMBER_OF_ARGUMENTS = {
    "uniform": 2,
    "loguniform": 2,
    "quniform": 3,
    "randint": 2,
    "lograndint": 2,
}
DISTRIBUTIONS = (CHOICE, *_NUMBER_OF_ARGUMENTS)
_ARGUMENTS_IN_WORDS = {2: "[low, high]", 3: "[low, high, step]"}


@dataclass(frozen=True)
class Distribution:
    """One entry of a search space."""

    kind: str  # one of DISTRIBUTIONS
    arguments: tuple[Any, ...]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be possible: every choice, or both ends of a range."""
        if self.kind == CHOICE:
            return self.arguments
        low, high = self.arguments[:2]
        if self.kind in _INTEGERS:
            return (low, high - 1)
        return (float(low), float(high))

    @property
    def logarithmic(self) -> bool:
        """Drawn evenly on a logarithmic scale."""
        return self.kind in _LOGARITHMIC

    def domain(self, grid: bool = False) -> Any:
        """As Ray Tune wants it."""
        from ray import tune

        if grid:
            return tune.grid_search(list(self.arguments))
        if self.kind == CHOICE:
            return tune.choice(list(self.arguments))
        make: Callable[..., Any] = getattr(tune, self.kind)
        return make(*self.arguments)


def parse_distribution(value: Any, path: KeyPath, source: Source) -> Distribution:
    """Reads one entry of a search space.

    Raises:
        UserError: it is no distribution, or an impossible one.
    """
    if not isinstance(value, dict) or len(value) != 1:
        raise source.error(
            path, f"expected a distribution such as {{uniform: [0, 1]}}, got {shown(value)}"
        )
    kind, arguments = next(iter(value.items()))
    if kind not in DISTRIBUTIONS:
        raise source.error(path, f"no distribution {shown(kind)}; {nearest(kind, DISTRIBUTIONS)}")
    path = (*path, kind)
    if kind == CHOICE:
        _check_choice(arguments, path, source)
    else:
        _check_range(kind, arguments, path, source)
    return Distribution(kind, tuple(arguments))


def value_text(value: Any) -> str:
    """A setting as a trial's name shows it: numbers in four digits, the rest as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def short_names(keys: list[str]) -> dict[str, str]:
    """Key -> its last part, or as much more of it as tells it from the others.

    Of keys joined by commas, the first gives the name.
    """
    firsts = {key: parts_of(key)[0] for key in keys}
    result = {}
    for key, first in firsts.items():
        parts = first.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[-length:])
            alike = [other for other in firsts.values() if f".{other}".endswith(f".{name}")]
            if len(alike) == 1:
                break
        result[key] = name
    return result


def parts_of(key: str) -> list[str]:
    """The configuration's keys in a key of the space, which may join several with commas."""
    return [part.strip() for part in key.split(",")]


def _check_choice(values: Any, path: KeyPath, source: Source) -> None:
    if not isinstance(values, list) or not values:
        raise source.error(path, f"expected a list of values, got {shown(values)}")
    seen = [json.dumps(value, sort_keys=True) for value in values]
    for value, text in zip(values, seen, strict=True):
        if seen.count(text) > 1:
            raise source.error(path, f"holds {shown(value)} more than once")


def _check_range(kind: str, arguments: Any, path: KeyPath, source: Source) -> None:
    wanted = _NUMBER_OF_ARGUMENTS[kind]
    words = _ARGUMENTS_IN_WORDS[wanted]
    if not isinstance(arguments, list) or len(arguments) != wanted:
        raise source.error(path, f"expected {words}, got {shown(arguments)}")
    number = int if kind in _INTEGERS else (int, float)
    for argument in arguments:
        if isinstance(argument, bool) or not isinstance(argument, number):
            noun = "integers" if kind in _INTEGERS else "numbers"
            raise source.error(path, f"expected {words} of {noun}, got {shown(arguments)}")
        if not math.isfinite(argument):
            raise source.error(path, f"must be finite, got {shown(arguments)}")
    low, high = arguments[:2]
    if low >= high:
        raise source.error(path, f"the range from {low} to {high} is empty; low must be below high")
    if kind in _LOGARITHMIC and low <= 0:
        raise source.error(path, f"a logarithmic scale begins above 0, not at {low}")
    if wanted == 3:
        _check_step(low, high, arguments[2], path, source)


def _check_step(low: float, high: float, step: float, path: KeyPath, source: Source) -> None:
    if step <= 0 or step > high - low:
        raise source.error(path, f"the step {step} must be above 0 and at most {high - low:g}")
    for end in (low, high):  # Ray Tune rounds to multiples of the step, so only these are drawn
        steps = end / step
        if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-9:
            raise source.error(path, f"{end} is no multiple of the step {step}")
