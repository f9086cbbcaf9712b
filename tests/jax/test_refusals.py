"""What cannot be kept or taken exactly is refused by name, and nothing is changed."""

from __future__ import annotations

import functools
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.jax.comparing import same

import safepoint
from safepoint.adapters import Scope
from safepoint.adapters import jax as adapter
from safepoint.repository import Repository
from safepoint.tree import Branch, LeafRef, Node, StateTree, Tensor


def save(path: Path, **trees: Any) -> None:
    safepoint.Checkpoint(**trees).save(path, **trees)


def refused(path: Path, error: type[safepoint.SafepointError], match: str, **options: Any) -> Any:
    """The error of a restore that must change nothing; trees are given by `live=`."""
    live = options.pop("live")
    checkpoint = safepoint.Checkpoint(**live)
    with pytest.raises(error, match=match) as caught:
        checkpoint.restore(path, **options)
    assert all(checkpoint[name] is tree for name, tree in live.items())
    return caught.value


def test_a_donated_buffer_is_named_and_nothing_is_saved(tmp_path: Path) -> None:
    params = {"dense": {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}}
    checkpoint = safepoint.Checkpoint(params=params)
    new = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(params)
    with pytest.raises(safepoint.UnsupportedError, match=r"params: 'dense/kernel' was donated or deleted"):
        checkpoint.save(tmp_path, params=params)
    with pytest.raises(safepoint.UnsupportedError, match=r"params: 'dense/kernel' was donated or deleted"):
        safepoint.CheckpointManager(checkpoint, tmp_path).save(0, params=params)
    assert not list(tmp_path.iterdir())
    checkpoint.save(tmp_path, params=new)
    assert checkpoint.restore(tmp_path).matched == ("params/dense/bias", "params/dense/kernel")


