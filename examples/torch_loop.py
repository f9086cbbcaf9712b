"""Train on digits with PyTorch. Kill it at any moment and run it again: it goes on, and ends with the same bits.

python torch_loop.py [STEPS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import safepoint


def main(steps: int = 300, run: str = "runs/torch", every: int = 10) -> None:
    """Train for `steps` steps in all, over however many processes."""
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target))
    workers = {"num_workers": 2, "persistent_workers": True}
    loader = safepoint.Resumable(DataLoader(data, batch_size=64, shuffle=True, drop_last=True, **workers))

    hidden = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    scaler = torch.amp.GradScaler("cpu")
    history = {"loss": torch.zeros(steps)}

    # Everything that the next step depends on. Global random states (dropout) are saved beside it.
    checkpoint = safepoint.Checkpoint(
        model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader, history=history
    )
    with safepoint.CheckpointManager(checkpoint, run, save=[safepoint.EverySteps(every)]) as manager:
        # steps() comes first: it restores the loader's position before the loader is read.
        for step, (images, labels) in zip(manager.steps(steps), epochs(loader)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            history["loss"][step] = loss.detach()
            manager.save(metrics={"loss": loss})
    print(f"loss {history['loss'][0]:.3f} -> {history['loss'][-1]:.3f} in {steps} steps")


def epochs(loader):
    """Batches for ever: each `iter` of a Resumable is the rest of the epoch it is in."""
    while True:
        yield from loader


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
