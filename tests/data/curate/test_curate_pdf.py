"""Text of PDFs that matplotlib writes, whole and broken, alone and through the pipeline's step."""

import io
import json
from pathlib import Path

import pytest

from fivefold.data.curate.config import ExtractConfig
from fivefold.data.curate.extract_step import ExtractText, ReadShards
from fivefold.data.curate.page_process import PageProcess, PageProcessError
from fivefold.data.curate.pdf_page import PdfError, join_pages, read_pdf
from fivefold.data.curate.shard import find_shards

PAGES = [
    f"The river mill stands at bend {n} of the val-\nley, where the ferry "
    "crosses.\nA Half-\nOpen gate."
    for n in ("one", "two", "three", "four")
]
EXPECTED = [
    page.replace("val-\nley", "valley").replace("Half-\nOpen", "Half-Open") for page in PAGES
]


@pytest.fixture(scope="module")
def pdf() -> bytes:
    pytest.importorskip("pypdfium2")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with PdfPages(out, metadata={"Title": "Of Mills", "CreationDate": None}) as file:
        for number, page in enumerate(PAGES, start=1):
            figure = Figure(figsize=(5, 4))
            figure.text(0.1, 0.9, f"Of Mills, chapter {number}")
            for row, line in enumerate(page.split("\n")):
                figure.text(0.1, 0.7 - 0.1 * row, line)
            figure.text(0.5, 0.05, str(number + 10))
            file.savefig(figure)
    return out.getvalue()


def test_words_are_joined_and_heads_and_numbers_taken_out(pdf: bytes):
    found = read_pdf(pdf)
    assert found.title == "Of Mills"
    assert found.text.split("\n") == "\n".join(EXPECTED).split("\n")
    assert [(edit.reason, edit.removed) for edit in found.edits] == [
        pair
        for n in range(1, 5)
        for pair in (
            ("extract.running_head", f"Of Mills, chapter {n}"),
            ("extract.page_number", str(n + 10)),
        )
    ]


def test_a_line_that_does_not_repeat_at_the_edge_stays():
    pages = ["1984\ntext of a\n12", "Alpha\ntext of b\n1066", "Beta\ntext of c\nend"]
    text, edits = join_pages(pages)
    assert [edit.removed for edit in edits] == ["1984", "12", "1066"]
    assert join_pages(["12\ntext", "13\ntext"]) == ("12\ntext\n13\ntext", ())
    assert "Alpha" in text


def test_spans_of_edits_stand_where_they_say():
    pages = [f"Head\nbody {n}\n{n}" for n in range(4)]
    whole = "\n".join(pages)
    _, edits = join_pages(pages)
    assert len(edits) == 8
    assert all(whole[edit.begin : edit.end] == edit.removed for edit in edits)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.7, 0.98])
def test_a_cut_file_is_an_error_never_a_part_of_the_text(pdf: bytes, cut: float):
    with pytest.raises(PdfError):
        read_pdf(pdf[: int(cut * len(pdf))])


def test_the_child_reads_a_pdf_as_the_function_does(pdf: bytes):
    with PageProcess(20) as process:
        assert process.extract(pdf, "pdf", "", main_content=True).text == read_pdf(pdf).text
        with pytest.raises(PageProcessError, match="PdfError"):
            process.extract(pdf[:500], "pdf", "", main_content=True)


def test_a_poisoned_pdf_is_quarantined_and_the_others_go_on(tmp_path: Path, pdf: bytes):
    for name, content in (("a", pdf), ("b", pdf[: len(pdf) // 2]), ("c", pdf)):
        (tmp_path / f"{name}.pdf").write_bytes(content)
    config = ExtractConfig()
    reader = ReadShards(find_shards([tmp_path]), config, tmp_path / "reading", 60.0)
    step = ExtractText(config, tmp_path / "accounts", page_seconds=20)
    pages = list(step.run(reader.run()))
    assert [page.metadata["url"] for page in pages] == ["a.pdf", "c.pdf"]
    assert pages[0].metadata["meta"]["title"] == "Of Mills"
    account = json.loads((tmp_path / "accounts" / "extract" / "00000.json").read_text())
    assert [one["url"] for one in account["quarantined"]] == ["b.pdf"]
    assert account["edits"] == {"extract.page_number": 8, "extract.running_head": 8}
