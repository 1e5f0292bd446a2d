"""The command line: one thin function per subcommand. Nothing heavy is imported before it is needed."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from . import __version__, interrupt
from .errors import UserError, XaibenchError, nearest, unforeseen
from .garbage import uncollected
from .trust import no_formula, trusting

USAGE = """\
usage: xaibench <command> ...

Which saliency method tells the truth about a network, and how do we know?

  run          compute maps and score them      xaibench run method=gradcam metric=degradation
               sweep with -m                    xaibench run -m method=gradient,gradcam,random
  sweep        status, wait for or cancel one   xaibench sweep status results/.sweeps/20260131-120000-000000
  list         what there is to run             xaibench list methods
  leaderboard  the results as a table and CSV   xaibench leaderboard --metric degradation
  rank         who can be told apart            xaibench rank --metric degradation
  report       the results as a page           xaibench report
  compare      published numbers beside ours    xaibench compare iba_table1
  check        compare with a baseline          xaibench check --baseline results/baseline.csv
  study        questions for people            xaibench study stimuli --method gradcam
  decode       what a path answers to           xaibench decode method=neuron_mct dataset.limit=4
  train        train a model by its recipe      xaibench train model=lenet dataset=mnist
  cache        ls, verify or prune the cache    xaibench cache ls
  doctor       versions, device, data           xaibench doctor

`xaibench <command> --help` says more. Options everywhere: --debug shows the traceback of an error,
--allow-target PREFIX lets a configuration name code from elsewhere, such as timm (docs/security.md).
Exit codes: 0 done, 1 a regression or failed cells, 2 a mistake in what was asked, 3 nothing comparable, 130 Ctrl-C.
"""

Number = TypeVar("Number", int, float)
# What leaderboards can be narrowed down by.
FILTERS = ("model", "dataset", "method", "metric", "statistic")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; every error is one or two lines on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        arguments, prefixes = _taken(arguments, "--allow-target")
        folders = [Path(folder) for name in ("--config-dir", "-cd") for folder in _taken(arguments, name)[1]]
        with interrupt.heeded(), trusting(prefixes, folders):
            return _dispatch(arguments, debug)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except XaibenchError as error:
        if debug:
            raise
        print(f"xaibench: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(f"xaibench: {unforeseen(error)}\n(--debug shows where)", file=sys.stderr)
        return 1


def _taken(arguments: list[str], option: str) -> tuple[list[str], list[str]]:
    """The arguments without an option that has a value, and its values."""
    left, values, rest = [], [], iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name == option:
            values.append(value if has_value else next(rest, ""))
        else:
            left.append(argument)
    return left, values


def _dispatch(arguments: list[str], debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"xaibench {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "-sc":
        return _complete(rest)
    if name == "run":
        return _run(rest, debug)
    if name in COMMANDS:
        return COMMANDS[name](rest)
    if "=" in name or name == "-m":
        raise UserError(f"'{name}' belongs to a command: xaibench run {' '.join(arguments)}")
    raise UserError(f"there is no command '{name}': {nearest(name, ['run', *COMMANDS])}")


def _run(arguments: list[str], debug: bool) -> int:
    """Compose and run with Hydra's own command line."""
    if "--version" in arguments:
        print(f"xaibench {__version__}")
        return 0
    from .running import run_hydra

    return run_hydra(_options_first(arguments), debug)


def _options_first(arguments: list[str]) -> list[str]:
    """Hydra's options before the overrides: its parser refuses overrides on both sides of an option."""
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"):
            options += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        else:
            (options if argument.startswith("-") else overrides).append(argument)
    return [*options, *overrides]


def _sweep(arguments: list[str]) -> int:
    """A sweep that was left to SLURM: how far it is, its end, or no more of it."""
    parser = _parser("sweep", "a sweep that SLURM has (run -m --detach): how far it is, wait for its end, or cancel it")
    parser.add_argument("what", choices=("status", "wait", "cancel"))
    parser.add_argument("folder", metavar="FOLDER", help="of the sweep, such as results/.sweeps/20260131-120000-000000")
    options = parser.parse_args(arguments)
    from . import launching, sweeps
    from .report import terminal

    folder = Path(options.folder).absolute()
    plan = sweeps.read_plan(folder)
    if options.what == "status":
        print(launching.status(folder))
        terminal.failures(sweeps.statuses(folder, plan, lost=False), brief=True)
        return 0
    if options.what == "cancel":
        left = launching.still(folder)
        if left:
            launching.cancel(left)
        terminal.cancelled(left)
        return 0
    launching.wait_for_slurm(folder)
    return 1 if sweeps.end(folder).failed else 0


