"""Shards to raw pages: bytes with an address, before anything is known of their text.

Documents (rows of JSON lines or Parquet) are texts already and come as such. What is not read (a
page beyond the size limit, an image in a WARC, a row without a text) is still yielded, with the
reason, so that the accounts hold it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fivefold.data.archive import read_members
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.page_process import PageProcess, PageProcessError
from fivefold.data.curate.shard import Shard, page_form
from fivefold.data.curate.warc import read_warc
from fivefold.data.curate.web_page import PageForm
from fivefold.data.document import (
    Document,
    LargeRowError,
    document_id,
    read_content,
    read_good_rows,
)
from fivefold.data.extract import extract_texts
from fivefold.errors import CorruptFileError, StorageError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000
_PAGE_SECONDS = 60.0
"""Processor time after which a page of reference text is left out."""


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page as it was found."""

    url: str
    content: bytes
    form: PageForm = "html"
    charset: str = ""
    """As its server declared it; empty if unknown."""
    date: str = ""
    refusal: str = ""
    """Why it was not read, `extract.REASON`; empty if it was."""


def read_shard(shard: Shard, config: ExtractConfig) -> Iterator[RawPage | Document]:
    """Yield the pages of a shard, or its documents where it holds those.

    Raises:
        CorruptFileError: the shard is cut, altered or of another kind than its name says.
        StorageError: it cannot be read.
    """
    if shard.kind == "rows":
        yield from _read_rows(shard, config)
    elif shard.kind == "table":
        yield from _read_table(shard)
    elif shard.kind == "warc":
        yield from _read_warc(shard, config)
    elif shard.kind == "archive":
        for name, content in read_members(shard.path, shard.members, config.max_page_bytes + 1):
            yield from _pages(shard, name, content, page_form(name, shard.form), config)
    else:
        yield from _read_page(shard, config)


def _read_rows(shard: Shard, config: ExtractConfig) -> Iterator[RawPage | Document]:
    """Yield documents, and rows that are bad or too large as refused pages.

    Raises:
        CorruptFileError: no row can be read: these are no documents.
    """
    for number, row in read_good_rows(shard.path, shard.source, config.max_page_bytes):
        if isinstance(row, Document):
            yield row
        elif isinstance(row, LargeRowError):
            yield RawPage(f"{shard.name}#{number}", b"", refusal="extract.too_large")
        else:
            yield _bad_row(shard, number)


def read_texts(shards: Sequence[Shard], config: ExtractConfig) -> Iterator[Document]:
    """Yield the documents of shards, raw pages extracted; says how many pages had no text.

    Raises:
        CorruptFileError, StorageError: as `read_shard`.
    """
    left_out, failed = 0, list[str]()
    with PageProcess(_PAGE_SECONDS) as process:
        for shard in shards:
            for found in read_shard(shard, config):
                if isinstance(found, RawPage):
                    try:
                        found = _extract(found, shard, config, process)
                    except PageProcessError as error:
                        failed.append(f"{found.url}: {str(error).strip().splitlines()[-1]}")
                        continue
                if found.text.strip():
                    yield found
                else:
                    left_out += 1
    if left_out:
        logger.info("%s pages of %s without text left out", f"{left_out:,}", shards[0].source)
    if failed:
        logger.warning(
            "%d pages of %s left out that could not be read, the first %s",
            len(failed),
            shards[0].source,
            failed[0],
        )


def _extract(page: RawPage, shard: Shard, config: ExtractConfig, process: PageProcess) -> Document:
    extracted = process.extract(
        page.content,
        page.form,
        page.charset,
        main_content=config.main_content,
        extractor=config.extractor,
    )
    name = document_id(shard.source, page.url)
    return Document(name, extracted.text, shard.source, page.url, shard.lang)


def _read_page(shard: Shard, config: ExtractConfig) -> Iterator[RawPage | Document]:
    try:
        if shard.path.stat().st_size > config.max_page_bytes:
            yield RawPage(shard.name, b"", refusal="extract.too_large")
            return
        content = bytearray()
        for block in read_content(shard.path):
            content += block
            if len(content) > config.max_page_bytes:
                break
    except OSError as error:
        raise StorageError(
            expected=f"to be able to read `{shard.path}`",
            found=str(error.strerror),
            fix="Correct the file's permissions, or leave it out of the sources",
        ) from error
    yield from _pages(shard, shard.name, bytes(content), shard.form, config)


def _pages(
    shard: Shard, url: str, content: bytes, form: PageForm, config: ExtractConfig
) -> Iterator[RawPage | Document]:
    if len(content) > config.max_page_bytes:
        yield RawPage(url, b"", form, refusal="extract.too_large")
    elif form == "fortunes":
        # One file of many texts: they are cut apart here, so that one page is one text.
        for number, text in enumerate(extract_texts(content, form)):
            address = f"{url}#{number}"
            yield Document(document_id(shard.source, address), text, shard.source, address)
    else:
        yield RawPage(url, content, form)


def _read_warc(shard: Shard, config: ExtractConfig) -> Iterator[RawPage]:
    for response in read_warc(shard.path, config.max_page_bytes):
        form: PageForm = response.form or "html"
        page = RawPage(response.url, response.content, form, response.charset, response.date)
        if max(response.size_bytes, len(response.content)) > config.max_page_bytes:
            yield replace(page, content=b"", refusal="extract.too_large")
        elif response.status != 200:
            yield replace(page, content=b"", refusal="extract.http_status")
        elif not response.form:
            yield replace(page, content=b"", refusal="extract.content_type")
        else:
            yield page


def _bad_row(shard: Shard, number: int) -> RawPage:
    return RawPage(f"{shard.name}#{number}", b"", refusal="extract.bad_row")


def _read_table(shard: Shard) -> Iterator[RawPage | Document]:
    """Read the columns `text`, `id`, `url`, `source` and `lang` or `language` of a Parquet file."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(shard.path) as table:
            known = {"text", "id", "url", "source", "lang", "language"}
            columns = [name for name in table.schema_arrow.names if name in known]
            if "text" not in columns:
                raise _bad_table(shard.path, "the columns " + ", ".join(table.schema_arrow.names))
            rows = (
                row
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns)
                for row in batch.to_pylist()
            )
            for number, row in enumerate(rows, start=1):
                if not isinstance(row["text"], str):
                    yield _bad_row(shard, number)
                    continue
                source = str(row.get("source") or shard.source)
                url = str(row.get("url") or f"{shard.name}#{number}")
                yield Document(
                    id=str(row.get("id") or document_id(source, url)),
                    text=row["text"],
                    source=source,
                    url=url,
                    lang=str(row.get("lang") or row.get("language") or ""),
                )
    except (pyarrow.ArrowException, OSError) as error:
        raise _bad_table(shard.path, str(error)) from error


def _bad_table(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        expected=f"a whole Parquet file with a string column `text` in `{path}`",
        found=found[:200],
        fix="Copy the file again, or leave it out",
    )
