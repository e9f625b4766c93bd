"""Functions that make problems and judge answers, found by name."""

from typing import Any


def double(index: int, seed: int) -> dict[str, Any]:
    return {"prompt": f"Double {index}", "answer": 2 * index + seed, "verifier": "number"}


def one_id(index: int, seed: int) -> dict[str, Any]:
    return {"id": "same", **double(index, seed)}


def judged(index: int, seed: int) -> dict[str, Any]:
    verifier = {"kind": "function", "target": f"{__file__}:is_longer"}
    return {
        "prompt": "Say more",
        "verifier": verifier,
        "than": index,
        "solution": "x" * (index + 1),
    }


def is_longer(answer: str, arguments: dict[str, Any]) -> bool:
    return len(answer) > arguments["than"]


def raises(index: int, seed: int) -> dict[str, Any]:
    raise ValueError(f"no problem {index}")


def no_row(index: int, seed: int) -> Any:
    return ["prompt"]


def no_verifier(index: int, seed: int) -> dict[str, Any]:
    return {"prompt": "Say it", "answer": "it"}
