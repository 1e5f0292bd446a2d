"""Commands about what is there: list, cache, doctor."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import UserError
from ..trust import no_formula
from .options import add_folders, parser_of


def list_choices(arguments: list[str]) -> int:
    """A table of the choices of one group."""
    from ..listing import LISTED, group_of, items, passes

    parser = parser_of("list", "what there is to run")
    parser.add_argument("what", help=", ".join(f"{group}s" for group in LISTED))
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configurations of your own")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table; of methods also what they cost")
    parser.add_argument("--format", choices=("names", "csv", "json"), help="for other programs")
    options = parser.parse_args(arguments)
    group = group_of(options.what)
    listed = items(group, tuple(Path(folder) for folder in options.config_dir))
    for item in listed:
        if item.shadowed:
            print(f"xaibench: {item.path} has the name of one of ours, which is taken; rename it", file=sys.stderr)
    listed = [item for item in listed if not (options.format and item.shadowed)]
    rows: list[tuple[str, ...]] = [
        ("name", "what", "source", "needs"),
        *((i.name, i.summary, i.source, i.needs) for i in listed),
    ]
    if any(item.tuned_on for item in listed):
        rows = _beside(rows, 4, "tuned on", [", ".join(item.tuned_on) for item in listed])
    if options.markdown and group == "method":
        rows = _beside(rows, 3, "passes", map(passes, listed))
    if options.format:
        print(_LIST_FORMATS[options.format](rows), end="")
    elif options.markdown:
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        print("\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]))
    else:
        _print_table(rows)
    return 0


def _as_csv(rows: Sequence[tuple[str, ...]]) -> str:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([no_formula(cell) for cell in row] for row in rows)
    return text.getvalue()


def _as_json(rows: Sequence[tuple[str, ...]]) -> str:
    import json

    return json.dumps([dict(zip(rows[0], row)) for row in rows[1:]], indent=1, ensure_ascii=False) + "\n"


_LIST_FORMATS: dict[str, Callable[[Sequence[tuple[str, ...]]], str]] = {
    "names": lambda rows: "".join(f"{row[0]}\n" for row in rows[1:]),
    "csv": _as_csv,
    "json": _as_json,
}


def _beside(rows: Iterable[tuple[str, ...]], place: int, head: str, cells: Iterable[str]) -> list[tuple[str, ...]]:
    """The rows with a further column at this place."""
    return [(*row[:place], cell, *row[place:]) for row, cell in zip(rows, (head, *cells))]


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows under a head as plain columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


def cache(arguments: list[str]) -> int:
    """Show, verify or prune the cache."""
    parser = parser_of("cache", "what the cache holds, whether it is sound, and making room")
    parser.add_argument("what", choices=("ls", "verify", "prune"))
    parser.add_argument("--older-than", metavar="AGE", help="prune: not changed for this long, such as 30d or 12h")
    parser.add_argument("--max-size", metavar="SIZE", help="prune: the oldest until the rest fits, such as 20G")
    parser.add_argument("--unreachable", action="store_true", help="prune: what no key of this version can name")
    parser.add_argument("--dry-run", action="store_true", help="prune: say what would go, and leave it")
    add_folders(parser, cache=True)
    options = parser.parse_args(arguments)
    from ..store import upkeep

    root = Path(options.cache)
    if options.what == "verify":
        checked, wrong = upkeep.verify(root)
        print("\n".join([*wrong, f"{checked} files checked, {len(wrong)} problems"]))
        return 1 if wrong else 0
    if options.what == "prune" and not (options.older_than or options.max_size or options.unreachable):
        raise UserError("cache prune: say what may go, with --older-than 30d, --max-size 20G or --unreachable")
    if options.what == "prune":
        age = options.older_than and _quantity(options.older_than, {"h": 3600, "d": 86400, "w": 604800}, "--older-than")
        size = options.max_size and _quantity(options.max_size, {"M": 2**20, "G": 2**30, "T": 2**40}, "--max-size")
        also = []
        if options.unreachable:
            from ..engine.reachable import unreachable

            also = unreachable(root)
        listed = upkeep.prune(root, age, None if size is None else int(size), also, dry_run=options.dry_run)
    else:
        listed = upkeep.listing(root)
    for entry in listed:
        size = f"{entry.size / 2**20:9.1f} MB {entry.samples:7d} samples {entry.shards:5d} shards"
        print(f"{size}  {entry.kind}/{entry.path}")
    total = sum(entry.size for entry in listed) / 2**20
    done = f"in {root}" if options.what == "ls" else "would be removed" if options.dry_run else "removed"
    print(f"{total:9.1f} MB in {len(listed)} artefacts {done}")
    return 0


def _quantity(text: str, units: dict[str, int], option: str) -> float:
    number, unit = text[:-1], text[-1:]
    try:
        if unit not in units or float(number) < 0:
            raise ValueError
        return float(number) * units[unit]
    except ValueError:
        words = ", ".join(units)
        raise UserError(f"{option} {text}: expected a number and one of {words}, such as 2{[*units][1]}") from None


def doctor(arguments: list[str]) -> int:
    """Versions, device, configuration and data as this machine has them."""
    parser = parser_of("doctor", "what this installation sees: versions, device, configurations, data")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configurations of your own")
    parser.add_argument("--data", action="append", default=[], metavar="DIR", help="look for data here too")
    add_folders(parser, cache=True)
    options = parser.parse_args(arguments)
    from .. import doctor

    folders = ([Path(folder) for folder in found] for found in (options.config_dir, options.data))
    lines = doctor.report(Path(options.cache), Path(options.results), *folders)
    print("\n".join(f"{name:<14} {value}" for name, value in lines))
    return 0
