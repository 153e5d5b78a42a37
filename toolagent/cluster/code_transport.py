"""This project's code, and the user's, on the nodes of a cluster: they need not have it installed.

Ray's runtime environment carries packages to every node on which an actor of the run starts, and
puts them before whatever is installed there, so all play with the driver's code. The
configuration needs no transport of its own: it is resolved on the driver, and travels as what it
was resolved to with each actor.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

import toolagent

_NAMED_CODE = re.compile(r'"([A-Za-z_]\w*)(?:\.\w+)*:\w+(?:\.\w+)*"')  # a text in JSON
# Set by Ray for a submitted job's driver.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]


def runtime_environment(sections: dict[str, Any]) -> dict[str, Any]:
    """What `ray.init(runtime_env=...)` takes for a run on an existing cluster.

    Args:
        sections: of the settings; the modules of code that they name ('package.module:Name') and
            that is not installed are carried too.

    Returns:
        Empty in a job that was submitted with modules of its own: Ray takes one list only.
    """
    submitted = _of_the_job()
    if "py_modules" in submitted:
        return {}
    paths = [str(Path(toolagent.__file__).parent), *sorted(_modules_named(sections))]
    result: dict[str, Any] = {"py_modules": paths}
    if "excludes" not in submitted:
        result["excludes"] = ["__pycache__"]
    return result


def _of_the_job() -> dict[str, Any]:
    """The runtime environment that `ray job submit` was given; empty outside a job."""
    try:
        return json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    except (ValueError, AttributeError):
        return {}


def _modules_named(sections: dict[str, Any]) -> set[str]:
    """Where the user's own modules lie. All are imported: building the configuration did that."""
    found = set()
    for name in _NAMED_CODE.findall(json.dumps(sections, ensure_ascii=False, default=str)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or name == "toolagent":
            continue
        path = Path(file).resolve()
        if path.name == "__init__.py":
            path = path.parent
        if not any(path.is_relative_to(folder) for folder in _INSTALLED):
            found.add(str(path))
    return found
