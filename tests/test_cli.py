"""The command line as a person meets it: help, lists, mistakes, sweeps. In this process unless time matters."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from xaibench import listing

QUICK = ("dataset.limit=3", "metric.steps=2")


def test_help_and_lists_import_neither_torch_nor_hydra(tmp_path):
    code = (
        "import sys\nfrom xaibench.cli import main\n"
        "for words in (['--help'], ['list', 'methods'], ['list', 'experiments'], ['--version']): main(words)\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'h5py', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "xaibench run method=" in done.stdout


@pytest.mark.parametrize("group", listing.LISTED)
def test_every_configuration_says_what_it_is(xaibench, group):
    code, out, _ = xaibench("list", f"{group}s", "--markdown")
    assert code == 0
    found = listing.items(group)
    assert found
    for item in found:
        assert f"| {item.name} |" in out
        assert item.summary.endswith("."), item.path
        assert item.source, item.path
        assert item.needs, item.path


def test_a_users_configurations_are_listed_and_shadowing_is_said(xaibench, here):
    (here / "mine" / "method").mkdir(parents=True)
    (here / "mine" / "method" / "own.yaml").write_text("# A method of my own.\n_target_: a.B\n")
    (here / "mine" / "method" / "gradcam.yaml").write_text("# Another Grad-CAM.\n_target_: a.B\n")
    code, out, said = xaibench("list", "methods", "--config-dir", "mine")
    assert code == 0
    assert "A method of my own." in out
    assert "gradcam.yaml has the name of one of ours" in said
    assert "taken from ours, not from your file: gradcam" in xaibench("doctor", "--config-dir", "mine")[1]


def test_a_row_under_the_metric_that_the_method_was_tuned_on_is_marked(xaibench, here):
    """A user's own method, too; the mark comes from the score files and stays out of the CSV."""
    (here / "mine" / "method").mkdir(parents=True)
    text = (listing.CONF / "method" / "input.yaml").read_text()
    (here / "mine" / "method" / "own.yaml").write_text("# Mine.\n# tuned_on: insertion_deletion, degradation\n" + text)
    sweep = ("method=own,input", "metric=degradation,pointing_game", "--config-dir", "mine")
    code, out, _ = xaibench("run", "-m", *sweep, "dataset.limit=3")
    assert code == 0
    for table in (out, xaibench("leaderboard")[1]):
        degradation, pointing = table.split("· pointing_game")
        assert re.search(r"own \* +│", degradation) and re.search(r"input +│", degradation)
        assert "* tuned on this metric" in degradation
        assert "*" not in pointing
    assert "*" not in (here / "results" / "leaderboard.csv").read_text()
    assert xaibench("leaderboard", "--csv")[1] == (here / "results" / "leaderboard.csv").read_text()
    out = xaibench("list", "methods", "--config-dir", "mine", "--markdown")[1]
    assert re.search(r"\| own \|.*\| insertion_deletion, degradation \|", out)
    assert re.search(r"\| iba \|.*\| degradation \|", out)
    assert "tuned on" not in xaibench("list", "metrics")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "method=gradcm"], ["method=gradcm", "did you mean 'gradcam'"]),
        (["run", "-m", "method=gradient,gradcm"], ["method=gradcm", "did you mean 'gradcam'"]),
        (["run", "metric=degredation"], ["metric=degredation", "did you mean 'degradation'"]),
        (["run", "experiment=demmo"], ["experiment=demmo", "did you mean 'demo'"]),
        (["run", "method=gradcam", "method.layr=x"], ["method.layr", "did you mean 'layer'"]),
        (["run", "+method.typo=1"], ["method.typo", "has none"]),
        (["run", "method=occlusion", "+method.ptch=1"], ["method.ptch", "did you mean 'patch'"]),
        (["run", "+sed=1"], ["'sed'", "did you mean 'seed'"]),
        (["run", "sed=1"], ["'sed'", "did you mean 'seed'"]),
        (["run", "method=gradient,gradcam"], ["add -m"]),
        (["run", "method=[1"], ["method=[1", "cannot be read"]),
        (["run", "seed=abc"], ["seed=abc", "whole number"]),
        (["run", "dataset.limit=-5"], ["dataset.limit=-5", "positive"]),
        (["run", "dataset.limit=0"], ["dataset.limit=0", "positive"]),
        (["run", "runner.batch_size=-1"], ["runner.batch_size=-1", "positive"]),
        (["run", "runner.reuse=forse"], ["runner.reuse=forse", "did you mean 'force'"]),
        (["run", "runner.device=gpu"], ["runner.device=gpu", "auto or cpu"]),
        (["run", "metric.tile=-3"], ["tile=-3", "positive"]),
        (["run", "method=occlusion", "method.patch=-3"], ["patch=-3", "at least 1"]),
        (["run", "target=lable"], ["target=lable", "label, predicted"]),
        (["run", "target=fixed:99"], ["fixed:99", "0 to 9"]),
        (["run", "output=logits"], ["output=logits", "did you mean 'logit'"]),
        (["run", "dataset=imagefolder"], ["dataset.root is missing"]),
        (["run", "dataset=imagefolder", "dataset.root=nowhere"], ["dataset.root=nowhere", "no 'nowhere'"]),
        (["run", "dataset=mnist", "dataset.root=nowhere", "dataset.download=false"], ["nowhere"]),
        (["run", "dataset.split=tset"], ["dataset.split=tset", "did you mean 'test'"]),
        (["run", "dataset.filter.corect=true"], ["dataset.filter.corect", "did you mean 'correct'"]),
        (["run", "model.weights=none.pt"], ["model.weights=none.pt", "no 'none.pt'"]),
        (["run", "method=gradcam", "method.layer=featurs.2"], ["featurs.2", "did you mean 'features.2'"]),
        (["run", "method=precomputed", "method.path=maps.npz"], ["maps.npz"]),
        (["run", "model=resnet20", "model.weights=random"], ["[3, 64, 64]", "[3, 32, 32]"]),
        (["run", "model=lenet", "model.weights=random"], ["3 channels", "1"]),
        (["run", "method._target_=xaibench.methods.gradients.gradient.Gradeint"], ["did you mean 'Gradient'"]),
        (["ruun"], ["no command 'ruun'", "did you mean 'run'"]),
        (["method=gradcam"], ["xaibench run method=gradcam"]),
        (["list", "metods"], ["did you mean 'methods'"]),
        (["check", "--baseline", "nope.csv"], ["nope.csv", "no such leaderboard"]),
        (["cache", "prune"], ["--older-than"]),
        (["cache", "prune", "--older-than", "soon"], ["soon", "number"]),
        (["train", "model=smallcnn", "model.recipe=null"], ["no recipe"]),
        (["train", "model=lenett"], ["did you mean 'lenet'"]),
    ],
)
def test_a_mistake_gets_two_lines_and_exit_code_2(xaibench, arguments, words):
    code, out, said = xaibench(*arguments)
    assert code == 2, said
    assert out == ""
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2, said


