"""Pages refused by their address: banned domains, and words in three degrees.

Source: RefinedWeb (arXiv:2306.01116, appendix G.1) as DCLM-Baseline applies it: strict words count
anywhere with `-` and `.` ignored, hard words as whole words, soft words when two different ones
stand there. The lists are not DCLM's: a short own one is the default, which catches the obvious; a
crawl needs a real list of domains (UT1, for example), which is given as a file.
"""

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from fivefold.data.curate.config import UrlConfig
from fivefold.errors import MissingFileError


@lru_cache(maxsize=4)
def _word_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, words))})(?![^\W_])")


def read_domains(path: str) -> frozenset[str]:
    """Read a file of domains, one a line; `#` begins a comment. An empty path gives none.

    Raises:
        MissingFileError: no such file.
    """
    if not path:
        return frozenset()
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(
            expected=f"a list of domains at `{path}`",
            found="nothing",
            fix="Correct `url.domain_file`, or leave it empty",
        )
    lines = file.read_text(encoding="utf-8").lower().splitlines()
    names = (line.split("#")[0].strip() for line in lines)
    return frozenset(name.removeprefix("www.") for name in names if name)


def url_reason(url: str, config: UrlConfig, domains: frozenset[str] = frozenset()) -> str:
    """Return why a page with this address goes; empty if it stays."""
    address = url.lower()
    if domains and _is_banned(address, domains):
        return "url.domain"
    bare = address.replace("-", "").replace(".", "")
    if any(word in bare for word in config.strict_words):
        return "url.strict_word"
    if config.hard_words and _word_pattern(config.hard_words).search(address):
        return "url.hard_word"
    if config.soft_words and len(set(_word_pattern(config.soft_words).findall(address))) >= 2:
        return "url.soft_words"
    return ""


def _is_banned(address: str, domains: frozenset[str]) -> bool:
    """Return whether the host or any domain above it is banned; text that is no address is not."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return False
    labels = host.removeprefix("www.").split(".")
    return any(".".join(labels[start:]) in domains for start in range(len(labels) - 1))
