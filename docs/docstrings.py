"""Our docstrings as Sphinx reads them.

Most list what a class takes inline: a line that begins with the name of a parameter and a colon, its continuation
indented, and sentences that begin with "Raises". Here these become field lists (`:param name:`, `:raises Error:`), in
place; prose becomes reStructuredText that means the same. Docstrings in Google style are left to Napoleon, but for
their backticks. A class that says nothing of a parameter has it from the class that it inherits it from.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import xaibench

GOOGLE = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.M)
NAMES = r"[A-Za-z_]\w*(?:(?:, | and )[A-Za-z_]\w*)*(?: \[[^\]]*\])?"
ENTRY = re.compile(rf"^({NAMES})( and the others)?:(?: |$)")
RAISES = re.compile(r"(?:(?<=^)|(?<=\. ))Raises (\w+)((?:, (?:and )?\w+)*) ")
SPECIAL = re.compile(r"([*|\\])|(_)(?!\w)")
QUOTED = re.compile(r"(``[^`]+``|`[^`]+`)")


def taken(thing: Any) -> list[str]:
    """The parameters of a call."""
    try:
        return list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return []


def parameters(thing: Any) -> set[str]:
    """The names that a docstring of `thing` may describe: of its signature, and of a class its declared attributes."""
    found = set(taken(thing))
    for base in getattr(thing, "__mro__", ()):
        found |= set(inspect.get_annotations(base))
    return found


def entries(lines: Iterable[str], known: set[str]) -> list[tuple[str, list[str]]]:
    """A docstring as parts in order: (names, lines) of what describes parameters, ("", lines) of a paragraph."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        found = ENTRY.match(line)
        names = found and re.sub(r" \[.*", "", found[1])
        if names and set(re.split(r", | and ", names)) & known:
            parts.append((found[1] + (found[2] or ""), []))
            _split(parts, line[found.end() :], known)
        elif not line.strip():
            parts.append(("", []))
        elif parts[-1][0] and line.startswith("    "):
            _split(parts, line.strip(), known)
        elif parts[-1][0]:
            parts.append(("", [line]))
        else:
            _split(parts, line, known)
    return [(names, text) for names, text in parts if text]


def _split(parts: list[tuple[str, list[str]]], text: str, known: set[str]) -> None:
    """Add a line, in which an entry may begin after a full stop or semicolon."""
    ended = any(parts[-1][1]) and parts[-1][1][-1].endswith((".", ";"))
    begin = r"(?:(?<=[.;] )|^)" if ended else r"(?<=[.;] )"
    for name in re.finditer(rf"{begin}({NAMES})( and the others)?:(?: |$)", text):
        if set(re.split(r", | and ", re.sub(r" \[.*", "", name[1]))) <= known:
            parts[-1][1].append(text[: name.start()].strip())
            parts.append((name[1] + (name[2] or ""), []))
            return _split(parts, text[name.end() :], known)
    parts[-1][1].append(text)


def described(thing: type) -> dict[str, str]:
    """Parameter -> what the docstring of a class says of it, or of the nearest class above that does."""
    found: dict[str, str] = {}
    known = parameters(thing)
    for base in thing.__mro__:
        if base is object or not base.__dict__.get("__doc__"):
            continue
        for names, text in entries(inspect.cleandoc(base.__doc__).splitlines(), known):
            for name in re.split(r", | and ", re.sub(r" \[.*| and the others", "", names)):
                found.setdefault(name, " ".join(text))
    found.pop("", None)
    return found


def escaped(text: str) -> str:
    """Prose as reStructuredText: what is quoted is code, or a link if it is a promised name; nothing else is markup."""
    parts = QUOTED.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = SPECIAL.sub(lambda found: "\\" + found[0], part)
            if index and parts[index][:1].isalnum():
                parts[index] = "\\ " + parts[index]
        else:
            word = part.strip("`")
            parts[index] = f":py:obj:`~xaibench.{word}`" if word in xaibench.__all__ else f"``{word}``"
    return "".join(parts)


def paragraph(lines: list[str]) -> list[str]:
    """A paragraph; one that is indented is code, and items keep their indentation."""
    if all(line.startswith("    ") for line in lines):
        return ["::", "", *lines, ""]
    if lines[0].startswith("- "):
        return [*(escaped(line) for line in lines), ""]
    # "1. " at the start of a line is no list here.
    return [*(re.sub(r"^(\(?\w{1,3}[.)] )", r"\\\1", escaped(line.strip())) for line in lines), ""]


def converted(lines: list[str], thing: Any) -> list[str]:
    """A docstring of ours as reStructuredText with field lists."""
    if GOOGLE.search("\n".join(lines)):
        return google(lines)
    result: list[str] = []
    seen: set[str] = set()
    for names, text in entries(lines, parameters(thing)):
        joined = " ".join(line.strip() for line in text)
        raised = RAISES.search(joined)
        if names:
            shape = re.search(r" (\[.*\])$", names)
            plain = re.sub(r" \[.*| and the others", "", names)
            seen |= set(re.split(r", | and ", plain))
            body = joined[: raised.start()] if raised else joined
            body = f"{shape[1]}: {body}" if shape else body
            first, *rest = re.split(r", | and ", plain)
            also = f" (and {', '.join(rest)})" if rest else ""
            others = " (and the others)" if names.endswith("the others") else ""
            if result and result[-1] == "" and len(result) > 1 and result[-2].startswith(":"):
                result.pop()
            result += [
                f":param {first}: {escaped(also.strip() + others + ' ' if also or others else '')}{escaped(body)}"
            ]
        elif raised and not any(line.startswith(("- ", "    ")) for line in text):
            if joined[: raised.start()].strip():
                result += [escaped(joined[: raised.start()].strip()), ""]
        else:
            if result and result[-1].startswith(":"):
                result.append("")
            result += paragraph(text)
        if raised and (names or not any(line.startswith(("- ", "    ")) for line in text)):
            result += [f":raises {raised[1]}: {escaped(joined[raised.end() :])}"] if not raised[2] else []
            for also in re.findall(r"\w+", raised[2].replace("and ", "")) if raised[2] else []:
                result += [f":raises {raised[1]}:", f":raises {also}: {escaped(joined[raised.end() :])}"]
        if names or raised:
            result.append("")
    if isinstance(thing, type):
        takes = taken(thing)
        more = {name: text for name, text in described(thing).items() if name in takes and name not in seen}
        result += ["", *(f":param {name}: {escaped(text)}" for name, text in more.items()), ""]
    return joined_fields(result)


def joined_fields(lines: list[str]) -> list[str]:
    """Field lists that only an empty line parts become one."""
    result: list[str] = []
    for index, line in enumerate(lines):
        after = next((later for later in lines[index + 1 :] if later), "")
        before = next((earlier for earlier in reversed(result) if earlier), "")
        if not line and before.startswith(":") and after.startswith((":param", ":raises")):
            continue
        result.append(line)
    return result


def google(lines: list[str]) -> list[str]:
    """Google style: the backticks alone."""
    return [
        QUOTED.sub(lambda found: escaped(found[0]), line) if not line.rstrip().endswith("::") else line
        for line in lines
    ]


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines, thing)
    if getattr(options, "no_index", False) or (isinstance(options, dict) and options.get("no-index")):
        # The page of a method or metric, whose table of settings says it.
        lines[:] = [line for line in lines if not line.startswith(":param ")]


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before Napoleon
    return {"parallel_read_safe": True}
