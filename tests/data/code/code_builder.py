"""Git repositories made by git itself, and texts that pass all rules."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from random import Random

WORDS = [
    "river",
    "mill",
    "ferry",
    "orchard",
    "bridge",
    "brother",
    "autumn",
    "harvest",
    "stone",
    "letter",
    "window",
    "market",
    "captain",
    "island",
    "winter",
    "garden",
    "soldier",
    "candle",
    "mountain",
    "teacher",
    "village",
    "kitchen",
    "morning",
    "forest",
    "painter",
]


def python_text(number: int, functions: int = 4, imports: str = "") -> str:
    """Return a module of its own that passes every rule."""
    random = Random(number)
    parts = [f'"""Module {random.choice(WORDS)} about the {random.choice(WORDS)} of things."""\n']
    parts += [imports] if imports else []
    for index in range(functions):
        words = [random.choice(WORDS) for _ in range(9)]
        name = f"{words[0]}_{words[1]}_{'abcdefgh'[index]}"
        parts.append(
            f"\n\ndef {name}({words[2]}, {words[3]}, {words[4]}_list):\n"
            f'    """Count the {words[5]} of each {words[6]}."""\n'
            f"    total = {words[2]} + len({words[4]}_list)\n"
            f"    for {words[7]} in {words[4]}_list:\n"
            f"        total += {words[3]} * {words[7]}\n"
            f"    # The {words[8]} comes last.\n"
            f"    return total"
        )
    return "".join(parts) + "\n"


class Repository:
    """A git repository in a folder; every commit has its own, fixed date."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._clock = 1_600_000_000
        root.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, stdin: str | None = None) -> str:
        date = f"{self._clock} +0000"
        environment = {
            **os.environ,
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        names = ["-c", "user.name=Ann", "-c", "user.email=ann@site.org"]
        done = subprocess.run(
            ["git", *names, "-C", str(self.root), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            input=stdin,
            check=True,
        )
        return done.stdout.strip()

    def commit(
        self, message: str, files: Mapping[str, str | bytes | None], author: str = ""
    ) -> str:
        """Write, or for None delete, files and commit them; return the commit."""
        self._clock += 1000
        for name, text in files.items():
            path = self.root / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.git("add", "-A")
        extra = [f"--author={author}"] if author else []
        self.git("commit", "-q", "--allow-empty", "-F", "-", *extra, stdin=message)
        return self.git("rev-parse", "HEAD")

    def merge(self, branch: str, message: str) -> str:
        self._clock += 1000
        self.git("merge", "-q", "--no-ff", branch, "-m", message)
        return self.git("rev-parse", "HEAD")