class Malicious:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_malicious_checkpoint_is_refused_and_not_run(xaibench, here):
    (here / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"weight": Malicious()}, here / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        code, _, said = xaibench("run", f"model.weights={name}", *QUICK)
        assert code == 2
        assert name in said
        assert len(said.strip().splitlines()) <= 2, said
    assert not (here / "harmed").exists()


def test_a_checkpoint_that_does_not_fit_says_where(xaibench, here):
    torch.save({"features.0.weight": torch.zeros(1)}, here / "other.pt")
    code, _, said = xaibench("run", "model.weights=other.pt", *QUICK)
    assert code == 2
    assert "features.0" in said
    assert len(said.strip().splitlines()) <= 2, said


def test_impossible_pairings_are_refused_before_any_work(xaibench, here):
    images = here / "images" / "class"
    images.mkdir(parents=True)
    from PIL import Image

    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(images / "0.png")
    folder = ("dataset=imagefolder", "dataset.root=images", "runner.classes=any")
    (here / "my_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self): super().__init__(); self.last = torch.nn.Linear(3, 4)\n"
        "    def forward(self, x): return self.last(torch.tanh(x).mean((2, 3)))\n"
    )
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "smooth.yaml").write_text("_target_: my_net.Net\ninput_size: [3, 64, 64]\n")
    for arguments, words in (
        (["metric=pointing_game"], "needs ground-truth masks"),
        (["method=oracle"], "needs ground-truth masks"),
        (["method=guided_backprop", "--config-dir", "conf", "model=smooth"], "needs ReLUs"),
    ):
        code, _, said = xaibench("run", *arguments, *folder)
        assert code == 2, said
        assert words in said
        assert len(said.strip().splitlines()) <= 2, said
    assert not list(here.rglob("shard-*"))


