"""What a text says about its language: weighted patterns, each a construct of one language.

The score of a language is the sum, over its patterns, of the weight times the number of places (at
most three). A pattern is a construct that another language would hardly have at the beginning of a
line; weight 3 is as good as certain, 1 is a hint. Only the beginning of a text is looked at.

Surprise: absence is no evidence. A C header of constants has nothing that C++ lacks, so that equal
scores are common and the order of the candidates, the endings' usual owner first, decides.
"""

# A row of the table is one line, however long.
# ruff: noqa: E501

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

_LOOK_CHARACTERS = 8000
_MOST_PLACES = 3

_PATTERNS: Mapping[str, tuple[tuple[int, str], ...]] = {
    "python": (
        (3, r"^\s*def \w+\(.*\).*:\s*$"),
        (2, r"^\s*(?:from [\w.]+ )?import [\w.*]+(?: as \w+)?(?:, ?[\w.]+)*\s*$"),
        (2, r"^\s*class \w+(?:\([\w., =]*\))?:\s*$"),
        (2, r"^\s*(?:if|elif|for|while|with|try|except|else)\b[^;{}]*:\s*$"),
        (1, r"^\s*@\w[\w.]*(?:\(.*\))?$"),
        (1, r'^\s*[rf]?"""'),
    ),
    "cython": (
        (3, r"^\s*cdef (?!class\b)\w+"),
        (3, r"^\s*cp?def class \w+"),
        (3, r"^\s*cimport \w|^\s*from [\w.]+ cimport "),
    ),
    "ruby": (
        (3, r"^\s*require(?:_relative)? ['\"]"),
        (2, r"^\s*def [\w.?!]+(?:\([^)]*\))?\s*$"),
        (2, r"^\s*end\s*$"),
        (2, r"\bdo \|[\w, ]+\|"),
        (2, r"^\s*attr_(?:reader|writer|accessor) :"),
        (1, r"^\s*module [A-Z]\w*\s*$"),
    ),
    "perl": (
        (3, r"^\s*use (?:strict|warnings)\b"),
        (3, r"^\s*my [$@%]\w+"),
        (2, r"^\s*sub \w+\s*\{"),
        (2, r"^\s*package [\w:]+;"),
        (1, r"\$\w+->\{"),
    ),
    "prolog": (
        (3, r"^:- (?:module|use_module|dynamic|initialization)\("),
        (3, r"^[a-z]\w*\([^)]*\)\s*:-\s*$"),
        (2, r"^[a-z]\w*\([^()]*\)\.\s*$"),
    ),
    "lua": (
        (3, r"^\s*local function \w+\s*\("),
        (2, r"^\s*local \w+(?:, ?\w+)*\s*="),
        (2, r"^\s*function [\w.:]+\s*\([^)]*\)\s*$"),
        (2, r"\bthen\s*$"),
        (1, r"~="),
        (1, r"^\s*end\s*$"),
    ),
    "julia": (
        (3, r"^\s*using [A-Z]\w*(?:: ?\w+(?:, \w+)*)?\s*$"),
        (2, r"^\s*function \w+!?\(.*\)(?:::\w+)?\s*$"),
        (2, r"^\s*(?:mutable )?struct \w+(?:\{.*\})?\s*$"),
        (1, r"^\s*end\s*$"),
    ),
    "r": (
        (3, r"^\s*[\w.]+ <- function\("),
        (2, r"^\s*library\(\w+\)"),
        (1, r"^\s*[\w.$]+ <- "),
    ),
    "matlab": (
        (3, r"^\s*function (?:\[[\w, ]*\] ?=|\w+ ?=)? ?\w+\(.*\)\s*(?:%.*)?$"),
        (2, r"^\s*%(?!\w*[{\\])"),
        (1, r"^\s*end\s*;?\s*$"),
        (1, r"\.\*|\./|;\s*$"),
    ),
    "php": ((3, r"<\?php\b"), (2, r"^\s*\$\w+\s*=\s*.*;\s*$"), (1, r"\$this->\w+")),
    "javascript": (
        (3, r"^\s*(?:module\.)?exports(?:\.\w+)?\s*="),
        (2, r"\brequire\(['\"][^'\"]+['\"]\)"),
        (2, r"^\s*(?:const|let|var) [\w{}\[\], ]+\s*="),
        (2, r"^\s*(?:export )?(?:default )?(?:async )?function\*? ?\w*\s*\("),
        (2, r"^\s*import .* from ['\"]"),
        (1, r"=>\s*[{(]"),
        (1, r"\b(?:document|window|console)\.\w+"),
    ),
    "typescript": (
        (3, r"^\s*(?:export )?(?:interface|type) \w+(?:<[^>]*>)?\s*(?:extends [\w, ]+)?(?:=|\{)"),
        (3, r"\b\w+\??: (?:string|number|boolean|any|void|unknown)\b"),
        (2, r"^\s*import (?:type )?.* from ['\"]"),
        (2, r"^\s*(?:public|private|protected|readonly) \w+[?!]?:"),
        (1, r"^\s*(?:export )?(?:const|let) \w+"),
    ),
    "css": ((3, r"^\s*[.#]?[\w-]+(?:[ ,>:.#][\w-]+)*\s*\{\s*$"), (2, r"^\s*[a-z-]+:\s*[^;{}]+;\s*$")),
    "c": (
        (2, r"^#\s*include\s*[<\"][\w/.-]+\.h[>\"]"),
        (2, r"^#\s*(?:define|ifndef|ifdef|endif)\b"),
        (2, r"^(?:static |extern |const |unsigned )*(?:int|void|char|size_t|struct \w+)\s+\**\w+\("),
        (2, r"^\s*typedef (?:struct|enum|union|unsigned|int|void)\b"),
        (1, r"\w+->\w+"),
    ),
    "cpp": (
        (3, r"^\s*(?:using )?namespace [\w:]+"),
        (3, r"^\s*template\s*<"),
        (3, r"\bstd::\w+"),
        (2, r"^#\s*include\s*<(?:c?[a-z_]+)>"),
        (2, r"^\s*(?:public|private|protected):\s*$"),
        (2, r"^\s*class \w+(?: final)?(?:\s*:\s*(?:public|private) [\w:<>]+)?\s*\{?\s*$"),
        (2, r"\b\w+::\w+"),
        (1, r"^#\s*(?:define|ifndef|ifdef|endif|include|pragma once)\b"),
        (1, r"\b(?:nullptr|constexpr|noexcept|virtual|static_cast)\b"),
    ),
    "cuda": (
        (3, r"\b__(?:global|device|shared|host)__\b"),
        (3, r"<<<.*>>>"),
        (1, r"\b(?:threadIdx|blockIdx)\b"),
    ),
    "objective-c": (
        (3, r"^\s*@(?:interface|implementation|protocol|property|end)\b"),
        (3, r"^\s*#import\b"),
        (2, r"^[-+] ?\(\w+[ *]*\)"),
        (1, r"\[\w+ \w+(?::|\])"),
    ),
    "rust": (
        (3, r"^\s*(?:pub(?:\(\w+\))? )?(?:async )?fn \w+(?:<.*>)?\("),
        (3, r"^\s*(?:pub )?(?:impl|trait|mod) \w+.*[{;]\s*$"),
        (2, r"^\s*use (?:\w+::)+[\w{}, *:]+;"),
        (2, r"\blet (?:mut )?\w+(?:: ?[\w<>&]+)? ="),
        (2, r"^\s*#!?\[\w+"),
    ),
    "go": (
        (3, r"^package \w+\s*$"),
        (3, r"^func (?:\(\w+ \*?\w+\) )?\w+\("),
        (2, r":="),
        (2, r"^import \("),
        (1, r"\bif err != nil\b"),
    ),
    "swift": (
        (3, r"^\s*import (?:Foundation|UIKit|SwiftUI|XCTest)\b"),
        (2, r"^\s*(?:public |private |static |override |mutating )*func \w+.*\{"),
        (2, r"\b(?:guard|if) let \w+"),
        (2, r"^\s*(?:let|var) \w+: \[?[A-Z]\w*"),
        (1, r"-> [A-Z]\w*\??\s*\{"),
    ),
    "fortran": (
        (3, r"(?i)^\s*(?:end )?(?:subroutine|program|module) \w+"),
        (2, r"(?i)^\s*implicit none"),
        (2, r"(?i)^\s*(?:integer|real|double precision|character)\b.*::"),
        (1, r"(?i)^\s*call \w+"),
    ),
    "assembly": (
        (3, r"^\s*\.(?:globl?|text|section|data)\b"),
        (2, r"^\s*(?:mov[lqb]?|push[lq]?|pop[lq]?|ret|call|jmp|lea[lq]?)\s"),
    ),
    "verilog": (
        (3, r"^\s*module \w+\s*(?:#\(|\()"),
        (3, r"^\s*endmodule\b"),
        (2, r"^\s*(?:always|assign|wire|reg|input|output)\b"),
    ),
    "coq": (
        (3, r"^\s*(?:Theorem|Lemma|Definition|Inductive|Fixpoint|Proof|Qed)\b"),
        (3, r"^\s*Require (?:Import|Export) "),
    ),
    "java": (
        (3, r"^package [\w.]+;"),
        (3, r"^import (?:static )?[\w.]+(?:\.\*)?;"),
        (2, r"^\s*(?:public|private|protected) (?:static |final |abstract )*(?:class|void|int|[A-Z]\w*)"),
        (1, r"^\s*@Override"),
    ),
    "kotlin": (
        (3, r"^\s*(?:override |private |internal |suspend )*fun (?:<.*> )?[\w.]+\("),
        (2, r"^\s*(?:private )?va[lr] \w+(?:: [\w<>?]+)? ="),
        (2, r"^\s*(?:data|sealed) class \w+"),
        (1, r"^import [\w.]+\s*$"),
    ),
    "scala": (
        (3, r"^\s*(?:case )?object \w+"),
        (3, r"^\s*(?:override |private )*def \w+(?:\[.*\])?(?:\(.*\))?(?:: ?[\w\[\]]+)? =\s*\{?"),
        (2, r"^\s*case class \w+"),
        (2, r"^import [\w.]+(?:\{.*\}|_)\s*$"),
        (1, r"^\s*(?:lazy )?va[lr] \w+"),
    ),
    "csharp": (
        (3, r"^using [\w.]+;"),
        (3, r"^\s*namespace [\w.]+\s*[{;]?\s*$"),
        (2, r"\{ get; (?:private )?set; \}"),
    ),
    "haskell": (
        (3, r"^module [\w.]+(?: \(|\s+where)"),
        (3, r"^\w+'? :: .*->"),
        (2, r"^import (?:qualified )?[A-Z][\w.]*"),
    ),
    "ocaml": ((3, r"^\s*let (?:rec )?\w+ .*=\s*(?:function)?$"), (2, r"^open [A-Z]\w*"), (1, r";;\s*$")),
    "elixir": ((3, r"^\s*defmodule [\w.]+ do"), (2, r"^\s*defp? \w+.*\bdo\s*$"), (1, r"\|>")),
    "erlang": ((3, r"^-(?:module|export|include)\("), (2, r"^\w+\(.*\)\s*->\s*$")),
    "clojure": ((3, r"^\(ns [\w.-]+"), (2, r"^\s*\(defn-? ")),
    "lisp": ((3, r"^\s*\((?:defun|defvar|defmacro|define)\b"), (1, r"^\s*\((?:let\*?|setq|lambda)\b")),
    "shell": (
        (2, r"^\s*(?:if|while|elif) \[{1,2} .* \]{1,2}"),
        (2, r"^\s*(?:fi|done|esac)\s*$"),
        (2, r"^\s*export \w+="),
        (1, r"\$\{?\w+\}?"),
        (1, r"^\s*(?:echo|cd|mkdir|rm|set -[eux]+)\b"),
    ),
    "powershell": ((3, r"(?i)^\s*param\s*\("), (2, r"\b(?:Get|Set|New|Write)-[A-Z]\w+"), (1, r"\$\w+\s*=")),
    "cmake": (
        (3, r"(?i)^\s*(?:cmake_minimum_required|add_executable|target_link_libraries|project)\s*\("),
        (2, r"(?i)^\s*(?:set|if|endif|function|include)\s*\("),
    ),
    "makefile": ((3, r"^\.PHONY:"), (2, r"^[\w.%/-]+:[^=]*$"), (1, r"^\t\S"), (1, r"\$\(\w+\)")),
    "dockerfile": ((3, r"^FROM \S+"), (2, r"^(?:RUN|COPY|ENTRYPOINT|WORKDIR|ENV) ")),
    "sql": (
        (3, r"(?i)^\s*create (?:table|index|view)\b"),
        (3, r"(?i)^\s*insert into \w+"),
        (2, r"(?i)^\s*select\b.*(?:\bfrom\b|$)"),
    ),
    "protobuf": ((3, r"^syntax = \"proto[23]\";"), (2, r"^\s*message \w+ \{"), (1, r"= \d+;\s*$")),
    "json": ((3, r"\A\s*[\[{]\s*(?:\"[^\"\n]*\"\s*:|[\[{\]}])"), (1, r"^\s*\"[^\"]*\":")),
    "yaml": ((2, r"\A(?:#.*\n)*---\s*$"), (1, r"^\s*-? ?[\w-]+:(?: [^{};]*)?$")),
    "ini": ((2, r"^\[[\w. :-]+\]\s*$"), (1, r"^[\w.-]+\s*=\s*[^;{}]*$")),
    "toml": ((2, r"^\[\[?[\w.\"-]+\]\]?\s*$"), (2, r"^[\w.-]+ = (?:\"|\[|true|false|\d)")),
    "html": ((3, r"(?i)<!doctype html"), (3, r"(?i)<(?:html|body|head)\b"), (1, r"(?i)</(?:div|p|a|span)>")),
    "xml": ((3, r"\A\s*<\?xml\b"), (1, r"^\s*</?[\w:]+(?: [\w:]+=\"[^\"]*\")*\s*/?>")),
    "jinja": ((3, r"\{%-? (?:if|for|block|extends|macro|set)\b"), (1, r"\{\{ ?[\w.]+")),
    "markdown": ((2, r"^#{1,6} \w"), (2, r"^```"), (1, r"\[[^\]\n]+\]\([^)\n]+\)")),
    "restructuredtext": ((3, r"^\.\. [\w-]+::"), (2, r"^(?:=|-|~){4,}\s*$"), (1, r"``[^`\n]+``")),
    "tex": ((3, r"\\(?:documentclass|begin|usepackage)\b"), (1, r"\\\w+\{")),
}  # fmt: skip


@lru_cache(maxsize=1)
def _compiled() -> dict[str, list[tuple[int, re.Pattern[str]]]]:
    return {
        name: [(weight, re.compile(pattern, re.MULTILINE)) for weight, pattern in patterns]
        for name, patterns in _PATTERNS.items()
    }


def evidence(text: str, languages: Iterable[str] | None = None) -> dict[str, int]:
    """Return the score of each of the languages, of all known ones if none are given."""
    known, head = _compiled(), text[:_LOOK_CHARACTERS]
    names = known if languages is None else languages
    return {name: sum(_score(*one, head) for one in known.get(name, ())) for name in names}


def _score(weight: int, pattern: re.Pattern[str], text: str) -> int:
    places = 0
    for _ in pattern.finditer(text):
        places += 1
        if places == _MOST_PLACES:
            break
    return weight * places
