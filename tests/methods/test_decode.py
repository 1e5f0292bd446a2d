"""Decoding: what is found answers to the path, belongs to its sample, and is drawn and tabulated by the command."""

import pandas as pd
import pytest
import torch
from torch import nn

from xaibench.engine.decoding import TOP
from xaibench.methods.pathways._pathway_neurons import observe
from xaibench.methods.pathways.decode import Decoding, decoded, top_units
from xaibench.models.classifier import Classifier
from xaibench.rng import sample_generators


def halves():
    """One neuron for the sum of the left half of 8 x 8 pixels, one for the right; the output is their sum."""
    first, second = nn.Linear(64, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        left = (torch.arange(64) % 8 < 4).double()
        first.weight.copy_(torch.stack([left, 1 - left]))
        second.weight.fill_(1)
    return Classifier("halves", nn.Sequential(nn.Flatten(), first, nn.ReLU(), second), (1, 8, 8))


def decode(network, path, how, samples=(0, 1)):
    others = [torch.zeros_like(layer) for layer in observe(network, network.blank.expand(len(samples), -1, -1, -1))[1]]
    targets = torch.zeros(len(samples), dtype=torch.int64)
    on = [torch.tensor(path).expand(len(samples), -1)]
    return decoded(network, targets, on, others, sample_generators(0, "decode", samples), how)


@pytest.mark.parametrize(("path", "sign"), [([True, False], 1), ([False, True], -1)])
def test_the_half_that_the_path_reads_becomes_bright(path, sign):
    found = decode(halves(), path, Decoding(steps=40, jitter=0))
    assert found.shape == (2, 1, 8, 8) and (found > 0).all() and (found < 1).all()
    brightness = found[..., :4].mean((1, 2, 3)) - found[..., 4:].mean((1, 2, 3))
    assert (sign * brightness > 0.2).all()
    start = decode(halves(), path, Decoding(steps=1, jitter=0))
    assert ((found - start).flatten(1).abs().amax(1) > 0.2).all()


def test_what_is_decoded_belongs_to_the_sample():
    together = decode(halves(), [True, True], Decoding(steps=10))
    alone = decode(halves(), [True, True], Decoding(steps=10), samples=(1,))
    assert torch.allclose(together[1:], alone, rtol=0, atol=1e-9) and not torch.allclose(together[0], together[1])


class Colours(nn.Module):
    """A channel for the red and one for the blue of an image; the output weighs blue ten times as much."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 2, 1, bias=False), nn.ReLU()
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1]]).view(2, 3, 1, 1)

    def forward(self, x):
        red, blue = self.relu(self.conv(x)).mean((2, 3)).T
        return (red + 10 * blue)[:, None]


def test_the_top_unit_is_the_strongest_of_the_path_and_what_it_answers_to_has_its_colour():
    network = Classifier("colours", Colours().double(), (3, 8, 8))
    inputs, targets = torch.ones(2, 3, 8, 8).double(), torch.zeros(2, dtype=torch.int64)
    path = [torch.ones(2, 2, 8, 8, dtype=torch.bool)]
    path[0][1, 1] = False  # the second input's path has red alone
    units = top_units(network, inputs, targets, path)
    assert units.call == 0 and units.channels.tolist() == [1, 0]
    whole, nothing = [torch.ones_like(path[0])], [torch.zeros(2, 2, 8, 8).double()]
    draws = sample_generators(0, "decode", (0, 1))
    found = decoded(network, targets, whole, nothing, draws, Decoding(steps=40, jitter=0), units)
    answers = units.answers(observe(network, found)[1][0])
    torch.testing.assert_close(answers, torch.stack([found[0, 2].mean(), found[1, 0].mean()]))
    red, green, blue = found.mean((2, 3)).T
    assert blue[0] > max(red[0], green[0]) + 0.1 and red[1] > max(green[1], blue[1]) + 0.1
    assert top_units(halves(), halves().blank, targets[:1], [torch.ones(1, 2, dtype=torch.bool)]) is None


def test_the_command_draws_and_tabulates(xaibench, here):
    code, out, said = xaibench("decode", "method=neuron_mct", "dataset.limit=1", "--steps=2", "--out=drawn")
    assert code == 0, said
    assert out.strip() == "drawn/decoded.png" and (here / "drawn" / "decoded.png").stat().st_size > 5000
    table = pd.read_csv(here / "drawn" / "decoded.csv").set_index("network")
    assert list(table.index) == ["network", "active, rest 0", "path, rest 0", "path, rest constant", TOP]
    # Nothing that is dead answers, and constants keep the answer to the image.
    before = table["before"]
    assert before["network"] == pytest.approx(before["active, rest 0"], rel=1e-4)
    assert before["network"] == pytest.approx(before["path, rest constant"], rel=1e-4)
    assert table["correlation"].between(-1, 1).all() and table["similarity"].between(-1, 1).all()
    for arguments, message in [
        (("method=gradient",), "decode needs a method that chooses a path"),
        (("--steps=0",), "steps=0: expected at least 1"),
        (("method=neuron_mtc",), "did you mean 'neuron_mct'"),
    ]:
        code, _, said = xaibench("decode", *arguments)
        assert code == 2 and message in said and "Traceback" not in said
