"""Train the bundled relation network on sort_of_clevr, and say how right it is, kind by kind.

    python scripts/train_relation_network.py places --out 1.safetensors
    python scripts/train_relation_network.py answers --start 1.safetensors --out 2.safetensors --steps 1400 --lr 0.002
    python scripts/train_relation_network.py test --start 2.safetensors

`places` teaches the convolutions, alone, what is where: a linear layer upon them, thrown away afterwards, is to tell of
each of the 4x4 places which colours have their object's centre there, and of these the shape and the exact place. That
takes half a minute, and what they see is then the same for all questions: `answers` computes it once for some
thousand scenes and trains g and f on pairs of it. `answers` can be repeated, with other scenes (--first). By the
recipe of conf/model/relation_network.yaml, from random weights, the same network learns the same far more slowly.

The bundled weights are those of `places` as above; of `answers` on 11000 scenes from 100000 on, some 1300 steps at
0.002 whose rate fell by the clock, so that they cannot be repeated to the digit; of 300 steps of
`answers --first 150000 --scenes 3000 --lr 0.0015 --fall 0`; and of 14000 steps, a quarter of an hour, of
`answers --first 200000 --scenes 30000 --lr 0.0015 --fall 0.5`. What is asked about one object is learnt, and counting;
which object is the closest is hardly begun.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from xaibench.datasets import sort_of_clevr as scenes
from xaibench.engine.device import keep_freed_memory
from xaibench.models import checkpoint
from xaibench.models.loading import build_module
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.recipe import Recipe
from xaibench.models.relation_network import SIDE, RelationNetwork
from xaibench.models.train import finish, prepare
from xaibench.rng import generator

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
ASKED = [(kind, colour) for kind in scenes.KINDS for colour in range(len(scenes.COLOURS))]
CODES = torch.stack([scenes.encode(kind, colour) for kind, colour in ASKED])
COLOURS = len(scenes.COLOURS)
CELL = scenes.SIDE // SIDE
EACH = 100  # steps between two lines


def images_of(drawn: list[scenes.Scene]) -> torch.Tensor:
    """Inputs [n,3,64,64]."""
    pixels = torch.stack([torch.from_numpy(scenes.render(scene)[0]) for scene in drawn])
    return PREPROCESSING.inputs(pixels, torch.zeros(()))


def placed(drawn: list[scenes.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where objects are, bool [n,6,4,4], and what they are there, [n,6,4,4,3]: circle or not, and the place within the
    cell, right and down, of variance about 1."""
    there = torch.zeros(len(drawn), COLOURS, SIDE, SIDE, dtype=torch.bool)
    what = torch.zeros(len(drawn), COLOURS, SIDE, SIDE, 3)
    colours = torch.arange(COLOURS)
    for row, scene in enumerate(drawn):
        centres = torch.from_numpy(scene.centres)
        cell = (row, colours, centres[:, 1] // CELL, centres[:, 0] // CELL)
        there[cell] = True
        within = (centres % CELL - (CELL - 1) / 2) / 4.6
        what[cell] = torch.cat([torch.from_numpy(scene.shapes)[:, None].float(), within], 1)
    return there, what


def teach_places(network: RelationNetwork, data: scenes.SortOfClevr, first: int, steps: int, lr: float) -> None:
    """Train the convolutions, with batch normalisation that is folded into them at the end."""
    head = nn.Conv2d(network.features[-2].out_channels, 4 * COLOURS, 1)  # type: ignore[arg-type]
    both = nn.Sequential(network.features, head)
    recipe = Recipe(epochs=1, batch_size=32, lr=lr, optimizer="adam", schedule="one_cycle", batch_norm="folded")
    prepare(both, recipe)
    both.to(memory_format=torch.channels_last)
    optimizer, started, shares = recipe.make_optimizer(both), time.monotonic(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step, steps)
        drawn = [data.scene(first + step * recipe.batch_size + i) for i in range(recipe.batch_size)]
        there, what = placed(drawn)
        told = both(images_of(drawn)).unflatten(1, (4, COLOURS)).movedim(1, -1)
        here, wanted = told[there], what[there]
        loss = 6 * functional.binary_cross_entropy_with_logits(told[..., 0], there.float())
        loss = loss + functional.binary_cross_entropy_with_logits(here[:, 1], wanted[:, 0])
        loss = loss + functional.mse_loss(here[:, 2:], wanted[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(((here[:, 1] > 0) == (wanted[:, 0] > 0)).float().mean())
        if (step + 1) % EACH == 0:
            seconds = time.monotonic() - started
            print(f"{step + 1:6d} loss {loss:.3f} shape {torch.stack(shares).mean():.3f} {seconds:.0f} s", flush=True)
            shares = []
    finish(both, recipe, {})
    network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def seen(network: RelationNetwork, data: scenes.SortOfClevr, first: int, count: int) -> tuple[torch.Tensor, ...]:
    """What the convolutions make of scenes, [count,C,4,4], and the answers to all questions, [count,36], -1 for what
    is not clear in a scene."""
    features, answers = [], torch.full((count, len(ASKED)), -1)
    for start in range(0, count, 64):
        drawn = [data.scene(first + index) for index in range(start, min(start + 64, count))]
        features.append(network.features(images_of(drawn)))
        for row, scene in enumerate(drawn, start):
            for place, asked in enumerate(ASKED):
                if scenes.is_clear(scene, *asked):
                    answers[row, place] = scenes.answer(scene, *asked)
    return torch.cat(features), answers


def teach_answers(
    network: RelationNetwork,
    features: torch.Tensor,
    answers: torch.Tensor,
    steps: int,
    lr: float,
    fall: float,
    seed: int,
    out: Path,
) -> None:
    """Train g and f. The rate rises for 100 steps, stays, and falls for the share `fall` of the steps to a fiftieth.
    The weights are written to `out` with every line."""
    random, pool = generator("answers", seed), (answers >= 0).nonzero()
    learnt = [*network.g.parameters(), *network.f.parameters()]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimizer, started, found = torch.optim.Adam(learnt), time.monotonic(), []
    for step in range(steps):
        left = (steps - step) / (steps * fall) if fall else 1
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100) * min(1, max(0.02, left))
        rows, asked = pool[torch.randint(len(pool), (128,), generator=random)].T
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.answers(features[rows], CODES[asked]).float()
        loss = functional.cross_entropy(logits, answers[rows, asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        found.append((loss.detach(), logits.argmax(1) == answers[rows, asked], asked))
        if (step + 1) % EACH == 0:
            losses, right, questions = zip(*found)
            told = by_kind(torch.cat(right), torch.cat(questions))
            seconds = time.monotonic() - started
            print(f"{step + 1:6d} loss {torch.stack(losses).mean():.3f} {told} {seconds:.0f} s", flush=True)
            checkpoint.write(out, network.state_dict())
            found = []


def by_kind(right: torch.Tensor, asked: torch.Tensor) -> str:
    """The accuracy of each kind of question."""
    return "  ".join(f"{kind} {right[asked // COLOURS == k].float().mean():.3f}" for k, kind in enumerate(scenes.KINDS))


@torch.no_grad()
def test(network: RelationNetwork) -> None:
    """Print the accuracy on the test split, each image being asked its own question."""
    data, right = scenes.SortOfClevr("test"), []
    asked = torch.tensor([data.question_of(index) for index in range(len(data))])
    for part in torch.arange(len(data)).split(64):
        images = images_of([data.scene(index) for index in part.tolist()])
        labels = torch.tensor([data[index].label for index in part.tolist()])
        right.append(network(images, CODES[asked[part]]).argmax(1) == labels)
    found = torch.cat(right)
    print(f"test {found.float().mean():.4f}: {by_kind(found, asked)}")


def main() -> None:
    """One part of the training, or the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("places", "answers", "test"))
    parser.add_argument("--start", type=Path, help="weights to go on from; random ones otherwise")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--first", type=int, default=0, help="of the training scenes")
    parser.add_argument("--scenes", type=int, default=4000, help="of `answers`")
    parser.add_argument("--fall", type=float, default=0.3, help="share of the steps in which `answers` slows down")
    chosen = parser.parse_args()
    keep_freed_memory()
    network = build_module({"_target_": f"{RelationNetwork.__module__}.RelationNetwork"})
    assert isinstance(network, RelationNetwork)
    if chosen.start:
        checkpoint.fit(network, checkpoint.read(chosen.start, "--start"), "--start")
    train = scenes.SortOfClevr("train")
    if chosen.part == "places":
        teach_places(network, train, chosen.first, chosen.steps, chosen.lr)
        checkpoint.write(chosen.out, network.state_dict())
    if chosen.part == "answers":
        features, answers = seen(network, train, chosen.first, chosen.scenes)
        teach_answers(network, features, answers, chosen.steps, chosen.lr, chosen.fall, chosen.first, chosen.out)
    if chosen.part == "test":
        test(network)


if __name__ == "__main__":
    main()
