"""Steps of datatrove from repositories to files worth training on.

`ReadRepositories`, `AdmitFiles`, `IdentifyLanguages`, `FilterCode`, `ScrubSecrets`: each judges one
file and keeps the account of it, as all steps of curation do. Until it is admitted a file's text is
its bytes, one character for each (Latin-1), so that accounts see files of one kind.

A repair of metadata (a language that was declared or named wrongly, content that was found in
another row) counts as an edit of no length, with a sample that says what became what.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datatrove.data import Document as Page

from fivefold.data.code.config import AdmitConfig, CodeHeuristicsConfig, SecretConfig
from fivefold.data.code.heuristics import judge_code
from fivefold.data.code.identify import identify
from fivefold.data.code.repository import CodeShard, read_repository
from fivefold.data.code.secret import scrub
from fivefold.data.curate.step import JudgeStep, ReadShare
from fivefold.data.curate.verdict import Edit, Verdict
from fivefold.data.document import document_id
from fivefold.errors import CorruptFileError

_BINARY_BYTES = 8000
"""Bytes in which a NUL makes a file binary, as in git."""
_COOKIE = re.compile(r"coding[:=]\s*([-\w.]+)")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class ReadRepositories(ReadShare):
    """Read the files of a task's share of the repositories."""

    def __init__(
        self, shards: Sequence[CodeShard], config: AdmitConfig, out: Path, page_seconds: float
    ) -> None:
        """See `ReadShare`."""
        super().__init__("repositories", shards, out, page_seconds)
        self.config = config

    def read(self, shard: CodeShard) -> Iterator[Page]:
        """Yield the files of a repository, those that are refused too."""
        for file in read_repository(shard, self.config):
            url = f"{file.repository}/{file.path}"
            meta = {"repository": file.repository, "path": file.path}
            if file.licence:
                meta["licence"] = file.licence
            facts = {
                "source": file.repository,
                "url": url,
                "lang": file.language,
                "meta": meta,
                "found": (file.refusal, file.state),
            }
            text = file.content.decode("latin-1")
            yield Page(text=text, id=document_id(file.repository, url), metadata=facts)

    def give_up(self, shard: CodeShard, error: CorruptFileError) -> Page:
        """Raise the error: a repository is read to its end or not at all."""
        raise error


class AdmitFiles(JudgeStep):
    """Drop what is refused, what is not the recorded content, and what is no text."""

    def __init__(self, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("admit", accounts, page_seconds)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        refusal, state = page.metadata.pop("found")
        if refusal:
            return Verdict(page.text, refusal)
        if state in ("digest", "size"):
            return Verdict(page.text, f"metadata.{state}")
        text = decode(page.text.encode("latin-1"))
        if text is None:
            return Verdict(page.text, "admit.no_text")
        if not text.strip():
            return Verdict(page.text, "admit.empty")
        if state == "realigned":
            found = Edit("metadata.realigned", 0, 0, page.metadata["meta"]["path"])
            return Verdict(text, edits=(found,))
        return Verdict(text)


def decode(content: bytes) -> str | None:
    r"""Return the text of a file with newlines as `\n`; None if it is binary or in no known code.

    UTF-8, UTF-16 with its mark, or what the first two lines declare (PEP 263).
    """
    named = next((code for mark, code in _MARKS if content.startswith(mark)), "utf-8")
    if named != "utf-16" and b"\0" in content[:_BINARY_BYTES]:
        return None
    head = b"\n".join(content.split(b"\n", 2)[:2]).decode("latin-1")
    cookie = _COOKIE.search(head)
    for code in [named, *([cookie[1]] if cookie else [])]:
        try:
            text = content.decode(code)
        except (UnicodeError, LookupError):
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return None


class IdentifyLanguages(JudgeStep):
    """Label files with their language; repair what was declared or named wrongly."""

    def __init__(self, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("language", accounts, page_seconds)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        declared, path = page.metadata["lang"].lower(), page.metadata["meta"]["path"]
        found = identify(path, page.text)
        if not found.language:
            return Verdict(page.text, "language.unknown")
        page.metadata["lang"] = found.language
        edits = []
        if declared and declared != found.language:
            change = f"{declared} -> {found.language}: {path}"
            edits.append(Edit("language.declared", 0, 0, change))
        if found.overruled:
            change = f"{found.overruled} -> {found.language}: {path}"
            edits.append(Edit("language.overruled", 0, 0, change))
        return Verdict(page.text, edits=tuple(edits))


class FilterCode(JudgeStep):
    """Drop files by the rules for their language."""

    def __init__(self, config: CodeHeuristicsConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("heuristics", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""

        def judge_page(page: Page) -> Verdict:
            facts = page.metadata
            return judge_code(page.text, facts["meta"]["path"], facts["lang"], self.config)

        return judge_page


class ScrubSecrets(JudgeStep):
    """Put a word in the place of each secret."""

    def __init__(self, config: SecretConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("secrets", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return lambda page: scrub(page.text, self.config)
