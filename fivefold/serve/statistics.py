"""Counters of an engine: what it computed, what it was spared, how good its drafts are."""

from collections import Counter
from dataclasses import dataclass, field

from fivefold.serve.request import Request


@dataclass
class Statistics:
    """Running sums since the engine was made."""

    steps: int = 0
    computed_tokens: int = 0
    """Tokens that went through the model, drafts included."""
    output_tokens: int = 0
    prompt_tokens: int = 0
    """Prompt tokens of finished requests."""
    cached_tokens: int = 0
    """Those of them that came from the prefix tree."""
    finished: Counter[str] = field(default_factory=Counter)
    """Requests by the reason of their end."""
    accept_lengths: Counter[int] = field(default_factory=Counter)
    """Verifications by how many tokens they added: accepted drafts and one."""
    drafted_tokens: int = 0

    def count_step(self, tokens: int) -> None:
        """Count one forward of the main stack."""
        self.steps += 1
        self.computed_tokens += tokens

    def count_drafts(self, drafted: int, accepted: int) -> None:
        """Count one verification."""
        self.drafted_tokens += drafted
        self.accept_lengths[accepted + 1] += 1

    def count_finish(self, request: Request) -> None:
        """Count a request that has ended."""
        assert request.finish is not None, "count finished requests only"
        self.finished[request.finish] += 1
        self.prompt_tokens += len(request.prompt)
        self.cached_tokens += request.cached_tokens

    @property
    def mean_accept_length(self) -> float:
        """Tokens that one verification adds; 1 without speculation."""
        verifications = sum(self.accept_lengths.values())
        added = sum(length * count for length, count in self.accept_lengths.items())
        return added / verifications if verifications else 1.0