def _train(arguments: list[str]) -> int:
    """Train a model by its recipe and say where the checkpoint is."""
    if "-h" in arguments or "--help" in arguments:
        print("usage: xaibench train model=NAME dataset=NAME [key=value] ... [--config-dir=DIR]")
        return 0
    from .config import compose_job
    from .report import terminal

    job = compose_job(arguments)
    terminal.talk_on_stderr()
    from .engine.device import find_device
    from .engine.training import train_and_test

    path, name, value = train_and_test(job, find_device(job.runner.device))
    print(f"{path}\ntest {name} {value:.4f}; used by model.weights=recipe")
    if kept := sorted(path.parent.glob("epoch-*.safetensors")):
        print(f"kept for model.weights=FILE: {', '.join(map(str, kept))}")
    return 0


def _decode(arguments: list[str]) -> int:
    """Draw the inputs that the paths of a method answer to."""
    parser = _parser("decode", "the inputs that the path of a method answers to; then key=value as for run")
    parser.add_argument("--out", default="decoded", metavar="DIR", help="for decoded.png and .csv (default: decoded)")
    parser.add_argument("--steps", type=int, default=128, help="of the search for each input (default: 128)")
    parser.add_argument("--jitter", type=int, default=4, help="largest shift before each step in pixels (default: 4)")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configurations of your own")
    options, overrides = parser.parse_known_args(arguments)
    from .config import compose_job
    from .engine.decoding import decode
    from .methods.pathways.decode import Decoding
    from .report import decoded, terminal

    try:
        how = Decoding(steps=options.steps, jitter=options.jitter)
    except ValueError as error:
        raise UserError(f"decode: {error}") from error
    folders = [f"--config-dir={folder}" for folder in options.config_dir]
    method = [] if any(override.startswith("method=") for override in overrides) else ["method=neuron_mct"]
    job = compose_job([*method, "dataset.limit=4", *overrides, *folders])  # a limit of one's own comes after ours
    terminal.talk_on_stderr()
    pictures, found = decode(job, how)
    title = f"{job.model} x {job.dataset}: {job.method} {job.method_variant}".strip()
    print(decoded.write(Path(options.out), title, pictures, found))
    return 0


def _list(arguments: list[str]) -> int:
    """A table of the choices of one group."""
    from .listing import LISTED, group_of, items, passes

    parser = _parser("list", "what there is to run")
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


