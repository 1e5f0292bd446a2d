"""Train the bundled relation network on sort_of_clevr and say how right it is, kind by kind.

    python scripts/train_relation_network.py --out relation_network.safetensors

The recipe of conf/model/relation_network.yaml asks one question about each scene. Here each scene is asked several at
once, which share its convolutions, and products are in bfloat16: a third of the time for the same number of questions.
"""

import argparse
import itertools
import time
from pathlib import Path

import torch
from torch.nn import functional

from xaibench.datasets import sort_of_clevr as scenes
from xaibench.engine.device import keep_freed_memory
from xaibench.models import checkpoint
from xaibench.models.loading import build_module
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.recipe import Recipe, finish, prepare
from xaibench.models.relation_network import RelationNetwork
from xaibench.rng import generator

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
ASKED = [(kind, colour) for kind in scenes.KINDS for colour in range(len(scenes.COLOURS))]
CODES = torch.stack([scenes.encode(kind, colour) for kind, colour in ASKED])


def batch(
    data: scenes.SortOfClevr, first: int, count: int, each: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images [count,3,64,64] of samples from `first` on, and the questions [count,each] and answers of each: its own
    question, and others that are clear in it."""
    images, questions, answers = [], [], []
    for index in range(first, first + count):
        scene = data.scene(index)
        images.append(torch.from_numpy(scenes.render(scene)[0]))
        drawn = torch.randperm(len(ASKED), generator=generator("questions", index)).tolist()
        clear = (place for place in drawn if scenes.is_clear(scene, *ASKED[place]))
        chosen = [data.question_of(index), *itertools.islice(clear, each - 1)]
        questions.append(chosen)
        answers.append([scenes.answer(scene, *ASKED[place]) for place in chosen])
    pixels = PREPROCESSING.inputs(torch.stack(images), torch.zeros(()))
    return pixels, torch.tensor(questions), torch.tensor(answers)


def logits_of(network: RelationNetwork, images: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    """Logits [count*each,K]."""
    features = network.features(images).repeat_interleave(questions.shape[1], 0)
    return network.answers(features, CODES[questions.flatten()])


def by_kind(right: torch.Tensor, questions: torch.Tensor) -> str:
    """The accuracy of each kind of question."""
    kinds = questions.flatten() // len(scenes.COLOURS)
    return "  ".join(f"{kind} {right[kinds == k].float().mean():.3f}" for k, kind in enumerate(scenes.KINDS))


def main() -> None:
    """Train, test, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--scenes", type=int, default=16, help="of a step")
    parser.add_argument("--questions", type=int, default=4, help="of a scene")
    parser.add_argument("--lr", type=float, default=0.0015)
    parser.add_argument("--start", type=Path, help="weights to go on from, which have seen the scenes before --first")
    parser.add_argument("--first", type=int, default=0, help="scene to begin with")
    chosen = parser.parse_args()
    keep_freed_memory()
    train, test = scenes.SortOfClevr("train"), scenes.SortOfClevr("test")
    network = build_module({"_target_": f"{RelationNetwork.__module__}.RelationNetwork"})
    assert isinstance(network, RelationNetwork)
    if chosen.start:
        checkpoint.fit(network, checkpoint.read(chosen.start, "--start"), "--start")
    recipe = Recipe(
        epochs=1, batch_size=chosen.scenes, lr=chosen.lr, optimizer="adam", schedule="one_cycle", batch_norm="folded",
    )  # fmt: skip
    prepare(network, recipe)
    network.to(memory_format=torch.channels_last)
    optimizer, started, seen = recipe.make_optimizer(network), time.monotonic(), []
    for step in range(chosen.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step, chosen.steps)
        first = (chosen.first + step * chosen.scenes) % (len(train) - chosen.scenes)
        images, questions, answers = batch(train, first, chosen.scenes, chosen.questions)
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_of(network, images, questions).float()
        loss = functional.cross_entropy(logits, answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seen.append((loss.detach(), logits.argmax(1) == answers.flatten(), questions.flatten()))
        if (step + 1) % 200 == 0:
            losses, right, asked = zip(*seen)
            told = by_kind(torch.cat(right), torch.cat(asked))
            print(
                f"{step + 1:6d} {torch.stack(losses).mean():.3f} {told} {time.monotonic() - started:.0f} s", flush=True
            )
            seen = []
    finish(network, recipe, {})
    network.to(memory_format=torch.contiguous_format)
    checkpoint.write(chosen.out, network.state_dict())
    with torch.no_grad():
        parts = [batch(test, start, 100, 1) for start in range(0, len(test), 100)]
        right = [logits_of(network, x, asked).argmax(1) == answers.flatten() for x, asked, answers in parts]
    found, asked = torch.cat(right), torch.cat([questions for _, questions, _ in parts])
    print(f"test {found.float().mean():.4f}: {by_kind(found, asked)}")


if __name__ == "__main__":
    main()
