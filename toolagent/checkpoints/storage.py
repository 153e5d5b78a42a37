"""Results on storage that machines share: `s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`.

Whatever `pyarrow.fs.FileSystem.from_uri` knows will do, options in the URI's query included
(`s3://bucket/runs/first?endpoint_override=minio:9000&scheme=http`). A run's folder looks there as
it does on a disk. Object stores have neither renames nor folders, so a checkpoint counts only when
the file that is uploaded last is there: `manifest.json` if it has one, or else `policy.json`.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from toolagent.errors import UserError, labelled
from toolagent.files import folder_fault

CHECKPOINTS = "checkpoints"
LAST_FILES = ("manifest.json", "policy.json")  # the first of them that a checkpoint has
FIRST_ANSWER_WITHIN_S = 30.0
_PROBE = ".toolagent-can-write"
_GIVES_UP_AFTER_S = 15  # Google's client tries for 15 minutes otherwise
_SCHEMES = ("abfs", "abfss", "file", "gcs", "gs", "hdfs", "s3", "viewfs")
_OBJECT_STORES = ("s3", "gcs", "abfs")  # pyarrow's names; they have no folders to be made
_LONGEST_REASON = 200
_REASONS = (
    (r"NO_SUCH_BUCKET|[Bb]ucket does not exist", "there is no such bucket"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT"
        r"|INVALID_CLIENT_TOKEN|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED"
        r"|Could not (find|create).*[Cc]redentials|metadata\.google",
        "access denied; are the credentials there, and right?",
    ),
    (
        r"NETWORK_CONNECTION|Connection refused|[Cc]ouldn.t connect|resolve host|UNAVAILABLE"
        r"|[Tt]imeout",
        "the server does not answer",
    ),
    (r"[Uu]nable to load libjvm|libhdfs|libjvm", "Hadoop's libraries are not installed"),
)

Result = TypeVar("Result")


class StorageError(Exception):
    """The storage failed; the message says in a few words how."""


def without_secret(text: str) -> str:
    """A text in which each URI's `user:password@` is hidden: what people and files may see."""
    return re.sub(r"(\w://)[^/\s]*:[^/\s]*@", r"\1***@", text)


