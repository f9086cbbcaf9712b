"""`AdapterSuite`: what every adapter promises, as tests that a subclass runs on its own objects.

Invariant: nothing here knows a framework; objects are compared through the leaves that the adapter gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from safepoint.adapters import Adapter, Scope
from safepoint.tree import Leaf, StateTree, Tensor, TensorSpec, Value, bytes_of, check_name
from safepoint.tree.leaves import Bytes

Make = Callable[[int], Any]

_SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3, 0, 2), (1,), (5, 7))


class AdapterSuite:
    """Subclass it in a test module, set `adapter`, and say in `objects` what to test it on.

    Example:
        class TestMyAdapter(AdapterSuite):
            adapter = my_package.safepoint_adapter

            def objects(self):
                return {"linear": lambda seed: make_linear(seed)}
    """

    adapter: Adapter

    def objects(self) -> Mapping[str, Make]:
        """A word → a function that makes an object of one structure, with content that depends on a seed."""
        raise NotImplementedError

    def scope(self, obj: Any) -> Scope:
        """What `obj` is captured with; an optimizer's needs the names of its parameters, equal for every seed."""
        return Scope({id(parameter): f"model/{name}" for name, parameter in self.adapter.owners(obj)})

    def test_it_handles_its_objects(self) -> None:
        for word, make in self.objects().items():
            assert self.adapter.handles(make(0)), word

    def test_it_does_not_handle_what_is_plain(self) -> None:
        for obj in (None, 1, "text", object(), int):
            assert not self.adapter.handles(obj)

    def test_names_can_be_kept(self) -> None:
        for word, make in self.objects().items():
            for name in self._tree(make(0)).leaves:
                assert check_name(name) == name, word

    def test_bytes_are_what_the_spec_says(self) -> None:
        for word, make in self.objects().items():
            for name, leaf in self._tree(make(0)).tensors.items():
                data = leaf.read()
                assert (data.dtype, data.shape) == (np.dtype(np.uint8), (leaf.spec.num_bytes,)), f"{word}: {name}"

    def test_memory_is_the_tensor_itself(self) -> None:
        for word, make in self.objects().items():
            for name, leaf in self._tree(make(0)).tensors.items():
                if leaf.memory is not None:
                    assert leaf.memory.flags.writeable, f"{word}: {name}"
                    np.testing.assert_array_equal(leaf.memory, leaf.read(), f"{word}: {name}")

    def test_capturing_changes_nothing(self) -> None:
        for word, make in self.objects().items():
            obj = make(0)
            before = self._frozen(obj)
            self._tree(obj)
            assert _same(before, self._frozen(obj)), word
            assert before.skeleton == self._tree(obj).skeleton, word

    def test_a_template_changes_nothing(self) -> None:
        for word, make in self.objects().items():
            obj = make(1)
            before = self._frozen(obj)
            saved = self._frozen(make(0))
            self.adapter.template(obj, saved, self.scope(obj))
            assert _same(before, self._frozen(obj)), word

    def test_a_template_accepts_what_an_equal_object_saved(self) -> None:
        for word, make in self.objects().items():
            obj, saved = make(1), self._frozen(make(0))
            template = self.adapter.template(obj, saved, self.scope(obj))
            assert template.leaves.keys() == saved.leaves.keys(), word
            for name, leaf in template.leaves.items():
                assert _spec(leaf) == _spec(saved.leaves[name]), f"{word}: {name}"

    def test_a_state_put_into_an_equal_object_is_exact(self) -> None:
        for word, make in self.objects().items():
            saved = self._frozen(make(0))
            obj = make(1)
            restored = self._put(saved, obj)
            assert _same(saved, self._frozen(restored)), word

    def test_a_state_put_back_undoes_nothing_twice(self) -> None:
        for word, make in self.objects().items():
            obj = make(0)
            saved = self._frozen(obj)
            restored = self._put(saved, self._put(saved, obj))
            assert _same(saved, self._frozen(restored)), word

    def test_bytes_are_copied_so_that_staging_can_be_reused(self) -> None:
        for word, make in self.objects().items():
            source = self._frozen(make(0))
            staging = {name: leaf.read().copy() for name, leaf in source.tensors.items()}
            restored = self._put(_over(staging, source), make(1))
            for data in staging.values():
                data[:] = 0xA5
            assert _same(source, self._frozen(restored)), word

    def test_bytes_that_may_not_be_written_are_taken(self) -> None:
        for word, make in self.objects().items():
            saved = self._frozen(make(0))
            for leaf in saved.tensors.values():
                leaf.read().setflags(write=False)
            assert _same(saved, self._frozen(self._put(saved, make(1)))), word

    def test_a_part_leaves_the_rest_alone(self) -> None:
        for word, make in self.objects().items():
            saved, obj = self._frozen(make(0)), make(1)
            before = self._frozen(obj)
            taken = [name for number, name in enumerate(saved.tensors) if number % 2 == 0]
            if self.adapter.OPAQUE or len(saved.tensors) < 2:
                continue  # only the object itself knows which parts it takes
            part = StateTree({name: saved.leaves[name] for name in taken}, saved.skeleton)
            after = self._frozen(self.adapter.from_tree(part, obj, self.scope(obj)))
            for name, leaf in after.leaves.items():
                wanted = saved if name in taken else before
                assert _equal(leaf, wanted.leaves[name]), f"{word}: {name}"

    def test_tensors_of_any_shape_and_layout_are_kept_exactly(self) -> None:
        for kind in getattr(self.adapter, "TENSOR_KINDS", ()):
            for shape in _SHAPES:
                array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
                for variant in (array, np.array(array, order="F"), array[..., ::-1] if array.ndim else array):
                    built = kind.build(Tensor.of(variant))
                    if kind.is_tensor(built):
                        leaf = kind.to_leaf(built)
                        assert leaf.spec == TensorSpec(shape, "float32")
                        np.testing.assert_array_equal(leaf.read(), bytes_of(variant))

    def _tree(self, obj: Any) -> StateTree:
        return self.adapter.to_tree(obj, self.scope(obj))

    def _frozen(self, obj: Any) -> StateTree:
        return self._tree(obj).map_tensors(lambda _, leaf: Tensor.of_bytes(leaf.read().copy(), leaf.spec))

    def _put(self, saved: StateTree, obj: Any) -> Any:
        scope = self.scope(obj)
        template = self.adapter.template(obj, saved, scope)
        leaves = {name: saved.leaves[name] for name in template.leaves}
        return self.adapter.from_tree(StateTree(leaves, saved.skeleton), obj, scope)


def _over(staging: Mapping[str, Bytes], tree: StateTree) -> StateTree:
    return tree.map_tensors(lambda name, leaf: Tensor.of_bytes(staging[name], leaf.spec))


def _spec(leaf: Leaf) -> TensorSpec | type[Value]:
    return leaf.spec if isinstance(leaf, Tensor) else type(leaf)


def _equal(one: Leaf, other: Leaf) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.spec == other.spec and bool(np.array_equal(one.read(), other.read()))
    # By repr: NaN is itself, 1 is not True, -0.0 is not 0.0.
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and repr(one) == repr(other)


def _same(one: StateTree, other: StateTree) -> bool:
    """Whether two trees have the same leaves, bit for bit."""
    return one.leaves.keys() == other.leaves.keys() and all(
        _equal(leaf, other.leaves[name]) for name, leaf in one.leaves.items()
    )
