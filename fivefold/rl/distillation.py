"""On-policy distillation: a teacher's log-probabilities as advantages (GLM-5 report, eq. 2).

The student samples; at each token A = sg(log teacher - log student) replaces, or joins, the
reward's advantage in whatever loss. The expected gradient at one position is that of
KL(student || teacher) there. Over a sequence it is not that of the sequences' KL: an early token
also decides which later positions are visited. The return-to-go, the sum of A to the end, is exact;
`discount` goes from the one (0, lower variance, GLM-5's form) to the other (1).

The student is the CURRENT one: with several steps on a batch, A moves with it.
"""

import dataclasses

from torch import Tensor

from fivefold.errors import MismatchError
from fivefold.rl.config import DistillationConfig
from fivefold.rl.streams import Streams


def with_teacher(logprobs_N: Tensor, streams: Streams, config: DistillationConfig) -> Streams:
    """Return the streams with the teacher's advantages added to those assigned.

    Raises:
        MismatchError: a sample has no log-probabilities of a teacher.
    """
    if streams.teacher_logprobs_N is None:
        raise MismatchError(
            expected="a teacher's log-probabilities in every sample of a distillation",
            found="a microbatch with a sample that has none",
            fix="Score every sample with its teacher before packing",
        )
    gap_N = (streams.teacher_logprobs_N - logprobs_N.detach()).where(streams.mask_N, 0.0)
    returns_N = return_to_go(gap_N, streams, config.discount)
    return dataclasses.replace(
        streams, advantages_N=streams.advantages_N + config.weight * returns_N
    )


def return_to_go(values_N: Tensor, streams: Streams, discount: float) -> Tensor:
    """Return at each trained token the discounted sum of `values_N` from there to its sample's end.

    Tokens that do not train count neither as values nor as time. A scan by doubling: after round k
    each token holds the sum over the 2^k from itself on.
    """
    kept = streams.mask_N.nonzero().squeeze(1)
    sums, owner = values_N[kept], streams.sequence_N[kept]
    reach = 1
    while discount > 0 and reach < len(sums):
        is_same = owner[reach:] == owner[:-reach]
        ahead = sums[reach:].where(is_same, 0.0)
        sums = sums.clone()
        sums[:-reach] += discount**reach * ahead
        reach *= 2
    result_N = values_N.new_zeros(values_N.shape)
    result_N[kept] = sums
    return result_N
