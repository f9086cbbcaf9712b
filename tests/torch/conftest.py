"""One thread each: small tensors gain nothing from more, and shared machines lose much."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