@uncollected()
def _leaderboard(arguments: list[str]) -> int:
    """Write results/leaderboard.csv and cost.csv and show the table."""
    parser = _parser("leaderboard", "the results as a table, and as results/leaderboard.csv and cost.csv")
    _add_folders(parser, cache=False)
    _add_filters(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV instead of tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone, without its score files")
    options = parser.parse_args(arguments)
    from .report import terminal
    from .scores import index, leaderboard, rank
    from .scores.kept import KnownTests

    results, filters = Path(options.results), _filters(options)
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


def _rank(arguments: list[str]) -> int:
    """Tests between methods on the same samples, ranks under resampling, and the ranks over all metrics."""
    parser = _parser("rank", "which methods can be told apart, how firm their ranks are, and whether metrics agree")
    _add_folders(parser, cache=False)
    _add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every statistic of each metric, not its headline alone")
    tables = ("methods", "pairs", "metrics", "overall", "agreement")
    parser.add_argument("--csv", choices=tables, help="print one of these as CSV instead of the tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone: its ranks, without tests")
    options = parser.parse_args(arguments)
    from .report import terminal
    from .scores import index, leaderboard, rank
    from .scores.kept import KnownTests

    results, filters = Path(options.results), _filters(options)
    if options.leaderboard:
        if options.csv or options.all:
            raise UserError(f"--leaderboard {options.leaderboard}: --csv and --all need score files (--results DIR)")
        from .report.tables import boards_of_file

        frame = leaderboard.select(leaderboard.read_csv(Path(options.leaderboard)), filters)
        terminal.ranks_of_file(boards_of_file(leaderboard.labels_told_apart(frame)))
        return 0
    wanted = filters.pop("statistic", None)
    cells, damaged = index.summaries(results, terminal.tracked("score files read"))
    asked = leaderboard.told_apart(leaderboard.select_cells(cells, filters))
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


def _report(arguments: list[str]) -> int:
    """Write the results as one HTML page with its figures beside it."""
    parser = _parser("report", "the results as one page that needs no network, with its figures as PNG and SVG")
    _add_folders(parser, cache=True)
    parser.add_argument("--out", metavar="DIR", help="where the page goes (default: report in the results folder)")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv alone, without its score files")
    parser.add_argument("--images", type=int, default=16, metavar="N", help="images in the gallery (default: 16)")
    _add_filters(parser, FILTERS[:-1])
    options = parser.parse_args(arguments)
    if options.images < 0:
        raise UserError(f"--images {options.images}: expected a number of images, or 0 for no gallery")
    from .report import folder, terminal
    from .scores import index

    results, filters, code = Path(options.results), _filters(options), 0
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


def _compare(arguments: list[str]) -> int:
    """Published numbers beside ours."""
    parser = _parser("compare", "published numbers beside ours, with rank correlations and what is not the same")
    parser.add_argument("experiment", help="such as iba_table1; its preset is experiment=iba_table1")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of tables")
    parser.add_argument("--leaderboard", metavar="FILE", help="a leaderboard.csv instead of the results folder")
    _add_folders(parser, cache=False)
    options = parser.parse_args(arguments)
    from .report import terminal
    from .scores import compare, index, leaderboard

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


def _check(arguments: list[str]) -> int:
    """Compare the results with a baseline."""
    parser = _parser("check", "compare the leaderboard with a baseline; see the exit codes of xaibench --help")
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
    _add_folders(parser, cache=False)
    options = parser.parse_args(arguments)
    from .report import check_report, terminal
    from .scores import check, leaderboard, score_files

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
    from .scores import check

    name, _, value = text.partition("=")
    try:
        return name, check.tolerance(value)
    except ValueError:
        raise UserError(f"--tolerance {text}: expected NAME=NUMBER, not negative, such as degradation=0.01") from None


def _study(arguments: list[str]) -> int:
    """What a study with people needs: pictures, the answer key, the scoring of responses, and how many to ask."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: xaibench study {{{','.join(STUDY)}}} ...\n")
        print("\n".join(f"  {name:<8} {part.__doc__.splitlines()[0]}" for name, part in STUDY.items() if part.__doc__))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in STUDY:
        raise UserError(f"study has no part '{name}': {nearest(name, STUDY)}")
    return STUDY[name](rest)


def _study_stimuli(arguments: list[str]) -> int:
    """Pictures of images, alone and beside the cached maps of each method, with a manifest."""
    parser = _parser("study stimuli", "pictures of images, alone and beside the cached maps of each method scored")
    _add_folders(parser, cache=True)
    parser.add_argument("--out", default="stimuli", metavar="DIR", help="for pictures and manifest (default: stimuli)")
    parser.add_argument("--rows", type=int, default=10, help="images in each of the five columns (default: 10)")
    parser.add_argument("--bins", default="quintiles", help="of the columns: quintiles (default) or symmetric about 0")
    parser.add_argument("--classes", default="", metavar="A,B", help="at the left and right, of a network of several")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images (default: 0)")
    parser.add_argument("--like", metavar="FILE", help="a manifest.json whose images are shown again")
    _add_filters(parser, ("model", "dataset", "method"))
    options = parser.parse_args(arguments)
    from .report import terminal
    from .scores import index, leaderboard
    from .scores.summary import read_again
    from .study import stimuli

    found, damaged = index.summaries(Path(options.results), terminal.tracked("score files read"))
    cells = leaderboard.told_apart(leaderboard.select_cells(found, _filters(options)))
    boards = dict.fromkeys((cell.card["model"], cell.card["dataset"]) for cell in cells)
    if len(boards) != 1:
        these = "; ".join(f"--model {model} --dataset {dataset}" for model, dataset in boards)
        raise UserError(f"stimuli are of one model and data set: {these or 'there are no results yet'}")
    layout = {name: getattr(options, name) for name in ("rows", "bins", "seed")}
    classes, like = options.classes.split(",") if options.classes else (), options.like and Path(options.like)
    read = [read_again(cell) for cell in cells]
    terminal.talk_on_stderr()
    print(stimuli.make(read, Path(options.cache), Path(options.out), classes=classes, like=like, **layout))
    return terminal.damaged(damaged)


def _study_key(arguments: list[str]) -> int:
    """The right answers, by a score file of factor_importance."""
    parser = _parser("study key", "the right answers, by a score file of factor_importance")
    parser.add_argument("scores", metavar="FILE", help="the score file, .csv or .json")
    parser.add_argument("--threshold", type=float, default=0.1, help="R squared of what is relevant (default: 0.1)")
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="NAME=FACTOR+...",
        help="may be repeated (default: those of the Two4Two study)",
    )
    parser.add_argument("--out", default="key.csv", metavar="FILE", help="default: key.csv")
    options = parser.parse_args(arguments)
    from .study import key, output

    questions = dict(map(key.parse_question, options.question)) or key.QUESTIONS
    answers = key.make(Path(options.scores), questions, options.threshold)
    output.write_rows(Path(options.out), key.rows(answers))
    print(output.key_text(answers))
    print(options.out)
    return 0


def _study_score(arguments: list[str]) -> int:
    """The accuracies, tests and exclusions of a file of responses."""
    parser = _parser("study score", "accuracies, exclusions and the battery of tests of a file of responses")
    parser.add_argument("responses", nargs="?", metavar="FILE", help="a CSV file, see docs/study.md")
    parser.add_argument("--key", default="key.csv", metavar="FILE", help="of `xaibench study key` (default: key.csv)")
    parser.add_argument("--out", default="study", metavar="DIR", help="for the tables (default: study)")
    parser.add_argument("--baseline", metavar="CONDITION", help="what the other conditions are compared with")
    _add_expected(parser)
    parser.add_argument(
        "--attributes",
        action="append",
        metavar="CONDITION",
        help="compare its single questions with the baseline's; may be repeated (default: of all conditions)",
    )
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="A:B",
        help="McNemar's test, A expected right more often; may be repeated",
    )
    parser.add_argument("--minutes", type=float, default=77, help="excluded: more for everything (default: 77)")
    parser.add_argument("--seconds", type=float, default=30, help="excluded: fewer for all answers (default: 30)")
    parser.add_argument("--failures", type=float, default=2, help="excluded: so many of one test (default: 2)")
    parser.add_argument("--pixels", type=float, default=600, help="excluded: a smaller screen (default: 600)")
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="N simulated participants in each condition, in place of responses"
    )
    parser.add_argument(
        "--accuracy",
        action="append",
        default=[],
        metavar="CONDITION[.QUESTION]=SHARE",
        help="of simulated participants; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of simulated participants (default: 0)")
    options = parser.parse_args(arguments)
    from .study import key, output, responses, score, simulate
    from .study.exclusions import Limits

    if (options.responses is None) == (options.simulate is None):
        raise UserError("study score: expected a file of responses, or --simulate N")
    if options.accuracy and options.simulate is None:
        raise UserError("--accuracy is of simulated participants: it goes with --simulate N")
    answers, out = key.read(Path(options.key)), Path(options.out)
    file = Path(options.responses or out / "simulated-responses.csv")
    plan = score.Plan(options.baseline, _expected(options), options.attributes, [_pair(text) for text in options.pair])
    if options.simulate is not None:
        chances = simulate.accuracies(options.accuracy, list(answers))
        output.write(file, simulate.responses(answers, chances, options.simulate, options.seed))
    given = responses.read(file)
    limits = Limits(options.minutes, options.seconds, options.failures, options.pixels)
    scored = score.score(given, answers, limits, plan)
    for name, rows in score.tables(scored, given.simulated).items():
        output.write_rows(out / f"{name}.csv", rows)
    print(output.score_text(scored, given))
    print(out)
    return 0


def _study_power(arguments: list[str]) -> int:
    """The power of the tests over the number of participants, as a table and a picture."""
    parser = _parser("study power", "the power of the tests over the number of participants")
    parser.add_argument("--people", default="10,20,40,60,80,120,160", help="in each group, such as 20,40,80")
    parser.add_argument("--baseline", metavar="SHARE", type=float, help="its expected accuracy")
    parser.add_argument(
        "--accuracy", action="append", default=[], metavar="CONDITION=SHARE", help="compared with it; may be repeated"
    )
    _add_expected(parser)
    parser.add_argument("--questions", type=int, default=5, help="that each participant answers (default: 5)")
    parser.add_argument(
        "--pair", action="append", default=[], metavar="SHARE:SHARE", help="of two questions to the same people"
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="of each test (default: 0.05)")
    parser.add_argument("--simulate", type=int, metavar="N", help="also by N studies with simulated participants")
    parser.add_argument("--seed", type=int, default=0, help="of simulated participants (default: 0)")
    parser.add_argument("--out", default="power", metavar="DIR", help="for power.csv and power.png (default: power)")
    options = parser.parse_args(arguments)
    from .study import output, power

    plan = power.Plan(
        people=_numbers("--people", options.people, int),
        baseline=options.baseline,
        accuracies=options.accuracy,
        expected=_expected(options),
        pairs=[_shares(text) for text in options.pair],
        questions=options.questions,
        alpha=options.alpha,
    )
    points = power.curves(plan, options.simulate, options.seed)
    out = Path(options.out)
    output.write_rows(out / "power.csv", power.rows(points))
    output.write(out / "power.png", power.draw(points, options.alpha))
    print(output.power_text(points))
    print(out)
    return 0


def _add_expected(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="CONDITION=higher|lower",
        help="than the baseline, of a one-sided test; may be repeated (default: two-sided)",
    )


def _expected(options: argparse.Namespace) -> dict[str, str]:
    """Condition -> higher or lower."""
    found = {}
    for text in options.expect:
        name, _, direction = text.partition("=")
        if not name or direction not in ("higher", "lower"):
            raise UserError(f"--expect {text}: expected CONDITION=higher or CONDITION=lower")
        found[name] = direction
    return found


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    if not first or not second or first == second:
        raise UserError(f"--pair {text}: expected two questions, such as legs:color")
    return first, second


def _shares(text: str) -> tuple[float, float]:
    found = _numbers("--pair", text.replace(":", ","), float)
    if len(found) != 2 or not all(0 <= share <= 1 for share in found):
        raise UserError(f"--pair {text}: expected two shares from 0 to 1, such as 0.86:0.49")
    return found[0], found[1]


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers") from None


STUDY = {"stimuli": _study_stimuli, "key": _study_key, "score": _study_score, "power": _study_power}


def _cache(arguments: list[str]) -> int:
    """Show, verify or prune the cache."""
    parser = _parser("cache", "what the cache holds, whether it is sound, and making room")
    parser.add_argument("what", choices=("ls", "verify", "prune"))
    parser.add_argument("--older-than", metavar="AGE", help="prune: not changed for this long, such as 30d or 12h")
    parser.add_argument("--max-size", metavar="SIZE", help="prune: the oldest until the rest fits, such as 20G")
    parser.add_argument("--unreachable", action="store_true", help="prune: what no key of this version can name")
    parser.add_argument("--dry-run", action="store_true", help="prune: say what would go, and leave it")
    _add_folders(parser, cache=True)
    options = parser.parse_args(arguments)
    from .store import upkeep

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
            from .engine.reachable import unreachable

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


def _doctor(arguments: list[str]) -> int:
    """Versions, device, configuration and data as this machine has them."""
    parser = _parser("doctor", "what this installation sees: versions, device, configurations, data")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configurations of your own")
    parser.add_argument("--data", action="append", default=[], metavar="DIR", help="look for data here too")
    _add_folders(parser, cache=True)
    options = parser.parse_args(arguments)
    from . import doctor

    folders = ([Path(folder) for folder in found] for found in (options.config_dir, options.data))
    lines = doctor.report(Path(options.cache), Path(options.results), *folders)
    print("\n".join(f"{name:<14} {value}" for name, value in lines))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "sweep": _sweep,
    "list": _list,
    "leaderboard": _leaderboard,
    "rank": _rank,
    "report": _report,
    "compare": _compare,
    "check": _check,
    "train": _train,
    "study": _study,
    "decode": _decode,
    "cache": _cache,
    "doctor": _doctor,
}


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"xaibench {name}", description=description, allow_abbrev=False)


class _Parser(argparse.ArgumentParser):
    """Whose errors are ours: a line, and no usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('xaibench ')}: {message}; see {self.prog} --help")