def test_stdout_is_for_results_and_stderr_for_talk(xaibench):
    code, out, said = xaibench("run", *QUICK)
    assert code == 0
    assert "degradation" in out
    assert said == ""
    code, out, _ = xaibench("leaderboard", "--statistic", "degradation", "--csv")
    assert code == 0
    assert out.splitlines()[0].startswith("schema,model,dataset,method,")
    assert len(out.splitlines()) == 2
    code, _, said = xaibench("leaderboard", "--method", "gradent")
    assert code == 2
    assert "did you mean 'gradient'" in said


def test_check_end_to_end(xaibench, here):
    assert xaibench("run", "-m", "method=gradient,input", *QUICK)[0] == 0
    baseline = here / "baseline.csv"
    baseline.write_bytes((here / "results" / "leaderboard.csv").read_bytes())
    code, out, _ = xaibench("check", "--baseline", "baseline.csv")
    assert code == 0
    assert "compared 6 rows: 6 same" in out
    text = baseline.read_text()
    value = re.search(r",degradation,higher,,([^,]+),", text)[1]
    baseline.write_text(text.replace(f",{value},", f",{float(value) + 0.05},", 1))
    code, out, _ = xaibench("check", "--baseline", "baseline.csv")
    assert code == 1
    assert "1 regressed, 5 same" in out
    assert xaibench("check", "--baseline", "baseline.csv", "--tolerance", "degradation=0.06")[0] == 0
    assert xaibench("check", "--baseline", "baseline.csv", "--results", "elsewhere")[0] == 3


def test_cache_commands(xaibench, here):
    assert xaibench("run", *QUICK)[0] == 0
    code, out, _ = xaibench("cache", "ls")
    assert code == 0
    assert "maps/smallcnn/shapes/gradient/" in out
    assert xaibench("cache", "verify")[0] == 0
    shard = next(here.glob("cache/maps/**/shard-00000.h5"))
    shard.write_bytes(shard.read_bytes()[:-3])
    code, out, _ = xaibench("cache", "verify")
    assert code == 1
    assert str(shard.name) in out
    assert xaibench("cache", "prune", "--max-size", "0M")[0] == 0
    assert not list(here.glob("cache/**/shard-*"))


def test_doctor_says_what_there_is(xaibench):
    code, out, _ = xaibench("doctor")
    assert code == 0
    assert re.search(rf"torch +{re.escape(torch.__version__.split('+')[0])}", out)
    assert re.search(r"mnist +not found in data", out)


def test_completion_offers_commands_and_overrides(xaibench, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "xaibench l")
    assert xaibench("-sc", "query=bash")[1].split() == ["list", "leaderboard"]
    monkeypatch.setenv("COMP_LINE", "xaibench run method=occl")
    monkeypatch.setenv("COMP_POINT", "24")
    assert xaibench("-sc", "query=bash")[1].split() == ["method=occlusion"]


# A shell starts what it puts into the background with the signal ignored, and a test run may be such a process.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"


def test_ctrl_c_ends_with_130_and_keeps_what_was_done(here, spawn):
    process = spawn(f"{LISTEN}{MAIN}", "run", "method=smoothgrad", "dataset.limit=1000", "metric.steps=10")
    deadline = time.monotonic() + 120
    while len(list(here.glob("cache/scores/**/shard-*.h5"))) < 1 and time.monotonic() < deadline:
        assert process.poll() is None, (here / "log.txt").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    log = (here / "log.txt").read_text()
    assert "interrupted" in log
    assert "Traceback" not in log


