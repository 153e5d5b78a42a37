"""Trains one peer in this process: `python -m toolagent.benchmark.peers NAME FILE SECONDS`.

More arguments, such as `learning_rate=0.001`, are settings that differ from the peer's own. FILE
gets its row as JSON. `benchmark --peers` runs this for each of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from toolagent.benchmark.peers.training import train_peer


def main(arguments: list[str]) -> None:
    """Trains it and writes the file."""
    name, file, seconds, *given = arguments
    pairs = (setting.split("=", 1) for setting in given)
    settings = {key: json.loads(value) for key, value in pairs}
    row = train_peer(name, float(seconds), settings)
    Path(file).write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
