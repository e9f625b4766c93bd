"""Reward functions of every temper, called by name in worker processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def length(answer: str, arguments: dict[str, Any]) -> float:
    """Give a share of the wanted length, and print what must not disturb the reply."""
    print("{}")
    return len(answer) / arguments["wanted"]


def explained(answer: str, arguments: dict[str, Any]) -> tuple[float, str]:
    return 0.5, f"half of {answer}"


def distance(answer: str, arguments: dict[str, Any]) -> float:
    """Give minus the distance from a number; no answer is as bad as the farthest."""
    return -abs(float(answer or arguments["worst"]) - arguments["wanted"])


def numpy_scalar(answer: str, arguments: dict[str, Any]) -> Any:
    return np.float32(0.25)


def returns(answer: str, arguments: dict[str, Any]) -> Any:
    return arguments["what"]


def not_a_number(answer: str, arguments: dict[str, Any]) -> float:
    return float("nan")


def no_json(answer: str, arguments: dict[str, Any]) -> Any:
    return object()


def raises(answer: str, arguments: dict[str, Any]) -> float:
    raise KeyError("no such field")


def exits(answer: str, arguments: dict[str, Any]) -> float:
    sys.exit(3)


def hangs(answer: str, arguments: dict[str, Any]) -> float:
    """Ignore every signal that can be ignored, and never end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(0.01)


def hangs_in_c(answer: str, arguments: dict[str, Any]) -> float:
    """Hold the interpreter lock for ever: no signal handler and no thread could end this."""
    return float(9 ** (9**9))


def hangs_with_child(answer: str, arguments: dict[str, Any]) -> float:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        Path(arguments["pid_file"]).write_text(str(child.pid))
        return hangs(answer, arguments)


def crashes(answer: str, arguments: dict[str, Any]) -> float:
    print("a last word", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


def leaves(answer: str, arguments: dict[str, Any]) -> float:
    os._exit(0)


def eats_memory(answer: str, arguments: dict[str, Any]) -> float:
    return float(len(bytearray(10 << 30)))


def process_id(answer: str, arguments: dict[str, Any]) -> int:
    time.sleep(arguments.get("seconds", 0))
    return os.getpid()
