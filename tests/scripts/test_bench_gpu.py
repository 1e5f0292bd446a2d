"""What scripts/bench_gpu.py measures, in its smallest form on a CPU."""

import argparse
import time
from pathlib import Path

import pytest
import torch


@pytest.fixture
def bench_gpu(script, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return script("bench_gpu")


def options(**settings):
    settings = {"device": "cpu", "quick": True, "pairs": 2, "model": "smallcnn", "batches": (1,)} | settings
    return argparse.Namespace(end=time.monotonic() + 60, **settings)


def test_blocks_are_those_of_the_runner(bench_gpu):
    """Of smallcnn, 24 million operations a pass: what does not fill 64 samples, and what a GPU makes of it."""
    table = bench_gpu.blocks(options())
    rows = {row[0]: row[1:] for row in zip(*(column.cells for column in table.columns))}
    flops = bench_gpu.forward_flops(bench_gpu.network_of("smallcnn", "cpu", 1))
    assert rows["gradient"] == ("1+1", "64", "256", "16", "4")
    passes = 4000
    assert rows["rise"][:3] == (f"{passes}+0", str(5e11 // (passes * flops))[:-2], "256")
    assert "dtd_full" not in rows and len(rows) > 80


def test_rates_are_images_a_second(bench_gpu, monkeypatch):
    monkeypatch.setattr(bench_gpu, "METHODS", {"gradient": {}, "iba": {"steps": 1, "copies": 2}})
    monkeypatch.setattr(bench_gpu, "METRICS", {"degradation": {"steps": 2}})
    torch.set_num_threads(1)
    for table in (bench_gpu.methods(options()), bench_gpu.metrics(options()), bench_gpu.imputing(options())):
        for row in zip(*(column.cells for column in table.columns)):
            assert float(row[2]) > 0


def test_what_there_is_no_time_for_is_left_out_and_named(bench_gpu, capsys):
    late = options()
    late.end = 0.0
    assert bench_gpu.metrics(late).row_count == 0
    assert "left out: [('degradation', 1)" in capsys.readouterr().err
