"""What the commands' options have in common."""

import argparse
from typing import NoReturn

from ..errors import UserError

# What leaderboards can be narrowed down by.
FILTERS = ("model", "dataset", "method", "metric", "statistic")


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command; it raises UserError for what it cannot read."""
    return _Parser(prog=f"xaibench {name}", description=description, allow_abbrev=False)


class _Parser(argparse.ArgumentParser):
    """Whose errors are ours: a line, and no usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('xaibench ')}: {message}; see {self.prog} --help")


def add_folders(parser: argparse.ArgumentParser, cache: bool) -> None:
    """Where the results are, and the cache."""
    parser.add_argument("--results", default="results", metavar="DIR", help="the results folder (default: results)")
    if cache:
        parser.add_argument("--cache", default="cache", metavar="DIR", help="the cache folder (default: cache)")


def add_filters(parser: argparse.ArgumentParser, names: tuple[str, ...] = FILTERS) -> None:
    """What narrows the results down."""
    for name in names:
        parser.add_argument(f"--{name}", action="append", default=[], help=f"only this {name}; may be repeated")


def filters_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Those that were given."""
    return {name: values for name in FILTERS if (values := getattr(options, name, None))}
