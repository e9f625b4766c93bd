"""The problems that Fivefold's own stages are examined on, as items that no corpus may hold.

Every stage that examines a model on a skill asks its held-out problems from the first on, in the
order of the skill's own seed and levels (`envs.config.ProceduralConfig`): so the first ones of each
skill are what decontamination looks for. Other levels and seeds have problems without number, and
what is trained on is never among those held out.
"""

from functools import lru_cache
from typing import get_args

from fivefold.data.curate.benchmark import Item
from fivefold.envs.config import ProceduralConfig, SkillName
from fivefold.envs.procedural import ProceduralTask

_PROBLEMS = 400
"""Of each skill: as many as any script here examines on."""


@lru_cache(maxsize=1)
def own_items() -> tuple[Item, ...]:
    """Return the first held-out problems of each skill, with their answers."""
    items: list[Item] = []
    for skill in get_args(SkillName):
        task = ProceduralTask(ProceduralConfig(skill=skill, split="heldout"))
        for number in range(min(_PROBLEMS, task.size)):
            problem = task.problem(number)
            assert problem.solution, "a skill's problems have solutions"
            question, answer = problem.prompt[-1].content, problem.solution.content
            items.append(Item(f"own.{skill}", problem.id, question, answer))
    return tuple(items)
