"""The NumPy-only player that is copied beside exported weights, in parts.

`source` joins the parts for one agent: its network, its task's machine, the common code, and what
these import of the others. The result is one file that imports NumPy and the standard library. A
part has the name of its network or task; all that depends on a vocabulary is read from the card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# The last part, and the part in place of the machine of a task that is in none: where tools answer
# nothing, and where they answer.
_SILENT, _ANSWERING = ("play", "context"), ("converse", "asked")


def has_part(name: str) -> bool:
    """Whether there is a part for a network or for a task's machine, by its name (`NETWORKS`,
    `TASKS`); there is none for those of other modules."""
    return (Path(__file__).parent / f"{name}.py").is_file()


def source(network: str, task: str, tools_answer: bool = False) -> str:
    """The player of one kind of agent, as text.

    Args:
        network: its name; it has a part.
        task: its reference; without a part of its own, problems are asked by their tokens.
        tools_answer: the task's tools do.
    """
    main, without_machine = _ANSWERING if tools_answer else _SILENT
    machine = task if has_part(task) else without_machine
    names = [*_with_imports(network), *_with_imports(machine), "files", main]
    texts = [_read(name) for name in dict.fromkeys(names)]
    docstring = texts[-1][: texts[-1].index('"""', 3) + 3]
    imports, bodies = set(), []
    for text in texts:
        code = text[text.index('"""', 3) + 3 :].strip().split("\n")
        head = [line for line in code if line.startswith(("import ", "from "))]
        imports.update(line for line in head if "toolagent" not in line and line.strip())
        bodies.append("\n".join(line for line in code if line not in head).strip())
    standard = sorted(imports - {"import numpy as np"}, key=lambda line: (line[0] == "f", line))
    head = "\n".join([docstring, "", *standard, "", "import numpy as np"])
    return head + "\n\n\n" + "\n\n\n".join(filter(None, bodies)) + "\n"


def _with_imports(name: str) -> Iterator[str]:
    """A part's name behind those of the parts that it imports."""
    for other in re.findall(r"from toolagent\.export\.player\.(\w+) import", _read(name)):
        yield from _with_imports(other)
    yield name


def _read(name: str) -> str:
    return (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
