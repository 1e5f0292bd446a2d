"""Scoring a responses file: the thesis's counts, exclusions by rule, and what is wrong with a file."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest

KEY = {
    "legs": "relevant",
    "color": "relevant",
    "background": "irrelevant",
    "shape": "relevant",
    "rotation": "irrelevant",
}
# Sixt 2022, table 2: how many of a condition answered each question right.
COUNTS = {"base": ((61, 42, 68, 66, 50), 71), "inn": ((62, 51, 49, 56, 44), 62), "con": ((27, 19, 11, 19, 19), 59)}
OTHER = {"relevant": "irrelevant", "irrelevant": "relevant"}


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def people(right: dict[str, tuple[tuple[int, ...], int]], **facts: str) -> list[dict]:
    """Rows of participants: of a condition exactly so many have each question right, drawn apart from the others."""
    generator, rows = np.random.default_rng(0), []
    for condition, (counts, size) in right.items():
        is_right = np.stack([generator.permutation(np.arange(size) < count) for count in counts], axis=1)
        for number, answers in enumerate(is_right):
            for (question, answer), hit in zip(KEY.items(), answers):
                own = {"question": question, "answer": answer if hit else OTHER[answer], "seconds": "20"}
                rows.append({"participant": f"{condition}{number}", "condition": condition, **own, **facts})
    return rows


SMALL = {"base": ((6, 5, 4, 6, 3), 7), "inn": ((5, 5, 5, 4, 4), 6)}


@pytest.fixture
def score(xaibench, here):
    """Score rows: score(rows, options...) -> (code, stdout, stderr)."""
    (here / "key.csv").write_text(as_csv([{"question": q, "answer": a} for q, a in KEY.items()]))

    def call(rows: list[dict] | str, *options: str):
        (here / "responses.csv").write_text(rows if isinstance(rows, str) else as_csv(rows))
        return xaibench("study", "score", "responses.csv", *options)

    return call


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(f"study/{name}.csv")


def test_the_thesis_s_counts(score):
    """Accuracies of table 2, the attribute tests by Holm over eight tests, and what makes the study's plan."""
    options = ("--baseline", "base", "--expect", "inn=higher", "--expect", "con=lower", "--attributes", "inn")
    code, out, said = score(people(COUNTS), *options)
    assert code == 0, said
    assert "SIMULATED" not in out and "192 participants, 0 left out, 192 scored" in out
    accuracy = table("accuracy").set_index(["condition", "question"])["accuracy"] * 100
    assert accuracy["inn"].round(1).tolist() == [84.5, 100.0, 82.3, 79.0, 90.3, 71.0]
    assert accuracy["base"].round(1).tolist()[:3] == [80.8, 85.9, 59.2]
    assert accuracy["con", "overall"] == pytest.approx(32.2, abs=0.005)
    tests = table("tests").set_index(["test", "groups", "about"])
    assert set(tests["participants"]) == {"people"}
    single = tests.loc["rank_sum_attribute"]["p"].tolist()
    assert single[:3] == pytest.approx([0.0022, 0.0039, 0.0032], abs=5e-5)
    family = tests["p_holm"].dropna()
    assert len(family) == 8 == 1 + 2 + 5
    # The three smallest are Kruskal's, that of concepts, and legs': by Holm times 8, 7, 6; then background times 5,
    # and color no less than that, which is why the thesis has one p of both.
    holm = tests.loc["rank_sum_attribute"]["p_holm"].tolist()
    assert holm[:3] == pytest.approx([6 * single[0], 5 * single[2], 5 * single[2]], rel=1e-4)
    sums = tests.loc["rank_sum"]
    assert sums["alternative"].tolist() == ["greater", "less"]
    assert sums["p_bonferroni"].tolist() == pytest.approx((2 * sums["p"]).tolist(), rel=1e-4)
    assert sums["r"].tolist() == pytest.approx((sums["statistic"].abs() / sums["n"] ** 0.5).tolist(), rel=1e-4)
    planned = tests["planned"].groupby("test").first()
    assert planned["kruskal"] == "yes" and planned["welch_anova"] == planned["anova"] == "no"


