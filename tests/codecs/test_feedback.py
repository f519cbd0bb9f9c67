"""Error feedback, followed by hand over rounds."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.codecs.feedback import compress
from fedpeft.codecs.float16 import Float16
from fedpeft.codecs.identity import Identity
from fedpeft.codecs.quantize import Int8
from fedpeft.codecs.topk import TopK
from fedpeft.core.errors import WireError
from fedpeft.core.guard import reconstruct
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors

RNG = np.random.default_rng(0)
SIZE = 200


def vector(*first: float) -> np.ndarray:
    return np.pad(np.float32(first), (0, SIZE - len(first)))


def test_what_stays_behind_comes_later() -> None:
    """Top 1 of 200. Round 1: the change is 3, 2: 3 travels, 2 is kept. Round 2: 1, 1 and the kept 2 make 1, 3: the
    second travels, 1 is kept. Round 3: nothing trained, the kept 1 travels, nothing is kept."""
    codec = TopK(fraction=1 / SIZE)
    server = {"x": vector(10, 20)}
    residual: Tensors = {}
    for step, arrived, kept in (
        (vector(3, 2), [13, 20], [0, 2]),
        (vector(1, 1), [13, 23], [1, 0]),
        (vector(), [14, 23], [0, 0]),
    ):
        encoded, residual = compress(codec, server, {"x": server["x"] + step}, residual, RNG)
        server = reconstruct(codec, server, encoded)
        assert server["x"][:2].tolist() == arrived
        assert residual["x"][:2].tolist() == kept
        assert not server["x"][2:].any()
        assert not residual["x"][2:].any()


def test_without_feedback_nothing_is_kept_or_added() -> None:
    codec = TopK(fraction=1 / SIZE, error_feedback=False)
    sent = {"x": vector()}
    encoded, residual = compress(codec, sent, {"x": vector(3, 2)}, {"x": vector(0, 100)}, RNG)
    assert residual == {}
    assert reconstruct(codec, sent, encoded)["x"][:2].tolist() == [3, 0]


def test_nothing_to_round_leaves_nothing_behind() -> None:
    """Whole numbers up to 127 fit int8 with scale 1, so that the residual is 0."""
    _, residual = compress(Int8(error_feedback=True), {"x": vector(1)}, {"x": vector(128, 5)}, {}, RNG)
    assert not residual["x"].any()


def test_tensors_that_do_not_travel_keep_their_residual() -> None:
    codec = TopK(fraction=1 / SIZE)
    old = {"x": vector(0, 1), "y": vector(7)}
    _, residual = compress(codec, {"x": vector()}, {"x": vector(3)}, old, RNG)
    assert list(residual) == ["x", "y"]
    assert residual["x"][:2].tolist() == [0, 1]
    assert residual["y"] is old["y"]


def test_lossless_sends_the_tensors_themselves() -> None:
    """A change added again differs from the tensor in some last places; a tensor sent as it is does not."""
    draw = np.random.default_rng(5)
    sent, trained = ({"x": np.float32(draw.normal(size=1000))} for _ in range(2))
    assert ((trained["x"] - sent["x"]) + sent["x"] != trained["x"]).any()
    encoded, residual = compress(Identity(), sent, trained, {}, RNG)
    assert residual == {}
    assert reconstruct(Identity(), sent, encoded)["x"].tobytes() == trained["x"].tobytes()


def test_what_does_not_fit_is_refused() -> None:
    codec = TopK(fraction=1 / SIZE)
    with pytest.raises(WireError, match="keys: the trained tensors have other names"):
        compress(codec, {"x": vector()}, {"y": vector()}, {}, RNG)
    for old in (np.zeros(3, np.float32), np.zeros(SIZE)):
        with pytest.raises(WireError, match=r"residual: x was kept as .* \(remove the client's state"):
            compress(codec, {"x": vector()}, {"x": vector(1)}, {"x": old}, RNG)


def test_training_that_diverged_is_refused_without_a_warning() -> None:
    """inf - inf is NaN; the largest float32 minus its negative overflows."""
    top = float(np.finfo(np.float32).max)
    for sent, trained in ((np.inf, np.inf), (-top, top), (0, np.nan)):
        with pytest.raises(WireError, match="finite: the change of x"):
            compress(Float16(), {"x": vector(sent)}, {"x": vector(trained)}, {}, RNG)


def test_a_sum_that_overflows_is_refused() -> None:
    """Foreign bytes may say any finite float32; added to what was sent they must stay one."""
    top = np.finfo(np.float32).max
    sent = {"x": np.full(3, top, np.float32)}
    with pytest.raises(WireError, match="finite: x overflows"):
        reconstruct(Int8(), sent, {"x": np.full(3, top, np.float32)})


def test_scalars_stay_arrays() -> None:
    sent, trained = {"x": np.asarray(1, np.float32)}, {"x": np.asarray(2, np.float32)}
    codec = TopK(fraction=0.5)
    encoded, residual = compress(codec, sent, trained, {}, RNG)
    found = reconstruct(codec, sent, encoded)
    assert all(isinstance(value, np.ndarray) for value in (encoded["x"], residual["x"], found["x"]))
    assert specs(found) == specs(sent)
    assert float(found["x"]) == 2