def is_uri(text: str | Path) -> bool:
    """Whether a path on the command line is a URI: 's3://bucket/folder'.

    Raises:
        UserError: it was meant to be one: 's3:/bucket/folder'.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)", str(text))
    if match and not match[2] and match[1] in _SCHEMES:
        raise UserError(f"{text}: expected two slashes, '{match[1]}://...'")
    return bool(match and match[2])


class Storage:
    """A folder on storage.

    Attributes:
        name: its URI, as it is shown to people: without a secret key in it.
    """

    def __init__(self, filesystem: Any, root: str, name: str):
        self.name = name
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    @classmethod
    def at(cls, uri: str, label: str) -> Storage:
        """The storage that a URI means. Nothing is written.

        Args:
            uri: as `pyarrow.fs.FileSystem.from_uri` takes it.
            label: begins the message: the flag that it was given with.

        Raises:
            UserError: an unknown scheme, an option that it does not have, no answer.
        """
        from pyarrow.fs import FileSystem

        parts, name = urlsplit(uri), without_secret(uri)
        if parts.scheme not in _SCHEMES:
            raise UserError(
                f"{label} {name}: no storage '{parts.scheme}'; use a path, s3://bucket/folder, "
                "gs://bucket/folder or file:///folder"
            )
        if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
            limit = f"retry_limit_seconds={_GIVES_UP_AFTER_S}"
            parts = parts._replace(query="&".join(filter(None, (parts.query, limit))))
        with labelled(f"{label} {name}: ", StorageError):
            filesystem, root = _first_answer(lambda: FileSystem.from_uri(urlunsplit(parts)))
        return cls(filesystem, root, name)

    @property
    def local(self) -> Path | None:
        """The folder itself, if it is one on this machine: `file://`."""
        return Path(self._root) if self._filesystem.type_name == "local" else None

    def name_of(self, path: str) -> str:
        """What a file or folder below is called; '' is the storage itself."""
        parts = urlsplit(self.name)
        inner = "/".join(filter(None, (parts.path.rstrip("/"), path)))
        return urlunsplit(parts._replace(path=inner)) if path else self.name

    def check_new(self, label: str) -> None:
        """Refuses storage that a run can't be written to; what it writes to try is removed.

        Raises:
            UserError: it holds something already, or can't be written.
        """
        with labelled(f"{label} {self.name}: can't be used: ", StorageError):
            names = _first_answer(self._list)
        if names:
            raise UserError(
                f"{label} {self.name}: is not empty; name a new folder, or continue that run "
                f"with --resume '{self.name}'"
            )
        self.check_writable(label)

    def check_writable(self, label: str) -> None:
        """Writes an empty file and removes it.

        Raises:
            UserError: it can't be written.
        """
        with labelled(f"{label} {self.name}: can't be written: ", StorageError):
            _first_answer(self._try_to_write)

    def fetch(self, target: Path, label: str, *, whole: bool = True) -> None:
        """Copies a run, or a checkpoint, to a folder; incomplete checkpoints stay behind.

        Args:
            target: an existing folder.
            label: begins messages.
            whole: also what only a run to be continued needs.

        Raises:
            UserError: there is neither a run nor a checkpoint, or it can't be read.
        """
        with labelled(f"{label} {self.name}: can't be read: ", StorageError):
            names = _first_answer(self._list)
            if not {CHECKPOINTS, "policy.json", "config.yaml"} & names.keys():
                what = "neither a run nor a checkpoint" if names else "nothing"
                raise UserError(f"{label} {self.name}: there is {what} there")
            for path in self._files_to_fetch(names, whole):
                file = target / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(self._read(path))

    def write(self, path: str, data: bytes) -> None:
        """Puts a file there whole (on object stores nobody sees half of it).

        Raises:
            StorageError: it can't be written.
        """
        with _in_words():
            if self._filesystem.type_name not in _OBJECT_STORES:
                folder = str(PurePosixPath(self._at(path)).parent)
                self._filesystem.create_dir(folder, recursive=True)
            with self._filesystem.open_output_stream(self._at(path)) as stream:
                stream.write(data)

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint: first what makes it one, so that it is never half there.

        Raises:
            StorageError: it can't be removed.
        """
        folder = f"{CHECKPOINTS}/{name}"
        with _in_words():
            for file in LAST_FILES:
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.delete_file(self._at(f"{folder}/{file}"))
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_dir(self._at(folder))

    def checkpoints(self) -> list[str]:
        """The names of the checkpoints there, complete or not (or a StorageError)."""
        return sorted(name for name, is_dir in self._list(CHECKPOINTS).items() if is_dir)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _list(self, path: str = "", *, recursive: bool = False) -> dict[str, bool]:
        """What is below a path, by its place there; True: a folder. {} if there is no such path."""
        from pyarrow.fs import FileSelector, FileType

        base = PurePosixPath(self._at(path))
        with _in_words():
            found = self._filesystem.get_file_info(
                FileSelector(str(base), recursive=recursive, allow_not_found=True)
            )
            return {
                str(PurePosixPath(info.path).relative_to(base)): info.type == FileType.Directory
                for info in found
            }

    def _files_to_fetch(self, names: dict[str, bool], whole: bool) -> Iterator[str]:
        if whole or "policy.json" in names:
            below = self._list(recursive=True)
        else:
            below = {name: False for name in ("config.yaml", "summary.json") if name in names}
            inner = self._list(CHECKPOINTS, recursive=True)
            below |= {f"{CHECKPOINTS}/{path}": is_dir for path, is_dir in inner.items()}
        for path in [path for path, is_dir in below.items() if not is_dir]:
            parts = PurePosixPath(path).parts
            if ".." in parts:  # an object's name may be anything
                raise StorageError(f"there is an object named '{path}'")
            folder = "/".join(parts[:2])
            of_checkpoint = len(parts) > 2 and parts[0] == CHECKPOINTS
            if not of_checkpoint or any(f"{folder}/{last}" in below for last in LAST_FILES):
                yield path

    def _read(self, path: str) -> bytes:
        with _in_words(), self._filesystem.open_input_file(self._at(path)) as stream:
            return stream.read()

    def _try_to_write(self) -> None:
        if self.local is not None:
            if fault := folder_fault(self.local):
                raise StorageError(fault)
            return
        self.write(_PROBE, b"")
        with _in_words():
            self._filesystem.delete_file(self._at(_PROBE))


@contextlib.contextmanager
def fetched(uri: str, label: str, *, whole: bool = False) -> Iterator[tuple[Path, Storage]]:
    """A copy of a run or checkpoint for the length of the block, and where it came from.

    Arguments as for `Storage.at` and `Storage.fetch`. Faults that are found in the copy are told of
    the original.
    """
    storage = Storage.at(uri, label)
    with tempfile.TemporaryDirectory(prefix="toolagent-") as folder, renamed(folder, storage):
        storage.fetch(Path(folder), label, whole=whole)
        yield Path(folder), storage


@contextlib.contextmanager
def renamed(folder: str | Path, storage: Storage) -> Iterator[None]:
    """Calls a local copy by its original's name in what a user is told."""
    local = re.compile(re.escape(str(folder)) + r"/?([^\s:;,'()]*)")
    try:
        yield
    except UserError as error:
        text = local.sub(lambda match: storage.name_of(match[1]), str(error))
        raise UserError(text) from error.__cause__


def _first_answer(function: Callable[[], Result]) -> Result:
    """The function's result; StorageError if it fails or takes too long.

    A thread of its own, left behind if it hangs: some clients' own deadlines are minutes.
    """
    answer: Future[Result] = Future()

    def work() -> None:
        try:
            with _in_words():
                answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(FIRST_ANSWER_WITHIN_S)
    except TimeoutError:
        raise StorageError(f"no answer within {FIRST_ANSWER_WITHIN_S:g} s") from None


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """pyarrow's errors, long as they are, in a few words."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split())
        for pattern, reason in _REASONS:
            if re.search(pattern, text):
                raise StorageError(reason) from error
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror
        raise StorageError(text[:_LONGEST_REASON].rstrip(".")) from error
