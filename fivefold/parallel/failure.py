"""When a rank fails: which one, where, and what came first; then all ranks end.

A rank that fails leaves a note in the store, which lives in torchrun's agent and outlasts it. Its
peers notice by a broken connection, by a wait beyond the time limit, or by torchrun's SIGTERM; they
read the notes and end too, naming the first cause. A rank without a note was killed or hangs.

What torch says then stands in its sources: gloo and the store in `ProcessGroupGloo` and `TCPStore`,
NCCL in `ProcessGroupNCCL` and `NCCLUtils`; NCCL's words were met in no run of ours. Surprise: left
to its defaults, NCCL's watchdog ends the whole process at a time limit, and then that rank leaves
no note.
"""

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import DistNetworkError, DistStoreError

from fivefold.errors import FivefoldError
from fivefold.parallel.mesh import Mesh

logger = logging.getLogger(__name__)

_NOTE_SECONDS = 10.0
"""How long a rank that lost contact waits for the notes of the others, which may be slow; torchrun
kills what is left after 30 s."""
_LOST_CONTACT = (
    "gloo",
    "timed out",
    "socket timeout",
    "wait timeout",
    "connection closed by",
    "connection reset",
    "connection was likely closed",
    "remote process exited",
    "ncclremoteerror",
    # Of this machine or of a peer that is gone: NCCL does not tell.
    "ncclsystemerror",
    "nccl communicator was aborted",
    "nccl timeout",
    "collective operation timeout",
)
"""What torch's errors say, in small letters, when the fault is another rank's."""


class RankError(FivefoldError, ConnectionError):
    """Another rank failed, was killed or does not answer."""


class _TerminatedError(BaseException):
    """torchrun asks this rank to end, for another one has."""


@contextmanager
def tell_failures(mesh: Mesh) -> Iterator[None]:
    """Turn the end of any rank into an end of all that names the first cause.

    Raises:
        RankError: another rank failed first.
        SystemExit: this rank's mistake of the user is told by rank 0.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - told and raised again
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _tell(mesh, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: object) -> NoReturn:
    raise _TerminatedError


def is_lost_contact(error: BaseException) -> bool:
    """Does torch say with this error that another rank is gone or does not answer?"""
    if isinstance(error, DistNetworkError | DistStoreError):
        return True
    told = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(words in told for words in _LOST_CONTACT)


def _tell(mesh: Mesh, error: BaseException) -> NoReturn:
    lost_contact = isinstance(error, _TerminatedError) or is_lost_contact(error)
    note = {
        "rank": mesh.rank,
        "place": mesh.place,
        "is_cause": not lost_contact,
        "text": f"{type(error).__name__}: {error}".splitlines()[0][:500],
        "time_seconds": time.time(),
    }
    store = mesh.world.store
    assert store is not None, "several ranks have a store"
    store.set(f"failure/{mesh.rank}", json.dumps(note))
    if not lost_contact:
        if isinstance(error, FivefoldError) and mesh.rank and _told_by_first(mesh, note["text"]):
            raise SystemExit(2) from error
        logger.error("rank %d of %d failed %s", mesh.rank, mesh.size, mesh.place)
        raise error
    notes = _read_notes(mesh)
    causes = sorted((n for n in notes if n["is_cause"]), key=lambda n: n["time_seconds"])
    lost = sorted(set(range(mesh.size)) - {n["rank"] for n in notes})
    if causes:
        found = f"rank {causes[0]['rank']} failed {causes[0]['place']}: {causes[0]['text']}"
        fix = "Mend that cause"
    elif lost:
        found = (
            f"no answer from rank {', '.join(map(str, lost))} {mesh.place}, which left no error: "
            f"killed, out of memory, or hanging (limit {mesh.config.timeout_seconds:g} s)"
        )
        fix = "Look at that machine, or raise `parallel.timeout_seconds` if a step takes longer"
    else:
        found = f"a broken connection {mesh.place}: {note['text']}"
        fix = "Look at the network between the machines"
    told = RankError(
        expected=f"all {mesh.size} ranks to go on together",
        found=found,
        fix=f"{fix}; the same command goes on from the last saved state",
    )
    if mesh.is_first:
        logger.error("%s", told)
    raise told from error


def _told_by_first(mesh: Mesh, text: str) -> bool:
    """Does rank 0 end with the same error?"""
    return any(note["rank"] == 0 and note["text"] == text for note in _read_notes(mesh, ranks=(0,)))


def _read_notes(mesh: Mesh, ranks: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Return the notes of these ranks (none: all) that are there in time."""
    store = mesh.world.store
    assert store is not None
    until = time.monotonic() + _NOTE_SECONDS
    found = []
    for rank in ranks or range(mesh.size):
        left = max(until - time.monotonic(), 0.01)
        try:
            store.wait([f"failure/{rank}"], timedelta(seconds=left))
        except RuntimeError:
            continue
        found.append(json.loads(store.get(f"failure/{rank}")))
    return found
