"""The command study: questions for people."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import UserError, nearest
from .options import add_filters, add_folders, filters_of, parser_of

Number = TypeVar("Number", int, float)


def study(arguments: list[str]) -> int:
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
    parser = parser_of("study stimuli", "pictures of images, alone and beside the cached maps of each method scored")
    add_folders(parser, cache=True)
    parser.add_argument("--out", default="stimuli", metavar="DIR", help="for pictures and manifest (default: stimuli)")
    parser.add_argument("--rows", type=int, default=10, help="images in each of the five columns (default: 10)")
    parser.add_argument("--bins", default="quintiles", help="of the columns: quintiles (default) or symmetric about 0")
    parser.add_argument("--classes", default="", metavar="A,B", help="at the left and right, of a network of several")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images (default: 0)")
    parser.add_argument("--like", metavar="FILE", help="a manifest.json whose images are shown again")
    add_filters(parser, ("model", "dataset", "method"))
    options = parser.parse_args(arguments)
    from ..report import terminal
    from ..scores import index, leaderboard
    from ..scores.summary import read_again
    from ..study import stimuli

    found, damaged = index.summaries(Path(options.results), terminal.tracked("score files read"))
    cells = leaderboard.told_apart(leaderboard.select_cells(found, filters_of(options)))
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
    parser = parser_of("study key", "the right answers, by a score file of factor_importance")
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
    from ..study import key, output

    questions = dict(map(key.parse_question, options.question)) or key.QUESTIONS
    answers = key.make(Path(options.scores), questions, options.threshold)
    output.write_rows(Path(options.out), key.rows(answers))
    print(output.key_text(answers))
    print(options.out)
    return 0


def _study_score(arguments: list[str]) -> int:
    """The accuracies, tests and exclusions of a file of responses."""
    parser = parser_of("study score", "accuracies, exclusions and the battery of tests of a file of responses")
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
    from ..study import key, output, responses, score, simulate
    from ..study.exclusions import Limits

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


def _study_codes(arguments: list[str]) -> int:
    """How often each code of free texts occurs, and how far coders agree."""
    parser = parser_of("study codes", "how often each code of free texts occurs, and how far coders agree")
    parser.add_argument("codes", metavar="FILE", help="a CSV file with participant, text, coder, code; docs/study.md")
    parser.add_argument("--out", default="study", metavar="DIR", help="for the tables (default: study)")
    options = parser.parse_args(arguments)
    from ..study import codes, output

    coded, out = codes.read(Path(options.codes)), Path(options.out)
    counted, agreed = list(codes.counts(coded)), list(codes.agreement(coded))
    output.write_rows(out / "codes.csv", counted)
    if agreed:
        output.write_rows(out / "agreement.csv", agreed)
    print(output.codes_text(coded, counted, agreed))
    print(out)
    return 0


def _study_power(arguments: list[str]) -> int:
    """The power of the tests over the number of participants, as a table and a picture."""
    parser = parser_of("study power", "the power of the tests over the number of participants")
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
    from ..study import output, power

    plan = power.Plan(
        people=numbers("--people", options.people, int),
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
    found = numbers("--pair", text.replace(":", ","), float)
    if len(found) != 2 or not all(0 <= share <= 1 for share in found):
        raise UserError(f"--pair {text}: expected two shares from 0 to 1, such as 0.86:0.49")
    return found[0], found[1]


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers") from None


STUDY = {
    "stimuli": _study_stimuli,
    "key": _study_key,
    "score": _study_score,
    "codes": _study_codes,
    "power": _study_power,
}