def test_accuracies_of_strata_by_hand(score):
    """Novices and experts of two conditions, one of whom took part before and is not counted."""
    rows = people(SMALL)
    for row in rows:
        number = int(row["participant"].removeprefix(row["condition"]))
        row |= {"stratum": "expert" if number < 2 else "novice", "retake": "yes" if number == 0 else "no"}
    code, out, said = score(rows)
    assert code == 0 and "strata" in out, said
    found = table("strata").set_index(["condition", "stratum"])
    for (condition, stratum), one in found.iterrows():
        own = [r for r in rows if condition in ("all", r["condition"]) and r["stratum"] == stratum]
        kept = [r for r in own if r["retake"] == "no"]
        assert (one["collected"], one["kept"]) == (len(own) / 5, len(kept) / 5)
        right = [r["answer"] == KEY[r["question"]] for r in kept]
        assert one["accuracy"] == pytest.approx(np.mean(right), rel=1e-5) and one["answers"] == len(right)
    assert set(found.index) == {(c, s) for c in ("base", "inn", "all") for s in ("expert", "novice")}
    code, _, said = score([row | {"stratum": ""} for row in rows])
    assert code == 2 and "stratum '': expected a word" in said


def test_mcnemar_of_answers_that_are_right_alone(score):
    """16 have legs right alone, nobody color: one-sided 2^-16, by Bonferroni over two pairs 2^-15."""
    rows = people({"base": ((20, 4, 10, 10, 10), 20)})
    code, _, said = score(rows, "--pair", "legs:color", "--pair", "color:legs")
    assert code == 0, said
    tests = table("tests").set_index("about")
    assert tests.loc["legs > color", ["statistic", "p", "p_bonferroni"]].tolist() == pytest.approx(
        [16, 2.0**-16, 2.0**-15], rel=1e-5
    )
    assert tests.loc["color > legs", "p"] == 1


def test_exclusions_are_counted_at_the_first_rule_that_they_meet(score):
    facts = {"consent": "yes", "finished": "yes", "retake": "no", "videos": "yes", "minutes": "40"}
    facts |= {"comprehension_failures": "1", "screen_pixels": "600", "annotator_1": "include"}
    rows = people(SMALL, **facts, annotator_2="include", decision="")
    change = {
        "base0": {"minutes": "78", "consent": "no", "annotator_1": "", "annotator_2": ""},
        "base1": {"minutes": "77"},
        "base2": {"comprehension_failures": "2"},
        "inn0": {"screen_pixels": "599"},
        "inn1": {"seconds": "5.9"},
        "inn2": {"annotator_1": "unsure", "annotator_2": "exclude", "decision": "exclude"},
        "inn3": {"annotator_2": "exclude", "decision": "include"},
    }
    for row in rows:
        row.update(change.get(row["participant"], {}))
    gone = next(row for row in rows if row["participant"] == "base3")
    for row in [row for row in rows if row["participant"] == "base3"]:
        row["finished"] = "no"
    gone["answer"] = gone["seconds"] = ""  # who did not finish may have left something out
    code, out, said = score(rows)
    assert code == 0, said
    assert "13 participants, 6 left out, 7 scored" in out
    found = table("exclusions").set_index("rule")
    assert set(found["applied"]) == {"yes"}
    excluded = found["excluded"][found["excluded"] > 0].to_dict()
    assert excluded == {
        "no consent": 1,
        "unfinished": 1,
        "comprehension test failed": 1,
        "small screen": 1,
        "answered in haste": 1,
        "annotators": 1,
    }
    assert found.loc["over time", ["excluded", "met"]].tolist() == [0, 1]  # base0 went before
    assert found.loc["annotators", "condition"] == "inn"
    kappa = table("tests").set_index("test").loc["cohens_kappa"]
    # Of 12 labelled: 10 include both, one unsure against exclude, one include against exclude.
    chance = (11 * 10 + 1 * 0 + 0 * 2) / 144
    assert kappa["n"] == 12 and kappa["statistic"] == pytest.approx((10 / 12 - chance) / (1 - chance), rel=1e-5)


