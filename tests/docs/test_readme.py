"""Every Python block of the README and its guides runs as it stands; absolute paths are moved into a folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import safepoint

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *(ROOT / "docs" / name for name in ("training.md", "whole-models.md", "files.md"))]

_TORCH = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.1), torch.nn.Linear(4, 3))
dataset = torch.utils.data.TensorDataset(torch.randn(256, 8), torch.randint(3, (256,)))
"""

# What a block takes for granted, by the first words that tell it from the others; and what must hold after it.
CASES = {
    "# Training: everything": (
        _TORCH
        + """
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
total = 5
torch.save({"encoder.weight": torch.randn(20, 3)}, "model.pt")
def train_step():
    loss = model(torch.randn(4, 8)).square().mean()
    loss.backward(); optimizer.step(); optimizer.zero_grad(); scheduler.step()
    return loss
""",
        "assert [s.step for s in safepoint.Repository('runs/digits').snapshots] == [0, 1, 2, 3, 4]",
    ),
    "model.compile(": (
        """
import numpy as np
rng = np.random.default_rng(0)
x_train, y_train = rng.random((64, 100), np.float32), rng.integers(0, 10, 64)
x_test = rng.random((16, 100), np.float32)
""",
        """
assert model.optimizer.iterations == 2
expected = predictions.numpy()
other = safepoint.load_model('/path/to/model')
assert (other(x_test).numpy() == expected).all()
model.train_on_batch(x_train, y_train); other.train_on_batch(x_train, y_train)
assert (other(x_test).numpy() == model(x_test).numpy()).all()
""",
    ),
    "safepoint.KerasCheckpoint(": (
        """
import numpy as np, keras, safepoint
rng = np.random.default_rng(0)
x, y = rng.random((64, 8), np.float32), rng.integers(0, 3, 64)
model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(3, activation='softmax')])
model.compile('adam', 'sparse_categorical_crossentropy')
""",
        # Steps are batches, counted from 0: two an epoch, saved at the end of each.
        "assert safepoint.Repository('runs/fit').resolve('best:val_loss').step in (1, 3, 5)",
    ),
    "digits.predict": (
        """
import jax
params = {"hidden": jax.random.normal(jax.random.key(0), (4, 8)), "out": jax.random.normal(jax.random.key(1), (8, 3))}
x = jax.random.normal(jax.random.key(2), (5, 4))
""",
        """
assert jnp.allclose(probabilities[5:], predict(params, x), atol=1e-6)
assert trainable.function is predict and list(model.params) == list(trainable.params) == ["hidden", "out"]
""",
    ),
    "CosineAnnealingLR": (
        _TORCH,
        "assert [s.step for s in safepoint.Repository('runs/torch').snapshots][-3:] == [17, 18, 19]",
    ),
    "class Network(": (
        "",
        """
assert type(again) is Network and again.training
assert torch.equal(again(x), model(x))
torch.testing.assert_close(graph(x), model(x))
assert y.shape == (1, 3) and list(graph.state_dict()) == list(model.state_dict())
""",
    ),
    'select=["model/encoder.*"]': (
        """
import torch
import safepoint
from collections import OrderedDict
from safetensors.torch import save_file

def network(classes):
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8))
    return torch.nn.Sequential(OrderedDict(encoder=encoder, head=torch.nn.Linear(8, classes)))

old = network(10)
optimizer = torch.optim.SGD(old.parameters(), 0.1)
with safepoint.CheckpointManager(safepoint.Checkpoint(model=old, optimizer=optimizer), "runs/pretrained") as manager:
    for step in manager.steps(3):
        manager.save(metrics={"loss": 1.0})
layers = torch.nn.ModuleDict({f"layer{i}": layer for i, layer in enumerate(old.encoder)})
safepoint.Checkpoint(net=layers).save("runs/old")
save_file({f"bert.{name}": tensor for name, tensor in old.encoder.state_dict().items()}, "anyone.safetensors")
model = network(5)
encoder = model.encoder[0].weight
""",
        """
assert torch.equal(encoder, old.encoder[0].weight)
assert model.head.weight.shape == (5, 8)
""",
    ),
    "optax.apply_updates": (
        """
import jax, jax.numpy as jnp
params = {"kernel": jax.random.normal(jax.random.key(1), (4, 3)), "bias": jnp.zeros(3)}
def loss_of(params, x):
    return jnp.mean((x @ params["kernel"] + params["bias"] - 1) ** 2)
""",
        """
assert [s.step for s in safepoint.Repository('runs/jax').snapshots][-3:] == [17, 18, 19]
again = safepoint.Checkpoint(params=params, opt_state=optimizer.init(params), key=jax.random.key(9))
assert safepoint.CheckpointManager(again, "runs/jax").resume() == 20
assert (again["params"]["kernel"] == values["params"]["kernel"]).all()
assert again["opt_state"][0].count == 20
assert again["key"] == values["key"]
""",
    ),
    "nnx.Optimizer(": (
        """
import jax, jax.numpy as jnp
from flax import nnx
class Network(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
    def __call__(self, x):
        return self.dropout(self.dense(x))
@nnx.jit
def train_step(model, optimizer):
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(jnp.ones((8, 4))) - 1) ** 2))(model)
    optimizer.update(model, gradients)
    return loss
""",
        """
kernel = model.dense.kernel[...].copy()
model = Network(nnx.Rngs(7, dropout=8))
manager.wait()
safepoint.Checkpoint(model=model).restore("runs/nnx")
assert (model.dense.kernel[...] == kernel).all()
""",
    ),
    "np.zeros(3)": ("", "assert 'state/weights' in report.matched"),
}


