"""Steps of datatrove up to the texts that are scored: extraction, the field, templates, detectors.

`ExtractMaths` writes formulas into the HTML before the extractor of all recipes reads it. Where the
main content lost formulas that the page has, it takes the page's whole text: on the pages of SymPy
the extractor's rule for main content leaves out whole sections now and then.

Templates need two passes: `OutlineDocuments` (a task for each file) and `FindTemplates` (one task);
`FitDetector` is one task over the human and the machine text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document as Page
from datatrove.pipeline.base import PipelineStep

from fivefold.artifact import atomic_write, read_json, write_json
from fivefold.data.curate.account import EarlierError, trace_of
from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.extract_step import ExtractText
from fivefold.data.curate.raw_page import read_texts
from fivefold.data.curate.shard import Shard
from fivefold.data.curate.step import JudgeStep, is_of_the_run, time_limit
from fivefold.data.curate.verdict import Verdict
from fivefold.data.curate.web_page import decode_page
from fivefold.data.document import read_documents
from fivefold.data.extract import cut_text
from fivefold.data.maths.config import (
    AdmitConfig,
    FormulaConfig,
    MachineTextConfig,
    TemplateConfig,
)
from fivefold.data.maths.formula import count_formulas, keep_formulas
from fivefold.data.maths.machine_text import (
    find_tell,
    fit_detector,
    read_detector,
    write_detector,
)
from fivefold.data.maths.rule import find_signals
from fivefold.data.maths.template import (
    Outline,
    find_templates,
    join_outline,
    no_outline,
    outline_text,
    template_share,
)

_TEMPLATES, _TRACES = "templates.npz", "traces.json"


class ExtractMaths(ExtractText):
    """Turn the bytes of a page into its text with its formulas between dollars."""

    def __init__(
        self, config: ExtractConfig, formulas: FormulaConfig, accounts: Path, page_seconds: float
    ) -> None:
        """See `JudgeStep`."""
        super().__init__(config, accounts, page_seconds)
        self.formulas = formulas
        self.whole_page = ExtractText(
            config.model_copy(update={"main_content": False}), accounts, page_seconds
        )

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        self.whole_page._process = self._process
        main, whole = super().prepare(), self.whole_page.prepare()
        return lambda page: self._with_formulas(page, main, whole)

    def _with_formulas(
        self,
        page: Page,
        main: Callable[[Page], Verdict],
        whole: Callable[[Page], Verdict],
    ) -> Verdict:
        raw = page.metadata["raw"]
        if not (isinstance(raw, tuple) and raw[0] == "html" and not raw[2]):
            return main(page)
        html = keep_formulas(decode_page(page.text.encode("latin-1"), raw[1]))
        page.text = html.encode("utf-8", "replace").decode("latin-1")
        there = count_formulas(html)
        verdict = main(page)
        if there and count_formulas(verdict.text) < self.formulas.min_kept * there:
            page.metadata["raw"] = raw
            verdict = whole(page)
        return verdict


class AdmitMaths(JudgeStep):
    """Drop what is not about maths or science."""

    def __init__(self, config: AdmitConfig, accounts: Path, page_seconds: float) -> None:
        """See `JudgeStep`."""
        super().__init__("admit", accounts, page_seconds)
        self.config = config

    def prepare(self) -> Callable[[Page], Verdict]:
        """Nothing to load."""
        return self._judge

    def _judge(self, page: Page) -> Verdict:
        signals, config = find_signals(page.text), self.config
        if signals.words < config.min_words:
            return Verdict(page.text, "admit.few_words")
        is_varied = signals.formulas or signals.different >= config.min_different
        if signals.per_hundred < config.min_signals or not is_varied:
            return Verdict(page.text, "admit.other_field")
        page.metadata["meta"]["formulas"] = signals.formulas
        return Verdict(page.text)


class OutlineDocuments(PipelineStep):
    """Write what finding templates has to know of a file of documents."""

    name = "outline"
    type = "fivefold"

    def __init__(
        self, documents: Sequence[Path], config: TemplateConfig, out: Path, page_seconds: float
    ) -> None:
        """Take one file for each task; write `OUT/TASK.npz`, and traces beside it."""
        super().__init__()
        self.documents = [str(file) for file in documents]
        self.config = config
        self.out = str(out)
        self.page_seconds = page_seconds

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the outline of the file number `rank`; nothing goes on from here."""
        names, sources, parts = list[str](), list[str](), []
        traces: dict[str, str] = {}
        for document in read_documents(Path(self.documents[rank])):
            try:
                with time_limit(self.page_seconds):
                    part = outline_text(document.source, document.text, self.config)
            # It is like no other text, and `DropTemplates` quarantines it.
            except Exception as error:
                if is_of_the_run(error):
                    raise
                traces[document.id], part = trace_of(error), no_outline(self.config)
            names.append(document.id)
            sources.append(document.source)
            parts.append(part)
        write_json(Path(self.out) / f"{rank:05d}.json", traces)
        found = join_outline(names, sources, parts, self.config)
        path = Path(self.out) / f"{rank:05d}.npz"
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                ids=np.array(found.ids, dtype=np.str_),
                sources=np.array(found.sources, dtype=np.str_),
                sizes=np.array([len(lines) for lines in found.lines], dtype=np.int64),
                lines=np.concatenate([np.zeros(0, dtype=np.uint64), *found.lines]),
                signatures=found.signatures,
            )
        yield from ()


