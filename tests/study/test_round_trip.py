"""A study from its pictures to its tests, on a network of chance: what is shown, by which maps, and what is asked."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xaibench.report.colours import painted
from xaibench.store.cache import Artefact
from xaibench.study.stimuli import COLUMNS, grid

NETWORK = ("model=two4two_cnn", "model.weights=random", "dataset=two4two")
SIDE, GAP, HEAD = 2 * 64, 10, 34  # of a drawn image, between two, and above them


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with the maps of two methods, scored."""
    folder = tmp_path_factory.mktemp("ran")
    for method, limit in (("gradient", 24), ("gradcam", 20)):
        of_folder = (f"paths.cache={folder / 'cache'}", f"paths.results={folder / 'results'}")
        command = [f"method={method}", *NETWORK, f"dataset.limit={limit}", "metric=complexity", *of_folder]
        subprocess.run([sys.executable, "-m", "xaibench", "run", *command], check=True, capture_output=True)
    return folder


@pytest.fixture
def study(xaibench, here, ran):
    shutil.copytree(ran, here, dirs_exist_ok=True)
    return xaibench


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_from_pictures_to_tests(study, here):
    assert study("run", *NETWORK, "dataset.limit=12", "metric=factor_importance", "metric.features=false")[0] == 0
    code, out, said = study("study", "stimuli", "--rows", "2", "--seed", "3")
    assert code == 0, said
    manifest = json.loads((here / out.strip()).read_text())
    # A network of chance takes all for one class: fifths of the images are called what they are not, which is said.
    samples = np.array([[image["sample"] for image in row] for row in manifest["images"]])
    logits = np.array([[image["logit"] for image in row] for row in manifest["images"]])
    assert manifest["contradicted"] == (logits[:, :2] > 0).sum() + (logits[:, 3:] < 0).sum() == 4
    assert "4 of 10 images stand in columns of one class" in " ".join(said.split())
    assert (np.diff(logits, axis=1) >= 0).all() and len(set(samples.ravel())) == 10 and manifest["candidates"] == 20
    check_logits(here, manifest, samples, logits)
    for name in ("gradient", "gradcam"):
        check_picture(here, manifest, name, samples)

    score_file = next((here / "results" / "scores").glob("*/*/factor_importance/*.json"))
    code, out, said = study("study", "key", str(score_file))
    assert code == 0, said
    key = pd.read_csv(here / "key.csv").set_index("question")
    board = pd.read_csv(here / "results" / "leaderboard.csv")
    r_squared = board[board["metric"] == "factor_importance"].set_index("statistic")["value"]
    turns = max(r_squared[f"r_squared_{factor}"] for factor in ("yaw", "roll", "pitch", "bending"))
    assert key.loc["rotation", "r_squared"] == pytest.approx(turns, rel=1e-4)
    assert key.loc["legs", "r_squared"] == pytest.approx(r_squared["r_squared_legs"], rel=1e-4)
    assert ((key["r_squared"] >= 0.1) == (key["answer"] == "relevant")).all()

    command = ("--simulate", "15", "--accuracy", "base=0.5", "--accuracy", "gradcam=0.9", "--baseline", "base")
    code, out, said = study("study", "score", *command)
    assert code == 0 and out.startswith("SIMULATED PARTICIPANTS"), said
    tests = pd.read_csv(here / "study" / "tests.csv").set_index("test")
    assert set(tests["participants"]) == {"simulated"} and tests.loc["rank_sum", "p"] < 0.01


def check_logits(here, manifest, samples, logits):
    """The logits are those of the cache, stretchy less peeky, of these samples."""
    (folder,) = (here / "cache" / "responses" / "two4two_cnn" / "two4two" / "logits").iterdir()
    found = {}
    for shard in folder.glob("shard-*.h5"):
        with h5py.File(shard) as file:
            found |= dict(zip(file["sample"][()].tolist(), (file["logits"][:, 1] - file["logits"][:, 0]).tolist()))
    np.testing.assert_allclose(logits, np.vectorize(found.__getitem__)(samples), rtol=1e-5)


def drawn_maps(maps, samples) -> np.ndarray:
    return maps.read(samples.ravel().tolist()).arrays["maps"].sum(axis=1)


def check_picture(here, manifest, name, samples):
    """Each tile of the picture is the image, as in the base picture, and beside it the map that the key names."""
    condition = manifest["conditions"][name]
    base, drawn = (pixels(here / "stimuli" / manifest["conditions"][n]["picture"]) for n in ("base", name))
    assert condition["map_key"] in condition["picture"]
    maps = Artefact.opened(here / "cache", "maps", ("two4two_cnn", "two4two", name), condition["map_key"])
    assert maps.folder == here / "cache" / condition["maps"]
    for (row, column), sample in np.ndenumerate(samples):
        top = HEAD + row * (SIDE + GAP)
        left = column * (2 * SIDE + GAP)
        image = base[top : top + SIDE, column * (SIDE + GAP) : column * (SIDE + GAP) + SIDE]
        np.testing.assert_array_equal(drawn[top : top + SIDE, left : left + SIDE], image)
        own = maps.read([sample]).arrays["maps"][0].sum(axis=0)
        shown = drawn[top : top + SIDE : 2, left + SIDE : left + 2 * SIDE : 2]
        assert condition["shown"] == ("signed map" if (drawn_maps(maps, samples) < 0).any() else "map")
        np.testing.assert_array_equal(shown, painted(own, condition["shown"] == "signed map"))


