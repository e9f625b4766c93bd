"""Secrets out of a text: known formats, values of telling names, and literals too random for words.

Formats are those that the issuers document (prefixes of AWS, GitHub, GitLab, Slack, Google, Stripe,
Hugging Face, PyPI, npm, SendGrid, OpenAI, Anthropic; JSON web tokens; PEM keys; passwords in
addresses). A value assigned to a name such as `password` is a secret if its Shannon entropy is that
of no word and it is no placeholder. A literal of 32 and more characters without any name is one if
its entropy is above what words and hexadecimal reach.

Each secret becomes a word of one kind's name, in one line however long it was, so that the file
still reads and, mostly, parses. What was found is counted and sampled, but only its first
characters are kept: an account must not leak what the corpus does not.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from fivefold.data.code.config import SecretConfig
from fivefold.data.curate.verdict import Edit, Verdict

_FORMATS: tuple[tuple[str, str, str], ...] = (
    ("private_key", "-----BEGIN", (r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
                     r"(?s:.{1,20000}?)-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")),
    ("aws", "AKIA ASIA AROA AIDA", r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"),
    ("github", "ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),
    ("github", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{60,100}\b"),
    ("gitlab", "glpat- gldt- glrt- glcbt-", r"\bgl(?:pat|dt|rt|cbt)-[A-Za-z0-9_-]{20,64}"),
    ("slack", "xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}"),
    ("slack", "hooks.slack.com",
     r"https://hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"),
    ("google", "AIza", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("google", "GOCSPX- ya29.", r"\bGOCSPX-[A-Za-z0-9_-]{28}|\bya29\.[A-Za-z0-9_-]{30,}"),
    ("stripe", "_live_ _test_", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}\b"),
    ("stripe", "whsec_", r"\bwhsec_[A-Za-z0-9]{24,}\b"),
    ("openai", "sk-", (r"\bsk-(?:proj-|svcacct-|ant-(?:api|admin)\d\d-)?"
                       r"(?=[\w-]*\d)[A-Za-z0-9_-]{32,}")),
    ("hugging_face", "hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
    ("pypi", "pypi-AgEI", r"\bpypi-AgEI[A-Za-z0-9_-]{40,}"),
    ("npm", "npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("sendgrid", "SG.", r"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
    ("azure", "AccountKey=", r"(?<=AccountKey=)[A-Za-z0-9+/]{40,}={0,2}"),
    ("web_token", ".eyJ .eyI", r"\bey[IJ][\w-]{8,}\.ey[IJ][\w-]{8,}\.[\w-]{8,}"),
)  # fmt: skip
_ASSIGNED = re.compile(
    r"(?::=|=>|[:=])[ \t]*[rbufRBUF]{0,2}(?P<quote>[\"'`])(?P<value>[^\"'`\s\\]{4,200})(?P=quote)"
)
_TELLING = re.compile(
    r"(?i)(?:passw(?:or)?d|passphrase|pwd|secret(?![a-z])|api[_-]?key|access[_-]?key|token(?![a-z])|bearer"
    r"|private[_-]?key|credentials?|signing[_-]?key|encryption[_-]?key|auth[_-]?key)"
    r"[\w-]*[\"'`]?\]?[ \t]*(?::[ \t]*[\w.]+[ \t]*)?\Z"
)
_TELLING_CHARACTERS = 80
_BARE = re.compile(
    r"(?m)^\s*(?:export\s+)?[A-Z0-9_]*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY"
    r"|PRIVATE_KEY)[A-Z0-9_]*\s*=\s*(?P<value>[A-Za-z0-9+/=_.~!@#%^&*-]{8,200})\s*$"
)
_ADDRESS = re.compile(r"://[^\s:/@\"'<>{}$]{1,64}:(?P<value>[^\s:/@\"'<>{}$%]{4,100})@")
_LITERAL = re.compile(r"(?P<quote>[\"'`])(?P<value>[A-Za-z0-9+/_=-]{20,400})(?P=quote)")
_PLACEHOLDER = re.compile(
    r"(?i)example|sample|dummy|placeholder|change.?me|redacted|insert|secret|passw|token|credential"
    r"|default|config|string|value|false|self\.|args\.|https?:|xxxx|abcd|1234|qwerty"
    r"|(?<![a-z])(?:your|todo|test|fake|mock|foo|pwd|key|env|none|null|true)(?![a-z])"
    r"|[<>{}$()\[]|%s|\*\*\*|\.\.\."
)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:/-]+")
_MARK = re.compile(r"[_.:/=-]")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KNOWN = tuple((kind, tuple(marks.split()), re.compile(one)) for kind, marks, one in _FORMATS)
_GUESSED = ("assigned", "address", "random")
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret stands."""

    kind: str
    begin: int
    end: int