class FindTemplates(PipelineStep):
    """Decide over all outlines which lines and documents are templates; one task."""

    name = "find_templates"
    type = "fivefold"

    def __init__(self, outlines: Path, files: int, config: TemplateConfig, out: Path) -> None:
        """Read what `files` tasks left in `outlines`; write templates and traces into `out`."""
        super().__init__()
        self.outlines = str(outlines)
        self.files = files
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the decision; nothing goes on from here."""
        parts = [np.load(Path(self.outlines) / f"{file:05d}.npz") for file in range(self.files)]
        lines = [
            one for part in parts for one in np.split(part["lines"], np.cumsum(part["sizes"])[:-1])
        ]
        ids = [name for part in parts for name in part["ids"].tolist()]
        whole = Outline(
            ids,
            [name for part in parts for name in part["sources"].tolist()],
            lines[: len(ids)],
            np.concatenate([part["signatures"] for part in parts]),
        )
        found = find_templates(whole, self.config)
        path = Path(self.out) / _TEMPLATES
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, lines=found.lines, dropped=np.array(sorted(found.dropped), np.str_))
        traces: dict[str, str] = {}
        for number in range(self.files):
            traces |= read_json(Path(self.outlines) / f"{number:05d}.json") or {}
        write_json(Path(self.out) / _TRACES, traces)
        yield from ()


class DropTemplates(JudgeStep):
    """Drop the pages that a program filled in."""

    def __init__(
        self, config: TemplateConfig, templates: Path, accounts: Path, page_seconds: float
    ) -> None:
        """See `JudgeStep`; `templates` is the folder that `FindTemplates` wrote into."""
        super().__init__("templates", accounts, page_seconds)
        self.config = config
        self.templates = str(templates)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Read the decision."""
        with np.load(Path(self.templates) / _TEMPLATES) as file:
            lines, dropped = file["lines"], set(file["dropped"].tolist())
        traces = read_json(Path(self.templates) / _TRACES) or {}

        def judge_page(page: Page) -> Verdict:
            if page.id in traces:
                raise EarlierError(traces[page.id])
            share, span = template_share(
                page.text, page.metadata["source"], lines, self.config.min_line_words
            )
            if share > self.config.max_characters:
                return Verdict(page.text, "template.lines", span)
            return Verdict(page.text, "template.skeleton" if page.id in dropped else "")

        return judge_page


class FitDetector(PipelineStep):
    """Make the detector of machine text and calibrate it; one task."""

    name = "fit_detector"
    type = "fivefold"

    def __init__(
        self,
        human: Sequence[Shard],
        machine: Sequence[Shard],
        config: MachineTextConfig,
        out: Path,
    ) -> None:
        """Take the shards of both kinds of text, by source; write `OUT/detector.json`."""
        super().__init__()
        self.human, self.machine = list(human), list(machine)
        self.config = config
        self.out = str(out)

    def run(
        self, data: Iterable[Page] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Page]:
        """Write the detector; nothing goes on from here.

        Raises:
            ConfigError: too little human or machine text.
        """
        human, machine = (self._pieces(shards) for shards in (self.human, self.machine))
        others = [piece for pieces in machine.values() for piece in pieces]
        write_detector(fit_detector(human, others, self.config), Path(self.out))
        yield from ()

    def _pieces(self, shards: Sequence[Shard]) -> dict[str, list[str]]:
        """Return pieces of each source's texts, the first ones by the hash of their content."""
        size, most = self.config.window_characters, self.config.windows_per_source
        found: dict[str, list[str]] = {}
        for name, own in groupby(shards, key=lambda shard: shard.source):
            documents = read_texts(list(own), ExtractConfig())
            pieces = {piece for one in documents for piece in cut_text(one.text, size)}
            ranked = sorted((xxhash.xxh3_64_intdigest(one.encode(), seed=5), one) for one in pieces)
            found[name] = [piece for _, piece in ranked[:most]]
        return found


class DropMachineText(JudgeStep):
    """Drop what a language model wrote."""

    def __init__(
        self, config: MachineTextConfig, detector: Path, accounts: Path, page_seconds: float
    ) -> None:
        """See `JudgeStep`; `detector` is the folder that `FitDetector` wrote into."""
        super().__init__("machine_text", accounts, page_seconds)
        self.config = config
        self.detector = str(detector)

    def prepare(self) -> Callable[[Page], Verdict]:
        """Read the detector."""
        detector = read_detector(Path(self.detector), self.config)

        def judge_page(page: Page) -> Verdict:
            if not detector.is_machine(page.text):
                return Verdict(page.text)
            span = find_tell(page.text)
            reason = "machine_text.tell" if span else "machine_text.manner"
            return Verdict(page.text, reason, span)

        return judge_page
