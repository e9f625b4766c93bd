"""Planted secrets are all found, real code is left alone, accounts show nothing."""

import base64
import string
import sysconfig
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from code_builder import python_text

from fivefold.data.code.config import SecretConfig
from fivefold.data.code.secret import entropy, find_secrets, scrub

CONFIG = SecretConfig()
STDLIB = Path(sysconfig.get_path("stdlib"))
ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "_-"


def draw(random: Random, alphabet: str, count: int) -> str:
    return "".join(random.choice(alphabet) for _ in range(count))


def mixed(random: Random, count: int) -> str:
    """Return letters and digits of which one at least is a digit, as rules for passwords ask."""
    return draw(random, ALNUM, count - 1) + draw(random, string.digits, 1)


def web_token(random: Random) -> str:
    parts = [base64.urlsafe_b64encode(f'{{"{mixed(random, 12)}":1}}'.encode()) for _ in range(2)]
    return ".".join([*(part.decode().rstrip("=") for part in parts), draw(random, URL_SAFE, 43)])


def pem(random: Random) -> str:
    kind = random.choice(["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "])
    body = "\n".join(draw(random, ALNUM + "+/", 64) for _ in range(random.randint(3, 12)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


FORMATS: dict[str, Callable[[Random], str]] = {
    "aws": lambda r: r.choice(["AKIA", "ASIA"]) + draw(r, string.ascii_uppercase + "234567", 16),
    "github": lambda r: f"gh{r.choice('pousr')}_" + draw(r, ALNUM, 36),
    "gitlab": lambda r: "glpat-" + draw(r, URL_SAFE, 20),
    "slack": lambda r: f"xox{r.choice('bp')}-{draw(r, string.digits, 11)}-{draw(r, ALNUM, 24)}",
    "google": lambda r: "AIza" + draw(r, URL_SAFE, 35),
    "stripe": lambda r: f"sk_{r.choice(['live', 'test'])}_" + draw(r, ALNUM, 24),
    "openai": lambda r: r.choice(["sk-", "sk-proj-", "sk-ant-api03-"]) + mixed(r, 48),
    "hugging_face": lambda r: "hf_" + draw(r, ALNUM, 34),
    "pypi": lambda r: "pypi-AgEI" + draw(r, URL_SAFE, 150),
    "npm": lambda r: "npm_" + draw(r, ALNUM, 36),
    "sendgrid": lambda r: f"SG.{draw(r, URL_SAFE, 22)}.{draw(r, URL_SAFE, 43)}",
    "azure": lambda r: "AccountKey=" + draw(r, ALNUM + "+/", 86) + "==",
    "web_token": web_token,
    "private_key": pem,
}
PLACES = (
    "key = '{}'\n",
    "client = connect(url, \"{}\")\n",
    "# left here by mistake: {}\n",
    "export KEY={}\n",
    '{{"auth": "{}"}}\n',
)  # fmt: skip
NAMED = (
    'password = "{}"\n',
    "DB_PASSWORD: str = '{}'\n",
    "config['api_key'] = '{}'\n",
    '  "client_secret": "{}",\n',
    "AWS_SECRET_ACCESS_KEY={}\n",
    "const authToken = `{}`;\n",
    "secret_key := \"{}\"\n",
    "url = 'postgres://admin:{}@db.internal:5432/main'\n",
)  # fmt: skip


def plant(line: str, secret: str, random: Random) -> str:
    """Put a line between two halves of a file."""
    lines = python_text(random.randint(0, 999)).split("\n")
    place = random.randint(0, len(lines))
    return "\n".join([*lines[:place], line.format(secret).rstrip("\n"), *lines[place:]])


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_no_planted_secret_of_a_known_format_is_missed(kind: str):
    random = Random(kind)
    for number in range(60):
        secret = FORMATS[kind](random)
        text = plant(PLACES[number % len(PLACES)], secret, random)
        verdict = scrub(text, CONFIG)
        value = secret.removeprefix("AccountKey=")
        assert value not in verdict.text, secret
        assert any(edit.reason == f"secret.{kind}" for edit in verdict.edits)
        assert find_secrets(verdict.text, CONFIG) == []
        for edit in verdict.edits:
            assert value not in edit.removed
            assert len(edit.removed) == edit.end - edit.begin
        assert verdict.text.count("\n") == text.count("\n") - secret.count("\n")


@pytest.mark.parametrize("line", NAMED)
def test_no_planted_value_of_a_telling_name_is_missed(line: str):
    random = Random(line)
    for count in (12, 16, 20, 24, 32, 40) * 10:
        secret = mixed(random, count)
        text = plant(line, secret, random)
        verdict = scrub(text, CONFIG)
        assert secret not in verdict.text, secret
        before, after = line.split("{}")
        head = "" if "AWS" in line else before
        assert f"{head}REDACTED_" in verdict.text
        assert after in verdict.text + "\n"


def test_random_literals_without_a_name_are_found():
    random = Random(5)
    for _ in range(100):
        secret = mixed(random, 44)
        assert secret not in scrub(f"connect('{secret}')\n", CONFIG).text


HARMLESS = """
password = "password"
token = "<your token here>"
api_key = os.environ["API_KEY"]
secret = "changeme"
password = "${DB_PASSWORD}"
api_key = "YOUR_API_KEY"
url = "https://user:password@example.com/"
token_type = "access_token"
key = "0123456789abcdef0123456789abcdef"
digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
name = "a_long_name_of_some_function_in_this_module_2"
path = "src/fivefold/data/code/test_code_secret_and_more.py"
tokens = ["first", "second"]
tokenizer = "EleutherAI/gpt-neox-20b"
secretary = "Jane_Doe77x9Q"
name = "RW_orig_bge-base_shareGPT-open_lm_1b-warm=5000-lr=0p003-wd=0p033-bs=256-mult=1-seed=124"
def login(password: str = "", token=None): ...
"""


def test_placeholders_names_digests_and_alphabets_are_no_secrets():
    assert [HARMLESS[one.begin : one.end] for one in find_secrets(HARMLESS, CONFIG)] == []


def test_real_code_has_few_false_alarms():
    size = alarms = 0
    for path in sorted(STDLIB.glob("*.py")) + sorted(STDLIB.glob("asyncio/*.py")):
        text = path.read_text("utf-8")
        size += len(text)
        alarms += len(find_secrets(text, CONFIG))
    assert size > 5e6
    assert alarms <= 0.5 * size / 1e6


def test_entropy_by_closed_form():
    assert entropy("") == 0
    assert entropy("aaaa") == 0
    assert entropy("abcd" * 3) == pytest.approx(2)
    assert entropy(string.hexdigits[:16] * 2) == pytest.approx(4)


def test_a_text_without_secrets_is_the_same():
    text = python_text(3)
    verdict = scrub(text, CONFIG)
    assert verdict.text == text
    assert not verdict.edits
