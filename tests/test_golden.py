"""Keys and numbers stay what they were when the cache was filled, wherever our classes move to."""

import json

import pytest

from tests import golden_jobs

GOLDEN = json.loads(golden_jobs.FILE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The cache and the results of all jobs, made now."""
    folder = tmp_path_factory.mktemp("golden")
    golden_jobs.run(folder)
    return folder


def test_keys_files_and_numbers(folder):
    found = golden_jobs.found(folder)
    assert found.keys() == GOLDEN["jobs"].keys()
    for metric, expected in GOLDEN["jobs"].items():
        assert found[metric]["file"] == expected["file"]
        assert found[metric]["keys"] == expected["keys"]
        if metric != "roar":  # accuracies of trainings whose rounding differs between machines
            assert found[metric]["sums"] == pytest.approx(expected["sums"], rel=1e-3, abs=1e-5)


def test_artefacts_of_the_cache(folder):
    assert golden_jobs.artefacts(folder) == GOLDEN["artefacts"]


def test_descriptions_of_every_configuration():
    assert golden_jobs.descriptions() == GOLDEN["descriptions"]
