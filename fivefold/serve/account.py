"""What a step's outcome means for one request: experts, accepted drafts, how many to try next."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fivefold.serve.batch import Part
from fivefold.serve.request import Request


def record_routing(part: Part, routing: Sequence[Tensor], context_tokens: int) -> None:
    """Write the experts of a part's tokens to their positions; -1 stands where none computed."""
    if not routing:
        return
    request = part.request
    stacked = torch.stack([chosen_TA[part.at : part.at + part.size] for chosen_TA in routing], 1)
    if request.routing is None:
        most = min(len(request.prompt) + request.limit, context_tokens)
        request.routing = torch.full((most, *stacked.shape[1:]), -1, dtype=torch.int16)
    request.routing[part.begin : part.end] = stacked.to(torch.int16)


def count_accepted(drafts: Sequence[int], drawn: Sequence[int]) -> int:
    """Count the leading drafts that are the tokens drawn in their places."""
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == drawn[accepted]:
        accepted += 1
    return accepted


def adapt_drafts(request: Request, accepted: int, most: int) -> None:
    """Draft one more after a full success, as many as were right after a failure.

    After 24 drafts of which fewer than a sixth were right, a request stops drafting: a
    verification costs more than it brings.
    """
    if accepted == request.draft_limit:
        request.draft_limit = min(request.draft_limit + 1, most)
    elif accepted < request.draft_limit:
        request.draft_limit = max(accepted, 1)
    if request.drafted >= 24 and request.accepted * 6 < request.drafted:
        request.draft_limit = 0