def test_an_interruption_that_python_drops_ends_the_run_all_the_same(here, spawn):
    (here / "mine.py").write_text(
        "import os, signal, torch\n"
        "from xaibench.methods.base import Method\n"
        "class Gone:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        sum(range(1000))\n"
        "class Losing(Method):\n"
        "    def attribute(self, network, inputs, targets, context):\n"
        "        Gone()\n"
        "        return torch.zeros_like(inputs)\n"
    )
    (here / "conf" / "method").mkdir(parents=True)
    (here / "conf/method/losing.yaml").write_text("_target_: mine.Losing\n")
    process = spawn(f"{LISTEN}{MAIN}", "run", "--config-dir=conf", "method=losing", "dataset.limit=4")
    assert process.wait(120) == 130, (here / "log.txt").read_text()
    log = (here / "log.txt").read_text()
    assert "Exception ignored" in log
    assert "interrupted" in log


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_several_workers_share_one_cache(here, spawn, launcher):
    """joblib: two workers on two methods; submitit: four workers on one job. Each shard is computed once."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    sweep = {
        "joblib": ["method=gradient,saliency", "hydra.launcher.n_jobs=2"],
        "submitit_local": ["runner.worker=0,1,2,3", "method=gradient", "hydra.launcher.timeout_min=5"],
    }[launcher]
    job = ["dataset.limit=130", "metric.steps=3"]
    process = spawn(MAIN, "run", "-m", f"hydra/launcher={launcher}", *job, *sweep)
    assert process.wait(200) == 0, (here / "log.txt").read_text()

    import json

    for manifest in here.glob("cache/*/**/manifest.json"):
        samples = [sample for shard in json.loads(manifest.read_text())["shards"] for sample in shard["samples"]]
        assert len(samples) == len(set(samples)) == 130
    found = {p.parent.name + "/" + p.name: p.read_bytes() for p in here.glob("results/scores/**/*.csv")}
    alone = spawn(MAIN, "run", "-m", *job, "paths.cache=c", "paths.results=r", *sweep[:-1])
    assert alone.wait(200) == 0, (here / "log.txt").read_text()
    assert {p.parent.name + "/" + p.name: p.read_bytes() for p in here.glob("r/scores/**/*.csv")} == found


def test_a_wheel_runs_without_the_checkout(tmp_path):
    """Built, unpacked elsewhere, run from elsewhere: configurations and checkpoints come from inside it."""
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import xaibench; from xaibench.cli import main; print(xaibench.__file__)\n"
        "sys.exit(main(['run', 'dataset.limit=2', 'metric.steps=2']))"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert "degradation" in done.stdout


def test_a_key_that_one_method_of_a_sweep_lacks_names_the_method(xaibench):
    code, _, said = xaibench("run", "-m", "method=smoothgrad,gradient", "method.samples=3")
    assert code == 2 and "'method.samples': method=gradient has no 'samples'" in said


def test_a_sweep_may_set_what_the_default_method_lacks(xaibench, here):
    sweep = ("run", "-m", "method=smoothgrad,vargrad", "method.samples=2", "metric.steps=3", "dataset.limit=2")
    code, _, said = xaibench(*sweep)
    assert code == 0, said
    cards = [json.loads(path.read_text()) for path in here.glob("results/scores/*/*/*/*.json")]
    assert sorted(card["method_variant"] for card in cards) == ["samples=2", "samples=2"]


def test_lists_for_other_programs(xaibench, here):
    import csv

    (here / "mine" / "method").mkdir(parents=True)
    (here / "mine" / "method" / "own.yaml").write_text('# =1+1, "quoted".\n_target_: a.B\n')
    mine = ("--config-dir", "mine")
    names = xaibench("list", "methods", "--format", "names", *mine)[1].split()
    assert "gradcam" in names and "own" in names and len(names) == len(listing.items("method")) + 1
    rows = json.loads(xaibench("list", "methods", "--format", "json", *mine)[1])
    assert [row["name"] for row in rows] == names
    assert next(row for row in rows if row["name"] == "iba")["tuned on"] == "degradation"
    read = [*csv.DictReader(xaibench("list", "methods", "--format", "csv", *mine)[1].splitlines())]
    assert [row["name"] for row in read] == names
    assert read[names.index("own")]["what"] == '\'=1+1, "quoted".'
    assert xaibench("list", "methods", "--format", "xml")[0] == 2


def test_the_version_of_a_run_is_ours(xaibench):
    from xaibench import __version__

    assert xaibench("run", "--version") == (0, f"xaibench {__version__}\n", "")


def test_pruning_everything_and_saying_what_would_go(xaibench, here):
    assert xaibench("run", *QUICK)[0] == 0
    before = sorted(here.glob("cache/**/*.h5"))
    for age in ("0d", "0h"):
        code, out, _ = xaibench("cache", "prune", "--older-than", age, "--dry-run")
        assert code == 0 and "would be removed" in out and "maps/smallcnn" in out
        assert sorted(here.glob("cache/**/*.h5")) == before
    code, out, _ = xaibench("cache", "prune", "--older-than", "0d")
    assert code == 0 and "artefacts removed" in out
    assert not list(here.glob("cache/**/*.h5"))


def test_leaderboard_and_rank_read_a_bare_file(xaibench, here):
    assert xaibench("run", "-m", "method=gradient,random,input", "metric=degradation,sparseness", *QUICK[:1])[0] == 0
    (here / "board.csv").write_bytes((here / "results" / "leaderboard.csv").read_bytes())
    (here / "results").rename(here / "away")
    code, out, said = xaibench("leaderboard", "--leaderboard", "board.csv", "--metric", "degradation")
    assert code == 0 and "smallcnn · shapes · degradation" in out and "sparseness" not in out, said
    assert xaibench("leaderboard", "--leaderboard", "board.csv", "--csv")[1] == (here / "board.csv").read_text()
    code, out, said = xaibench("rank", "--leaderboard", "board.csv")
    assert code == 0 and "mean rank" in out and "no test" in out and "degradation" in out and "sparseness" in out, said
    code, _, said = xaibench("rank", "--leaderboard", "board.csv", "--csv", "pairs")
    assert code == 2 and "score files" in said
    for command in ("rank", "leaderboard"):
        code, _, said = xaibench(command, "--leaderboard", "nope.csv")
        assert code == 2 and "nope.csv" in said
    assert not (here / "results").exists()


def test_a_check_as_junit_and_of_what_can_be_compared_in_part(xaibench, here):
    from xml.etree import ElementTree

    assert xaibench("run", "-m", "method=gradient,input", *QUICK)[0] == 0
    text = (here / "results" / "leaderboard.csv").read_text()
    (here / "baseline.csv").write_text(text)
    check = ("check", "--baseline", "baseline.csv", "--format", "junit", "--output", "check.xml")
    assert xaibench(*check)[0] == 0
    suite = ElementTree.parse(here / "check.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "0", "0")
    case = suite.find("testcase")
    assert case.get("classname") == "smallcnn.shapes.gradient" and case.get("name").startswith("degradation (steps=2)")

    value = re.search(r",degradation,higher,,([^,]+),", text)[1]
    (here / "baseline.csv").write_text(text.replace(f",{value},", f",{float(value) + 0.05},", 1))
    assert xaibench(*check)[0] == 1
    suite = ElementTree.parse(here / "check.xml").getroot()
    assert suite.get("failures") == "1" and "regressed: before" in suite.find("testcase/failure").get("message")

    lines = text.splitlines()
    sample_key = lines[1].split(",")[-1]
    (here / "baseline.csv").write_text("\n".join([lines[0], lines[1].replace(sample_key, "f" * 16), *lines[2:], ""]))
    code, out, _ = xaibench("check", "--baseline", "baseline.csv", "--format", "markdown", "--output", "check.md")
    assert code == 3, out
    words = "no regression in 5 rows, 1 of 6 not comparable"
    assert words in out and (here / "check.md").read_text().startswith(f"### xaibench: {words}")
    assert xaibench(*check)[0] == 3
    assert ElementTree.parse(here / "check.xml").getroot().get("errors") == "1"


def test_the_demo_installs_no_oracles_and_tests_do():
    root = Path(__file__).parent.parent
    dry = {}
    for target in ("demo", "install", "test"):
        made = subprocess.run(["make", "-n", "-B", target], cwd=root, capture_output=True, text=True, check=True)
        dry[target] = made.stdout
    assert "pip install --quiet -e .\n" in dry["demo"] and "oracles" not in dry["demo"] and "dev" not in dry["demo"]
    assert "xaibench run experiment=demo" in dry["demo"]
    assert all("-e '.[dev,oracles,cluster]'" in dry[target] for target in ("install", "test"))


def test_an_argument_called_name_reaches_the_class_that_has_one(xaibench, here, monkeypatch):
    """And is its label; where the class has none, `name` is the label alone."""
    monkeypatch.syspath_prepend(str(here))
    (here / "named.py").write_text(
        "from torch import nn\n"
        "def made(name: str):\n"
        "    width = {'narrow': 2, 'wide': 8}[name]\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 5, stride=8), nn.Flatten(), nn.Linear(64 * width, 10))\n"
        "def plain():\n"
        "    return made('wide')\n"
    )
    (here / "mine" / "model").mkdir(parents=True)
    for target in ("made", "plain"):
        text = f"_target_: named.{target}\nname: wide\ninput_size: [3, 64, 64]\n"
        (here / "mine" / "model" / f"{target}.yaml").write_text(text)
    few = ["--config-dir=mine", "metric=sparseness", "dataset.limit=2"]
    asked = [(["model=made"], "wide"), (["model=plain"], "wide"), (["model=made", "model.name=narrow"], "narrow")]
    for words, label in asked:
        code, out, said = xaibench("run", *few, *words)
        assert code == 0, said
        assert f"{label} · shapes" in out
