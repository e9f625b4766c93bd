"""Last steps of datatrove: files of one repository into one task, then texts; changes to sequences.

`WriteBuckets` sends all files of a repository to one bucket, `PackRepositories` is a task for each
bucket. Its account counts files: a file that comes in either stands in a text or is quarantined
with its repository. `MineIssues` counts changes of the main lines that it looked at.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import xxhash
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import write_json
from fivefold.data.code.concatenate import PackedFile, pack_repository
from fivefold.data.code.config import IssueConfig, PackConfig, SecretConfig
from fivefold.data.code.git import Change, GitRepository
from fivefold.data.code.issue import IssueMiner, Outcome
from fivefold.data.code.link import read_dump
from fivefold.data.code.repository import CodeShard
from fivefold.data.curate.account import Account
from fivefold.data.curate.dedup_step import task_file
from fivefold.data.curate.step import (
    document_to_page,
    is_of_the_run,
    page_to_document,
    time_limit,
)
from fivefold.data.curate.verdict import Verdict
from fivefold.data.document import Document, document_writer, read_documents


def bucket_of(repository: str, buckets: int) -> int:
    """Return the bucket of a repository."""
    return xxhash.xxh3_64_intdigest(repository.encode(), seed=5) % buckets


class WriteBuckets(PipelineStep):
    """Write files so that all of a repository's lie in the folder of one bucket."""

    name = "buckets"
    type = "writer"

    def __init__(self, out: Path, buckets: int) -> None:
        """Write `OUT/BUCKET/TASK.jsonl.zst`."""
        super().__init__()
        self.out = str(out)
        self.buckets = buckets

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write everything; nothing goes on from here."""
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    document_writer(task_file(bucket_folder(self.out, bucket), rank))
                )
                for bucket in range(self.buckets)
            ]
            for page in data or ():
                bucket = bucket_of(page.metadata["meta"]["repository"], self.buckets)
                writers[bucket](page_to_document(page))
        yield from ()


def bucket_folder(out: str | Path, bucket: int) -> Path:
    """Return the folder of a bucket."""
    return Path(out) / f"{bucket:05d}"


class WriteTexts(PipelineStep):
    """Write a task's texts into a file that says what they are, so that kinds can lie together."""

    name = "texts"
    type = "writer"

    def __init__(self, out: Path, kind: str) -> None:
        """Write `OUT/KIND-TASK.jsonl.zst`."""
        super().__init__()
        self.out = str(out)
        self.kind = kind

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write everything; nothing goes on from here."""
        with document_writer(text_file(Path(self.out), self.kind, rank)) as write:
            for page in data or ():
                write(page_to_document(page))
        yield from ()


def text_file(folder: Path, kind: str, task: int) -> Path:
    """Return the file of texts that one task writes."""
    return folder / f"{kind}-{task:05d}.jsonl.zst"


class PackRepositories(PipelineStep):
    """Join the files of each repository of a bucket; holds one bucket in memory."""

    name = "pack"
    type = "fivefold"

    def __init__(
        self, buckets: Path, config: PackConfig, accounts: Path, page_seconds: float
    ) -> None:
        """Read what `WriteBuckets` wrote; write the account into `accounts/pack/TASK.json`."""
        super().__init__()
        self.buckets = str(buckets)
        self.config = config
        self.accounts = str(accounts / self.name)
        self.page_seconds = page_seconds

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the texts of bucket number `rank`, repositories in the order of their names."""
        files: defaultdict[str, list[Document]] = defaultdict(list)
        for path in sorted(bucket_folder(self.buckets, rank).glob("*.jsonl.zst")):
            for document in read_documents(path):
                files[document.meta["repository"]].append(document)
        account = Account()
        for repository in sorted(files):
            yield from map(document_to_page, self._pack(repository, files[repository], account))
        account.check()
        write_json(Path(self.accounts) / f"{rank:05d}.json", account.to_json())

    def _pack(
        self, repository: str, documents: Sequence[Document], account: Account
    ) -> list[Document]:
        for document in documents:
            account.enter(document.text)
        try:
            # A repository may take as long as all of its files together.
            with time_limit(self.page_seconds * len(documents)):
                files = [_to_file(document) for document in documents]
                packed = list(pack_repository(repository, files, self.config))
        # Whatever a repository does to the packer, the others go on; its files are counted.
        except Exception as error:
            if is_of_the_run(error):
                raise
            for document in documents:
                account.quarantine(document.id, document.url, error)
            return []
        for document in documents:
            account.settle(document.id, document.url, Verdict(document.text))
        return packed


def _to_file(document: Document) -> PackedFile:
    meta = document.meta
    return PackedFile(
        id=document.id,
        path=meta["path"],
        language=document.lang,
        text=document.text,
        copies=meta["copies"],
        licence=str(meta.get("licence", "")),
    )


class MineIssues(PipelineStep):
    """Make issue sequences from the histories of a task's share of the git repositories."""

    name = "issues"
    type = "fivefold"

    def __init__(
        self,
        shards: Sequence[CodeShard],
        config: IssueConfig,
        secrets: SecretConfig | None,
        accounts: Path,
        page_seconds: float,
    ) -> None:
        """Take the shards; write the account into `accounts/issues/TASK.json`."""
        super().__init__()
        self.shards = [shard for shard in shards if shard.kind == "git"]
        self.config = config
        self.secrets = secrets
        self.accounts = str(accounts / self.name)
        self.page_seconds = page_seconds

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Yield the sequences of repositories `rank`, `rank + world_size`, ..."""
        account = Account()
        for shard in self.shards[rank::world_size]:
            repository = GitRepository(shard.path)
            dump = read_dump(self.config.dump, shard.source) if self.config.dump else {}
            with repository.contents() as contents:
                miner = IssueMiner(
                    repository, shard.source, contents, dump, self.config, self.secrets
                )
                for change in repository.history(self.config.max_changes):
                    document = self._mine(miner, shard.source, change, account)
                    if document is not None:
                        yield document_to_page(document)
        account.check()
        write_json(Path(self.accounts) / f"{rank:05d}.json", account.to_json())

    def _mine(
        self, miner: IssueMiner, source: str, change: Change, account: Account
    ) -> Document | None:
        name, url = change.commit, f"{source}@{change.commit}"
        account.enter(change.message)
        try:
            with time_limit(self.page_seconds):
                outcome: Outcome = miner.mine(change)
        # Whatever a change does to the miner, the others go on; it is counted with its trace.
        except Exception as error:
            if is_of_the_run(error):
                raise
            account.quarantine(name, url, error)
            return None
        if outcome.document is None:
            account.settle(name, url, Verdict(change.message, outcome.reason))
            return None
        account.settle(name, url, Verdict(outcome.document.text, edits=outcome.edits))
        return outcome.document