def entropy(text: str) -> float:
    """Return the Shannon entropy of a text's characters, bits a character."""
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values()) if text else 0.0


def find_secrets(text: str, config: SecretConfig) -> list[Secret]:
    """Return the secrets in order; overlapping ones are one, of the known format among them."""
    found: list[Secret] = []
    for kind, marks, pattern in _KNOWN:
        # Looking for a fixed mark is a hundred times faster than the pattern.
        if any(mark in text for mark in marks):
            found += [Secret(kind, *match.span()) for match in pattern.finditer(text)]
    for kind, pattern in (("assigned", _ASSIGNED), ("assigned", _BARE), ("address", _ADDRESS)):
        for match in pattern.finditer(text):
            if pattern is _ASSIGNED:
                before = text[max(0, match.start() - _TELLING_CHARACTERS) : match.start()]
                if not _TELLING.search(before.rpartition("\n")[2]):
                    continue
            if _is_secret_value(match["value"], config, loose=kind == "address"):
                found.append(Secret(kind, *match.span("value")))
    for match in _LITERAL.finditer(text):
        if _is_random(match["value"], config):
            found.append(Secret("random", *match.span("value")))
    apart: list[Secret] = []
    for secret in sorted(found, key=lambda one: (one.begin, one.end, one.kind)):
        if not apart or secret.begin >= apart[-1].end:
            apart.append(secret)
            continue
        last = apart.pop()
        kind = secret.kind if last.kind in _GUESSED else last.kind
        apart.append(Secret(kind, last.begin, max(last.end, secret.end)))
    return apart


def _is_secret_value(value: str, config: SecretConfig, *, loose: bool) -> bool:
    if _PLACEHOLDER.search(value):
        return False
    if loose:
        # A password in an address is one even if it is a word; a name of a variable is not.
        return not re.fullmatch(r"[A-Z_]+|(?i:pass\w*|user\w*|p+w*|pw)", value)
    if len(value) < config.min_value_characters or _is_identifier(value):
        return False
    return entropy(value) >= config.min_value_entropy


def _is_identifier(value: str) -> bool:
    """Return whether a value is a name or path: words with marks between, or words without digits.

    A single word with a digit is none: `hunter12` is a password.
    """
    name = value.strip("#@&*.,:;!?/\\ ")
    if not _IDENTIFIER.fullmatch(name) or _mean_word(name) < 3:
        return False
    return bool(_MARK.search(name)) or not any(map(str.isdigit, name))


def _mean_word(value: str) -> float:
    """Return the mean length of runs of one case or of digits: below 2 in random characters."""
    words = _WORD.findall(value)
    return sum(map(len, words)) / len(words) if words else 0.0


def _is_random(value: str, config: SecretConfig) -> bool:
    if len(value) < config.min_token_characters or entropy(value) < config.min_token_entropy:
        return False
    classes = (str.isupper, str.islower, str.isdigit)
    if any(sum(map(is_in, value)) < 3 for is_in in classes) or value[0] == "/":
        return False
    # Words joined by marks are no secret, nor is an alphabet.
    steps = sum(ord(b) - ord(a) == 1 for a, b in pairwise(value))
    is_joined = len(_MARK.findall(value.rstrip("="))) >= len(value) / 12
    return _mean_word(value) < (2.4 if is_joined else 3.2) and steps < 0.3 * len(value)


def scrub(text: str, config: SecretConfig) -> Verdict:
    """Return the text without its secrets, each of them an edit whose sample does not show it."""
    secrets = find_secrets(text, config)
    parts, edits, place = [], [], 0
    for secret in secrets:
        removed = text[secret.begin : secret.end]
        parts += [text[place : secret.begin], f"REDACTED_{secret.kind.upper()}"]
        shown = removed[:_SHOWN] + "*" * (len(removed) - _SHOWN)
        edits.append(Edit(f"secret.{secret.kind}", secret.begin, secret.end, shown))
        place = secret.end
    return Verdict("".join([*parts, text[place:]]), edits=tuple(edits))
