"""Factors are found by name, and change rank without changing their product."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.pairs import FactorError, Pair, cut_rank, lora_pairs, pad_rank


def test_pairs_are_found_by_name_in_sorted_order() -> None:
    keys = ["b.y.lora_B.weight", "head.weight", "b.y.lora_A.weight", "a.x.lora_B.weight", "a.x.lora_A.weight"]
    pairs = (
        Pair(module="a.x", a="a.x.lora_A.weight", b="a.x.lora_B.weight"),
        Pair(module="b.y", a="b.y.lora_A.weight", b="b.y.lora_B.weight"),
    )
    assert lora_pairs(keys) == lora_pairs(reversed(keys)) == lora_pairs(iter(keys)) == pairs
    many = [f"{i}.lora_{side}.weight" for i in range(9) for side in "AB"]
    assert [pair.module for pair in lora_pairs(many)] == list("012345678")
    assert lora_pairs(["head.weight", "x.lora_A.bias", "x.lora_embedding_B"]) == lora_pairs([]) == ()


def test_a_lone_factor_is_refused_or_passed_over() -> None:
    keys = ["x.lora_A.weight", "y.lora_B.weight", "z.lora_A.weight", "z.lora_B.weight"]
    with pytest.raises(FactorError, match=r"got none for x\.lora_B\.weight, y\.lora_A\.weight$"):
        lora_pairs(keys)
    assert [pair.module for pair in lora_pairs(keys, strict=False)] == ["z"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_keeps_the_product_and_cutting_undoes_it(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)).astype(dtype), rng.normal(size=(4, 3)).astype(dtype)
    for rank in (3, 4, 9):
        wide_a, wide_b = pad_rank(a, b, rank)
        assert (wide_a.shape, wide_b.shape, wide_a.dtype, wide_b.dtype) == ((rank, 5), (4, rank), dtype, dtype)
        assert np.allclose(wide_b @ wide_a, b @ a, rtol=1e-6, atol=1e-6)
        back = cut_rank(wide_a, wide_b, 3)
        assert [x.tobytes() for x in back] == [a.tobytes(), b.tobytes()]
    first_a, first_b = cut_rank(a, b, 2)
    assert first_a.tolist() == a[:2].tolist() and first_b.tolist() == b[:, :2].tolist()
    first_a[:] = first_b[:] = 0
    assert a.all() and b.all()


def test_bad_ranks_are_refused() -> None:
    square = np.ones((2, 2))
    with pytest.raises(FactorError, match=r"must be 2 or more, got 1 \(use cut_rank\)"):
        pad_rank(square, square, 1)
    for rank in (3, -1):
        with pytest.raises(FactorError, match=rf"must be in 0\.\.2, got {rank}"):
            cut_rank(square, square, rank)
    for change in (pad_rank, cut_rank):
        with pytest.raises(FactorError, match=r"A \(r, n\) and B \(m, r\), got \(1, 2\) and \(2, 2\)"):
            change(np.ones((1, 2)), square, 3)
        with pytest.raises(FactorError, match=r"got \(2,\) and \(2, 2\)"):
            change(np.ones(2), square, 3)
