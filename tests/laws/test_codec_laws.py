"""Laws that every codec obeys. Codecs are found by glob: a new YAML in conf/codec is tested by these without a word."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedpeft import codecs
from fedpeft.codecs.base import ARRAY_BYTES, LARGEST, Codec
from fedpeft.codecs.chain import Chain
from fedpeft.codecs.feedback import compress
from fedpeft.config.build import build
from fedpeft.core.errors import WireError
from fedpeft.core.guard import reconstruct
from fedpeft.core.paths import conf_dir
from fedpeft.core.tensors import specs
from fedpeft.core.types import Tensors, TensorSpec

FILES = sorted((conf_dir() / "codec").glob("*.yaml"))
CODECS: dict[str, Codec] = {path.stem: build(yaml.safe_load(path.read_text())) for path in FILES}
SHAPES = [(), (1,), (1, 1), (3, 0), (0,), (5, 7), (401,), (33, 41), (20, 90), (90, 20), (1, 999), (8, 4, 3, 3)]
LORA = {f"layer.{i}.lora_{side}.weight": shape for i in range(6) for side, shape in (("A", (8, 384)), ("B", (384, 8)))}
REALISTIC = {
    "lora": {**LORA, "head.weight": (2, 384)},
    "prompt": {"prompt": (20, 384)},
    "bitfit": {f"layer.{i}.bias": (1536,) for i in range(6)},
    "dense": {"layer.weight": (384, 384), "layer.bias": (384,)},
}

every = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def change(kind: str, shapes: list[tuple[int, ...]] = SHAPES) -> Tensors:
    """Return read-only changes of one kind in every shape."""
    draw = rng(sum(map(ord, kind)))
    make = {
        "usual": lambda shape: draw.normal(0, 1e-3, shape),
        "zero": np.zeros,
        "ties": lambda shape: np.full(shape, -0.25),
        "spike": lambda shape: (draw.random(shape) < 0.01) * 50.0,
        "mixed": lambda shape: draw.normal(size=shape) * 10.0 ** draw.integers(-40, 4, shape),
        "denormal": lambda shape: draw.integers(-9, 10, shape) * 2.0**-149,
        "tiny": lambda shape: draw.normal(0, 1e-37, shape),
        "large": lambda shape: draw.normal(0, 1e4, shape),
    }[kind]
    made = {f"t{i}": np.asarray(make(shape), dtype=np.float32) for i, shape in enumerate(shapes)}
    for value in made.values():
        value.setflags(write=False)
    return made


KINDS = ["usual", "zero", "ties", "spike", "mixed", "denormal", "tiny", "large"]
kinds = pytest.mark.parametrize("kind", KINDS)


def sealed(tensors: Tensors) -> Tensors:
    """Return tensors as a message carries them: saved, and read-only."""
    found = {}
    for key, value in tensors.items():
        stream = io.BytesIO()
        assert value.flags.c_contiguous
        np.save(stream, value)
        assert stream.tell() == 128 + value.nbytes, "the header that ARRAY_BYTES counts"
        found[key] = np.frombuffer(stream.getvalue(), value.dtype, offset=128).reshape(value.shape)
    return found


def cost(spec: dict[str, TensorSpec]) -> int:
    return sum(one.num_bytes + ARRAY_BYTES for one in spec.values())


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in tensors.items()}


def feeding_back(codec: Codec) -> Codec:
    if isinstance(codec, Chain):
        return Chain(stages=[feeding_back(codec.stages[0]), codec.stages[1]])
    return dataclasses.replace(codec, error_feedback=True)  # type: ignore[type-var]


lossy = pytest.mark.parametrize(
    "codec", [codec for codec in CODECS.values() if not codec.lossless], ids=[n for n in CODECS if n != "none"]
)


def test_every_file_has_a_yaml_and_every_name_is_its_own() -> None:
    files = {path.stem for path in Path(str(codecs.__file__)).parent.glob("*.py")} - {"__init__", "base", "feedback"}
    used = {type(codec).__module__.rpartition(".")[2] for codec in CODECS.values()}
    assert files == used
    assert len({codec.name for codec in CODECS.values()}) == len(CODECS)
    assert [name for name, codec in CODECS.items() if codec.lossless] == ["none"]


@every
@kinds
def test_the_error_stays_within_its_bound_and_the_form_is_as_foretold(codec: Codec, kind: str) -> None:
    given = change(kind)
    bounds = codec.error_bound(given)
    for seed in range(3):
        encoded = codec.encode(given, rng(seed))
        assert specs(encoded) == codec.encoded_spec(specs(given))
        assert list(encoded) == sorted(encoded)
        decoded = codec.decode(sealed(encoded), specs(given))
        assert specs(decoded) == specs(given)
        for key, value in given.items():
            error = np.abs(decoded[key].astype(np.float64) - value).max(initial=0)
            assert error <= bounds[key], (key, value.shape)


@lossy
def test_the_bound_says_something(codec: Codec) -> None:
    """On products of normal vectors and a little noise it is below the largest value: sending beats silence."""
    draw = rng()
    given = {
        f"t{i}": np.float32(np.outer(draw.normal(size=m), draw.normal(size=n)) + 1e-3 * draw.normal(size=(m, n)))
        for i, (m, n) in enumerate([(1, 400), (20, 90), (90, 20)])
    }
    for key, bound in codec.error_bound(given).items():
        assert 0 <= bound < 0.8 * np.abs(given[key]).max()


@every
def test_no_change_arrives_as_none(codec: Codec) -> None:
    given = change("zero")
    decoded = codec.decode(codec.encode(given, rng()), specs(given))
    assert not any(value.any() for value in decoded.values())


@every
@kinds
def test_same_generator_same_bytes_and_nothing_given_is_touched(codec: Codec, kind: str) -> None:
    given = change(kind)
    before = bits(given)
    encoded = codec.encode(given, rng(1))
    assert bits(encoded) == bits(codec.encode(given, rng(1)))
    held = bits(encoded)
    once, again = codec.decode(sealed(encoded), specs(given)), codec.decode(encoded, specs(given))
    assert bits(once) == bits(again)
    assert (bits(given), bits(encoded)) == (before, held)


@every
def test_the_order_of_names_changes_nothing(codec: Codec) -> None:
    given = change("usual")
    turned = dict(reversed(given.items()))
    assert bits(codec.encode(given, rng(1))) == bits(codec.encode(turned, rng(1)))
    assert codec.encoded_spec(specs(given)) == codec.encoded_spec(dict(reversed(specs(given).items())))


@lossy
@pytest.mark.parametrize("shapes", REALISTIC.values(), ids=REALISTIC)
def test_realistic_adapters_become_smaller(codec: Codec, shapes: dict[str, tuple[int, ...]]) -> None:
    spec = {key: TensorSpec(shape, "float32") for key, shape in shapes.items()}
    vectors_alone = all(len(shape) < 2 for shape in shapes.values())
    if codec.name == "low_rank" and vectors_alone:
        assert codec.encoded_spec(spec) == spec
    else:
        assert cost(codec.encoded_spec(spec)) < cost(spec)


@every
def test_no_shape_becomes_larger(codec: Codec) -> None:
    spec = {f"t{i}": TensorSpec(shape, "float32") for i, shape in enumerate(SHAPES)}
    for key, one in spec.items():
        assert cost(codec.encoded_spec({key: one})) <= cost({key: one})


@every
def test_unbiased_is_said_where_it_holds_and_only_there(codec: Codec) -> None:
    """400 seeds. A rounded value lies within one scale (the bound), so its standard deviation is at most half of it,
    that of the mean bound / (2 sqrt 400), and 5 of those hold for all 2,201 values (odds 1 in 800; seeds are fixed).
    A biased codec errs by the same amount every time, far more than that."""
    given = change("usual", [(401,), (20, 90)])
    total = {key: np.zeros(value.shape) for key, value in given.items()}
    for seed in range(400):
        decoded = codec.decode(codec.encode(given, rng(seed)), specs(given))
        for key, value in decoded.items():
            total[key] += value
    bounds = codec.error_bound(given)
    off = max(np.abs(total[key] / 400 - given[key]).max() - 5 * bounds[key] / 40 for key in given)
    assert (off <= 1e-10) == codec.unbiased


@every
def test_sparse_is_said_where_it_holds_and_only_there(codec: Codec) -> None:
    given = change("usual", [(4000,), (20, 90)])
    decoded = codec.decode(codec.encode(given, rng()), specs(given))
    assert all((np.count_nonzero(decoded[k]) < given[k].size / 2) == codec.sparse for k in given)


@lossy
@kinds
def test_residual_and_what_was_sent_are_the_true_update(codec: Codec, kind: str) -> None:
    """``residual = fl(target - decoded)``: off by at most half a unit in its last place, and not at all for top-k."""
    fed = feeding_back(codec)
    changed, old = change(kind), change("usual")
    sent = {key: np.zeros_like(value) for key, value in changed.items()}
    encoded, residual = compress(fed, sent, changed, old, rng())
    decoded = fed.decode(encoded, specs(changed))
    for key, value in changed.items():
        target = (value + old[key]).astype(np.float64)
        half_unit = np.spacing(np.abs(residual[key])).astype(np.float64) / 2
        assert (np.abs(residual[key].astype(np.float64) + decoded[key] - target) <= half_unit).all()
        if fed.name == "topk":
            assert (residual[key] + decoded[key] == target).all()


@lossy
def test_nothing_is_lost_over_rounds(codec: Codec) -> None:
    """What arrived in 30 rounds and the last residual sum to the 30 true changes; float32 loses 30 x 2^-24 of a size
    below 0.1, and without feedback top-k and low-rank would be off by more than 1e-3."""
    fed = feeding_back(codec)
    shapes = [(401,), (20, 90), (90, 20)]
    arrived = {f"t{i}": np.zeros(shape) for i, shape in enumerate(shapes)}
    true = {key: value.copy() for key, value in arrived.items()}
    residual: Tensors = {}
    for server_round in range(30):
        draw = rng(server_round)
        sent = {key: np.float32(draw.normal(0, 1e-2, value.shape)) for key, value in true.items()}
        trained = {key: np.float32(value + draw.normal(0, 1e-3, value.shape)) for key, value in sent.items()}
        encoded, residual = compress(fed, sent, trained, residual, draw)
        for key, value in fed.decode(encoded, specs(sent)).items():
            arrived[key] += value
            true[key] += trained[key].astype(np.float64) - sent[key]
    for key in true:
        assert np.abs(arrived[key] + residual[key] - true[key]).max() < 30 * 2.0**-24 * 0.1


@every
def test_the_server_finds_what_the_client_trained_within_the_bound(codec: Codec) -> None:
    sent, moved = change("large"), change("usual")
    trained = {key: np.asarray(sent[key] + moved[key] * 1000) for key in sent}
    encoded, _ = compress(codec, sent, trained, {}, rng())
    found = reconstruct(codec, sent, sealed(encoded))
    assert specs(encoded) == codec.encoded_spec(specs(sent))
    if codec.lossless:
        assert bits(found) == bits(trained)
    bounds = codec.error_bound({key: np.asarray(trained[key] - sent[key]) for key in sent})
    for key, value in trained.items():
        # Sums of numbers below 1e5 round by 2^-8 at most.
        assert np.abs(found[key] - value).max(initial=0) <= bounds[key] + 2.0**-8


@every
def test_foreign_bytes_are_read_or_refused_but_never_more(codec: Codec) -> None:
    """Any bytes of the right form give finite changes of the right form, or a WireError, and never a warning."""
    spec = specs(change("usual"))
    honest = codec.encode(change("usual"), rng())
    refused = 0
    for seed in range(150):
        draw = rng(seed)
        forged = dict(honest)
        for key in draw.choice(sorted(honest), size=2):
            raw = bytearray(honest[key].tobytes())
            for place in draw.integers(0, max(len(raw), 1), size=min(len(raw), 3)):
                raw[place] = draw.choice([0, 127, 128, 255, int(draw.integers(256))])
            forged[key] = np.frombuffer(bytes(raw), honest[key].dtype).reshape(honest[key].shape)
        try:
            decoded = codec.decode(forged, spec)
        except WireError:
            refused += 1
        else:
            assert specs(decoded) == spec
            assert all(np.isfinite(value).all() for value in decoded.values())
    assert refused < 150


@every
def test_another_form_is_refused(codec: Codec) -> None:
    given = change("usual")
    encoded = codec.encode(given, rng())
    first = next(key for key, value in encoded.items() if value.ndim and value.size > 8)
    forged = {
        "keys": [{k: v for k, v in encoded.items() if k != first}, {**encoded, "more": encoded[first]}],
        "dtype": [{**encoded, first: encoded[first].astype(np.float64)}],
        "shape": [{**encoded, first: encoded[first][:-1]}, {**encoded, first: encoded[first][np.newaxis]}],
    }
    for check, cases in forged.items():
        for case in cases:
            with pytest.raises(WireError) as caught:
                codec.decode(case, specs(given))
            assert caught.value.check == check


@every
@pytest.mark.parametrize("shape", [(), (2,), (20, 90), (900,)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2 * LARGEST])
def test_a_change_that_is_no_change_is_refused(codec: Codec, shape: tuple[int, ...], bad: float) -> None:
    value = np.zeros(shape, np.float32)
    value.reshape(-1)[-1] = bad
    with pytest.raises(WireError, match="finite: the change of x holds"):
        codec.encode({"x": value}, rng())
