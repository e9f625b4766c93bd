"""A skill as a task: its instances, each once, in a seeded order, with a share held out.

The instances of a level are a range of numbers. One fixed permutation of the range puts a fifth of
them aside as held out; a second, seeded one orders the rest. When all have been asked, they come
again in another order. Surprise: no draw is random, so that the problems of a run are all different
until a level is exhausted, and held-out ones are new to every seed's model.
"""

from fivefold.data.order import permuted_index
from fivefold.envs.config import ProceduralConfig
from fivefold.envs.curriculum import level_at
from fivefold.envs.letter_skill import LETTER_SKILLS
from fivefold.envs.number_skill import NUMBER_SKILLS
from fivefold.envs.skill import Skill
from fivefold.envs.task import Problem, name_group
from fivefold.errors import ConfigError
from fivefold.text.conversation import Message
from fivefold.verify.config import ExactSpec, NumberSpec

SKILLS: dict[str, Skill] = {skill.name: skill for skill in (*LETTER_SKILLS, *NUMBER_SKILLS)}
_HELDOUT_PARTS = 5
"""One of so many parts of a level is held out."""
_SPLIT_SEED = 5


class ProceduralTask:
    """A skill at some of its levels, in one split."""

    def __init__(self, config: ProceduralConfig) -> None:
        """Check the levels.

        Raises:
            ConfigError: a level that the skill does not have.
        """
        self._config = config
        self._skill = SKILLS[config.skill]
        for level in config.levels:
            if not 1 <= level <= self._skill.levels:
                raise ConfigError(
                    expected=f"levels from 1 to {self._skill.levels} for `{config.skill}`",
                    found=str(level),
                    fix="Correct `levels`",
                )
        if len(set(config.levels)) < len(config.levels):
            raise ConfigError(
                expected="each level once in `levels`",
                found=str(list(config.levels)),
                fix="Leave the repeated one out",
            )

    @property
    def name(self) -> str:
        """The skill's name."""
        return self._skill.name

    @property
    def size(self) -> int:
        """Number of different problems of the split."""
        return sum(self._stretch(level)[1] for level in self._config.levels)

    def problem(self, index: int) -> Problem:
        """Return problem `index`; a level's instances repeat only after all of them."""
        config, skill = self._config, self._skill
        number, place = level_at(index, len(config.levels), config.problems_per_level)
        level = config.levels[number]
        instance_number = self._instance_number(level, place)
        instance = skill.make(level, instance_number)
        kind = ExactSpec if skill.verifier == "exact" else NumberSpec
        problem_id = f"{skill.name}/{level}/{instance_number}"
        return Problem(
            id=problem_id,
            group=name_group(problem_id, index),
            task=skill.name,
            prompt=(Message(role="user", content=instance.question),),
            spec=kind(gold=instance.answer),
            difficulty=float(level),
            solution=Message(
                role="assistant",
                content=instance.answer,
                reasoning_content=instance.thinking,
            ),
        )

    def _stretch(self, level: int) -> tuple[int, int]:
        """Return where the split begins within the level's fixed permutation, and its length."""
        count = self._skill.count(level)
        heldout = count // _HELDOUT_PARTS
        return (0, heldout) if self._config.split == "heldout" else (heldout, count - heldout)

    def _instance_number(self, level: int, place: int) -> int:
        begin, length = self._stretch(level)
        time_round, place = divmod(place, length)
        rank = begin + int(permuted_index(place, length, self._config.seed, time_round))
        return int(permuted_index(rank, self._skill.count(level), _SPLIT_SEED, level))
