"""Sweeps: the cells that Hydra would make, composed as Hydra composes them, but loaded, composed and decoded once."""

import itertools
import json
import re
import time
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from xaibench import running
from xaibench.config import CONF
from xaibench.engine.kept import KEPT

MAIN = "import sys; from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
QUICK = ("dataset.limit=3", "metric.steps=2")


def hydras_cells(overrides):
    """Those of Hydra's own sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (cells,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return cells


def ours(overrides):
    parsed = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(overrides)}
    return running.cells_of({key: running._alternatives(override) for key, override in parsed.items()})


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=gradient,gradcam", "seed=range(3)", "target=label"],
        ["method=choice(gradient,input)", "+method.a=1,2", "~fit", "++runner.x=[1,2],[3]"],
        ["method=shuffle(gradient)", "seed=0.5,1e-3", "metric.fill='a b','c,d'", "fit.limit=null,3"],
        ["method=a,b", "seed=1,2", "method=c"],
        ["method.arguments={a:1},{a:2,b:[3]}", "seed=range(1,8,step=3)"],
    ],
)
def test_cells_are_those_of_hydra_in_the_same_order(overrides):
    assert [*ours(overrides)] == hydras_cells(overrides)


def test_what_is_of_a_network_or_data_set_changes_last():
    overrides = ["method=gradient,input", "model=smallcnn,lenet", "seed=0,1", "dataset.task=object,scene"]
    cells = ours(overrides)
    assert sorted(cells) == sorted(hydras_cells(overrides)) and len(cells) == 16
    changes = [sum(a[place] != b[place] for a, b in itertools.pairwise(cells)) for place in range(4)]
    assert changes == [7, 1, 15, 3]
    with pytest.raises(Exception, match="expected values to choose from"):
        ours(["seed=interval(0,1)"])


CELLS = [
    ["method=gradient", "seed=1"],
    ["method=iba", "method.beta=2.5", "method.layer=bottleneck_late", "seed=2"],
    ["method=gradient", "seed=3"],
    ["method=iba", "method.beta=1e-3", "method.layer='a, b'", "seed=4"],
    ["method=iba", "method.beta=10", "method.layer=null", "seed=5"],
    ["model=resnet50", "model.mean=[0.5,0.5,0.5]", "++model.extra=3", "~model.crop"],
    ["model=resnet50", "model.mean=[0.1,0.2,0.3]", "++model.extra=4", "~model.crop"],
    ["method=captum", "method.arguments={n_steps:20}", "+method.new={a:1}"],
    ["method=captum", "method.arguments={baselines:[black]}", "+method.new={b:2}"],
    ["experiment=two4two", "dataset.limit=5", "target=fixed:3"],
    ["experiment=two4two", "dataset.limit=6", "seed=${dataset.seed}"],
    ["experiment=two4two", "dataset.limit=7", "seed=-2"],
    ["dataset.task=scene", "seed=007"],
    ["dataset.task=object", "seed=${dataset.limit}", "dataset.limit=12"],
]


@pytest.fixture
def composer():
    """Of a sweep, in this process."""
    GlobalHydra.instance().clear()
    KEPT.clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        master = hydra.compose("config", return_hydra_config=True)
        yield running.Composer(GlobalHydra.instance().config_loader(), master.hydra, master)
    KEPT.clear()


def test_a_cell_is_what_hydra_composes_whatever_came_before(composer):
    for cell in (*CELLS, *reversed(CELLS)):
        found, hydras = composer.configured(cell), hydra.compose("config", cell, return_hydra_config=True)
        made = hydras.hydra.runtime.choices
        assert found.choices == {group: made[group] for group in found.choices}, cell
        theirs = OmegaConf.masked_copy(hydras, [key for key in hydras if key != "hydra"])
        for resolve in (False, True):
            plain = OmegaConf.to_container(found.config, resolve=resolve)
            assert plain == OmegaConf.to_container(theirs, resolve=resolve), cell


@pytest.mark.parametrize("wrong", ["method.bta=2", "+seed=3", "~fit.nothing", "+method=iba"])
def test_what_hydra_refuses_is_refused(composer, wrong):
    cell = ["method=iba", wrong]
    with pytest.raises(running.NOT_COMPOSED) as theirs:
        hydra.compose("config", cell)
    with pytest.raises(type(theirs.value)) as found:
        composer.configured(cell)
    assert str(found.value).splitlines()[0] == str(theirs.value).splitlines()[0]


def test_a_choice_is_composed_once_however_many_values(xaibench, monkeypatch):
    composed = []
    theirs = ConfigLoaderImpl.load_configuration

    def counted(self, *arguments, **named):
        composed.append(arguments)
        return theirs(self, *arguments, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    plan = ("run", "-m", "method=gradient,input", *QUICK, "runner.plan=true")
    counts = []
    for seeds in ("0,1", "range(12)"):
        composed.clear()
        assert xaibench(*plan, f"seed={seeds}")[0] == 0
        counts.append(len(composed))
    assert counts[0] == counts[1] <= 2 + 4  # Hydra's own: its mode, the sweep, the launched job


def statuses(folder):
    found = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("results/.sweeps/*/*.json")}
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("most", ["null", "2"])
def test_every_cell_has_its_status_and_its_command(xaibench, here, most):
    import shlex

    sweep = ("method=random,gradient", "seed=0,1", "target=label,fixed:77", *QUICK)
    code, _, said = xaibench("run", "-m", *sweep, f"hydra.sweeper.max_batch_size={most}")
    assert code == 1 and "4 of 8 cells done, 4 failed" in said, said
    found = statuses(here)
    assert [status["cell"].split() for status in found] == hydras_cells([*sweep])
    assert [status["status"] for status in found] == ["ok", "failed"] * 4
    words = shlex.split(found[2]["command"])
    assert words == ["xaibench", "run", "method=random", "seed=1", "target=label", *QUICK]
    (path,) = found[2]["files"]
    rows = Path(path)
    before = rows.read_bytes()
    rows.unlink()
    assert xaibench(*words[1:])[0] == 0 and rows.read_bytes() == before


def test_values_of_hydra_are_those_of_the_cell(xaibench, here):
    """`${hydra:job.num}`, the time of the whole sweep, glob, and a method whose name is swept with a key of its own."""
    cache = "paths.cache='c/${hydra:job.num}/${now:%Y%m%d-%H%M%S-%f}'"
    sweep = ("method=glob(smoothgrad_*)", "method.samples=2", cache, "paths.results='it\\'s ${seed}'", *QUICK)
    code, _, said = xaibench("run", "-m", *sweep)
    assert code == 0, said
    (folder,) = (here / "it's 0" / ".sweeps").iterdir()
    found = sorted(path.relative_to(here / "c").parts for path in here.glob("c/*/*"))
    assert found == [(number, folder.name) for number in "012"]
    commands = [json.loads((folder / f"{number}.json").read_text())["command"] for number in range(3)]
    methods = [re.search(r"method=(\w+)", command)[1] for command in commands]
    assert methods == ["smoothgrad_deeplift", "smoothgrad_ig", "smoothgrad_sq"]
    assert (here / "it's 0" / "leaderboard.csv").exists()


def test_a_value_of_what_a_preset_chooses_for_its_cells(xaibench, here):
    """method=input, which is tried first where nobody chooses, has none."""
    preset = ("experiment=xray_iba_losses", "runner.plan=true")
    code, said, told = xaibench("run", *preset, "method.steps=3")
    assert code == 0 and "9 of 9 cells done" in told, told
    maps = re.findall(r"maps[ │]+after training[ │\d]+24 │ +([\d,]+)", said + told)
    # Three steps, there and back, of ten copies of each image after one pass; the deviation asks once more.
    assert {int(number.replace(",", "")) for number in maps} == {24 * 61, 24 * 62}
    code, _, told = xaibench("run", *preset, "method.stepz=3")
    assert code == 2 and "'method.stepz': method has no 'stepz': did you mean 'steps'" in told, told


@pytest.mark.parametrize("value", ["1", "2.5", "true", "null", "NULL", "a/b", "[1,2]", "[]", "'a b'", "${seed}"])
def test_a_value_as_a_sweep_of_one_is_that_value(value):
    (swept,) = running._as_sweep([f"method.x={value}"], {"method"})
    parser = OverridesParser.create()
    plain, found = (parser.parse_override(text) for text in (f"method.x={value}", swept))
    texts = list(found.sweep_string_iterator()) if found.is_sweep_override() else [found.get_value_element_as_str()]
    values = [parser.parse_override(f"method.x={text}").value() for text in texts]
    assert values == [plain.value()]
    assert found.is_sweep_override() or "$" in value


def test_a_name_beyond_those_that_are_composed_first_is_refused_before_any_work(xaibench, here, monkeypatch):
    monkeypatch.setattr(running, "LOOKED_AT", 1)
    code, _, said = xaibench("run", "-m", "method=gradient,gradcm", *QUICK)
    assert code == 2 and "method=gradcm" in said and "did you mean 'gradcam'" in said
    assert not list(here.rglob("shard-*"))


COUNTED = """
import os, time
from pathlib import Path
from xaibench.datasets.shapes import Shapes
from xaibench.methods.base import Method
from xaibench.models.smallcnn import SmallCNN

