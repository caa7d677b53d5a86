"""What becomes of weights is what the plan says, and is made no earlier than it is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conet_onnx.analysis import analyze
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.loading import load
from conet_onnx.planning import plan
from conet_onnx.plans import Take
from conet_onnx.rewriting import rewrite
from conet_onnx.slicing import Slices, apply

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


def by_element(source: np.ndarray, made: Take) -> np.ndarray:
    """The same, an element at a time."""
    takes = [made.take.get(k, np.arange(n)) for k, n in enumerate(source.shape)]
    result = np.zeros([len(t) for t in takes], source.dtype)
    for place in np.ndindex(result.shape):
        where = tuple(int(t[i]) for t, i in zip(takes, place, strict=True))
        if min(where, default=0) >= 0:
            value = source[where]
            for k, by in made.divide.items():
                value = np.asarray(value / by[place[k]]).astype(source.dtype)
            result[place] = value
    return result


class TestTakes:
    def test_a_take_selects_repeats_divides_and_zeroes(self) -> None:
        source = np.arange(12, dtype=np.float32).reshape(3, 4)
        made = Take((3, 4), {0: np.array([2, 0, 2]), 1: np.array([1, -1])}, {0: np.array([1.0, 1.0, 2.0])})
        assert apply(source, made).tolist() == [[9, 0], [1, 0], [4.5, 0]]

    @given(st.data())
    def test_takes_of_any_shape_and_type(self, data: st.DataObject) -> None:
        """Many rows at a time or less than one make no difference, nor does the precision of the divisors."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
        dtype = data.draw(st.sampled_from(["float32", "float64", "float16", "int8", BFLOAT16]))
        source = (100 * rng.standard_normal(shape)).astype(dtype)
        axes = data.draw(st.sets(st.sampled_from(range(len(shape))))) if shape else set()
        take = {k: rng.integers(-1 if data.draw(st.booleans()) else 0, shape[k], rng.integers(1, 9)) for k in axes}
        shares = data.draw(st.sampled_from([[1.0], [1.0, 2.0, 4.0], [1.0, 3.0, 7.0], [1.5, 2.7, 1 / 3]]))
        divide = {
            k: rng.choice(shares, len(take[k])) for k in axes if source.dtype != np.int8 and data.draw(st.booleans())
        }
        made = Take(shape, take, divide)
        expected = by_element(source, made)
        for block in (1, 7, 10_000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("conet_onnx.slicing.BLOCK", block)
                found = apply(source, made)
            assert found.dtype == source.dtype
            assert found.flags.c_contiguous
            assert not np.shares_memory(found, source)
            assert found.tobytes() == expected.tobytes()

    @given(st.data())
    def test_runs_of_neighbours(self, data: st.DataObject) -> None:
        """What is copied run by run, whether runs begin at multiples of their length, overlap or end elsewhere."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        shape = (3, data.draw(st.sampled_from([8, 12, 24, 130])), *data.draw(st.sampled_from([(), (1, 1), (2, 3)])))
        lengths = st.sampled_from([1, 2, 3, 4, 8])
        length, aligned = data.draw(lengths), data.draw(st.booleans())
        starts = rng.integers(0, shape[1] - length + 1, rng.integers(1, 9))
        starts = starts // length * length if aligned else starts
        taken = (starts[:, None] + np.arange(length)).reshape(-1)
        source = rng.standard_normal(shape).astype(np.float32)
        made = Take(shape, {1: taken}, {1: rng.choice([1.0, 2.0, 3.0], len(taken))})
        assert np.array_equal(apply(source, made), by_element(source, made))

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 0, 3)])
    def test_axes_of_no_channels(self, shape: tuple[int, ...]) -> None:
        axis = len(shape) - 1
        taken = np.arange(shape[axis])
        made = apply(np.zeros(shape, np.float32), Take(shape, {axis: taken}, {axis: np.ones(len(taken))}))
        assert made.shape == shape

    def test_a_take_of_another_shape_is_refused(self) -> None:
        with pytest.raises(UsageError, match="shape"):
            apply(np.zeros((2, 2)), Take((3, 2), {0: np.array([0])}))

    def test_divisors_are_applied_before_the_type_is_narrowed(self) -> None:
        source = np.full((1, 3), 1000, np.float16)
        made = apply(source, Take((1, 3), {1: np.array([0, 0, 1])}, {1: np.array([3.0, 1.5, 1.0])}))
        assert made.dtype == np.float16
        assert made[0].tolist() == [np.float16(1000 / 3), np.float16(1000 / 1.5), 1000]

    @pytest.mark.parametrize("by", [2.0, 3.0, 2.7, 1 / 3])
    def test_quotients_are_rounded_once(self, by: float) -> None:
        source = np.random.default_rng(0).standard_normal((1, 5000), dtype=np.float32)
        made = apply(source, Take(source.shape, {0: np.array([0])}, {0: np.array([by])}))
        assert np.array_equal(made, (source.astype(np.float64) / by).astype(np.float32))


class TestWhenTheyAreMade:
    def halved(self) -> Graph:
        graph = zoo.graph("squeezenet1_0")
        found = analyze(graph)
        return rewrite(graph, plan(found, {name: width.size // 2 for name, width in found.widths.items()}))

    def test_to_be_saved_no_large_weight_is_made_as_a_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[int] = []
        whole = Slices.whole

        def noted(slices: Slices) -> np.ndarray:
            made.append(slices.nbytes)
            return whole(slices)

        monkeypatch.setattr(Slices, "whole", noted)
        graph = self.halved()
        graph.save(tmp_path / "half.onnx")
        assert made  # small ones
        assert max(made) <= 4 * 1024
        assert load(tmp_path / "half.onnx").proto() == graph.proto()
        assert max(made) > 4 * 1024

    def test_nor_where_they_go_to_a_file_of_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("conet_onnx.graph.PROTOBUF_LIMIT", 100)
        graph = self.halved()
        monkeypatch.setattr(Slices, "whole", lambda _: pytest.fail("a weight was made as a whole"))
        graph.save(tmp_path / "half.onnx")
        monkeypatch.undo()
        back = load(tmp_path / "half.onnx")
        assert (tmp_path / "half.onnx.data").stat().st_size == sum(data.nbytes for data in back.arrays.values())
        assert all(np.array_equal(back.array(name), graph.array(name)) for name in graph.weights)

    def test_a_whole_is_made_once_and_cannot_be_written_to(self) -> None:
        graph = self.halved()
        name = next(iter(graph.arrays))
        assert graph.array(name) is graph.array(name)
        with pytest.raises(ValueError, match="read-only"):
            graph.array(name)[0] = 1

    def test_blocks_make_the_whole_before_and_after_it_was_made(self) -> None:
        rng = np.random.default_rng(0)
        made = Slices(rng.random((300, 700)), Take((300, 700), {0: rng.integers(0, 300, 400)}))
        before = np.concatenate([*made.blocks()])
        assert len([*made.blocks()]) > 1
        assert made.nbytes == before.nbytes
        assert made.shape == before.shape
        assert np.array_equal(made.whole(), before)
        assert np.array_equal(np.concatenate([*made.blocks()]), before)