def test_rules_without_their_column_are_said_not_to_be_applied(score):
    code, out, _ = score(people(SMALL, remark="=1+1"))
    assert code == 0 and "not applied: no consent, unfinished" in out and "nobody reads: remark" in out
    applied = table("exclusions").set_index("rule")["applied"]
    assert applied["answered in haste"] == "yes" and applied["over time"].startswith("no, the responses lack")


def renamed(old: str, new: str):
    return lambda rows: [{(new if k == old else k): v for k, v in row.items()} for row in rows]


def changed(at: int, **values: str):
    return lambda rows: [row | values if number == at else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [*rows, rows[3]], r"line 67: participant 'base0' answers 'shape' a second time \(line 5\)"),
        (changed(1, condition="inn"), r"line 3: participant 'base0' has condition 'inn', and 'base' in line 2"),
        (changed(2, answer=""), r"line 4: participant 'base0', question 'background': the answer is missing"),
        (changed(2, answer="yes"), r"answer 'yes': expected relevant or irrelevant"),
        (changed(0, seconds="-3"), r"question 'legs': seconds '-3': expected a number from 0 on"),
        (changed(0, seconds="nan"), r"seconds 'nan': expected a number from 0 on"),
        (changed(0, seconds=""), r"seconds '': expected a number from 0 on"),
        (lambda rows: rows[1:], r"participant 'base0' has no answer to 'legs'"),
        (renamed("answer", "Answers"), r"there is no column 'answer'; did you mean 'Answers'\?"),
        (
            lambda rows: [row | {"Finished": "no"} for row in rows],
            r"reads the column 'Finished': did you mean 'finished'",
        ),
        (lambda rows: [row | {"minutes": "-1"} for row in rows], r"line 2: minutes '-1': expected a number from 0 on"),
        (lambda rows: [row | {"consent": "maybe"} for row in rows], r"consent 'maybe': expected yes or no"),
        (changed(4, participant=""), r"line 6: the participant is missing"),
        (
            lambda rows: [row | {"question": row["question"].upper()} for row in rows],
            r"question 'LEGS' is not in the key",
        ),
        (lambda rows: [row | {"seconds": "1"} for row in rows], r"condition 'base': the rules leave nobody"),
        (
            lambda rows: [row | {"annotator_1": "include", "annotator_2": "unsure"} for row in rows],
            r"annotators say 'include' and 'unsure', and the decision is ''",
        ),
        (
            lambda rows: [row | {"simulated": "yes" if row["condition"] == "inn" else "no"} for row in rows],
            r"some participants are simulated and some are not",
        ),
        (lambda rows: as_csv(rows) + "inn9,inn,legs,relevant,20,more\n", r"line 67: more values than the 5 columns"),
        (lambda rows: as_csv(rows).partition("\n")[0] + "\n", r"there are no responses"),
        (lambda rows: "", r"there is no column 'participant'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(score, here, spoil, message):
    code, _, said = score(spoil(people(SMALL)))
    assert code == 2 and re.search(message, said), said
    assert len(said.splitlines()) <= 2 and not (here / "study").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--baseline", "bas"), r"condition 'bas' is not in the responses: did you mean 'base'"),
        (("--expect", "inn=higher"), r"compare with a baseline: say --baseline base"),
        (("--baseline", "base", "--expect", "inn=more"), r"--expect inn=more: expected CONDITION=higher"),
        (("--pair", "legs:hue"), r"question 'hue' is not in the key"),
        (("--pair", "legs"), r"--pair legs: expected two questions"),
        (("--accuracy", "base=.8"), r"goes with --simulate"),
        (("--key", "keys.csv"), r"there is no 'keys.csv'"),
    ],
)
def test_what_is_wrong_with_what_is_asked_is_said(score, options, message):
    code, _, said = score(people(SMALL), *options)
    assert code == 2 and re.search(message, said) and len(said.splitlines()) <= 2, said


