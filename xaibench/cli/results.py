"""Commands that read results: leaderboard, rank, report, compare, check."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError, XaibenchError
from ..garbage import uncollected
from .options import FILTERS, add_filters, add_folders, filters_of, parser_of


@uncollected()
def leaderboard(arguments: list[str]) -> int:
    """Write results/leaderboard.csv and cost.csv and show the table."""
    parser = parser_of("leaderboard", "the results as a table, and as results/leaderboard.csv and cost.csv")
    add_folders(parser, cache=False)
    add_filters(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV instead of tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone, without its score files")
    options = parser.parse_args(arguments)
    from ..report import terminal
    from ..scores import index, leaderboard, rank
    from ..scores.kept import KnownTests

    results, filters = Path(options.results), filters_of(options)
    if options.leaderboard:
        frame = leaderboard.select(leaderboard.read_csv(Path(options.leaderboard)), filters)
        if options.csv:
            print(leaderboard.to_csv(frame), end="")
        else:
            frame = frame.assign(**leaderboard.UNMARKED)
            terminal.leaderboard_table(leaderboard.labels_told_apart(frame))
        return 0
    cells, damaged = index.summaries(results, terminal.tracked("score files read"))
    try:
        leaderboard.write(results, cells)
    except XaibenchError as error:  # a folder of someone else's, a full disk: the table is what was asked for
        print(f"xaibench: {str(error).splitlines()[0]}; the table is all there is", file=sys.stderr)
    if options.csv:
        print(leaderboard.to_csv(leaderboard.select(leaderboard.table(cells), filters)), end="")
        return terminal.damaged(damaged)
    statistics = filters.pop("statistic", None)
    apart = leaderboard.told_apart(leaderboard.select_cells(cells, filters))
    if len(apart) > terminal.MOST_SHOWN:
        terminal.overview(apart, results / "leaderboard.csv")
        return terminal.damaged(damaged)
    frame = leaderboard.select(leaderboard.table(apart), {"statistic": statistics} if statistics else {})
    shown = [cell for cell in apart if cell.card["metric"] in set(frame["metric"])]
    compared = rank.comparisons(shown, terminal.tracked("sets of methods compared"), KnownTests(results / "scores"))
    terminal.leaderboard_table(frame, compared)
    terminal.qualities(leaderboard.qualities(apart, cells))
    terminal.crowded(rank.crowded(shown))
    return terminal.damaged(damaged)


def rank(arguments: list[str]) -> int:
    """Tests between methods on the same samples, ranks under resampling, and the ranks over all metrics."""
    parser = parser_of("rank", "which methods can be told apart, how firm their ranks are, and whether metrics agree")
    add_folders(parser, cache=True)
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every statistic of each metric, not its headline alone")
    parser.add_argument("--maps", action="store_true", help="how alike the methods' maps are, as the cache has them")
    tables = ("methods", "pairs", "metrics", "overall", "agreement", "maps")
    parser.add_argument("--csv", choices=tables, help="print one of these as CSV instead of the tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone: its ranks, without tests")
    options = parser.parse_args(arguments)
    from ..report import terminal
    from ..scores import index, leaderboard, rank
    from ..scores.kept import KnownTests

    results, filters = Path(options.results), filters_of(options)
    if options.leaderboard:
        if options.csv or options.all or options.maps:
            needing = "--csv, --all and --maps need score files (--results DIR)"
            raise UserError(f"--leaderboard {options.leaderboard}: {needing}")
        from ..report.tables import boards_of_file

        frame = leaderboard.select(leaderboard.read_csv(Path(options.leaderboard)), filters)
        terminal.ranks_of_file(boards_of_file(leaderboard.labels_told_apart(frame)))
        return 0
    wanted = filters.pop("statistic", None)
    cells, damaged = index.summaries(results, terminal.tracked("score files read"))
    asked = leaderboard.told_apart(leaderboard.select_cells(cells, filters))
    if options.maps or options.csv == "maps":
        from ..report import map_agreement

        alike = map_agreement.map_agreement(terminal.tracked("cells read")(asked), Path(options.cache))
        if options.csv:
            print(leaderboard.to_csv(map_agreement.rows(alike)), end="")
        else:
            terminal.map_agreement(alike)
        return terminal.damaged(damaged)
    found = rank.comparisons(asked, terminal.tracked("sets of methods read"), KnownTests(results / "scores"))
    views = rank.overall(found)
    if wanted:
        leaderboard.check_present("statistic", wanted, (c.statistic for c in found))
        found = [c for c in found if c.statistic in wanted]
    elif not options.all:
        found = [c for c in found if c.headline]
    if options.csv:
        rows = getattr(rank, f"{options.csv.removesuffix('s')}_rows")
        of_views = options.csv in ("overall", "agreement")
        print(leaderboard.to_csv(rows(views if of_views else terminal.tracked("comparisons")(found))), end="")
    elif len(asked) > terminal.MOST_SHOWN:
        terminal.overview(asked, None)
        terminal.overall(views)
    elif found:
        terminal.ranks(found)
        terminal.overall(views)
    else:
        terminal.stderr.print("nothing to compare: it takes two methods on the same samples under one metric")
    terminal.crowded(rank.crowded(asked))
    return terminal.damaged(damaged)


def report(arguments: list[str]) -> int:
    """Write the results as one HTML page with its figures beside it."""
    parser = parser_of("report", "the results as one page that needs no network, with its figures as PNG and SVG")
    add_folders(parser, cache=True)
    parser.add_argument("--out", metavar="DIR", help="where the page goes (default: report in the results folder)")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone, without its score files")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="images in the gallery (default: 16)")
    add_filters(parser, FILTERS[:-1])
    options = parser.parse_args(arguments)
    if options.images < 0:
        raise UserError(f"--images {options.images}: expected a number of images, or 0 for no gallery")
    from ..report import folder, terminal
    from ..scores import index

    results, filters, code = Path(options.results), filters_of(options), 0
    if options.leaderboard:
        file = Path(options.leaderboard)
        page = folder.write_of_file(file, Path(options.out or file.with_suffix("")), filters)
    else:
        out = Path(options.out or results / "report")
        cells, damaged = index.summaries(results, terminal.tracked("score files read"))
        code = terminal.damaged(damaged)
        page = folder.write(results, cells, Path(options.cache), out, filters=filters, images=options.images)
    print(page)
    return code


def compare(arguments: list[str]) -> int:
    """Published numbers beside ours."""
    parser = parser_of("compare", "published numbers beside ours, with rank correlations and what is not the same")
    parser.add_argument("experiment", help="such as iba_table1; its preset is experiment=iba_table1")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv instead of the results folder")
    add_folders(parser, cache=False)
    options = parser.parse_args(arguments)
    from ..report import terminal
    from ..scores import compare, index, leaderboard

    theirs = compare.read(options.experiment)
    damaged: list[leaderboard.Damaged] = []
    if options.leaderboard:
        board = leaderboard.labels_told_apart(leaderboard.read_csv(Path(options.leaderboard)))
    else:
        cells, damaged = index.summaries(Path(options.results), terminal.tracked("score files read"))
        board = leaderboard.table(leaderboard.told_apart(cells))
    frame = compare.beside(theirs, board)
    if options.csv:
        print(leaderboard.to_csv(frame), end="")
    else:
        terminal.beside(theirs, frame)
    return terminal.damaged(damaged) or (0 if frame["value"].notna().any() else 3)


def check(arguments: list[str]) -> int:
    """Compare the results with a baseline."""
    parser = parser_of("check", "compare the leaderboard with a baseline; see the exit codes of xaibench --help")
    parser.add_argument("--baseline", required=True, metavar="FILE", help="a leaderboard.csv from before")
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the absolute change that is no regression, of a statistic or of metric.statistic; may be repeated",
    )
    parser.add_argument("--tolerances", metavar="FILE", help="a yaml file of such lines, `metric.statistic: 0.01`")
    parser.add_argument(
        "--format", choices=("text", "json", "markdown", "junit"), default="text", help="of the outcome"
    )
    parser.add_argument("--output", metavar="FILE", help="write the outcome there, and show the text")
    add_folders(parser, cache=False)
    options = parser.parse_args(arguments)
    from ..report import check_report, terminal
    from ..scores import check, leaderboard, score_files

    results, baseline = Path(options.results), Path(options.baseline)
    before = leaderboard.read_csv(baseline)
    cells, damaged = leaderboard.read_sound(results)
    check.refuse_ambiguous(before, baseline, cells)
    check.refuse_other_sources(before, cells)
    beside = check.scores_beside(baseline)
    overrides = check.read_tolerances(Path(options.tolerances)) if options.tolerances else {}
    rows = check.check(
        before,
        leaderboard.read_text(leaderboard.to_csv(leaderboard.table(cells))),
        check.floors(cells, overrides | dict(_tolerance(text) for text in options.tolerance)),
        samples_before=check.per_sample(leaderboard.read_sound(beside)[0]) if beside else None,
        samples_after=check.per_sample(cells),
        failed=[*damaged, *score_files.read_unfinished(results)],
    )
    made: dict[str, Callable[[list[check.Compared]], str]] = {
        "json": check_report.to_json,
        "junit": check_report.to_junit,
        "markdown": functools.partial(check_report.to_markdown, baseline=str(baseline)),
    }
    text = made[options.format](rows) if options.format in made else ""
    if options.output and text:
        Path(options.output).write_text(text, encoding="utf-8")
    if options.output or not text:
        terminal.compared(rows)
    else:
        print(text, end="")
    return terminal.damaged(damaged) or check.exit_code(rows)


def _tolerance(text: str) -> tuple[str, float]:
    from ..scores import check

    name, _, value = text.partition("=")
    try:
        return name, check.tolerance(value)
    except ValueError:
        raise UserError(f"--tolerance {text}: expected NAME=NUMBER, not negative, such as degradation=0.01") from None