def note(what):
    with open("counted.txt", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

class Net(SmallCNN):
    def __init__(self, num_classes: int = 10):
        super().__init__(num_classes)
        note("network")

class Data(Shapes):
    def __getitem__(self, index):
        note("decoded")
        return super().__getitem__(index)

class Slow(Method):
    def __init__(self, seconds: float = 0.0, k: int = 0):
        self.seconds, self.k = seconds, k
    def attribute(self, classifier, inputs, targets, context):
        note(f"maps-{self.k}")
        time.sleep(self.seconds)
        return inputs
"""


@pytest.fixture
def counted(here):
    """Configurations whose classes write down when they work: -> the lines, and the command's start."""
    (here / "counted.py").write_text(COUNTED)
    model, data = (OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in
                   (("model", "smallcnn"), ("dataset", "shapes")))  # fmt: skip
    made = {"model": {**model, "_target_": "counted.Net"}, "dataset": {**data, "_target_": "counted.Data"}}
    made["model"]["weights"] = "bundled:smallcnn_object.safetensors"
    made["method"] = {"_target_": "counted.Slow", "seconds": 0, "k": 0}
    for group, values in made.items():
        (here / "conf" / group).mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(values), here / "conf" / group / "counted.yaml")
    chosen = [f"{group}=counted" for group in made]
    return (here / "counted.txt"), ("run", "-m", "--config-dir=conf", *chosen)


