"""Skills about numbers: adding, sorting digits, comparing, finding the largest digit.

Surprise: sums of two digits are facts, and no sum tells another, so that the held-out fifth of
`add` at level 1 cannot be learned. Held-out sums say something from level 2 on, whose columns are
sums of level 1.
"""

from fivefold.envs.skill import Instance, Skill, choose_wording, digits_of

_TERMS = {
    1: ((0, 10), (0, 10)),
    2: ((10, 90), (0, 10)),
    3: ((10, 90), (10, 90)),
    4: ((10, 90), (10, 90), (10, 90)),
}
"""Terms of a sum at each level: the smallest value and the number of values."""


def _count_sums(level: int) -> int:
    count = 1
    for _, values in _TERMS[level]:
        count *= values
    return count


def _add(level: int, number: int) -> Instance:
    terms, rest = [], number
    for smallest, values in _TERMS[level]:
        rest, offset = divmod(rest, values)
        terms.append(smallest + offset)
    wordings = ("What is {}?", "Work out {}.", "Add up: {}")
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append(_add_two(total, term))
        total += term
    question = choose_wording(wordings, number).format(" + ".join(map(str, terms)))
    return Instance(question, "; ".join(steps), str(total))


def _add_two(left: int, right: int) -> str:
    """Write out an addition: ones first where there are tens."""
    if left < 10 and right < 10:
        return f"{left} + {right} = {left + right}"
    ones = left % 10 + right % 10
    tens = [left // 10, right // 10, *([1] if ones >= 10 else [])]
    said = " + ".join(str(ten) for ten in tens)
    return f"ones {left % 10} + {right % 10} = {ones}, tens {said} = {sum(tens)}"


def _sort(level: int, number: int) -> Instance:
    """Sort digits by taking the least again and again."""
    left = digits_of(number, 10, level + 2)
    question = choose_wording(
        ("Sort these digits: {}", "Write these digits from small to large: {}"), number
    ).format(_spaced(left))
    taken, steps = [], []
    while left:
        least = min(left)
        steps.append(f"{_spaced(left)}: {least}")
        left.remove(least)
        taken.append(least)
    return Instance(question, ", ".join(steps), _spaced(taken))


def _largest(level: int, number: int) -> Instance:
    """Find the largest digit by keeping the best so far."""
    digits = digits_of(number, 10, level + 2)
    wordings = ("Which is the largest digit? {}", "Find the largest of these: {}")
    best_so_far = [max(digits[: place + 1]) for place in range(len(digits))]
    return Instance(
        question=choose_wording(wordings, number).format(_spaced(digits)),
        thinking=", ".join(f"{d} {best}" for d, best in zip(digits, best_so_far, strict=True)),
        answer=str(max(digits)),
    )


def _values(digits: int) -> tuple[int, int]:
    """Return the smallest number of so many digits, and how many there are."""
    return (0, 10) if digits == 1 else (10 ** (digits - 1), 9 * 10 ** (digits - 1))


def _count_pairs(level: int) -> int:
    _, values = _values(level)
    return values * (values - 1)


def _compare(level: int, number: int) -> Instance:
    """Compare two different numbers of `level` digits, from their first digits on."""
    smallest, values = _values(level)
    first, offset = divmod(number, values - 1)
    second = offset + (offset >= first)  # every number but the first
    left, right = str(smallest + first), str(smallest + second)
    steps = []
    for a, b in zip(left, right, strict=True):
        sign = "=" if a == b else ">" if a > b else "<"
        steps.append(f"{a} {sign} {b}")
        if a != b:
            break
    wordings = ("Which is larger, {0} or {1}?", "Name the larger number: {0}, {1}")
    return Instance(
        question=choose_wording(wordings, number).format(left, right),
        thinking=", ".join(steps),
        answer=str(max(int(left), int(right))),
    )


def _spaced(digits: list[int]) -> str:
    return " ".join(map(str, digits))


NUMBER_SKILLS = (
    Skill("add", "number", len(_TERMS), _count_sums, _add),
    Skill("sort", "exact", 6, lambda level: 10 ** (level + 2), _sort),
    Skill("compare", "number", 4, _count_pairs, _compare),
    Skill("largest", "number", 6, lambda level: 10 ** (level + 2), _largest),
)
