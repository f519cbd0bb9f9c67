"""Writing a base model in 8 or 4 bits, once; loading it is `fedpeft.tasks.quantised`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.errors import ConfigError, DataError
from fedpeft.tasks.models import load_tokenizer
from fedpeft.tasks.quantised import KINDS, need_bitsandbytes, storage_of

HEADS = ("lm_head", "classifier", "pre_classifier", "score")
"""Heads that a base may get when it is loaded for a task; what it has itself is found."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """What was written.

    Attributes:
        folder: where it lies.
        kind: ``int8`` or ``nf4``.
        stored_bytes: size of the folder's weights.
        float_bytes: size of the same weights before.
        parameters: number of the model's weights.
        quantised_parameters: how many of them are stored in few bits.
        dtype: dtype of the others.
    """

    folder: Path
    kind: str
    stored_bytes: int
    float_bytes: int
    parameters: int
    quantised_parameters: int
    dtype: str


def quantise(
    path: str,
    folder: Path,
    *,
    bits: int,
    dtype: str | None = None,
    revision: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantised:
    """Write a model with its linear layers in 8 or 4 bits, and its tokenizer, as a Hugging Face folder.

    The folder appears whole or not at all. Embeddings, norms, biases and heads keep a float dtype.

    Args:
        path: local folder or hub id of a float model.
        folder: where to write.
        bits: 8 (int8) or 4 (nf4).
        dtype: ``float32`` or ``bfloat16`` of what is not quantised, None for the checkpoint's own.
        revision: hub revision.
        force: replace what is there.
        progress: told in short lines what goes on.

    Raises:
        ConfigError: bits or dtype unknown, bitsandbytes missing, the model is quantised or has nothing to quantise.
        DataError: nothing loadable is there, or the folder exists or cannot be written.
    """
    _check(folder, bits, dtype, force)
    need_bitsandbytes()
    say = progress or _silent
    tokenizer = load_tokenizer(path, revision)
    say(f"loading {path} and rounding it to {KINDS[bits]}")
    model = _load(path, bits, dtype, revision)
    counts = _counts(model)
    if not counts[1]:
        raise ConfigError(f"{path} has no linear layers to store in {bits} bits")
    say(f"writing {folder}")
    _write(model, tokenizer, folder)
    return Quantised(
        folder=folder,
        kind=KINDS[bits],
        stored_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        float_bytes=counts[0] * model.dtype.itemsize,
        parameters=counts[0],
        quantised_parameters=counts[1],
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write beside the folder, then rename: it is there whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
        try:
            fresh = scratch / "folder"
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            for file in fresh.iterdir():
                # safetensors writes files that only their owner may read.
                file.chmod((fresh / "config.json").stat().st_mode)
            if folder.exists():
                # A folder cannot be renamed over another one, so the old one steps aside first.
                folder.rename(scratch / "old")
            try:
                fresh.rename(folder)
            except OSError:
                if (scratch / "old").exists():
                    (scratch / "old").rename(folder)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error} (choose another with --out)") from error


def _check(folder: Path, bits: int, dtype: str | None, force: bool) -> None:
    problems = []
    if bits not in KINDS:
        problems.append(f"bits must be 8 or 4, got {bits!r} (set --bits)")
    if dtype not in (None, "float32", "bfloat16"):
        problems.append(f"dtype must be float32 or bfloat16, got {dtype!r} (set --dtype)")
    if problems:
        raise ConfigError(problems)
    if folder.exists() and not force:
        raise DataError(f"{folder} exists: use it as model.path, or give --force to replace it, or another --out")
    if folder.exists() and not (folder / "config.json").is_file():
        raise DataError(f"{folder} is there and no model folder: --force replaces models only (choose another --out)")


def _load(path: str, bits: int, dtype: str | None, revision: str | None) -> Any:
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision)
        if (kind := storage_of(config, path)) is not None:
            raise ConfigError(f"{path} is already stored in {kind}")
        name = next(iter(config.architectures or ()), "")
        architecture = getattr(transformers, name, None)
        with torch.device("meta"):
            twin = architecture(config) if architecture else transformers.AutoModel.from_config(config)
        return type(twin).from_pretrained(
            path,
            revision=revision,
            quantization_config=_settings(bits, [*HEADS, *_own_heads(twin)]),
            dtype="auto" if dtype is None else getattr(torch, dtype),
            device_map={"": "cpu"},
        )
    except (OSError, ValueError) as error:
        raise DataError(f"no model at {path}: {str(error).strip().splitlines()[0]}") from error


def _own_heads(model: Any) -> list[str]:
    """Return the names of the model's parts beside its base: what the base feeds."""
    prefix = model.base_model_prefix
    return [name for name, _ in model.named_children() if hasattr(model, prefix) and name != prefix]


def _settings(bits: int, heads: list[str]) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    skipped = list(dict.fromkeys(heads))
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=skipped,
    )


def _counts(model: Any) -> tuple[int, int]:
    """Return the number of weights, and of those that are stored in few bits."""
    total = quantised = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        number = state.shape.numel() if state is not None else parameter.numel()
        total += number
        quantised += number if type(parameter).__name__ in ("Int8Params", "Params4bit") else 0
    return total, quantised


def _silent(_: str) -> None:
    return None
