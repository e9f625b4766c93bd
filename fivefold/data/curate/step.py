"""Steps of datatrove: our documents in, our verdicts applied, our documents out.

datatrove's executors run them: a task is a fixed share of the input files, its documents stream
through the steps, and a finished task is never run again. A step that fails on a document, or that
needs more than `page_seconds` of processor time for it, quarantines that document with its trace
and goes on. An error that no document is to blame for (a model, a list or a package is missing, an
endpoint refuses, the disk is full) ends the run with its words.

Surprise: the time limit is a signal that comes between two instructions of Python or inside a
regular expression, but not within one long call into other C code; it counts processor time, so
that a busy machine does not make a page slow.
"""

import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import write_json
from fivefold.data.curate.account import Account
from fivefold.data.curate.config import HeuristicsConfig, LanguageConfig, UrlConfig
from fivefold.data.curate.heuristics import judge
from fivefold.data.curate.language import load_identifier
from fivefold.data.curate.url import read_domains, url_reason
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, read_documents
from fivefold.errors import CorruptFileError, FivefoldError


class PageTimeoutError(Exception):
    """A page took more processor time than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise PageTimeoutError in the block once it has used so many seconds of processor time.

    Does nothing outside a process's main thread, where Python delivers no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise PageTimeoutError(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again and again: an exception that comes within a callback of the garbage collector is lost.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


_Item = TypeVar("_Item")


def within_time(items: Iterable[_Item], seconds: float) -> Iterator[_Item]:
    """Yield items, each of which may take so long to come.

    Raises:
        PageTimeoutError: one took longer; no other comes after it.
    """
    iterator = iter(items)
    while True:
        with time_limit(seconds):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def document_to_page(document: Document) -> Page:
    """Return datatrove's form of a document."""
    facts = {
        "source": document.source,
        "url": document.url,
        "lang": document.lang,
        "meta": dict(document.meta),
    }
    return Page(text=document.text, id=document.id, metadata=facts)


def page_to_document(page: Page) -> Document:
    """Return our form of a page that `document_to_page` made."""
    return Document(id=page.id, text=page.text, **page.metadata)


class ReadDocuments(PipelineStep):
    """Read a task's share of document files: every n-th of them."""

    name = "documents"
    type = "reader"

    def __init__(self, files: Sequence[Path]) -> None:
        """Take the files; their order decides which task reads which."""
        super().__init__()
        self.files = [str(file) for file in files]

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents of files `rank`, `rank + world_size`, ..."""
        for file in self.files[rank::world_size]:
            for document in read_documents(Path(file)):
                self.stat_update("documents")
                yield document_to_page(document)


class ReadShare(PipelineStep):
    """Read a task's share of a recipe's inputs: every n-th of them."""

    type = "reader"

    def __init__(self, name: str, shards: Sequence[Any], out: Path, page_seconds: float) -> None:
        """Take inputs, each with a `path`; write `OUT/TASK.json` with those that gave nothing."""
        self.name = name
        super().__init__()
        self.shards = list(shards)
        self.out = str(out)
        self.page_seconds = page_seconds

    @abstractmethod
    def read(self, shard: Any) -> Iterator[Page]:
        """Yield the pages of one input."""

    @abstractmethod
    def give_up(self, shard: Any, error: CorruptFileError) -> Page:
        """Return a page that stands for the rest of an input, or raise the error."""

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the pages of inputs `rank`, `rank + world_size`, ..."""
        empty, mine = [], self.shards[rank::world_size]
        for shard in mine:
            count = 0
            for page in self._read_in_time(shard):
                count += 1
                yield page
            if not count:
                empty.append(str(shard.path))
        write_json(Path(self.out) / f"{rank:05d}.json", {"files": len(mine), "empty": empty})

    def _read_in_time(self, shard: Any) -> Iterator[Page]:
        count = 0
        try:
            for page in within_time(self.read(shard), self.page_seconds):
                count += 1
                yield page
        except PageTimeoutError as error:
            damage = CorruptFileError(
                expected=f"to read page {count + 1:,} of `{shard.path}` in {self.page_seconds:g} s",
                found=str(error),
                fix="Look at that input, leave it out, or raise `page_seconds`",
            )
            yield self.give_up(shard, damage)


def is_of_the_run(error: Exception) -> bool:
    """Return whether no document is to blame for an error, and so every other one would meet it.

    A damaged file is one of many inputs, and a server may refuse one text for its length; every
    other error with words asks the user for something.
    """
    # The client of servers takes long to import, and most runs meet neither it nor an error.
    from fivefold.text.endpoint import RefusedContentError

    of_a_document = CorruptFileError, RefusedContentError
    return isinstance(error, FivefoldError) and not isinstance(error, of_a_document)


class JudgeStep(PipelineStep):
    """Apply a verdict to every document and keep the account of it."""

    type = "fivefold"

    def __init__(self, name: str, accounts: Path, page_seconds: float) -> None:
        """Write each task's account to `accounts/NAME/TASK.json`."""
        self.name = name
        super().__init__()
        self.accounts = str(accounts / name)
        self.page_seconds = page_seconds

    @abstractmethod
    def prepare(self) -> Callable[[Page], Verdict]:
        """Return what judges the documents of one task; called once, in the worker."""

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents that stay, with what stays of them."""
        account, judge_page = Account(), self.prepare()
        for page in data or ():
            url = page.metadata["url"]
            account.enter(page.text)
            try:
                with time_limit(self.page_seconds):
                    verdict = judge_page(page)
            # Whatever a page does to a step, the other pages go on; the trace is kept and counted.
            except Exception as error:
                if is_of_the_run(error):
                    raise
                account.quarantine(page.id, url, error)
                self.stat_update("quarantined")
                continue
            account.settle(page.id, url, verdict)
            if verdict.reason:
                self.stat_update(f"dropped_{verdict.reason}")
                continue
            page.text = verdict.text
            yield page
        account.check()
        write_json(Path(self.accounts) / f"{rank:05d}.json", account.to_json())


class FilterUrls(JudgeStep):
    """Refuse pages by their address."""

    def __init__(self, config: UrlConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("url", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Read the list of domains."""
        domains = read_domains(self.config.domain_file)

        def judge_page(page: Page) -> Verdict:
            url = page.metadata["url"]
            reason = url_reason(url, self.config, domains)
            return Verdict(url, reason, (0, len(url))) if reason else Verdict(page.text)

        return judge_page


class FilterLanguages(JudgeStep):
    """Label pages with their language and keep the wanted ones."""

    def __init__(self, config: LanguageConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("language", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Load the identifier."""
        identify = load_identifier(self.config.model)

        def judge_page(page: Page) -> Verdict:
            lang, probability = identify(page.text)
            page.metadata["meta"]["lang_probability"] = round(probability, 4)
            page.metadata["lang"] = lang
            if not self.config.keep:
                return Verdict(page.text)
            if lang not in self.config.keep:
                return Verdict(page.text, "language.other")
            if probability < self.config.min_probability:
                return Verdict(page.text, "language.unsure")
            return Verdict(page.text)

        return judge_page


class FilterByHeuristics(JudgeStep):
    """Drop and edit pages by the heuristics chain."""

    def __init__(self, config: HeuristicsConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("heuristics", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return lambda page: judge(page.text, self.config, page.metadata["lang"])
