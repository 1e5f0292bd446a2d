"""Blocks of samples: how many, what is decoded meanwhile, and what becomes of them when memory runs out."""

import mmap
import threading
from dataclasses import replace
from pathlib import Path

import joblib
import pytest
import torch
from torch import nn
from torch.nn import functional

from xaibench.config import compose_job
from xaibench.datasets.base import Dataset, Example
from xaibench.engine import device, runner
from xaibench.engine.device import begin_peak, block_size, peak_memory, ran_out_of_memory, turn
from xaibench.errors import UserError
from xaibench.methods.base import Method

HERE = "tests.engine.test_blocks"
SIZE = (3, 8, 8)


class Noise(Dataset):
    """Seventy small images; `decoded` has an event for each, set when it is asked for."""

    decoded: dict[int, threading.Event] = {}

    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: int) -> Example:
        self.decoded.setdefault(index, threading.Event()).set()
        return Example(torch.rand(SIZE, generator=torch.Generator().manual_seed(index)), index % 3)


class Precise(nn.Module):
    """Logits in float64, rounded to float32: the same whatever else is in the batch.

    most: inputs of a call, or half as many with a gradient; for more it asks for memory that there is not: `by=cpu` for
    64 TiB of this machine's, `by=cuda` it says what CUDA says.
    """

    def __init__(self, most: int = 1000, by: str = "cpu") -> None:
        super().__init__()
        self.most, self.by, self.calls = most, by, []
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) * (1 + inputs.requires_grad) > self.most:
            if self.by == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 TiB.")
            torch.empty(2**46, dtype=torch.uint8)
        x = functional.conv2d(inputs.double(), self.first.weight.double(), self.first.bias.double()).relu().mean((2, 3))
        return functional.linear(x, self.last.weight.double(), self.last.bias.double()).float()


class Waiting(Method):
    """Maps of zeros; the first block is done when every sample of the next one is being decoded."""

    sign_of_logit = False
    met: list[bool] = []

    def cost(self, classifier):
        return (0, 0)

    def attribute(self, classifier, inputs, targets, context):
        if not self.met:
            next_ones = set(range(70)) - set(context.samples)
            self.met += [Noise.decoded.setdefault(one, threading.Event()).wait(20) for one in sorted(next_ones)]
        return torch.zeros_like(inputs[:, :1])


def job(*overrides, method=None, **network):
    """A Job over the classes above. Its parameters of the network are those of Precise."""
    made = compose_job(["dataset=shapes", "method=gradient", "dataset.limit=null", *overrides])
    model = {"_target_": f"{HERE}.Precise", "input_size": list(SIZE), "weights": "random", "returns": "logits"}
    spec = {"_target_": f"{HERE}.{method}"} if method else made.method_spec
    return replace(made, model_spec=model | network, dataset_spec={"_target_": f"{HERE}.Noise"}, method_spec=spec)


def rows(job, folder: Path) -> bytes:
    """The CSV of a run with cache and results in a folder."""
    (folder / "results").mkdir(parents=True)
    return runner.run(replace(job, cache=folder / "cache", results=folder / "results")).rows.read_bytes()


def test_the_next_block_is_decoded_while_one_is_computed(tmp_path):
    Waiting.met.clear()
    Noise.decoded.clear()
    rows(job("metric=sparseness", method="Waiting"), tmp_path)
    assert Waiting.met == [True] * 6


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_the_size_of_blocks_changes_no_byte(method, tmp_path, monkeypatch):
    asked = job(f"method={method}", "metric=degradation", "metric.tile=2", "metric.steps=3", "dataset.limit=10")
    found = {}
    for name, flops in (("as on a CPU", device.BLOCK_FLOPS), ("one each", 1.0), ("four", None)):
        if flops is None:  # of the maps
            network = runner.prepare(asked, tmp_path / "look").setting.network
            cost = runner.build(asked.method_spec, "method").cost(network.trained)
            flops = 4.5 * network.forward_flops * (cost[0] + 2 * cost[1])
        monkeypatch.setattr(device, "BLOCK_FLOPS", flops)
        found[name] = rows(asked, tmp_path / name)
        maps = [len(list(folder.glob("shard-*"))) for folder in (tmp_path / name / "cache").glob("maps/*/*/*/*")]
        assert maps == [{"as on a CPU": 1, "one each": 10, "four": 3}[name]]
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("by", ["cpu", "cuda"])
def test_where_memory_runs_out_calls_are_halved_until_they_fit(by, tmp_path, caplog):
    """The allocation that fails is a real one; what CUDA says is said by the network."""
    asked = (
        "method=integrated_gradients",
        "method.steps=4",
        "metric=degradation",
        "metric.tile=2",
        "metric.steps=3",
        "dataset.limit=5",
    )
    found = rows(job(*asked, most=9, by=by), tmp_path / "halved")
    said = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert [line.rsplit(" ", 4)[1] for line in said] == ["64", "32", "16", "8", "4"]
    assert found == rows(job(*asked, "runner.batch_size=4"), tmp_path / "asked for")


def test_the_batch_size_that_is_asked_for_is_the_most(tmp_path, caplog):
    rows(
        job("metric=degradation", "metric.tile=2", "metric.steps=3", "dataset.limit=5", "runner.batch_size=3", most=6),
        tmp_path,
    )
    assert "memory ran out" not in caplog.text


def test_one_input_that_is_too_much_is_said(tmp_path):
    with pytest.raises(UserError, match=r"memory runs out with one input per call .*runner\.device=cpu"):
        rows(job("metric=degradation", "metric.tile=2", "dataset.limit=2", most=1), tmp_path)


def test_other_failures_are_no_lack_of_memory():
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    try:
        try:
            torch.empty(2**46, dtype=torch.uint8)
        except RuntimeError as error:
            raise ValueError("wrapped") from error
    except ValueError as wrapped:
        assert ran_out_of_memory(wrapped)


@pytest.mark.parametrize(
    ("passes", "on_cpu", "on_gpu"),
    [(3, 20, 256), (150, 1, 81), (4000, 1, 3), (10**6, 1, 1)],
    ids=["a gradient", "integrated gradients, 50 steps", "4000 masks", "very many"],
)
def test_blocks_of_resnet50(passes, on_cpu, on_gpu):
    """Of 8.2e9 operations a pass: floor(limit / operations), between 1 and 64 or a GPU's 256."""
    sizes = [block_size(8.2e9 * passes, (3, 224, 224), torch.device(kind)) for kind in ("cpu", "cuda")]
    assert sizes == [on_cpu, on_gpu]


def test_the_peak_is_that_of_the_cell():
    """256 MiB that are gone before the count begins are none of it."""
    cpu = torch.device("cpu")
    begin_peak(cpu)
    before = peak_memory(cpu)
    with mmap.mmap(-1, 2**28) as memory:
        for page in range(0, 2**28, mmap.PAGESIZE):
            memory[page] = 1
    assert peak_memory(cpu) - before > 2**27
    begin_peak(cpu)
    assert peak_memory(cpu) - before < 2**27


def test_workers_side_by_side_take_turns():
    """Real processes of joblib's: of two places each takes its own."""
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(_turn_after_a_while)(2) for _ in range(2))
    assert sorted(found) == [0, 1] and turn(2) == 0


def _turn_after_a_while(places: int) -> int:
    import time

    time.sleep(0.5)  # so that one worker does not do both
    return turn(places)