def test_what_is_donated_after_save_returned_is_saved_all_the_same(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    value = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = np.array(value)
    checkpoint = safepoint.Checkpoint(w=value)
    with safepoint.CheckpointManager(checkpoint, tmp_path) as manager:
        manager.resume()
        address = value.unsafe_buffer_pointer()
        manager.save(0, w=value)
        new = step(value)
        assert value.is_deleted()
        assert new.unsafe_buffer_pointer() == address  # the very memory that was saved has other content by now
        new.block_until_ready()
    checkpoint.restore(tmp_path)
    np.testing.assert_array_equal(checkpoint["w"], expected)


def test_a_donated_template_is_restored_whole_but_not_in_part(tmp_path: Path) -> None:
    save(tmp_path, params={"a": jnp.ones(2), "b": jnp.ones(3)})
    live = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    checkpoint = safepoint.Checkpoint(params=live)
    for array in live.values():
        array.delete()
    with pytest.raises(safepoint.MismatchError, match="b   live donated or deleted"):
        checkpoint.restore(tmp_path, select=["params/a"])
    checkpoint.restore(tmp_path)
    assert same(checkpoint["params"], {"a": jnp.ones(2), "b": jnp.ones(3)})


def test_sixty_four_bits_are_never_silently_halved(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        wide = {"w": jnp.arange(3, dtype=jnp.float64), "n": jnp.asarray(2**40), "z": jnp.ones(2, jnp.complex128)}
        save(tmp_path, tree=wide)
    narrow = {"w": jnp.zeros(3), "n": jnp.zeros((), jnp.int32), "z": jnp.zeros(2, jnp.complex64)}
    error = refused(tmp_path, safepoint.MismatchError, "jax_enable_x64", live={"tree": narrow})
    assert set(error.differs) == {"tree/w", "tree/n", "tree/z"}
    refused(tmp_path, safepoint.MismatchError, "jax_enable_x64", live={"tree": wide})
    numbers = {"w": narrow["w"], "n": 0, "z": narrow["z"]}
    refused(tmp_path, safepoint.MismatchError, "jax_enable_x64", live={"tree": numbers}, strict=False)
    checkpoint = safepoint.Checkpoint(tree=narrow)
    checkpoint.restore(tmp_path, select=["tree/w", "tree/z"], cast=True)
    assert same(checkpoint["tree"]["w"], jnp.arange(3, dtype=jnp.float32))
    with jax.enable_x64(True):
        checkpoint = safepoint.Checkpoint(tree=jax.tree.map(jnp.zeros_like, wide))
        checkpoint.restore(tmp_path)
        assert same(checkpoint["tree"], wide)


def test_sixty_four_bits_inside_another_objects_state_are_refused(tmp_path: Path) -> None:
    class Holder:
        def __init__(self, value: Any) -> None:
            self.value = value

        def state_dict(self) -> Any:
            return {"value": self.value}

        def load_state_dict(self, state: Any) -> None:
            self.value = state["value"]

    with jax.enable_x64(True):
        safepoint.Checkpoint(holder=Holder(jnp.ones(2, jnp.float64))).save(tmp_path)
    live = Holder(jnp.zeros(2))
    with pytest.raises(safepoint.SafepointError, match="jax_enable_x64"):
        safepoint.Checkpoint(holder=live).restore(tmp_path)
    assert same(live.value, jnp.zeros(2))


def test_a_typed_key_inside_another_objects_state_is_refused_with_a_way_out() -> None:
    class Holder:
        def state_dict(self) -> Any:
            return {"key": jax.random.key(0)}

        def load_state_dict(self, state: Any) -> None:
            raise AssertionError(state)

    with pytest.raises(safepoint.UnsupportedError, match=r"jax\.random\.key_data"):
        safepoint.Checkpoint(holder=Holder()).capture()


def test_a_number_takes_the_place_of_an_array_without_axes_and_back(tmp_path: Path) -> None:
    save(tmp_path, state={"step": jnp.asarray(5), "rate": 0.5, "w": jnp.ones(2)})
    checkpoint = safepoint.Checkpoint(state={"step": 0, "rate": jnp.zeros(()), "w": jnp.zeros(2)})
    checkpoint.restore(tmp_path)
    assert same(checkpoint["state"], {"step": jnp.asarray(5), "rate": 0.5, "w": jnp.ones(2)})


@pytest.mark.parametrize(
    ("saved", "live", "words"),
    [
        (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="unsafe_rbg"), "a PRNG key of unsafe_rbg, saved a PRNG"),
        (jax.random.key(0), jax.random.PRNGKey(0), "live an array, saved a PRNG key of threefry2x32"),
        (jax.random.PRNGKey(0), jax.random.key(0), "live a PRNG key of threefry2x32, saved an array"),
        (jax.random.key(0), jax.random.key(0, impl="rbg"), r"live uint32\[4\], saved uint32\[2\]"),
        (jax.random.key(0), np.zeros(2, np.uint32), "live an array, saved a PRNG key"),
    ],
)
def test_a_key_is_only_taken_by_a_key_of_its_kind(saved: Any, live: Any, words: str, tmp_path: Path) -> None:
    save(tmp_path, rngs={"key": saved, "w": jnp.ones(2)})
    error = refused(tmp_path, safepoint.MismatchError, words, live={"rngs": {"key": live, "w": jnp.zeros(2)}})
    assert "rngs/key" in error.differs
    checkpoint = safepoint.Checkpoint(rngs={"key": live, "w": jnp.zeros(2)})
    checkpoint.restore(tmp_path, select=["rngs/w"])
    assert checkpoint["rngs"]["key"] is live


def test_what_was_saved_of_another_shape_of_tree_lists_every_difference(tmp_path: Path) -> None:
    save(tmp_path, params={"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "old": jnp.ones(1)})
    live = {"dense": {"kernal": jnp.zeros((2, 3)), "bias": jnp.zeros(4)}}
    error = refused(
        tmp_path, safepoint.MismatchError, "nearest in the snapshot: params/dense/kernel", live={"params": live}
    )
    assert error.missing == ("params/dense/kernal",)
    assert set(error.unexpected) == {"params/dense/kernel", "params/old"}
    assert set(error.differs) == {"params/dense/bias"}


def test_parts_renamed_and_cast_trees_are_taken_when_asked_for(tmp_path: Path) -> None:
    save(
        tmp_path, params={"encoder": {"w": jnp.ones(3), "b": jnp.ones(2)}, "head": jnp.ones(5)}, ema={"w": jnp.ones(1)}
    )
    live = {"backbone": {"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(2)}, "head": jnp.zeros(7)}
    checkpoint = safepoint.Checkpoint(params=live)
    report = checkpoint.restore(tmp_path, rename={"params/encoder/": "params/backbone/"}, strict=False, cast=True)
    restored = checkpoint["params"]
    assert same(restored["backbone"], {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)})
    assert restored["head"] is live["head"]
    assert "params/head" in report.reshaped
    assert "ema/w" in report.ignored


def test_a_dtype_is_only_converted_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path, w=jnp.ones(3))
    live = jnp.zeros(3, jnp.bfloat16)
    error = refused(tmp_path, safepoint.MismatchError, "cast=True", live={"w": live})
    assert "x64" not in str(error)


def test_a_transformation_is_not_a_state() -> None:
    with pytest.raises(safepoint.UnsupportedError, match=r"opt_state=optimizer\.init\(params\)"):
        safepoint.Checkpoint(optimizer=optax.adam(1e-3))


def test_an_object_inside_a_tree_is_refused_by_its_path() -> None:
    class Odd:
        pass

    with pytest.raises(safepoint.UnsupportedError, match=r"'a/0/odd' cannot be saved: .*Odd"):
        safepoint.Checkpoint(tree={"w": jnp.ones(1), "a": [{"odd": Odd()}]})
    with pytest.raises(safepoint.UnsupportedError, match="'rng' is a Generator, restored in place"):
        safepoint.Checkpoint(tree={"w": jnp.ones(1), "rng": np.random.default_rng()})


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(safepoint.UnsupportedError, match="two leaves are called 'a/b'"):
        safepoint.Checkpoint(tree={"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
    with pytest.raises(safepoint.UnsupportedError, match="two leaves are called '1'"):
        safepoint.Checkpoint(tree={1: jnp.ones(1), "1": jnp.ones(1)})


def test_keys_are_spelled_alike_in_every_process_or_refused() -> None:
    class Group(Enum):
        FAST = 1

    checkpoint = safepoint.Checkpoint(tree={Group.FAST: jnp.ones(1), ("a", 1): jnp.ones(1), np.int64(3): jnp.ones(1)})
    assert list(checkpoint.capture(checkpoint.objects).leaves) == ["tree/FAST", "tree/('a', 1)", "tree/3"]
    with pytest.raises(safepoint.UnsupportedError, match=r"a dictionary's key of builtins\.object"):
        safepoint.Checkpoint(tree={object(): jnp.ones(1)})


def test_a_tree_that_is_nested_too_deep_is_refused() -> None:
    tree: Any = jnp.ones(1)
    for _ in range(10_000):
        tree = {"a": tree}
    with pytest.raises(safepoint.UnsupportedError, match=r"deeper than 64 levels|cannot be captured"):
        safepoint.Checkpoint(tree=tree)


def test_a_name_that_save_needs_for_itself_is_refused() -> None:
    with pytest.raises(safepoint.UnsupportedError, match=r"'step' is an argument of save\(\)"):
        safepoint.Checkpoint(step=jnp.zeros(()))


def test_a_tracer_is_refused(tmp_path: Path) -> None:
    checkpoint = safepoint.Checkpoint(w=jnp.ones(2))
    with pytest.raises(safepoint.UnsupportedError, match="save outside of jit"):
        jax.jit(lambda w: checkpoint.save(tmp_path, w=w))(jnp.ones(2))


def test_arrays_and_programs_of_several_processes_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    class Remote:
        """An array of which this process has some shards only, as far as it can be had in one process."""

        __class__ = jax.Array
        is_fully_addressable, sharding, dtype, shape = False, "over 2 hosts", np.dtype("float32"), (2,)

        def is_deleted(self) -> bool:
            return False

    with pytest.raises(safepoint.UnsupportedError, match=r"'w' cannot be saved: .* spans several processes"):
        adapter.to_tree({"w": Remote()}, Scope())
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    checkpoint = safepoint.Checkpoint(w=jnp.ones(2))
    with pytest.raises(safepoint.UnsupportedError, match="4 JAX processes train together"):
        checkpoint.save(tmp_path, w=jnp.ones(2))


class State(NamedTuple):
    count: Any
    mu: Any


def commit(path: Path, leaves: dict[str, Any], skeleton: Node) -> None:
    tree = StateTree(leaves, skeleton)
    Repository(path).commit(StateTree.join({"state": tree}))


HOSTILE: dict[str, Node] = {
    "other containers": Branch("list", (), (LeafRef("mu/w", "jax"), LeafRef("count", "jax"))),
    "no containers": LeafRef("count", "jax"),
    "names that are not there": Branch("dict", ("x",), (LeafRef("__class__", "jax"), LeafRef("../mu", "numpy"))),
    "a module": Branch("torch.module"),
    "unknown words": Branch("os.system", ("rm",), (LeafRef("mu/w", "eval"), LeafRef("count", "pickle"))),
    "seventy levels": functools.reduce(
        lambda node, _: Branch("list", (), (node,)), range(70), Branch("dict", ("mu",), (LeafRef("mu/w", "jax"),))
    ),
    "itself again and again": Branch("tuple", (), tuple(LeafRef("mu/w", "jax") for _ in range(1000))),
}


@pytest.mark.parametrize("word", HOSTILE)
def test_a_skeleton_is_never_obeyed(word: str, tmp_path: Path) -> None:
    leaves = {"count": Tensor.of(np.int32(3).reshape(())), "mu/w": Tensor.of(np.ones(2, np.float32))}
    commit(tmp_path, leaves, HOSTILE[word])
    checkpoint = safepoint.Checkpoint(state=State(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}))
    checkpoint.restore(tmp_path)
    assert same(checkpoint["state"], State(jnp.asarray(3, jnp.int32) + jnp.int32(0), {"w": jnp.ones(2)}))


@pytest.mark.parametrize("kind", ["jax.key.", "jax.key.evil", "jax.key.rbg", "jax.key.threefry2x32.1"])
def test_a_key_of_an_invented_kind_is_refused(kind: str, tmp_path: Path) -> None:
    commit(tmp_path, {"": Tensor.of(np.zeros(2, np.uint32))}, LeafRef("", kind))
    refused(tmp_path, safepoint.MismatchError, "PRNG key", live={"state": jax.random.key(0)})
    refused(tmp_path, safepoint.MismatchError, "PRNG key", live={"state": jnp.zeros(2, jnp.uint32)})


def test_a_container_that_refuses_its_children_leaves_everything_as_it_was(tmp_path: Path) -> None:
    allowed = [True]

    @jax.tree_util.register_pytree_with_keys_class
    class Fussy:
        def __init__(self, w: Any) -> None:
            self.w = w

        def tree_flatten_with_keys(self) -> Any:
            return [(jax.tree_util.GetAttrKey("w"), self.w)], None

        @classmethod
        def tree_unflatten(cls, _: Any, children: Any) -> Any:
            if not allowed[0]:
                raise ValueError("no")
            return cls(*children)

    fussy, plain = Fussy(jnp.zeros(2)), {"n": np.zeros(3)}
    checkpoint = safepoint.Checkpoint(plain=plain, fussy=fussy)
    checkpoint.save(tmp_path, fussy=Fussy(jnp.ones(2)))
    plain["n"][:] = 7
    allowed[0] = False
    checkpoint = safepoint.Checkpoint(plain=plain, fussy=fussy)
    with pytest.raises(safepoint.MismatchError, match="could not be made of what was saved; nothing was changed"):
        checkpoint.restore(tmp_path)
    assert plain["n"].tolist() == [7, 7, 7]
    assert checkpoint["fussy"] is fussy
