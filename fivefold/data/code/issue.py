"""Issue sequences: an issue, the files as they were, and the change that resolved it, in one text.

GLM-5 (section 2.3) joins repository files, diffs, issues, pull requests and relevant files into one
sequence each. Here they are mined from plain git: for a change of the main line that `link` ties to
an issue, the touched files and the files that `retrieve` finds are read from the change's first
parent, never from the tree after it, so that the text before the diff cannot hold the fix.

Contents are scrubbed of secrets before the diff is made, so that the diff applies to the packed
files. What tells of the fix without being it (changelogs, their fragments) and what is no program
is left out of the diff.

Each change that is looked at is kept or dropped for a reason, `issue.REASON`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from random import Random

import xxhash

from fivefold.data.code.config import IssueConfig, SecretConfig
from fivefold.data.code.diff import changed_lines, file_diff
from fivefold.data.code.git import REGULAR, Change, Contents, FileChange, GitRepository
from fivefold.data.code.identify import identify, named_languages
from fivefold.data.code.language import LANGUAGES
from fivefold.data.code.link import (
    Issue,
    Link,
    find_issue,
    find_link,
    is_bot,
    is_news,
    own_words,
)
from fivefold.data.code.retrieve import is_test, rank_files, words_of
from fivefold.data.code.secret import scrub
from fivefold.data.curate.verdict import Edit
from fivefold.data.document import Document, document_id

SOURCE = "issues"
"""Source of issue sequences."""
_EVIDENCE = re.compile(r"Traceback|```|>>> |^ {4}\S", re.MULTILINE)
_STRANGE_PATH = re.compile(r"[\x00-\x1f\"\\]|\udc80|[\ud800-\udfff]")
_IDENTIFIER_CHARACTERS = 20_000


@dataclass(frozen=True)
class Touched:
    """A source or test file on both sides of a change."""

    path: str
    old: str | None
    new: str | None
    mode: str

    @cached_property
    def diff(self) -> str:
        """Its diff."""
        return file_diff(self.path, self.old, self.new, self.mode)


@dataclass(frozen=True)
class Outcome:
    """What became of a change."""

    document: Document | None
    reason: str = ""
    """Why there is none."""
    edits: tuple[Edit, ...] = ()
    """Secrets that were scrubbed."""


class IssueMiner:
    """Makes sequences from the changes of one repository."""

    def __init__(
        self,
        repository: GitRepository,
        name: str,
        contents: Contents,
        dump: Mapping[int, Issue],
        config: IssueConfig,
        secrets: SecretConfig | None,
    ) -> None:
        """Take the repository, its open reader of contents, and the issues that are known of it."""
        self._repository, self._name, self._contents = repository, name, contents
        self._dump, self._config, self._secrets = dump, config, secrets
        self._edits: list[Edit] = []
        self._words: dict[str, Sequence[str]] = {}

    def mine(self, change: Change) -> Outcome:
        """Return the sequence of a change, or why it has none."""
        self._edits = []
        link = find_link(change)
        reason = "no_base" if not change.base else "bot" if is_bot(change) else ""
        if reason or link is None:
            return Outcome(None, f"issue.{reason or 'no_link'}")
        files = [file for file in change.files if _is_source(file.path)]
        reason = self._judge_files(files)
        if reason:
            return Outcome(None, f"issue.{reason}")
        touched = self._read_touched(files)
        if touched is None:
            return Outcome(None, "issue.unreadable")
        issue = find_issue(change, link, self._dump, self._read_text)
        reason = self._judge_change(change, issue, touched)
        if reason:
            return Outcome(None, f"issue.{reason}")
        document = self._write(change, link, issue, touched)
        if document is None:
            return Outcome(None, "issue.too_long")
        return Outcome(document, edits=tuple(self._edits))

    def _judge_files(self, files: Sequence[FileChange]) -> str:
        modes = {mode for file in files for mode in (file.old_mode, file.new_mode)}
        if not any(not is_test(file.path) for file in files):
            return "no_source"
        if len(files) > self._config.max_files:
            return "many_files"
        if modes - {*REGULAR, "000000"} or any(_STRANGE_PATH.search(file.path) for file in files):
            return "no_file"
        return ""

    def _read_touched(self, files: Sequence[FileChange]) -> list[Touched] | None:
        """Return both sides of the files; None if one is too large or no text."""
        touched = []
        for file in files:
            sides = [self._read(blob) if blob else None for blob in (file.old_blob, file.new_blob)]
            if any(side is None and blob for side, blob in zip(sides, _blobs(file), strict=True)):
                return None
            mode = file.new_mode if file.new_blob else file.old_mode
            touched.append(Touched(file.path, sides[0], sides[1], mode))
        return touched

    def _read(self, blob: str) -> str | None:
        """Return a scrubbed text; None if it is too large or no UTF-8."""
        content = self._contents.read(blob)
        if len(content) > self._config.max_file_bytes or b"\0" in content:
            return None
        try:
            return self._scrub(content.decode())
        except UnicodeDecodeError:
            return None

    def _read_text(self, blob: str) -> str:
        return self._read(blob) or ""

    def _scrub(self, text: str) -> str:
        if self._secrets is None:
            return text
        verdict = scrub(text, self._secrets)
        self._edits += verdict.edits
        return verdict.text

    def _judge_change(self, change: Change, issue: Issue, touched: Sequence[Touched]) -> str:
        config = self._config
        lines = sum(changed_lines(file.diff) for file in touched)
        if lines < config.min_changed_lines:
            return "small_change"
        if lines > config.max_changed_lines:
            return "large_change"
        if issue.created and _moment(issue.created) > _moment(change.date):
            return "created_after"
        text = f"{issue.title}\n{issue.body}"
        if len(text.split()) < config.min_words and not _EVIDENCE.search(issue.body):
            return "few_words"
        return ""

    def _write(
        self, change: Change, link: Link, issue: Issue, touched: Sequence[Touched]
    ) -> Document | None:
        config = self._config
        random = Random(xxhash.xxh3_64_intdigest(change.commit.encode(), seed=config.seed))
        files_first = random.random() < config.files_first_share
        with_text = random.random() >= config.without_text_share and not issue.is_from_message
        title, body = own_words(change)
        pull = f"<pull_request>{f' #{link.pull}' if link.pull else ''} {self._scrub(title)}\n"
        if with_text and body:
            pull += f"{self._scrub(body)}\n"
        sequence = _Sequence(f"<repository> {self._name}\n")
        head = self._describe(issue)
        base = {file.path: file.old for file in touched if file.old is not None}
        tail = [
            ("diff", "".join(file.diff for file in touched if not is_test(file.path))),
            ("tests", "".join(file.diff for file in touched if is_test(file.path))),
        ]
        fixed = len(head) + len(pull) + sum(len(text) + 20 for _, text in tail) + sequence.size
        room = config.max_characters - fixed - sum(_file_size(*one) for one in base.items())
        if room < 0:
            return None
        found = self._retrieve(change, f"{issue.title}\n{issue.body}", touched, room)
        files = [(path, text, "touched") for path, text in base.items()]
        files += [(path, text, "retrieved") for path, text in found.items()]
        random.shuffle(files)
        if not files_first:
            sequence.add("issue", head)
        for path, text, role in files:
            sequence.add_file(path, text, role)
        if files_first:
            sequence.add("issue", head)
        sequence.add("pull_request", pull)
        for name, text in tail:
            if text:
                sequence.add(name, f"<{name}>\n{text}")
        return self._finish(change, link, issue, sequence)

    def _describe(self, issue: Issue) -> str:
        parts = [f"<issue> #{issue.number} {issue.title}\n", issue.body, *issue.comments]
        return self._scrub("\n".join(part.rstrip("\n") for part in parts if part)) + "\n"

    def _retrieve(
        self, change: Change, query: str, touched: Sequence[Touched], room: int
    ) -> dict[str, str]:
        """Return other files of the tree before the change, the best first, as far as they fit."""
        config = self._config
        paths = {file.path for file in touched}
        tree = {
            file.path: file.blob
            for file in self._repository.tree(change.base)
            if file.mode in REGULAR
            and file.path not in paths
            and file.size_bytes <= config.max_file_bytes
            and not is_news(file.path)
            and not _STRANGE_PATH.search(file.path)
            and (_is_source(file.path) or file.path.lower().startswith("readme"))
        }
        before = {
            file.path: (identify(file.path, file.old).language, file.old)
            for file in touched
            if file.old is not None
        }
        ranked = rank_files(
            query,
            sorted(tree),
            before,
            lambda path: self._identifiers(tree[path]),
            config.ranked_files,
        )
        found: dict[str, str] = {}
        for path in ranked:
            if len(found) == config.retrieved_files:
                break
            kept = len(self._edits)
            text = self._read(tree[path])
            if text and _file_size(path, text) <= room:
                found[path] = text
                room -= _file_size(path, text)
            else:
                del self._edits[kept:]
        return found

    def _identifiers(self, blob: str) -> Sequence[str]:
        if blob not in self._words:
            content = self._contents.read(blob)[:_IDENTIFIER_CHARACTERS]
            self._words[blob] = words_of(content.decode(errors="ignore"))
        return self._words[blob]

    def _finish(self, change: Change, link: Link, issue: Issue, sequence: "_Sequence") -> Document:
        url = f"{self._name}@{change.commit}"
        programs = [one["path"] for one in sequence.parts if one["role"] == "touched"]
        names = [name for path in programs for name in named_languages(path)[:1]]
        return Document(
            id=document_id(SOURCE, url),
            text=sequence.text,
            source=SOURCE,
            url=url,
            lang=min(set(names), key=lambda name: (-names.count(name), name), default=""),
            meta={
                "repository": self._name,
                "issue": issue.number,
                "pull": link.pull,
                "linked_by": link.by,
                "kind": link.kind,
                "commit": change.commit,
                "base": change.base,
                "date": change.date,
                "parts": sequence.parts,
            },
        )


def _blobs(file: FileChange) -> tuple[str, str]:
    return file.old_blob, file.new_blob


def _moment(date: str) -> datetime:
    """Return the time that an ISO 8601 date names; in UTC where it names no zone."""
    moment = datetime.fromisoformat(date)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_source(path: str) -> bool:
    """Return whether a path is a program's, and no changelog."""
    names = named_languages(path)
    return bool(names) and LANGUAGES[names[0]].kind == "code" and not is_news(path)


def _file_size(path: str, text: str) -> int:
    return len(f"<file> {path}\n") + len(text) + 1


class _Sequence:
    """A text and where its parts stand in it, in characters."""

    def __init__(self, head: str) -> None:
        self._texts = [head]
        self.size = len(head)
        self.parts: list[dict] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)

    def add(self, role: str, text: str, path: str = "") -> None:
        self.parts.append(
            {"role": role, "path": path, "begin": self.size, "end": self.size + len(text)}
        )
        self._texts.append(text)
        self.size += len(text)

    def add_file(self, path: str, text: str, role: str) -> None:
        head = f"<file> {path}\n"
        self._texts.append(head)
        self.size += len(head)
        self.add(role, text, path)
        if not text.endswith("\n"):
            self._texts.append("\n")
            self.size += 1


def part_texts(document: Document, role: str) -> dict[str, str]:
    """Return the parts of a sequence with this role, by path."""
    return {
        part["path"]: document.text[part["begin"] : part["end"]]
        for part in document.meta["parts"]
        if part["role"] == role
    }
