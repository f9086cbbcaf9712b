"""Train a digit classifier with PyTorch. Killed at any moment and started again, it goes on exactly where it was.

    python torch_train.py RUN [MODEL]

RUN is the folder to checkpoint into; MODEL is the file that the finished model is saved to.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from digits import held_out, training

import safepoint

SEED, EPOCHS, BATCH_SIZE = 7, 12, 32


def tell(**event: object) -> None:
    """What `safepoint demo` draws its progress bars from."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def forever(loader: Any) -> Iterator[Any]:
    """Epoch after epoch; a `Resumable` begins where its restored position is."""
    while True:
        yield from loader


def main(run: str, model_file: str | None = None) -> None:
    """Train, or go on training."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # all three are saved and restored
        seed(SEED)
    torch.set_num_threads(1)  # a network this small is slower on more; equality does not need it

    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, training()))
    batches = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    steps_per_epoch = len(batches)
    steps = EPOCHS * steps_per_epoch

    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8)),
        torch.nn.Conv2d(1, 32, 3),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 3 * 3, 64),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(64, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = safepoint.Resumable(batches, seed=SEED)
    history = {"loss": np.zeros(steps)}

    checkpoint = safepoint.Checkpoint(
        model=model, optimizer=optimizer, scheduler=scheduler, loader=loader, history=history
    )
    config = {"seed": SEED, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
    manager = safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(25)], config=config)

    # steps() comes first: it restores the loader's position before the loader is read.
    for step, (images, labels) in zip(manager.steps(steps), forever(loader), strict=False):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        history["loss"][step] = loss.item()

        started = time.perf_counter()
        saved = manager.save(metrics={"loss": loss.item()})
        stall = time.perf_counter() - started
        tell(step=step, steps=steps, per_epoch=steps_per_epoch, loss=loss.item(), stall=stall if saved else 0)
    manager.close()

    if model_file is not None:
        model.eval()
        safepoint.save_model(model, model_file)
        with torch.no_grad():
            predictions = model(torch.from_numpy(held_out()[0])).numpy()
        tell(predictions=np.ascontiguousarray(predictions).tobytes().hex())


if __name__ == "__main__":
    main(*sys.argv[1:])