def test_cells_of_one_process_share_the_network_and_what_is_decoded(xaibench, counted):
    lines, run = counted
    code, _, said = xaibench(*run, *QUICK, "method.k=range(4)", "metric=degradation,sparseness", "metric.steps=2")
    assert code == 2, said  # sparseness has no steps
    lines.unlink(missing_ok=True)
    code, _, said = xaibench(*run, "dataset.limit=3", "method.k=range(4)", "metric=degradation,sparseness")
    assert code == 0, said
    done = [line.split()[0] for line in lines.read_text().splitlines()]
    assert done.count("network") == 1
    assert done.count("decoded") <= 3 + 1  # the samples, and the first of the data set, which is looked at
    assert [done.count(f"maps-{k}") for k in range(4)] == [1] * 4


def test_two_sweeps_side_by_side_share_the_work_and_do_not_wait_for_each_other(xaibench, here, spawn, counted):
    """Each map is made once, both have a part, and the files are those of one."""
    lines, run = counted
    sweep = [*run, *QUICK, "method.k=range(8)", "method.seconds=0.4"]
    both = [spawn(MAIN, *sweep) for _ in range(2)]
    assert [process.wait(200) for process in both] == [0, 0], (here / "log.txt").read_text()
    made = [line.split() for line in lines.read_text().splitlines() if line.startswith("maps")]
    assert sorted(what for what, _ in made) == [f"maps-{k}" for k in range(8)]
    by = {pid: sum(who == pid for _, who in made) for pid in {who for _, who in made}}
    assert len(by) == 2 and min(by.values()) >= 2, by
    assert (here / "log.txt").read_text().count("8 of 8 cells done, 0 failed") == 2
    assert xaibench(*sweep, "paths.cache=c", "paths.results=r")[0] == 0
    assert (here / "results/leaderboard.csv").read_bytes() == (here / "r/leaderboard.csv").read_bytes()


def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(xaibench, here, spawn):
    sweep = ["run", "-m", "method=gradient,random", "seed=range(5)", *QUICK]
    process = spawn(MAIN, *sweep)
    deadline = time.monotonic() + 120
    while len([*here.glob("results/scores/**/*.csv")]) < 4 and time.monotonic() < deadline:
        assert process.poll() is None, (here / "log.txt").read_text()
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (here / "results" / "leaderboard.csv").exists()
    assert xaibench(*sweep)[0] == 0
    assert xaibench(*sweep, "paths.cache=c", "paths.results=r")[0] == 0
    assert (here / "results/leaderboard.csv").read_bytes() == (here / "r/leaderboard.csv").read_bytes()
