"""How this project is installed, and what to say where an optional package is missing."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path

# On PyPI, `toolagent` is somebody else's project: no hint may install it from there.
DISTRIBUTION = "toolagent-rl"


def install_command(extra: str) -> str:
    """The command that installs what an extra of this very installation needs.

    Args:
        extra: of `pyproject.toml`, such as `serve`.

    Returns:
        For a checkout, the checkout with the extra; for an installed wheel, the packages that the
        extra consists of.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    packages = []
    try:
        for requirement in importlib.metadata.requires(DISTRIBUTION) or []:
            package, _, condition = requirement.partition(";")
            if f"extra == '{extra}'" in condition.replace('"', "'"):
                packages.append(shlex.quote(package.strip()))
    except importlib.metadata.PackageNotFoundError:  # copied here, as to a node of a cluster
        pass
    if not packages:
        return f"install the extra '{extra}' where toolagent was installed from"
    return f"pip install {' '.join(packages)}"
