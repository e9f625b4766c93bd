# Typographic and full-width marks, and other scripts, are what is tested.
# ruff: noqa: RUF001

from pathlib import Path
from random import Random

import fasttext
import pytest

from fivefold.data.curate.config import UrlConfig
from fivefold.data.curate.language import identify_by_script, load_identifier
from fivefold.data.curate.url import read_domains, url_reason
from fivefold.errors import MissingFileError

CONFIG = UrlConfig(strict_words=("badword",), hard_words=("rude",), soft_words=("poker", "bonus"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/a/page", ""),
        ("https://bad-wo.rd/page", "url.strict_word"),
        ("https://example.org/xbadwordx", "url.strict_word"),
        ("https://example.org/a-rude-page", "url.hard_word"),
        ("https://example.org/crude_oil", ""),
        ("https://example.org/RUDE", "url.hard_word"),
        ("https://poker.org/poker", ""),
        ("https://poker.org/bonus", "url.soft_words"),
        ("usr/share/doc/x/index.html", ""),
    ],
)
def test_words_in_an_address_count_in_their_degree(url: str, reason: str):
    assert url_reason(url, CONFIG) == reason


def test_domains_cover_their_subdomains_and_nothing_else(tmp_path: Path):
    (tmp_path / "domains").write_text("# a list\nspam.org\nwww.ads.net # with the www\n\n")
    domains = read_domains(str(tmp_path / "domains"))
    assert domains == {"spam.org", "ads.net"}
    for url in (
        "https://spam.org/x",
        "http://a.b.SPAM.org:80/",
        "https://www.ads.net",
        "spam.org/",
    ):
        assert url_reason(url, CONFIG, domains) == "url.domain"
    for url in ("https://notspam.org/", "https://org/", "https://x.com/spam.org", "http://[bad"):
        assert url_reason(url, CONFIG, domains) == ""


def test_missing_lists_and_models_are_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="domain_file"):
        read_domains(str(tmp_path / "none"))
    with pytest.raises(MissingFileError, match=r"language\.model"):
        load_identifier(str(tmp_path / "none"))


PROSE = {
    "en": (
        "The river rose in the night, and when the men came back from the hill they found "
        "that there was nothing left of the bridge which their fathers had built."
    ),
    "de": (
        "Der Fluss stieg in der Nacht, und als die Männer von dem Hügel kamen, war nichts "
        "mehr von der Brücke übrig, die sie mit ihren Vätern gebaut hatten."
    ),
    "fr": (
        "La rivière est montée dans la nuit, et quand les hommes sont revenus de la colline "
        "il ne restait plus rien du pont que leurs pères avaient construit avec eux."
    ),
    "es": (
        "El río subió por la noche, y cuando los hombres volvieron de la colina no quedaba "
        "nada del puente que sus padres habían construido con las manos."
    ),
    "zh": "夜里河水上涨，人们从山上回来的时候，父辈修的桥已经不见了。",
    "ja": "夜のうちに川の水が増え、人々が丘から帰ると、父たちの作った橋はもうなかった。",
    "ru": ("Ночью река поднялась, и когда мужчины вернулись с холма, от моста ничего не осталось."),
    "ko": "밤사이 강물이 불어나 사람들이 언덕에서 돌아왔을 때 다리는 이미 없었다.",
}


@pytest.mark.parametrize("lang", PROSE)
def test_languages_are_told_apart(lang: str):
    found, probability = identify_by_script(PROSE[lang])
    assert found == lang
    assert probability >= 0.65


def test_a_fasttext_model_is_asked_about_the_whole_page(tmp_path: Path):
    random, langs = Random(0), ("en", "de", "fr")
    lines = [
        f"__label__{lang} " + " ".join(random.choices(PROSE[lang].split(), k=20))
        for _ in range(300)
        for lang in langs
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    # Without n-grams this build of fastText trains to NaN.
    model = fasttext.train_supervised(
        str(tmp_path / "train.txt"), dim=16, wordNgrams=2, bucket=10_000, thread=1, verbose=0
    )
    model.save_model(str(tmp_path / "model.bin"))
    identify = load_identifier(str(tmp_path / "model.bin"))
    for lang in langs:
        found, probability = identify(PROSE[lang].replace(" ", "\n", 3))
        assert found == lang
        assert 0.65 < probability <= 1


def test_what_is_no_prose_is_not_taken_for_a_language():
    for text in ("", "12 34 56 | 78", "x = foo(bar)\nreturn baz[qux] + quux\nimport numpy, torch"):
        assert identify_by_script(text)[1] < 0.65


def test_real_pages_in_english_and_chinese(pages: list[str]):
    prose = [page for page in pages if page.count(" the ") > 25]
    english = [identify_by_script(page) for page in prose]
    assert sum(lang == "en" and p >= 0.65 for lang, p in english) >= 0.98 * len(prose)
