"""Steps of datatrove from raw pages to texts.

Until its extraction a page's text is its bytes, one character for each (Latin-1): so the address
filter, which comes before extraction, and the accounts see pages of one kind. `characters_in` of
the first two steps are therefore bytes of HTML.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.dedup_step import task_file
from fivefold.data.curate.page_process import PageProcess
from fivefold.data.curate.raw_page import RawPage, read_shard
from fivefold.data.curate.shard import Shard
from fivefold.data.curate.step import JudgeStep, ReadShare, document_to_page, page_to_document
from fivefold.data.curate.verdict import Edit, Verdict
from fivefold.data.document import document_id, document_writer, has_places
from fivefold.data.extract import clean_text
from fivefold.errors import CorruptFileError


class ReadShards(ReadShare):
    """Read the pages of a task's share of the shards."""

    def __init__(
        self, shards: Sequence[Shard], config: ExtractConfig, out: Path, page_seconds: float
    ) -> None:
        """See `ReadShare`."""
        super().__init__("shards", shards, out, page_seconds)
        self.config = config

    def read(self, shard: Shard) -> Iterator[Page]:
        """Yield the pages of a shard; where it is damaged, one page that says so, or the error.

        Raises:
            CorruptFileError: the shard is cut or altered, and the config says to stop.
        """
        try:
            for found in read_shard(shard, self.config):
                yield _to_page(found, shard)
        except CorruptFileError as error:
            yield self.give_up(shard, error)

    def give_up(self, shard: Shard, error: CorruptFileError) -> Page:
        """Return a page that says so, or raise the error, as the config says."""
        if self.config.damaged_files == "stop":
            raise error
        return _damaged_page(shard, error)


def _to_page(found: RawPage | object, shard: Shard) -> Page:
    if not isinstance(found, RawPage):
        page = document_to_page(found)  # type: ignore[arg-type]
        page.metadata["raw"] = None
        return page
    meta = {name: value for name in ("licence",) if (value := getattr(shard, name))}
    if found.date:
        meta["date"] = found.date
    facts = {
        "source": shard.source,
        "url": found.url,
        "lang": shard.lang,
        "meta": meta,
        "raw": (found.form, found.charset, found.refusal, shard.furniture),
    }
    return Page(
        text=found.content.decode("latin-1"),
        id=document_id(shard.source, found.url),
        metadata=facts,
    )


def _damaged_page(shard: Shard, error: CorruptFileError) -> Page:
    facts = {"source": shard.source, "url": shard.name, "lang": "", "meta": {}, "raw": error}
    return Page(text="", id=document_id(shard.source, f"{shard.name} damaged"), metadata=facts)


class ExtractText(JudgeStep):
    """Turn the bytes of a page into its text, title and declared language."""

    def __init__(self, config: ExtractConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("extract", accounts, page_seconds)
        self.config = config

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the documents that stay; HTML is parsed in a process of its own."""
        with PageProcess(self.page_seconds) as self._process:
            yield from super().run(data, rank, world_size)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        raw = page.metadata.pop("raw")
        if isinstance(raw, CorruptFileError):
            raise raw
        if raw is None:
            is_packed = has_places(page.metadata["meta"])
            return self._settle(page, page.text if is_packed else clean_text(page.text))
        form, charset, refusal, furniture = raw
        if refusal:
            return Verdict(page.text, refusal)
        extracted = self._process.extract(
            page.text.encode("latin-1"),
            form,
            charset,
            main_content=self.config.main_content,
            extractor=self.config.extractor,
        )
        page.metadata["lang"] = page.metadata["lang"] or extracted.lang
        if extracted.title:
            page.metadata["meta"]["title"] = extracted.title
        return self._settle(
            page,
            re.sub(furniture, "", extracted.text) if furniture else extracted.text,
            extracted.edits,
        )

    def _settle(self, page: Page, text: str, edits: tuple[Edit, ...] = ()) -> Verdict:
        if not text.strip():
            return Verdict(page.text, "extract.empty")
        if text.count("\ufffd") > self.config.max_replaced * len(text):
            place = text.index("\ufffd")
            return Verdict(text, "extract.undecodable", (place, place + 1))
        return Verdict(text, edits=edits)


class WriteTask(PipelineStep):
    """Write a task's documents in the order in which they come."""

    name = "write_task"
    type = "writer"

    def __init__(self, out: Path) -> None:
        """Write `OUT/TASK.jsonl.zst`."""
        super().__init__()
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write everything; nothing goes on from here."""
        with document_writer(task_file(Path(self.out), rank)) as write:
            for page in data or ():
                write(page_to_document(page))
        yield from ()