def test_simulated_participants_are_called_so_everywhere(xaibench, score, here):
    score(people(SMALL))  # writes the key
    command = ("study", "score", "--simulate", "30", "--accuracy", "base=0.6", "--accuracy", "inn=0.9")
    code, out, said = xaibench(*command, "--accuracy", "inn.legs=1", "--baseline", "base", "--out", "simulated")
    assert code == 0, said
    assert out.startswith("SIMULATED PARTICIPANTS")
    for name in ("accuracy", "tests", "exclusions"):
        assert set(pd.read_csv(here / "simulated" / f"{name}.csv")["participants"]) == {"simulated"}
    drawn = pd.read_csv(here / "simulated" / "simulated-responses.csv")
    assert set(drawn["simulated"]) == {"yes"} and len(drawn) == 2 * 30 * 5
    assert drawn["participant"].str.startswith("simulated-").all()
    accuracy = pd.read_csv(here / "simulated" / "accuracy.csv").set_index(["condition", "question"])["accuracy"]
    assert accuracy["inn", "legs"] == 1 and accuracy["inn", "overall"] == pytest.approx(0.92, abs=0.1)
    # Scored again from their file, they stay simulated.
    code, out, _ = xaibench("study", "score", "simulated/simulated-responses.csv", "--out", "again")
    assert code == 0 and out.startswith("SIMULATED PARTICIPANTS")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score",), "expected a file of responses, or --simulate N"),
        (("score", "--simulate", "3"), "needs the accuracies of conditions"),
        (("score", "--simulate", "0", "--accuracy", "a=1"), "--simulate 0: expected a number of participants"),
        (("score", "--simulate", "3", "--accuracy", "a=1.2"), "--accuracy a=1.2: expected NAME=SHARE"),
        (("score", "--simulate", "3", "--accuracy", "a.legs=1"), "condition 'a' has none for 'color'"),
        (("power",), "say what is compared"),
        (("power", "--pair", "0.9:2"), "--pair 0.9:2: expected two shares"),
        (("power", "--accuracy", "a=0.9"), "--baseline SHARE and --accuracy CONDITION=SHARE go together"),
        (("power", "--pair", "0.9:0.5", "--people", "x"), "--people x: expected numbers"),
        (("power", "--pair", "0.9:0.5", "--alpha", "0"), "--alpha 0: expected a level"),
        (("powers",), "study has no part 'powers': did you mean 'power'"),
    ],
)
def test_what_cannot_be_asked_for(xaibench, score, arguments, message):
    score(people(SMALL))
    code, _, said = xaibench("study", *arguments)
    assert code == 2 and message in said and len(said.splitlines()) <= 2, said


def test_power_is_written_and_says_what_was_simulated(xaibench, here):
    effect = ("--baseline", "0.6", "--accuracy", "inn=0.9", "--pair", "0.86:0.49", "--people", "5,20")
    code, out, said = xaibench("study", "power", *effect)
    assert code == 0 and "SIMULATED" not in out, said
    found = pd.read_csv(here / "power" / "power.csv")
    assert set(found["participants"].fillna("none")) == {"none"} and len(found) == 4
    assert (
        found.set_index(["test", "n"])["power"]["mcnemar", 20] > found.set_index(["test", "n"])["power"]["mcnemar", 5]
    )
    code, out, _ = xaibench("study", "power", *effect, "--simulate", "50")
    assert code == 0 and out.startswith("SIMULATED PARTICIPANTS")
    found = pd.read_csv(here / "power" / "power.csv")
    assert set(found[found["how"] == "simulated participants"]["participants"]) == {"simulated"}
    assert (here / "power" / "power.png").read_bytes().startswith(b"\x89PNG")
