"""Tasks as sources of prompts: rendered by the template, judged by the verifier.

The only place of this room that knows chats. A response is parsed from its ids, as it came out of
the engine, and never encoded again.
"""

import functools
from collections.abc import Sequence

from fivefold.envs.task import Problem, Task
from fivefold.rl.prompt import Judgement, Prompt
from fivefold.text.parse import parse_ids
from fivefold.text.template import render_prompt
from fivefold.text.tokenizer import Tokenizer
from fivefold.verify.verifier import Verifier

FAR_AHEAD = 1 << 30
"""Where held-out prompts of a task without a held-out split begin."""


class TaskPrompts:
    """A task's problems as prompts."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        verifier: Verifier,
        *,
        name: str = "",
        thinks: bool = True,
        begin: int = 0,
    ) -> None:
        """Begin at problem `begin` of the task; `name` replaces the task's."""
        self._task, self._tokenizer, self._verifier = task, tokenizer, verifier
        self.name = name or task.name
        """What metrics call the source."""
        self._thinks, self._begin = thinks, begin

    def prompt(self, index: int) -> Prompt:
        """Return problem `index` as a prompt.

        Raises:
            TaskError: the task cannot make it.
        """
        problem = self._task.problem(self._begin + index)
        ids = render_prompt(problem.prompt, self._tokenizer, enable_thinking=self._thinks)
        return Prompt(
            ids=tuple(ids),
            group=f"{self.name}/{problem.group}",
            source=self.name,
            judge=functools.partial(self._judge, problem),
        )

    async def _judge(self, problem: Problem, response: Sequence[int]) -> Judgement:
        turn = parse_ids(response, self._tokenizer, is_thinking=self._thinks)
        verdict = await self._verifier.verify_async(turn, problem.spec)
        return Judgement(verdict.value, verdict.state, verdict.detail)
