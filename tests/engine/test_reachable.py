"""`cache prune --unreachable`: what no key of this version of the code can name."""

import json

import pytest

from xaibench.engine.reachable import unreachable
from xaibench.methods.gradients.gradient import Gradient

RUN = ("run", "-m", "method=gradient,input", "metric=sparseness", "dataset.limit=2")


@pytest.fixture
def cache(xaibench, here):
    assert xaibench(*RUN)[0] == 0
    return here / "cache"


def made_by(folders, method):
    return {folder.parts[-2] for folder in folders} == {method}


def test_what_is_current_is_reached(cache):
    assert unreachable(cache) == []


def test_a_version_bump_leaves_the_maps_and_the_scores_made_from_them(cache, xaibench, monkeypatch):
    monkeypatch.setattr(Gradient, "version", Gradient.version + 1)
    gone = unreachable(cache)
    assert {folder.relative_to(cache).parts[0] for folder in gone} == {"maps", "scores"}
    assert made_by(gone, "gradient") and len(gone) == 2
    code, out, _ = xaibench("cache", "prune", "--unreachable", "--dry-run")
    assert code == 0 and "2 artefacts would be removed" in out and all(folder.exists() for folder in gone)
    code, out, _ = xaibench("cache", "prune", "--unreachable")
    assert code == 0 and "2 artefacts removed" in out and not any(folder.exists() for folder in gone)
    assert unreachable(cache) == []


def test_classes_that_are_gone_other_schemas_and_unreadable_specs(cache):
    maps = {path.parts[-3]: path for path in cache.glob("maps/*/*/*/*/spec.json")}
    spec = json.loads(maps["gradient"].read_text())
    spec["spec"]["method"]["_target_"] = "xaibench.methods.gradient.Gradeint"
    maps["gradient"].write_text(json.dumps(spec))
    assert made_by(unreachable(cache), "gradient") and len(unreachable(cache)) == 2
    spec = json.loads(maps["input"].read_text())
    maps["input"].write_text(json.dumps({**spec, "spec": {**spec["spec"], "schema": 0}}))
    assert len(unreachable(cache)) == 4
    (logits,) = cache.glob("responses/*/*/logits/*/spec.json")
    logits.write_text("{")
    assert logits.parent in unreachable(cache)


def test_edited_code_of_a_user_and_code_that_is_not_here(xaibench, here):
    head = "import xaibench as xb\n\nclass Mine(xb.Method):\n"
    body = "    def attribute(self, classifier, inputs, targets, context):\n        return inputs\n"
    (here / "of_mine.py").write_text(head + body)
    (here / "mine" / "method").mkdir(parents=True)
    (here / "mine" / "method" / "mine.yaml").write_text("# Mine.\n_target_: of_mine.Mine\n")
    assert xaibench("run", "--config-dir=mine", "method=mine", "metric=sparseness", "dataset.limit=2")[0] == 0
    assert unreachable(here / "cache") == []
    for spec in (here / "cache").glob("maps/*/*/mine/*/spec.json"):
        text = spec.read_text()
        found = json.loads(text)["spec"]["method"]["_source_"]
        spec.write_text(text.replace(found, "0" * 16))  # as if the code had been another then
    assert made_by(unreachable(here / "cache"), "mine")
    spec.write_text(spec.read_text().replace("of_mine.Mine", "not_here.Mine"))
    assert not [folder for folder in unreachable(here / "cache") if folder.parts[-5] == "maps"]
