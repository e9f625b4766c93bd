import re

import pytest

from fivefold.config import hash_config, validate
from fivefold.data.config import CorpusConfig, TokensConfig
from fivefold.data.source import CATALOGUE, PROFILES, SMALL_SOURCES, catalogue_sources
from fivefold.errors import ConfigError


@pytest.mark.parametrize("source", CATALOGUE.values(), ids=lambda source: source.name)
def test_entries_are_complete(source):
    assert source.licence
    assert source.what
    assert source.lang
    assert re.fullmatch(r"[a-z0-9-]+", source.name)
    re.compile(source.members)
    re.compile(source.furniture)
    assert (source.download_bytes > 0) == (source.kind in ("debian", "pip"))
    if source.kind == "pip":
        assert re.fullmatch(r"[a-z-]+==[\d.]+", source.package)


def test_profiles_name_catalogue_entries():
    for names in (*PROFILES.values(), SMALL_SOURCES):
        assert set(names) <= set(CATALOGUE)
    assert not any(CATALOGUE[name].kind == "debian" for name in PROFILES["pip"])


def test_unknown_package_is_refused_with_the_choice():
    with pytest.raises(ConfigError, match="sqlite-doc"):
        catalogue_sources(CorpusConfig(packages=("sqlight",)), "debian")


def test_profile_and_files_must_agree():
    for fields in (
        {"profile": "files"},
        {"profile": "pip", "files": ["a.txt"]},
        {"packages": ["sqlite-doc"], "files": ["a.txt"]},
    ):
        with pytest.raises(ConfigError, match="files"):
            validate(CorpusConfig, fields, where="corpus")
    assert validate(CorpusConfig, {"files": ["a.txt"]}, where="corpus").files == ("a.txt",)


@pytest.mark.parametrize("contexts", [[64, 64], [1], []])
def test_impossible_contexts_are_refused(contexts):
    with pytest.raises(ConfigError, match="contexts"):
        validate(TokensConfig, {"contexts": contexts}, where="tokens")


@pytest.mark.parametrize("fields", [{"long_contexts": [64]}, {"planted": {"contexts": [64]}}])
def test_derived_sources_of_other_contexts_are_refused(fields):
    with pytest.raises(ConfigError, match="64"):
        validate(TokensConfig, {"contexts": [32], **fields}, where="tokens")


def test_cache_directory_does_not_change_what_is_made():
    assert hash_config(CorpusConfig(cache_dir="a")) == hash_config(CorpusConfig(cache_dir="b"))
