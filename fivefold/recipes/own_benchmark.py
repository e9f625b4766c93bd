"""The problems that Fivefold's own stages are examined on, as items that no corpus may hold.

Every stage that examines a model on a skill asks its held-out problems from the first on, in the
order of the skill's own seed and levels (`envs.config.ProceduralConfig`): so the first ones of each
skill, at levels 1, 1 to 2 and 1 to 3, are what decontamination looks for. Recipes examine on levels
1 to 3; `fivefold rl` and `fivefold attempt` on those of `--levels`, of which others than these, as
other seeds, have problems without number. What is trained on is never among those held out.

Surprise: all problems of `add` and `compare` and some of `copy` and `last_letters` have fewer words
than are looked for; the run says how many.
"""

import itertools
from functools import lru_cache
from typing import get_args

from fivefold.data.curate.benchmark import Item
from fivefold.envs.config import ProceduralConfig, SkillName
from fivefold.envs.procedural import ProceduralTask

_PROBLEMS = 400
"""Of each skill and choice of levels: as many as any script here examines on."""
_LEVELS = ((1,), (1, 2), (1, 2, 3))


@lru_cache(maxsize=1)
def own_items() -> tuple[Item, ...]:
    """Return the first held-out problems of each skill, with their answers."""
    items: dict[tuple[str, str], Item] = {}
    for skill, levels in itertools.product(get_args(SkillName), _LEVELS):
        config = ProceduralConfig(skill=skill, levels=levels, split="heldout")
        task = ProceduralTask(config)
        for number in range(min(_PROBLEMS, task.size)):
            problem = task.problem(number)
            assert problem.solution, "a skill's problems have solutions"
            question, answer = problem.prompt[-1].content, problem.solution.content
            item = Item(f"own.{skill}", problem.id, question, answer)
            items.setdefault((question, answer), item)
    return tuple(items.values())
