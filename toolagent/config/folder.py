"""Where the shipped configs are, and what a name given to `--config` means."""

from __future__ import annotations

from pathlib import Path

import toolagent
from toolagent.config.source import one_name
from toolagent.errors import UserError, nearest

DEFAULT_CONFIG = "default.yaml"
DEFAULT_SEARCH = "tune_calculator.yaml"
MAX_BYTES = 256 * 1024  # a config is some hundred lines; this also ends a read of /dev/zero

_FOLDER = "rllib_configs"
_SEARCH = "tune_"  # the names of search spaces begin with it


def config_folder() -> Path:
    """The folder of shipped configs: beside the package in a checkout, inside it in a wheel.

    Raises:
        UserError: neither is there.
    """
    package = Path(toolagent.__file__).parent
    for folder in (package.parent / _FOLDER, package / _FOLDER):
        if folder.is_dir():
            return folder
    raise UserError(f"no folder {_FOLDER} beside or inside {package}; install toolagent again")


def shipped_configs() -> list[str]:
    """The names of the configs in `config_folder()`, sorted: ['default.yaml', ...]."""
    names = (path.name for path in config_folder().glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(_SEARCH))


def shipped_searches() -> list[str]:
    """The names of the searches in `config_folder()`, sorted: ['tune_calculator.yaml', ...]."""
    return sorted(path.name for path in config_folder().glob(f"{_SEARCH}*.yaml"))


def descriptions(files: list[str]) -> dict[str, str]:
    """What shipped configs are, by the names that `--config` takes.

    Args:
        files: in `config_folder()`.
    """
    return {Path(file).stem: _description(config_folder() / file) for file in files}


def _description(file: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines = []
    for line in read_config(file).splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    sentence, dot, _ = " ".join(lines).partition(". ")
    return sentence + dot.strip()


def find_config(given: Path | str | None) -> Path:
    """The file meant: a path, or the bare name of a shipped config ('tutorial'); None: the default.

    Raises:
        UserError: no such file; the message names the nearest shipped config.
    """
    if given is None:
        return config_folder() / DEFAULT_CONFIG
    return _find(given, "config", shipped_configs())


def find_search(given: Path | str | None) -> Path:
    """As `find_config`, for the search spaces of `python -m toolagent.tune`."""
    if given is None:
        return config_folder() / DEFAULT_SEARCH
    return _find(given, "search", shipped_searches())


def _find(given: Path | str, kind: str, shipped: list[str]) -> Path:
    path = Path(given)
    try:
        if path.exists() and not path.is_dir():
            return path
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        pass
    name = str(given)
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return config_folder() / candidate
    if path.name != name:  # in a folder, or none
        raise UserError(f"no such {kind} file '{one_name(name)}'")
    # Without the ending, which is the same for all.
    names = [Path(file).stem for file in shipped]
    # Of a file, only a slip in the name of a shipped one is taken for that.
    if path.suffix in (".yaml", ".yml"):
        hint = nearest(path.stem, names, otherwise="", cutoff=0.8)
    else:
        hint = nearest(name, names)
    fault = f"no such {kind} file '{one_name(name)}'"
    raise UserError(f"{fault}; {hint}" if hint else fault)


def read_config(path: Path) -> str:
    """The file's text.

    Raises:
        UserError: it cannot be read, is too large for a config, or is not UTF-8.
    """
    label = one_name(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{label}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{label}: larger than {MAX_BYTES // 1024} kB; expected a YAML config")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{label}: not UTF-8 text (byte {error.start}); expected a YAML config"
        ) from None