def blocks() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return [block for text in texts for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_block_runs(number: int, tmp_path: Path) -> None:
    block = blocks()[number]
    before, after = next(case for words, case in CASES.items() if words in block)
    code = f"{before}\n{block}\n{after}".replace("/path/to/", f"{tmp_path}/")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if 'select=["model/encoder.*"]' in block:  # its report is printed below it
        guide = (ROOT / "docs/training.md").read_text(encoding="utf-8")
        assert [done.stdout] == re.findall(r"^```text\n(restored .*?)^```", guide, re.MULTILINE | re.DOTALL)


def test_the_commands_run(tmp_path: Path) -> None:
    state = {"w": np.zeros(3)}
    safepoint.Checkpoint(state=state).save(tmp_path / "runs/digits", metrics={"loss": 1})
    torch.save({"encoder.weight": torch.arange(3.0)}, tmp_path / "model.pt")
    save_file({"encoder.weight": torch.arange(3.0)}, tmp_path / "model.safetensors")
    for line in re.findall(r"^safepoint (.*?) +#", "".join(page.read_text() for page in PAGES), re.MULTILINE):
        name, *arguments = shlex.split(line)
        ours = name in {"diff", "log", "show", "verify"}  # what needs more than a run has tests of its own
        command = [sys.executable, "-m", "safepoint", name, *(arguments if ours else ["--help"])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


LINES_NEED = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import jax.numpy as jnp, keras, numpy as np, torch, transformers
import safepoint
net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 3))
other_net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 5))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
x = torch.randn(2, 8)
small = dict(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=9)
bert = transformers.BertModel(transformers.BertConfig(**small))
from_pretrained = transformers.BertModel.from_pretrained
inputs, targets = np.ones((8, 4), np.float32), np.ones((8, 1), np.float32)
keras_model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
keras_model.compile("adam", "mse")
params, jax_x = {"w": jnp.ones(3)}, jnp.ones((4, 3))
def apply(params, x):
    return x @ params["w"]
"""


def test_each_line_of_the_table_runs(tmp_path: Path) -> None:
    table = README.read_text().partition("| You train with | one line |")[2].partition("\n\n")[0]
    lines = [code for row in table.splitlines()[2:] for code in re.findall(r"`([^`]*\(.*?)`", row.split(" | ")[1])]
    assert len(lines) == 10
    after = "assert net(x.double()).dtype == torch.float64 and other_net[0].weight.equal(before)\n"
    after += "assert jnp.allclose(safepoint.load_model('apply.safetensors')(jnp.ones((2, 3))), 3.0)"
    code = "\n".join([LINES_NEED, "before = net[0].weight.detach().clone()", *lines, after])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_block_is_tried() -> None:
    for words in CASES:
        assert any(words in block for block in blocks()), f"no block has {words!r} any more"
    for block in blocks():
        assert any(words in block for words in CASES), f"no case for the block that begins {block[:60]!r}"
