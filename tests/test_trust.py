"""A malicious folder of configurations does nothing, and that is said; what is the user's own still works.

Real files and commands; the canary is a file that the attack would make.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from xaibench import trust
from xaibench.build import locate
from xaibench.errors import UserError
from xaibench.scores import leaderboard

QUICK = ("dataset.limit=2", "metric.steps=2")
METHOD = (
    "from xaibench.methods.base import Method\n"
    "class {0}(Method):\n    def attribute(self, classifier, inputs, targets, context):\n        return inputs\n"
)
# Arguments of a target that runs a command, or removes what it is given.
SHELL = {"_target_": "os.system", "command": "touch canary"}


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


@pytest.fixture
def refused(xaibench, here):
    """Run a command that must be refused with these words in two lines, and do nothing."""
    written(here / "canary2" / "file", "kept")

    def call(*arguments, words=(), code=2):
        found, _, said = xaibench(*arguments)
        assert found == code, said
        assert all(word in said for word in words), said
        assert "Traceback" not in said and len(said.strip().splitlines()) <= 2, said
        assert not (here / "canary").exists() and (here / "canary2" / "file").exists()
        return said

    return call


# ---- targets ---------------------------------------------------------------------------------------------------------

TARGETS = {
    "a shell": SHELL,
    "removal": {"_target_": "shutil.rmtree", "path": "canary2"},
    "a class": {"_target_": "subprocess.Popen", "args": ["touch", "canary"]},
    "a builtin": {"_target_": "builtins.exec", "source": "open('canary', 'w')"},
    "through the user's import": {"_target_": "mine.system", "command": "touch canary"},
    "through ours": {"_target_": "xaibench.models.loading.Path", "path": "x"},
    "a function of ours": {"_target_": "xaibench.store.files.write_synced", "path": "canary", "data": "x"},
    "a function of a room": {"_target_": "xaibench.models.checkpoint.write", "path": "canary", "state": {}},
    "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": "someone/thing", "model": "net"},
    "nested": {"_target_": "xaibench.methods.gradients.smoothgrad.SmoothGrad", "method": SHELL},
    "an attribute of an attribute": {"_target_": "mine.os.system", "command": "touch canary"},
    "no path": {"_target_": "os/system"},
}


@pytest.mark.parametrize("group", ["method", "metric", "dataset", "model"])
@pytest.mark.parametrize("plan", ["true", "false"])
def test_a_target_from_elsewhere_is_not_run(refused, here, group, plan):
    for name, spec in [("a shell", SHELL), ("removal", TARGETS["removal"])]:
        written(here / "evil" / group / "x.yaml", spec)
        said = refused("run", "--config-dir=evil", f"{group}=x", f"runner.plan={plan}", words=[spec["_target_"]])
        assert "--allow-target" in said, name


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_way_it_is_named(refused, here, name):
    written(here / "mine.py", "import os\nfrom os import system\n")
    written(here / "evil" / "method" / "x.yaml", TARGETS[name])
    refused("run", "--config-dir=evil", "method=x", *QUICK, words=["_target_="])


def test_a_module_from_elsewhere_is_not_even_imported(refused, here, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    written(elsewhere / "bystander.py", f"open({str(here / 'canary')!r}, 'w')\n" + METHOD.format("Thing"))
    written(elsewhere / "bystanders" / "__init__.py", f"open({str(here / 'canary')!r}, 'w')\n")
    written(elsewhere / "bystanders" / "inner.py", METHOD.format("Thing"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere)])
    for target in ("bystander.Thing", "bystanders.inner.Thing"):
        written(here / "evil" / "method" / "x.yaml", {"_target_": target})
        refused("run", "--config-dir=evil", "method=x", words=[target, str(elsewhere)])
    (here / "link.py").symlink_to(elsewhere / "bystander.py")
    written(here / "evil" / "method" / "x.yaml", {"_target_": "link.Thing"})
    refused("run", "--config-dir=evil", "method=x", words=["link.Thing"])


def test_an_installation_below_the_working_directory_is_not_the_users(here, monkeypatch):
    site = here / ".venv" / "lib" / "site-packages"
    written(site / "third_party.py", METHOD.format("Thing"))
    written(here / "sub" / "own_below.py", METHOD.format("Thing"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(site), str(here / "sub")])
    with pytest.raises(UserError, match=r"third_party\.Thing: not run"):
        locate("third_party.Thing", "method._target_")
    assert locate("own_below.Thing", "method._target_").__name__ == "Thing"


def test_lists_doctor_and_cfg_build_nothing(xaibench, here):
    written(here / "mine.py", "open('canary', 'w')\n" + METHOD.format("Mine"))
    written(here / "evil" / "method" / "x.yaml", {"_target_": "mine.Mine"})
    written(here / "evil" / "method" / "y.yaml", SHELL)
    for words in (
        ("list", "methods", "--config-dir=evil", "--markdown"),
        ("list", "methods", "--config-dir", "evil"),
        ("doctor", "--config-dir=evil"),
        ("run", "--config-dir=evil", "method=x", "--cfg", "job"),
        ("run", "--config-dir=evil", "method=y", "--cfg", "job", "--resolve"),
    ):
        assert xaibench(*words)[0] == 0, words
    assert not (here / "canary").exists()


def test_a_report_of_a_strangers_results_builds_nothing_and_downloads_nothing(xaibench, here):
    import json

    assert xaibench("run", *QUICK)[0] == 0
    for dataset in (
        SHELL,
        {"_target_": "xaibench.datasets.torchvision_sets.MNIST", "root": "canary", "download": True},
    ):
        for path in Path("results/scores").rglob("*.json"):
            card = json.loads(path.read_text())
            card["config"]["dataset"] = {"split": "test"} | dataset
            path.write_text(json.dumps(card))
        assert xaibench("report")[0] == 0
        assert not (here / "canary").exists()


# ---- what Hydra would do -------------------------------------------------------------------------------------------


def section(key):
    return {"hydra": {"callbacks": {"evil": {**SHELL, "_target_": key}}}}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("experiment/x.yaml", "# @package _global_\n" + yaml.safe_dump(section("os.system"))),
        ("experiment/x.yaml", "# @package hydra.callbacks.evil\n_target_: evil_callback.Canary\n"),
        ("experiment/x.yaml", "# @package _global_\ndefaults:\n  - override /hydra/launcher: evil\n"),
        ("experiment/x.yaml", "# @package _global_\ndefaults:\n  - /method@hydra.callbacks.evil: evil\n"),
        ("experiment/x.yaml", "# @package _global_\ndefaults:\n  - /method@method: ../../elsewhere/evil\n"),
        (
            "experiment/x.yaml",
            '# @package _global_\n"\\x68ydra": {callbacks: {evil: {_target_: evil_callback.Canary}}}\n',
        ),
        ("experiment/hydra.yaml", "# @package _name_\ncallbacks: {evil: {_target_: evil_callback.Canary}}\n"),
    ],
)
@pytest.mark.parametrize("plan", ["true", "false"])
def test_a_section_of_hydras_is_refused(refused, here, file, text, plan):
    callback = (
        "from hydra.experimental.callback import Callback\nclass Canary(Callback):\n"
        "    def on_run_start(self, config, **kwargs): open('canary', 'w')\n"
    )
    written(here / "evil_callback.py", callback)
    written(here / "evil" / "method" / "evil.yaml", {"_target_": "evil_callback.Canary"})
    written(here / "evil" / "hydra" / "launcher" / "evil.yaml", {"_target_": "evil_callback.Canary"})
    written(here / "evil" / file, text)
    name = Path(file).stem
    refused("run", "--config-dir=evil", f"experiment={name}", f"runner.plan={plan}", words=[f"{name}.yaml"])
    refused("train", "--config-dir=evil", f"experiment={name}", words=[f"{name}.yaml"])


def test_hydra_reads_nothing_from_outside_by_another_way(refused, here):
    written(here / "evil" / "config.yaml", section("os.system"))
    written(here / "evil" / "hydra" / "callbacks" / "evil.yaml", SHELL)
    for arguments in (
        ("--config-path", str(here / "evil")),
        ("-cp", str(here / "evil")),
        (f"--config-path={here / 'evil'}",),
        ("--config-d", "evil"),
        ("--config-dir=evil", "-cn", "config"),
        ("--experimental-rerun", "evil/config.pickle"),
        ("hydra.searchpath=[file://evil]",),
        ("++hydra.searchpath=[file://evil]",),
        ("method=../../evil/config",),
        ("+experiment=../evil",),
    ):
        refused("run", *arguments, words=["--config-dir"])
    refused("run", "--config-dir=evil", "+hydra/callbacks@hydra.callbacks.x=evil", words=["Hydra's own configuration"])


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${oc.decode:'[1, 2]'}",
        "${ oc.env : HOME }",
        "${${x}:HOME}",
        "a ${now:%Y} b",
        "${hydra:job.name}",
    ],
)
def test_a_resolver_is_not_run(refused, here, value):
    written(here / "evil" / "method" / "x.yaml", {"_target_": "xaibench.methods.controls.random.Random", "x": value})
    refused("run", "--config-dir=evil", "method=x", "--cfg", "job", "--resolve", words=["method/x.yaml", "resolvers"])
    assert os.environ["HOME"] not in refused("run", "--config-dir=evil", "method=x", words=["resolvers"])


def test_another_value_may_be_named_and_the_users_own_command_may_resolve(xaibench, here):
    written(here / "mine.py", METHOD.format("Mine") + "    def __init__(self, k: int = 0): self.k = k\n")
    written(here / "conf" / "method" / "x.yaml", {"_target_": "mine.Mine", "k": "${seed}"})
    code, out, said = xaibench("run", "--config-dir=conf", "method=x", "seed=7", "--cfg", "job", "--resolve")
    assert code == 0 and "k: 7" in out, said


def test_aliases_do_not_blow_up(refused, here):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    written(here / "evil" / "method" / "x.yaml", "\n".join(lines))
    refused("run", "--config-dir=evil", "method=x", words=["x.yaml", "aliases"])
    written(here / "evil" / "method" / "x.yaml", "a: !!python/object/apply:os.system ['touch canary']\n")
    refused("run", "--config-dir=evil", "method=x", words=["x.yaml", "no yaml of plain values"])


# ---- names, files, formulas ------------------------------------------------------------------------------------------


def test_a_name_writes_nowhere_else(xaibench, refused, here):
    inside = here / "a" / "b" / "c" / "d"
    inside.mkdir(parents=True)
    before = sorted(here.rglob("*"))
    spec = yaml.safe_load((Path(trust.__file__).parents[1] / "conf" / "model" / "smallcnn.yaml").read_text())
    for name in ("..", "../../../x", ".", "/tmp/canary"):
        written(here / "evil" / "model" / "x.yaml", spec | {"name": name})
        written(here / "evil" / "dataset" / "x.yaml", "defaults: [/dataset/shapes@_here_]\nname: '..'\n")
        places = (f"paths.cache={inside / 'cache'}", f"paths.results={inside / 'results'}")
        code, _, said = xaibench("run", "--config-dir=evil", "model=x", "dataset=x", *places, *QUICK)
        assert code == 0, said
    made = [path for path in here.rglob("*") if path not in before and not path.is_relative_to(here / "evil")]
    assert all(path.is_relative_to(inside / "cache") or path.is_relative_to(inside / "results") for path in made)
    depths = {len(path.relative_to(inside / "results").parts) for path in inside.rglob("scores/**/*.csv")}
    assert depths == {5}  # scores/MODEL/DATASET/METRIC/METHOD-KEY.csv
    written(here / "evil" / "experiment" / "x.yaml", "# @package _global_\npaths: {cache: canary, results: canary}\n")
    refused("run", "--config-dir=evil", "experiment=x", *QUICK, words=["paths", "in the command"])


class Pickled:
    def __reduce__(self):
        return os.system, ("touch canary",)


def test_a_checkpoint_is_not_unpickled(refused, here):
    spec = yaml.safe_load((Path(trust.__file__).parents[1] / "conf" / "model" / "smallcnn.yaml").read_text())
    (here / "evil" / "model").mkdir(parents=True)
    (here / "evil" / "plain.pt").write_bytes(pickle.dumps(Pickled()))
    torch.save({"weight": Pickled()}, here / "evil" / "zipped.pth")
    for name in ("plain.pt", "zipped.pth"):
        written(here / "evil" / "model" / "x.yaml", spec | {"weights": f"evil/{name}"})
        refused("run", "--config-dir=evil", "model=x", *QUICK, words=[name])


def test_maps_of_hdf5_name_no_other_file(refused, here):
    maps = np.zeros((4, 1, 64, 64), dtype=np.float32)
    with h5py.File("secret.h5", "w") as file:
        file["maps"], file["sample"] = maps, np.arange(4)
    Path("raw.bin").write_bytes(maps.tobytes())
    layout = h5py.VirtualLayout(shape=maps.shape, dtype=maps.dtype)
    layout[:] = h5py.VirtualSource("secret.h5", "maps", shape=maps.shape)
    makes = {
        "external link": lambda file: file.__setitem__("maps", h5py.ExternalLink("secret.h5", "maps")),
        "soft link": lambda file: file.__setitem__("maps", h5py.SoftLink("/elsewhere")),
        "storage": lambda file: file.create_dataset(
            "maps", maps.shape, maps.dtype, external=[("raw.bin", 0, maps.nbytes)]
        ),
        "virtual": lambda file: file.create_virtual_dataset("maps", layout),
    }
    for name, make in makes.items():
        with h5py.File(f"{name.split()[0]}.h5", "w") as file:
            file["sample"] = np.arange(4)
            make(file)
        path = f"{name.split()[0]}.h5"
        refused("run", "method=precomputed", f"method.path={path}", words=[path, "not"])


def test_a_formula_is_text_in_every_csv(xaibench, here):
    spec = yaml.safe_load((Path(trust.__file__).parents[1] / "conf" / "model" / "smallcnn.yaml").read_text())
    formula = '=HYPERLINK("http://x","y")'
    written(here / "evil" / "model" / "x.yaml", spec | {"name": formula})
    code, _, said = xaibench("run", "-m", "--config-dir=evil", "model=x", "method=gradient,input", *QUICK)
    assert code == 0, said
    assert xaibench("report")[0] == 0
    made = [*here.rglob("*.csv")]
    assert len(made) >= 4
    texts = [path.read_text() for path in made]
    texts += [xaibench(*words)[1] for words in (("leaderboard", "--csv"), ("rank", "--csv", "methods"))]
    import csv

    for text in texts:
        cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells)
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert set(leaderboard.read_csv(here / "results" / "leaderboard.csv")["model"]) == {formula}
    assert xaibench("check", "--baseline", "results/leaderboard.csv")[0] == 0


# ---- what is the user's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["in_folder.py", "mine/in_config_dir.py", "mine/method/beside_yaml.py"])
def test_a_class_in_the_working_directory_or_beside_the_yaml_is_built(xaibench, here, place):
    module = Path(place).stem
    written(here / "away" / "helper_of.py", "")
    folder = here if place == "in_folder.py" else here / "away"
    folder.mkdir(exist_ok=True)
    written(folder / place, METHOD.format("Mine"))
    written(folder / "mine" / "method" / "x.yaml", {"_target_": f"{module}.Mine"})
    code, _, said = xaibench("run", "--config-dir", str(folder / "mine"), "method=x", *QUICK)
    assert code == 0, said


def test_what_is_allowed_by_the_command_is_built_and_only_that(xaibench, here, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    written(elsewhere / "trusted_lib" / "__init__.py", "")
    written(elsewhere / "trusted_lib" / "maps.py", METHOD.format("Mine"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere)])
    written(here / "conf" / "method" / "x.yaml", {"_target_": "trusted_lib.maps.Mine"})
    run = ("run", "--config-dir=conf", "method=x", *QUICK)
    for options in (
        (),
        ("--allow-target", "trusted"),
        ("--allow-target=trusted_lib.map",),
        ("+allow_target=trusted_lib",),
    ):
        assert xaibench(*run, *options)[0] == 2, options
    written(here / "conf" / "method" / "y.yaml", {"_target_": "trusted_lib.maps.Mine", "allow_target": "trusted_lib"})
    assert xaibench("run", "--config-dir=conf", "method=y", *QUICK)[0] == 2
    for prefix in ("trusted_lib", "trusted_lib.maps", "trusted_lib.maps.Mine"):
        code, _, said = xaibench(*run, "--allow-target", prefix)
        assert code == 0, said
    assert trust.ALLOWED not in os.environ
    monkeypatch.setenv(trust.ALLOWED, "other, trusted_lib")
    assert xaibench(*run)[0] == 0
    code, _, said = xaibench(*run, "--allow-target", "*")
    assert code == 2 and "--allow-target *" in said
    written(here / "conf" / "model" / "hub.yaml", {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"})
    code, _, said = xaibench("run", "--config-dir=conf", "model=hub", "--allow-target=torch")
    assert code == 2 and "never called" in said


def test_a_class_stands_where_it_belongs(here):
    written(here / "kinds.py", METHOD.format("Mine") + "class Bare:\n    pass\ndef make(): pass\n")
    assert locate("kinds.make", "model._target_")
    for target, place in (("kinds.Mine", "dataset"), ("kinds.Bare", "method"), ("kinds.Mine", "model")):
        with pytest.raises(UserError, match=f"is no {place}"):
            locate(target, f"{place}._target_")
    assert locate("torchvision.models.resnet18", "model._target_")
    for target in ("torchvision.models.ResNet18_Weights", "torchvision.models.resnet.partial"):
        with pytest.raises(UserError):
            locate(target, "model._target_")


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_workers_are_allowed_the_same_and_again_repeats_it(here, tmp_path_factory, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    elsewhere, conf = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("their configurations")
    written(elsewhere / "worker_lib.py", METHOD.format("Mine"))
    failing = METHOD.format("Mine").replace("return inputs", "raise ValueError('broken')")
    written(conf / "method" / "beside_it.py", failing)
    written(conf / "method" / "x.yaml", {"_target_": "worker_lib.Mine"})
    written(conf / "method" / "y.yaml", {"_target_": "beside_it.Mine"})
    command = [sys.executable, "-m", "xaibench", "run", "-m", f"hydra/launcher={launcher}", *QUICK, "method=x,y"]
    command += ["--config-dir", str(conf), "--allow-target", "worker_lib"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{elsewhere}"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "1 of 2 cells done, 1 failed" in done.stderr, done.stderr
    again = next(line for line in done.stderr.splitlines() if line.startswith("  again: xaibench run"))
    import shlex

    arguments = shlex.split(again.removeprefix("  again: xaibench "))
    assert f"--config-dir={conf}" in arguments and "--allow-target=worker_lib" in arguments
    command = [sys.executable, "-m", "xaibench", *arguments]
    once = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=200)
    assert "broken" in once.stderr, once.stderr
