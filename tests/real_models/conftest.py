"""One thread, as in the processes that these tests compare themselves with: more threads add up in another order."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
