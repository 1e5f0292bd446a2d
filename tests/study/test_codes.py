"""Codes of free texts: counts by hand, agreement beside scikit-learn's, and what is wrong with a file."""

import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

HEAD = "participant,text,coder,code\n"
# Of ten texts what two coders say; a third has read four of them.
ANNA = ["unsure", "unsure", "colour", "legs", "legs+colour", "", "legs", "unsure", "", "colour"]
BERT = ["unsure", "colour", "colour", "legs", "legs", "", "legs", "unsure", "unsure", "colour"]
CARL = {0: "unsure", 3: "legs", 5: "", 9: "legs"}


def as_rows(coder: str, given: dict[int, str]) -> str:
    """Rows of a coder's codes, of text after text."""
    pairs = [(place, code) for place, codes in given.items() for code in codes.split("+")]
    return "".join(f"p{place // 2},q{place % 2},{coder},{code}\n" for place, code in pairs)


@pytest.fixture
def codes(xaibench, here):
    """Read a file of codes: codes(text) -> (code, stdout, stderr)."""

    def call(text: str):
        (here / "codes.csv").write_text(text)
        return xaibench("study", "codes", "codes.csv")

    return call


def test_counts_by_hand_and_kappas_beside_scikit_learn(codes):
    texts = {"anna": dict(enumerate(ANNA)), "bert": dict(enumerate(BERT)), "carl": CARL}
    code, out, said = codes(HEAD + "".join(as_rows(*one) for one in texts.items()))
    assert code == 0, said
    assert out.startswith("10 texts, 3 coders, 3 codes")
    counted = pd.read_csv("study/codes.csv").set_index("code")
    assert counted["any_coder"].to_dict() == {"colour": 4, "legs": 4, "unsure": 4}
    assert counted["all_coders"].to_dict() == {"colour": 1, "legs": 3, "unsure": 2}
    assert (counted["texts"] == 10).all() and (counted["condition"] == "all").all()
    agreed = pd.read_csv("study/agreement.csv").set_index(["code", "coders"])
    for pair in (("anna", "bert"), ("anna", "carl"), ("bert", "carl")):
        both = [place for place in range(10) if all(place in texts[coder] for coder in pair)]
        for name in ("all", "colour", "legs", "unsure"):
            labels = [
                [texts[coder][place] if name == "all" else name in texts[coder][place].split("+") for place in both]
                for coder in pair
            ]
            row = agreed.loc[(name, " and ".join(pair))]
            assert row["texts"] == len(both) and row["statistic"] == "cohens_kappa"
            if len(set(labels[0] + labels[1])) > 1:
                assert row["value"] == pytest.approx(cohen_kappa_score(*labels), abs=1e-5)
    assert agreed.loc[("all", "all")]["statistic"] == "krippendorffs_alpha"
    assert agreed.loc[("all", "all")]["texts"] == 10


def test_counts_of_conditions(codes):
    head = "participant,text,coder,code,condition\n"
    rows = ["a,q,x,unsure,base", "b,q,x,unsure,con", "b,r,x,,con", "c,q,x,legs,con", "c,q,x,unsure,con"]
    code, out, said = codes(head + "\n".join(rows))
    assert code == 0, said
    assert "no text has two coders" in out
    counted = pd.read_csv("study/codes.csv").set_index(["condition", "code"])
    assert counted["any_coder"].to_dict() == {
        ("all", "legs"): 1, ("all", "unsure"): 3, ("base", "legs"): 0, ("base", "unsure"): 1, ("con", "legs"): 1,
        ("con", "unsure"): 2,
    }  # fmt: skip
    assert counted["texts"].tolist() == [4, 4, 1, 1, 3, 3]


@pytest.mark.parametrize(
    "text, message",
    [
        ("participant,text,coder\na,q,x\n", "there is no column 'code'"),
        ("participant,text,coder,code,Condition\na,q,x,y,z\n", "did you mean 'condition'"),
        (HEAD, "there are no codes, the file has no rows"),
        (HEAD + "a,q,x,\n", "no text has a code"),
        (HEAD + "a,,x,y\n", "line 2: participant, text and coder must not be empty"),
        (HEAD + "a,q,x,y\na,q,x,y\n", "line 3: 'x' gives this text of 'a' the code 'y' twice"),
        (HEAD + "a,q,x,y\na,q,x,\n", "line 3: 'x' gives this text of 'a' a code, and none in another row"),
        (HEAD + "a,q,all,y\n", "line 2: 'all' is what the tables call all together"),
        (
            "participant,text,coder,code,condition\na,q,x,y,base\na,r,x,y,con\n",
            "line 3: participant 'a' has condition 'con', and 'base' before: expected one",
        ),
    ],
)
def test_what_is_wrong_with_a_file(codes, text, message):
    code, _, said = codes(text)
    assert code == 2 and message in said, said
    assert len(said.strip().splitlines()) <= 2
