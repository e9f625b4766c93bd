"""Unified diffs of our own making, which `git apply` takes.

They are made from texts, not by git, so that both sides may be scrubbed of secrets first and the
diff still applies to what is packed. Lines end at a newline and nowhere else: a form feed or a
Unicode line separator inside a line must not tear it.
"""

import difflib

_NO_NEWLINE = "\\ No newline at end of file\n"


def split_lines(text: str) -> list[str]:
    """Return the lines with their newlines; the last one may have none."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def file_diff(path: str, old: str | None, new: str | None, mode: str = "100644") -> str:
    """Return the diff of one file; None is a file that is not there."""
    # As git does: a tab after a name with spaces tells where it ends.
    tab = "\t" if " " in path else ""
    head = [f"diff --git a/{path} b/{path}\n"]
    if old is None:
        head.append(f"new file mode {mode}\n")
    if new is None:
        head.append(f"deleted file mode {mode}\n")
    before = "/dev/null" if old is None else f"a/{path}{tab}"
    after = "/dev/null" if new is None else f"b/{path}{tab}"
    hunks = list(difflib.unified_diff(split_lines(old or ""), split_lines(new or ""), n=3))[2:]
    if not hunks:
        return "".join(head)
    lines = [line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}" for line in hunks]
    return "".join([*head, f"--- {before}\n", f"+++ {after}\n", *lines])


def changed_lines(diff: str) -> int:
    """Return the lines that a file's diff adds and removes."""
    _, _, hunks = diff.partition("\n@@ ")
    return sum(line.startswith(("+", "-")) for line in hunks.split("\n"))
