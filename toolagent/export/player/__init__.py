"""The NumPy-only player that is copied beside exported weights, in parts.

`source` joins the parts for one agent: its network, its task's machine and the common code. The
result is one file that imports NumPy and the standard library.
"""

from __future__ import annotations

from pathlib import Path

NETWORKS = {"StageGRUNetwork": "stage_gru", "EncoderDecoderNetwork": "encoder_decoder"}
TASKS = {"calculator": "calculator", "tutorial": "tutorial", "expression": "expression"}
_TOKENS = "CTX, MUL, ADD, SUB, ANS, STO, RCL, EOS = range(10, 18)"


def source(network: str, task: str) -> str:
    """The player of one kind of agent, as text.

    Args:
        network: a key of `NETWORKS`.
        task: a key of `TASKS`.
    """
    texts = [_read(name) for name in ("gru", NETWORKS[network], TASKS[task], "play")]
    docstring = texts[-1][: texts[-1].index('"""', 3) + 3]
    imports, bodies = set(), []
    for text in texts:
        code = text[text.index('"""', 3) + 3 :].strip().split("\n")
        head = [line for line in code if line.startswith(("import ", "from "))]
        imports.update(line for line in head if "toolagent" not in line and line.strip())
        bodies.append("\n".join(line for line in code if line not in head).strip())
    standard = sorted(imports - {"import numpy as np"}, key=lambda line: (line[0] == "f", line))
    head = "\n".join([docstring, "", *standard, "", "import numpy as np", "", _TOKENS])
    return head + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def _read(name: str) -> str:
    return (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
