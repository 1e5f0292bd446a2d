"""Keys and numbers stay what they were when the cache was filled, wherever our classes move to."""

import json
import subprocess
import sys

import pytest

from tests import golden_jobs

GOLDEN = json.loads(golden_jobs.FILE.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all jobs make now, in a process of their own."""
    folder = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, "-m", "tests.golden_jobs", folder], check=True, cwd=golden_jobs.CONF.parent)
    return json.loads((folder / "golden.json").read_text())


def test_keys_files_and_numbers(found):
    assert found["jobs"].keys() == GOLDEN["jobs"].keys()
    for metric, expected in GOLDEN["jobs"].items():
        job = found["jobs"][metric]
        assert (job["file"], job["keys"]) == (expected["file"], expected["keys"])
        if metric != "roar":  # accuracies of trainings whose rounding differs between machines
            assert job["sums"] == pytest.approx(expected["sums"], rel=1e-3, abs=1e-5)


def test_artefacts_of_the_cache(found):
    assert found["artefacts"] == GOLDEN["artefacts"]


def test_descriptions_of_every_configuration():
    assert golden_jobs.descriptions() == GOLDEN["descriptions"]
