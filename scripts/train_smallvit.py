"""Train the checkpoint of smallvit that the package bundles, for the objects of the shapes data set.

    python scripts/train_smallvit.py

It uses one thread, so that the numbers do not depend on the cores there are, and takes about 15 minutes of one core.
Every image is seen once: they are those of the data set's sequence behind its splits. Batch normalisation speeds the
training of the stem up and is folded into its convolutions at the end. A training that was interrupted goes on where
smallvit_object.state, in the folder of the checkpoint, says; that file is removed in the end.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from train_smallcnn import CHECKPOINTS, accuracy, generate, inputs

from xaibench.datasets.shapes import SPLITS, draw
from xaibench.models.batch_norm import add_batch_norm, fold_batch_norm
from xaibench.models.smallvit import SmallViT

FIRST = SPLITS["test"].stop  # the first image of the sequence that is in no split
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help=f"batches of {BATCH} images")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS, help="folder for the checkpoint")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    validation, test = generate("validation"), generate("test")
    start = time.process_time()
    arguments.output.mkdir(parents=True, exist_ok=True)
    state = arguments.output / "smallvit_object.state"
    model = train(arguments.steps, validation, state)
    print(f"{time.process_time() - start:.0f} s of processor time for the training")
    print(f"accuracy on test images {accuracy(model, test['image'], test['object']):.2%}")
    print(f"accuracy once the object is removed {accuracy(model, test['background'], test['object']):.2%}")
    save_file(model.state_dict(), arguments.output / "smallvit_object.safetensors")
    state.unlink()


def train(steps: int, validation: dict[str, torch.Tensor], state: Path) -> SmallViT:
    """AdamW with a one-cycle learning rate; longer gradients are cut to norm 1. state: a file for what is done."""
    torch.manual_seed(0)
    model = SmallViT()
    add_batch_norm(model)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.002, total_steps=steps, pct_start=0.15)
    parts, done, losses = (model, optimizer, schedule), 0, []
    if state.is_file():
        done, *kept = torch.load(state, weights_only=True)
        for part, values in zip(parts, kept):
            part.load_state_dict(values)
    for step in range(done, steps):
        images, labels = fresh(step)
        model.train()
        loss = nn.functional.cross_entropy(model(inputs(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            share = accuracy(model, validation["image"][:500], validation["object"][:500])
            print(f"step {step + 1}, loss {sum(losses[-100:]) / 100:.4f}, validation {share:.2%}", flush=True)
            torch.save([step + 1, *(part.state_dict() for part in parts)], state)
    fold_batch_norm(model.eval())
    return model.to(memory_format=torch.contiguous_format)


def fresh(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images uint8 [64,3,64,64] of a step and their labels [64]."""
    drawings = [draw(0, FIRST + step * BATCH + number) for number in range(BATCH)]
    images = torch.stack([torch.from_numpy(drawing.image) for drawing in drawings])
    return images, torch.tensor([drawing.object_label for drawing in drawings])


if __name__ == "__main__":
    main()
