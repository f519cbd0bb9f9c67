"""Chains on numbers derived by hand, and the orders that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.base import Codec
from fedpeft.codecs.chain import Chain
from fedpeft.codecs.float16 import Float16
from fedpeft.codecs.identity import Identity
from fedpeft.codecs.lowrank import LowRank
from fedpeft.codecs.quantize import Int4, Int8
from fedpeft.codecs.topk import TopK
from fedpeft.core.errors import ConfigError, WireError
from fedpeft.core.types import TensorSpec

RNG = np.random.default_rng(0)
TOP, LOW = TopK(fraction=0.1), LowRank(rank=2)


def test_topk_then_int8_by_hand() -> None:
    """1000 values, the first 100 are 127 and -1 in turn, the others 0.5: k = 100 in a bitmap of 125 bytes; int8 of
    the 100 kept has scale 1 and codes 127 and -1. The bound is 0.5 of top-k and 1 + 127 x 2^-23 of int8."""
    given = np.full(1000, 0.5, np.float32)
    given[:100] = [127, -1] * 50
    chain = Chain(stages=[TOP, Int8()])
    encoded = chain.encode({"x": given}, RNG)
    assert {key: (value.dtype.name, value.shape) for key, value in encoded.items()} == {
        "x:indices": ("uint8", (125,)),
        "x:values:scales": ("float32", (1,)),
        "x:values:values": ("int8", (100,)),
    }
    assert encoded["x:values:scales"].tolist() == [1]
    assert encoded["x:values:values"].tolist() == [127, -1] * 50
    decoded = chain.decode(encoded, {"x": TensorSpec((1000,), "float32")})["x"]
    assert decoded.tolist() == [127, -1] * 50 + [0] * 900
    assert chain.error_bound({"x": given}) == {"x": 0.5 + 1 + 127 * 2.0**-23}


def test_low_rank_then_float16_leaves_vectors_to_the_format() -> None:
    spec = {"m": TensorSpec((40, 50), "float32"), "v": TensorSpec((7,), "float32")}
    assert Chain(stages=[LOW, Float16()]).encoded_spec(spec) == {
        "m:left": TensorSpec((2, 40), "float16"),
        "m:right": TensorSpec((2, 50), "float16"),
        "v": TensorSpec((7,), "float16"),
    }


def test_int8_of_factors_has_a_scale_for_each_component() -> None:
    """Singular values 10^4 and 10^-4: with one scale for both, the small component would drown in the large one's
    rounding; with its own it arrives to 2/127 of its size."""
    given = np.zeros((100, 120), np.float32)
    given[0, 0], given[1, 1] = 1e4, 1e-4
    chain = Chain(stages=[LOW, Int8()])
    parts = chain.pack(given, RNG)
    assert parts["left:scales"].shape == (2,)
    assert chain.unpack(parts, given.shape)[1, 1] == pytest.approx(1e-4, rel=2 / 127)


def test_what_the_format_would_not_make_smaller_stays_float32() -> None:
    """k = 20 of 400: int8 of 20 values costs 24 bytes and a second array, plain 80."""
    assert Chain(stages=[TopK(fraction=0.05), Int8()]).parts((400,)) == {
        "indices": TensorSpec((50,), "uint8"),
        "values": TensorSpec((20,), "float32"),
    }


def test_flags_follow_from_the_stages() -> None:
    cases: list[tuple[list[Codec], tuple[str, bool, bool, bool]]] = [
        ([TOP, Int8()], ("topk+int8", True, False, True)),
        ([LOW, Int4()], ("low_rank+int4", False, False, True)),
        ([TopK(fraction=0.1, error_feedback=False), Float16()], ("topk+float16", True, False, False)),
        ([LowRank(rank=1, error_feedback=False), Int8(error_feedback=True)], ("low_rank+int8", False, False, True)),
    ]
    for stages, flags in cases:
        chain = Chain(stages=stages)
        assert (chain.name, chain.sparse, chain.unbiased, chain.error_feedback) == flags
        assert not chain.lossless


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([Int8(), TOP], r"int8 \+ topk"),
        ([Float16(), LOW], r"float16 \+ low_rank"),
        ([TOP, LOW], r"topk \+ low_rank"),
        ([LOW, TOP], r"low_rank \+ topk"),
        ([Int8(), Float16()], r"int8 \+ float16"),
        ([TOP, Identity()], r"topk \+ none"),
        ([TOP, Int8(), Float16()], r"topk \+ int8 \+ float16"),
        ([TOP, Chain(stages=[TOP, Int8()])], r"topk \+ topk\+int8"),
        ([TOP], "topk"),
        ([], "nothing"),
        ([TOP, "int8"], r"topk \+ 'int8'"),
    ],
)
def test_unsound_orders_are_refused_by_name(stages: list[Codec], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"got {named} \(set codec.stages\)"):
        Chain(stages=stages)


def test_foreign_parts_of_both_stages_are_checked() -> None:
    chain, spec = Chain(stages=[TOP, Int8()]), {"x": TensorSpec((1000,), "float32")}
    honest = chain.encode({"x": np.arange(1000, dtype=np.float32)}, RNG)
    for part, value, check in (
        ("indices", 255, "indices"),
        ("values:scales", -1, "scales"),
        ("values:values", -128, "codes"),
    ):
        forged = {key: array.copy() for key, array in honest.items()}
        forged[f"x:{part}"][0] = value
        with pytest.raises(WireError) as caught:
            chain.decode(forged, spec)
        assert caught.value.check == check
