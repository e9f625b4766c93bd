"""A problem from a JSON object, as a line of a file or a function gives it.

    {"prompt": "...", "answer": "42", "verifier": "number"}

`prompt` may be replaced by `messages` (OpenAI's form). Optional: `id`, `difficulty`, `thinking` and
`solution` (reasoning and visible text of a right answer). A verifier of the kind `function` is
given the row's other fields as its arguments, `answer` included.

Surprise: without `solution`, the answer itself is one, spelled where the verifier looks for it.
None is known where the verifier compares with no answer (`format`, `function`), or where several
judge together (`all`): such rows give their own.
"""

from collections.abc import Mapping
from typing import Any

from fivefold.envs.task import Problem, name_group
from fivefold.errors import ConfigError
from fivefold.text.conversation import Message, read_messages, write_messages
from fivefold.text.tool import as_json
from fivefold.verify.config import (
    AllSpec,
    ExactSpec,
    FunctionSpec,
    MathsSpec,
    NumberSpec,
    PartSpec,
    VerifierSpec,
    read_spec,
)

_OWN_FIELDS = ("prompt", "messages", "verifier", "id", "difficulty", "thinking", "solution")


def read_row(
    row: object,
    *,
    task: str,
    index: int,
    where: str,
    verifier: object = None,
    instruction: str = "",
) -> Problem:
    """Check a row and return its problem; `index` names it where it has no `id`.

    Raises:
        ConfigError: a field that is missing or of another type, an unknown verifier; the message
            names `where`.
    """
    if not isinstance(row, Mapping):
        raise _refusal(where, "to be an object", row)
    try:
        fields: dict[str, Any] = as_json(dict(row))
    except ValueError as error:
        raise _refusal(where, "to hold JSON values only", str(error)) from error
    problem_id = fields.get("id", f"{task}/{index}")
    if not isinstance(problem_id, str | int) or isinstance(problem_id, bool):
        raise _refusal(f"{where}.id", "to be text or an integer", problem_id)
    difficulty = fields.get("difficulty", 0.0)
    if not isinstance(difficulty, int | float) or not abs(difficulty) < float("inf"):
        raise _refusal(f"{where}.difficulty", "to be a finite number", difficulty)
    prompt = _add_instruction(_read_prompt(fields, where), instruction)
    spec = _read_verifier(fields, verifier, where)
    return Problem(
        id=str(problem_id),
        group=name_group(str(problem_id), index),
        task=task,
        prompt=prompt,
        spec=spec,
        difficulty=float(difficulty),
        solution=_read_solution(fields, spec, where),
    )


def write_row(problem: Problem) -> dict[str, Any]:
    """Return a row that `read_row` reads as the same problem."""
    row: dict[str, Any] = {
        "id": problem.id,
        "messages": write_messages(problem.prompt),
        "verifier": problem.spec.model_dump(mode="json"),
        "difficulty": problem.difficulty,
    }
    if problem.solution is not None:
        row["solution"] = problem.solution.content
        row["thinking"] = problem.solution.reasoning_content
    return row


def _read_prompt(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    if ("prompt" in row) == ("messages" in row):
        raise _refusal(where, "to hold either `prompt` or `messages`", sorted(row))
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise _refusal(f"{where}.prompt", "to be text that is not empty", row["prompt"])
        return read_messages([{"role": "user", "content": row["prompt"]}], where=where)
    messages = read_messages(row["messages"], where=f"{where}.messages")
    if not messages or messages[-1].role == "assistant":
        raise _refusal(f"{where}.messages", "to end with what is to be answered", row["messages"])
    return messages


def _add_instruction(prompt: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    if not instruction:
        return prompt
    *before, last = prompt
    content = f"{last.content}\n{instruction}"
    return (*before, last.model_copy(update={"content": content}))


def _read_verifier(row: Mapping[str, Any], default: object, where: str) -> VerifierSpec:
    answer = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise _refusal(f"{where}.answer", "to be text or a number", answer)
    document = row.get("verifier", default)
    spec = read_spec(document, gold=answer, where=f"{where}.verifier")
    others = {name: value for name, value in row.items() if name not in _OWN_FIELDS}
    if isinstance(spec, AllSpec):
        parts = tuple(_give_arguments(part, others) for part in spec.parts)
        return spec.model_copy(update={"parts": parts})
    return _give_arguments(spec, others)


def _give_arguments(spec: PartSpec, others: dict[str, Any]) -> PartSpec:
    """Tell a reward function what else the row holds; what the spec says itself has precedence."""
    if not isinstance(spec, FunctionSpec):
        return spec
    return spec.model_copy(update={"arguments": {**others, **spec.arguments}})


def _read_solution(row: Mapping[str, Any], spec: VerifierSpec, where: str) -> Message | None:
    solution, thinking = row.get("solution"), row.get("thinking")
    for name, text in (("solution", solution), ("thinking", thinking)):
        if text is not None and not isinstance(text, str):
            raise _refusal(f"{where}.{name}", "to be text", text)
    if solution is None:
        solution = _spell_gold(spec)
    if solution is None:
        return None
    return Message(role="assistant", content=solution, reasoning_content=thinking)


def _spell_gold(spec: VerifierSpec) -> str | None:
    """Return the right answer where the verifier looks for it, if the spec holds one."""
    if not isinstance(spec, ExactSpec | NumberSpec | MathsSpec):
        return None
    match spec.answer_in:
        case "boxed":
            return f"\\boxed{{{spec.gold}}}"
        case "tag":
            return f"<{spec.tag}>{spec.gold}</{spec.tag}>"
        case "hashes":
            return f"#### {spec.gold}"
    return spec.gold


def _refusal(where: str, expected: str, found: object) -> ConfigError:
    return ConfigError(
        expected=f"`{where}` {expected}",
        found="nothing" if found is None else repr(found)[:200],
        fix="Correct the row",
    )
