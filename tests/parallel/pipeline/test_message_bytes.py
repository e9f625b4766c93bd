"""What stages of tensor ranks send each other, against its formula."""

from typing import NamedTuple

import pytest
from spread_training import Run
from team import Team
from tiny_training import TINY, TOKENS, Setting, rows_of_step

from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.ledger import Total
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.pipeline.split import MtpPlacement
from fivefold.train.batch import microbatches
from fivefold.train.piped import PipedModel

pytestmark = pytest.mark.dist

FP64_BYTES = 8


class Sent(NamedTuple):
    """What one rank sent along `pp`."""

    at_the_start: dict[str, Total]
    """While the model was cut, by operation."""
    in_a_step: Total
    """Messages of one step."""
    embedding_bytes: int
    """The rank's part of an embedding that other ranks hold too."""


def send_one_step(world: World, setting: Setting, config: ParallelConfig) -> Sent:
    """Run one step forward and backward."""
    mesh = Mesh(config, world)
    run, rows = Run(mesh, setting), rows_of_step(0)
    piped = run.spreading.compute
    assert isinstance(piped, PipedModel)
    start = {name: total for (name, group), total in mesh.ledger.totals.items() if group == "pp"}
    mesh.ledger.reset()
    piped.refresh()
    piped.run([*microbatches(rows, setting.microbatch_rows)], rows, 0, run.tracker)
    embedding = piped.holder.embed_tokens.weight.nbytes if config.mtp_stage == "last" else 0
    return Sent(start, mesh.ledger.totals["send", "pp"], embedding)


@pytest.mark.parametrize(
    ("mtp_stage", "states"), [("before_last", 1 + TINY.fivefold.mtp_depths), ("last", 1)]
)
def test_stages_send_their_own_part_of_the_tokens(
    four: Team, mtp_stage: MtpPlacement, states: int
) -> None:
    setting, config = Setting(), ParallelConfig(pp=2, tp=2, mtp_stage=mtp_stage)
    rows = len(rows_of_step(0).ids)
    own_bytes = rows * TOKENS // config.tp * TINY.hidden_size * FP64_BYTES
    for sent in four.run(send_one_step, setting, config):
        # Both ways alike: states up, gradients down; then the gradient of the shared embedding.
        assert sent.in_a_step.sent_bytes == states * own_bytes + sent.embedding_bytes
        shared = int(sent.embedding_bytes > 0)
        assert sent.in_a_step.calls == states * rows // setting.microbatch_rows + shared
        # NCCL wants all ranks of a group in its first collective, and these sends are of two.
        assert sent.at_the_start["all_reduce"].calls == 1
        assert sent.at_the_start.keys() == {"all_reduce"}