def _add_folders(parser: argparse.ArgumentParser, cache: bool) -> None:
    parser.add_argument("--results", default="results", metavar="DIR", help="the results folder (default: results)")
    if cache:
        parser.add_argument("--cache", default="cache", metavar="DIR", help="the cache folder (default: cache)")


def _add_filters(parser: argparse.ArgumentParser, names: tuple[str, ...] = FILTERS) -> None:
    for name in names:
        parser.add_argument(f"--{name}", action="append", default=[], help=f"only this {name}; may be repeated")


def _filters(options: argparse.Namespace) -> dict[str, list[str]]:
    return {name: values for name in FILTERS if (values := getattr(options, name, None))}


def _complete(arguments: list[str]) -> int:
    """Shell completion: Hydra's for `run`, the names of the commands before it.

    `eval "$(xaibench -sc install=bash)"` installs it; Hydra's script then calls `xaibench -sc query=bash`.
    """
    words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[:1] == ["query=bash"]:
        if len(words) <= 2:
            print("\n".join(c for c in ("run", *COMMANDS) if c.startswith(words[-1] if len(words) == 2 else "")))
            return 0
        if words[1] not in ("run", "train"):
            return 0
        line = " ".join([words[0], *words[2:]])
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - len(words[1]) - 1)
        os.environ["COMP_LINE"] = line
    from .running import run_hydra

    return run_hydra(["-sc", *arguments], debug=False)


if __name__ == "__main__":
    sys.exit(main())
