"""Load a whole model from one file and use it: the class is PyTorch's own, so no code of its author is needed.

python torch_predict.py MODEL
"""

from __future__ import annotations

import json
import sys

import torch
from digits import held_out

import safepoint


def main(path: str) -> None:
    """Print how many of the held-out digits the model gets right."""
    images, labels = held_out()
    model = safepoint.load_model(path)
    with torch.no_grad():
        predictions = model(torch.from_numpy(images)).numpy()
    right = int((predictions.argmax(axis=1) == labels).sum())
    document = {"right": right, "held_out": len(labels), "predictions": predictions.tobytes().hex()}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
