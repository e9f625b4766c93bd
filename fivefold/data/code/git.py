r"""Reads a git repository by git's own plumbing: trees, contents, and the history of its main line.

One process answers for all contents (`cat-file --batch`), one for the whole history (`log --raw`
with blob ids), so that a history of thousands of changes takes seconds. Nothing is checked out and
nothing written; bare repositories do as well.

Names and messages that are no UTF-8 come with a `\x` escape for each odd byte.

Surprise: a merge has no diff by default. Against its first parent it is what the pull request
brought, which is what we are after.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from fivefold.errors import CorruptFileError, MissingFileError

T = TypeVar("T")
REGULAR = ("100644", "100755")
"""Modes of plain files; links and submodules have others."""
_NO_BLOB = "0" * 40
_FORMAT = "%x01%H%x02%P%x02%an%x02%ae%x02%cI%x02%B%x03"


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file of a commit's tree."""

    path: str
    mode: str
    blob: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a change did to one path."""

    path: str
    old_mode: str
    new_mode: str
    old_blob: str
    """Empty if the file is new."""
    new_blob: str
    """Empty if it was deleted."""


@dataclass(frozen=True, slots=True)
class Change:
    """One commit of the main line, against its first parent."""

    commit: str
    base: str
    """First parent; empty for a root."""
    is_merge: bool
    author: str
    email: str
    date: str
    """When it was committed, ISO 8601."""
    message: str
    files: list[FileChange] = field(default_factory=list)


def is_repository(path: Path) -> bool:
    """Return whether a directory is a git work tree's root or a bare repository."""
    if (path / ".git").exists():
        return True
    return (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()


class GitRepository:
    """A repository on disk, read only."""

    def __init__(self, path: Path) -> None:
        """Take the root of a work tree, or a bare repository."""
        self.path = path

    def _run(self, *arguments: str) -> bytes:
        command = [*self.command(), *arguments]
        done = _start(lambda: subprocess.run(command, capture_output=True, check=False))
        if done.returncode:
            raise self.failure(arguments[0], done.stderr)
        return done.stdout

    def command(self) -> list[str]:
        """Return the beginning of every call."""
        return ["git", "--no-optional-locks", "-C", str(self.path)]

    def failure(self, action: str, words: bytes) -> CorruptFileError:
        """Return the error that says what git said."""
        return CorruptFileError(
            expected=f"git to read the repository `{self.path}` (`git {action}`)",
            found=words.decode(errors="replace").strip()[:300] or "an error without words",
            fix="Look at it with `git fsck`, or leave it out of the sources",
        )

    def head(self) -> str:
        """Return the commit of HEAD.

        Raises:
            CorruptFileError: there is none: an empty or damaged repository.
        """
        return self._run("rev-parse", "--verify", "HEAD^{commit}").decode().strip()

    def tree(self, commit: str) -> list[TreeFile]:
        """Return the files of a commit, in the order of their paths' bytes."""
        listed = self._run("ls-tree", "-r", "-l", "-z", "--full-tree", commit)
        files = []
        for line in listed.decode("utf-8", errors="backslashreplace").split("\0")[:-1]:
            facts, path = line.split("\t", 1)
            mode, _, blob, size = facts.split()
            files.append(TreeFile(path, mode, blob, int(size) if size.isdigit() else 0))
        return files

    def history(self, limit: int) -> Iterator[Change]:
        """Yield the latest changes of HEAD's main line, the newest first."""
        log = self._run(
            "log",
            "--first-parent",
            "--diff-merges=first-parent",
            "--raw",
            "--no-abbrev",
            "--no-renames",
            "--no-ext-diff",
            "-z",
            f"--max-count={limit}",
            f"--format=tformat:{_FORMAT}",
            "HEAD",
        ).decode("utf-8", errors="backslashreplace")
        for entry in log.split("\x01")[1:]:
            head, _, raw = entry.partition("\x03")
            commit, parents, author, email, date, message = head.split("\x02", 5)
            bases = parents.split()
            yield Change(
                commit=commit,
                base=bases[0] if bases else "",
                is_merge=len(bases) > 1,
                author=author,
                email=email,
                date=date,
                message=message.strip(),
                files=_parse_raw(raw),
            )

    def contents(self) -> "Contents":
        """Return the reader of contents; a context manager."""
        return Contents(self)


def _parse_raw(raw: str) -> list[FileChange]:
    parts = raw.lstrip("\0\n").split("\0")
    files = []
    for facts, path in zip(parts[0::2], parts[1::2], strict=False):
        if not facts.startswith(":"):
            break
        old_mode, new_mode, old, new, _ = facts[1:].split()
        files.append(
            FileChange(
                path, old_mode, new_mode, old.replace(_NO_BLOB, ""), new.replace(_NO_BLOB, "")
            )
        )
    return files


class Contents:
    """Contents by blob id, from one process that waits for the next question."""

    def __init__(self, repository: GitRepository) -> None:
        """Take the repository; the process starts with the block."""
        self._repository = repository

    def __enter__(self) -> "Contents":
        self._open()
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def _open(self) -> None:
        command = [*self._repository.command(), "cat-file", "--batch"]
        self._process = _start(
            lambda: subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        )
        self._is_asking = False

    def _close(self) -> None:
        questions, answers = self._pipes()
        questions.close()
        answers.close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        questions, answers = self._process.stdin, self._process.stdout
        assert questions, "opened with a pipe"
        assert answers, "opened with a pipe"
        return questions, answers

    def read(self, blob: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            CorruptFileError: the repository does not hold it, as a partial clone may not.
        """
        if self._is_asking:
            # A time limit struck within an answer: what is left of it is not the next one's.
            self._close()
            self._open()
        questions, answers = self._pipes()
        self._is_asking = True
        questions.write(f"{blob}\n".encode())
        questions.flush()
        facts = answers.readline().split()
        if len(facts) != 3 or facts[0] != blob.encode():
            raise self._repository.failure("cat-file", b"no object " + blob.encode())
        content = answers.read(int(facts[2]) + 1)[:-1]
        self._is_asking = False
        return content


def _start(action: Callable[[], T]) -> T:
    try:
        return action()
    except FileNotFoundError as error:
        raise MissingFileError(
            expected="the program `git` on PATH",
            found="none",
            fix="Install git, or give directories and packages without history",
        ) from error
