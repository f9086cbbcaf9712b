"""Load a whole model from one file and use it: no class, no code of its author.

python keras_predict.py MODEL
"""

from __future__ import annotations

import json
import sys

import numpy as np
from digits import held_out

import safepoint


def main(path: str) -> None:
    """Print how many of the held-out digits the model gets right."""
    images, labels = held_out()
    model = safepoint.load_model(path)
    predictions = np.asarray(model(images))
    right = int((predictions.argmax(axis=1) == labels).sum())
    document = {"right": right, "held_out": len(labels), "predictions": predictions.tobytes().hex()}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