def test_a_study_is_repeated_by_its_seed_and_by_its_manifest(study, here):
    def drawn(out: str, *options: str) -> dict[str, bytes]:
        code, _, said = study("study", "stimuli", "--rows", "2", "--out", out, *options)
        assert code == 0, said
        return {path.name: path.read_bytes() for path in (here / out).iterdir()}

    first = drawn("one")
    assert drawn("two") == first
    assert drawn("three", "--seed", "1")["base.png"] != first["base.png"]
    # Of other candidates (24 in place of 20) the seed draws others; the manifest keeps the images.
    alone = drawn("four", "--method", "gradient")
    assert alone["base.png"] != first["base.png"]
    again = drawn("five", "--method", "gradient", "--like", "one/manifest.json")
    assert again["base.png"] == first["base.png"] and set(again) < set(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "9"), "column 'very certain peeky' has 4 images of the 9 that it takes"),
        (("--rows", "0"), "--rows 0: expected a number of rows from 1 on"),
        (("--bins", "quartiles"), "bins=quartiles: did you mean 'quintiles'"),
        (("--bins", "symmetric", "--rows", "1"), "has 0 images of the 1 that it takes"),
        (("--classes", "peeky,stretch"), "'stretch' is not a class: did you mean 'stretchy'"),
        (("--classes", "peeky"), "--classes peeky: expected two classes"),
        (("--cache", "elsewhere"), "elsewhere has no maps"),
        (("--like", "key.csv"), "there is no 'key.csv'"),
        (("--method", "gradcamm"), "gradcam"),
    ],
)
def test_what_cannot_be_drawn_is_said(study, here, options, message):
    code, _, said = study("study", "stimuli", *options)
    assert code == 2 and message in " ".join(said.split()) and not (here / "stimuli").exists(), said


def test_a_counterfactual_is_shown_as_the_image_that_it_is(xaibench, here):
    """Beside each image, the image with the map added, in the units of the network's input (std .25)."""
    network = ("model=two4two_inn", "model.weights=random", "dataset=two4two", "dataset.limit=10")
    assert xaibench("run", "method=counterfactual", *network, "metric=complexity")[0] == 0
    code, _, said = xaibench("study", "stimuli", "--rows", "1")
    assert code == 0, said
    manifest = json.loads((here / "stimuli" / "manifest.json").read_text())
    condition = manifest["conditions"]["counterfactual"]
    assert condition["shown"] == "counterfactual"
    maps = Artefact.opened(here / "cache", "maps", ("two4two_inn", "two4two", "counterfactual"), condition["map_key"])
    std = np.array(manifest["model_state"]["preprocessing"]["std"] or [1, 1, 1])
    drawn = pixels(here / "stimuli" / condition["picture"])[HEAD : HEAD + SIDE : 2].astype(int)
    for column, image in enumerate(manifest["images"][0]):
        left = column * (2 * SIDE + GAP)
        own, other = (drawn[:, start : start + SIDE : 2] for start in (left, left + SIDE))
        change = maps.read([image["sample"]]).arrays["maps"][0].transpose(1, 2, 0) * std * 255
        assert abs(other - (own + change).clip(0, 255)).max() <= 0.5 + 1e-3 and (other != own).any()


def test_maps_that_show_nothing_are_not_shown(study, here):
    command = ("run", "method=constant", *NETWORK, "dataset.limit=20", "metric=bbox")
    study(*command)
    code, _, said = study("study", "stimuli", "--rows", "1")
    assert code == 2 and "constant: each of its 20 maps is not finite or of one value" in said, said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.json",), "there is no 'missing.json'"),
        (("{complexity}",), "scores of complexity: expected those of factor_importance"),
        (("{complexity}", "--threshold", "0"), "--threshold 0: expected an R squared above 0"),
        (("{complexity}", "--question", "legs"), "--question legs: expected NAME=FACTOR"),
    ],
)
def test_what_is_no_key_is_said(study, here, arguments, message):
    score_file = next((here / "results" / "scores").glob("*/*/complexity/*.csv"))
    code, _, said = study("study", "key", *(text.format(complexity=score_file) for text in arguments))
    assert code == 2 and message in said and not (here / "key.csv").exists(), said


def test_a_tile_stands_where_its_number_says(tmp_path):
    tiles = np.zeros((10, 96, 96, 3), dtype=np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None] * 20
    (tmp_path / "grid.png").write_bytes(grid(tiles, [label.format("a", "b") for label in COLUMNS]))
    found = pixels(tmp_path / "grid.png")
    middles = found[HEAD + 48 :: 96 + 8][:2, 48 :: 96 + 8][:, :5, 0]
    assert middles.tolist() == (np.arange(10) * 20).reshape(2, 5).tolist()
