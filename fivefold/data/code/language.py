"""The table of languages: names, endings, interpreters, families and how comments are written.

Facts of the languages themselves. A family is where a rare language backs off to when it has too
few labels of its own (Scala to the JVM's, Swift to the systems', Lua to the scripts').

Surprise: some endings belong to two languages (`.h`, `.m`, `.pl`, `.ts`, `.v`, `.inc`); they
stand under both, and only content can tell.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from fivefold.data.code.config import Kind


@dataclass(frozen=True)
class Language:
    """What is known of a language by its name alone."""

    name: str
    family: str
    kind: Kind
    endings: tuple[str, ...] = ()
    """Endings of file names, with the full stop, lower case."""
    names: tuple[str, ...] = ()
    """Whole file names, lower case."""
    interpreters: tuple[str, ...] = ()
    """Names in a shebang, without a version."""
    line: tuple[str, ...] = ()
    """Marks that begin a comment up to the end of the line."""
    block: tuple[tuple[str, str], ...] = ()
    """Marks around a longer comment."""
    quotes: tuple[str, ...] = ('"', "'")
    """Marks around a literal string."""


_C = {"line": ("//",), "block": (("/*", "*/"),)}
_HASH = {"line": ("#",)}
_XML = {"block": (("<!--", "-->"),), "quotes": ()}


def _of(name: str, family: str, kind: Kind, endings: str, **facts: object) -> Language:
    return Language(name, family, kind, tuple(endings.split()), **facts)  # type: ignore[arg-type]


_LANGUAGES = (
    _of("python", "script", "code", ".py .pyi .pyw", interpreters=("python", "pypy"), **_HASH),
    _of("cython", "script", "code", ".pyx .pxd .pxi", **_HASH),
    _of("ruby", "script", "code", ".rb .rake .gemspec", names=("rakefile", "gemfile"),
        interpreters=("ruby",), line=("#",), block=(("=begin", "=end"),)),
    _of("perl", "script", "code", ".pl .pm .t", interpreters=("perl",), line=("#",)),
    _of("lua", "script", "code", ".lua", interpreters=("lua", "luajit"),
        block=(("--[[", "]]"),), line=("--",)),
    _of("r", "script", "code", ".r", interpreters=("rscript",), **_HASH),
    _of("julia", "script", "code", ".jl", interpreters=("julia",), line=("#",),
        block=(("#=", "=#"),), quotes=('"',)),
    _of("matlab", "script", "code", ".m", line=("%",), block=(("%{", "%}"),), quotes=('"',)),
    _of("php", "web", "code", ".php .inc", interpreters=("php",), line=("//", "#"),
        block=(("/*", "*/"),)),
    _of("javascript", "web", "code", ".js .jsx .mjs .cjs", interpreters=("node", "nodejs"),
        quotes=('"', "'", "`"), **_C),
    _of("typescript", "web", "code", ".ts .tsx .mts", interpreters=("deno", "ts-node"),
        quotes=('"', "'", "`"), **_C),
    _of("css", "web", "code", ".css .scss .less", block=(("/*", "*/"),)),
    _of("c", "systems", "code", ".c .h .inc", **_C),
    _of("cpp", "systems", "code", ".cpp .cc .cxx .hpp .hh .hxx .h .ipp .inc", **_C),
    _of("cuda", "systems", "code", ".cu .cuh", **_C),
    _of("objective-c", "systems", "code", ".m .mm .h", **_C),
    _of("rust", "systems", "code", ".rs", quotes=('"',), **_C),
    _of("go", "systems", "code", ".go", quotes=('"', "`"), **_C),
    _of("swift", "systems", "code", ".swift", quotes=('"',), **_C),
    _of("zig", "systems", "code", ".zig", line=("//",), quotes=('"',)),
    _of("fortran", "systems", "code", ".f .f90 .f95 .f03 .for", line=("!",)),
    _of("assembly", "systems", "code", ".s .asm", line=(";", "#"), quotes=('"',)),
    _of("verilog", "systems", "code", ".v .sv .vh", quotes=('"',), **_C),
    _of("vhdl", "systems", "code", ".vhd .vhdl", line=("--",), quotes=('"',)),
    _of("java", "jvm", "code", ".java", **_C),
    _of("kotlin", "jvm", "code", ".kt .kts", interpreters=("kotlin",), **_C),
    _of("scala", "jvm", "code", ".scala .sc .sbt", interpreters=("scala",), **_C),
    _of("groovy", "jvm", "code", ".groovy .gradle", interpreters=("groovy",), **_C),
    _of("csharp", "jvm", "code", ".cs", **_C),
    _of("haskell", "functional", "code", ".hs", interpreters=("runhaskell",), line=("--",),
        block=(("{-", "-}"),), quotes=('"',)),
    _of("ocaml", "functional", "code", ".ml .mli", block=(("(*", "*)"),), quotes=('"',)),
    _of("coq", "functional", "code", ".v", block=(("(*", "*)"),), quotes=('"',)),
    _of("prolog", "functional", "code", ".pl .pro", interpreters=("swipl",), line=("%",),
        block=(("/*", "*/"),)),
    _of("elixir", "functional", "code", ".ex .exs", interpreters=("elixir",), **_HASH),
    _of("erlang", "functional", "code", ".erl .hrl", interpreters=("escript",), line=("%",),
        quotes=('"',)),
    _of("clojure", "functional", "code", ".clj .cljs", line=(";",), quotes=('"',)),
    _of("lisp", "functional", "code", ".lisp .el .scm .rkt", line=(";",), quotes=('"',)),
    _of("shell", "command", "code", ".sh .bash .zsh", names=("configure", ".bashrc"),
        interpreters=("sh", "bash", "zsh", "dash", "ksh"), **_HASH),
    _of("powershell", "command", "code", ".ps1 .psm1", line=("#",), block=(("<#", "#>"),)),
    _of("batch", "command", "code", ".bat .cmd", line=("rem ", "REM ", "::"), quotes=('"',)),
    _of("makefile", "command", "code", ".mk", names=("makefile", "gnumakefile"),
        interpreters=("make",), **_HASH),
    _of("cmake", "command", "code", ".cmake", names=("cmakelists.txt",), quotes=('"',), **_HASH),
    _of("dockerfile", "command", "code", ".dockerfile", names=("dockerfile",), **_HASH),
    _of("sql", "command", "code", ".sql", line=("--",), block=(("/*", "*/"),)),
    _of("protobuf", "command", "code", ".proto", **_C),
    _of("json", "data", "data", ".json .geojson", quotes=('"',)),
    _of("yaml", "data", "data", ".yaml .yml", **_HASH),
    _of("toml", "data", "data", ".toml", **_HASH),
    _of("ini", "data", "data", ".ini .cfg .conf", line=("#", ";")),
    _of("html", "markup", "markup", ".html .htm .xhtml", **_XML),
    _of("xml", "markup", "markup", ".xml .xsd .xslt .ts", **_XML),
    _of("jinja", "markup", "markup", ".jinja .jinja2 .j2", block=(("{#", "#}"),), quotes=()),
    _of("markdown", "prose", "prose", ".md .markdown", quotes=()),
    _of("restructuredtext", "prose", "prose", ".rst", quotes=()),
    _of("tex", "prose", "prose", ".tex .bib .sty", line=("%",), quotes=()),
    _of("text", "prose", "prose", ".txt", names=("readme", "todo", "notes"), quotes=()),
)  # fmt: skip

LANGUAGES: Mapping[str, Language] = {language.name: language for language in _LANGUAGES}
"""All languages by name."""


def _invert(field: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for language in _LANGUAGES:
        for value in getattr(language, field):
            found[value].append(language.name)
    return {value: tuple(names) for value, names in found.items()}


BY_ENDING: Mapping[str, tuple[str, ...]] = _invert("endings")
"""Languages that share an ending; two and more where the ending does not tell."""
BY_NAME: Mapping[str, tuple[str, ...]] = _invert("names")
BY_INTERPRETER: Mapping[str, tuple[str, ...]] = _invert("interpreters")
