from pathlib import Path

import pytest
from web_builder import changelog, documents, entry, help_page

from fivefold.data.web.classifier import TrainedHead, train_vector_classifier
from fivefold.data.web.config import EmbedConfig, HeadConfig


@pytest.fixture(scope="session")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedHead]:
    """A world-knowledge classifier of entries against help and changelogs; it saw no banter."""
    out = tmp_path_factory.mktemp("knowledge")
    other = [*documents(help_page, 45, "help"), *documents(changelog, 45, "changes")]
    embed, head = EmbedConfig(dimensions=128), HeadConfig(max_documents=90, folds=3)
    good = documents(entry, 90, "entries")
    return out, train_vector_classifier("world_knowledge", good, other, out, embed, head)
