"""One thread each, as in `tests/torch`: small tensors gain nothing from more, and sums come out alike everywhere."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
