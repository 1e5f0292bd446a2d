"""Train the checkpoint of smallvit that the package bundles, for the objects of the shapes data set.

    python scripts/train_smallvit.py

It uses one thread, so that the numbers do not depend on the cores there are, and takes about half an hour of one core.
Every image is seen once: they are those of the data set's sequence behind its splits. Batch normalisation speeds the
training of the stem up and is folded into its convolutions at the end.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from train_smallcnn import CHECKPOINTS, accuracy, generate, inputs

from xaibench.datasets.shapes import SPLITS, draw
from xaibench.models.recipe import add_batch_norm, fold_batch_norm
from xaibench.models.smallvit import SmallViT

FIRST = SPLITS["test"].stop  # the first image of the sequence that is in no split
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help=f"batches of {BATCH} images")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS, help="folder for the checkpoint")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    validation, test = generate("validation"), generate("test")
    start = time.process_time()
    model = train(arguments.steps, validation)
    print(f"{time.process_time() - start:.0f} s of processor time for the training")
    print(f"accuracy on test images {accuracy(model, test['image'], test['object']):.2%}")
    print(f"accuracy once the object is removed {accuracy(model, test['background'], test['object']):.2%}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.output / "smallvit_object.safetensors")


def train(steps: int, validation: dict[str, torch.Tensor]) -> SmallViT:
    """AdamW with a one-cycle learning rate; a longer gradient is shortened to norm 1."""
    torch.manual_seed(0)
    model = SmallViT()
    add_batch_norm(model)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.002, total_steps=steps, pct_start=0.15)
    losses = []
    for step, (images, labels) in enumerate(fresh(steps)):
        model.train()
        loss = nn.functional.cross_entropy(model(inputs(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            share = accuracy(model, validation["image"][:500], validation["object"][:500])
            print(f"step {step + 1}, loss {sum(losses[-200:]) / 200:.4f}, validation {share:.2%}", flush=True)
    fold_batch_norm(model.eval())
    return model.to(memory_format=torch.contiguous_format)


def fresh(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images uint8 [64,3,64,64] and labels [64], as they follow each other in the sequence."""
    for start in range(FIRST, FIRST + steps * BATCH, BATCH):
        drawings = [draw(0, position) for position in range(start, start + BATCH)]
        images = torch.stack([torch.from_numpy(drawing.image) for drawing in drawings])
        yield images, torch.tensor([drawing.object_label for drawing in drawings])


if __name__ == "__main__":
    main()
