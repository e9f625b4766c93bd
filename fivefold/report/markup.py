"""HTML elements as a function: every child that is not markup already is escaped.

The report shows text that a model made, so no string may reach the page by concatenation.
"""

from collections.abc import Iterable

from markupsafe import Markup, escape

Child = str | Markup | None
"""Text (escaped), markup (kept) or nothing."""

_VOID_TAGS = frozenset({"img", "meta"})
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
"""Control characters, which HTML forbids, to their visible symbols."""


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return `<tag attributes>children</tag>`.

    Attribute names lose a final underscore (`class_`) and turn others into hyphens; None and False
    leave an attribute out, True writes its bare name.
    """
    opening = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            opening.append(name)
        elif value is not None and value is not False:
            opening.append(f'{name}="{escape(str(value))}"')
    start = Markup("<" + " ".join(opening) + ">")  # each part is escaped above
    if tag in _VOID_TAGS:
        return start
    return start + join(children) + Markup(f"</{tag}>")  # tags are our own


def join(children: Iterable[Child]) -> Markup:
    """Concatenate children, escaping the plain strings and making control characters visible."""
    return Markup("").join(
        child if isinstance(child, Markup) else child.translate(_CONTROL_PICTURES)
        for child in children
        if child is not None
    )
