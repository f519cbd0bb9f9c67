"""What storing a base in few bits costs and saves: memory, time of a training step, and what the model says.

    python benchmarks/quantised_base.py [--models minilm smollm2] [--steps 8]

Each row is a process of its own: one thread, LoRA r8 beside the projections of attention to queries and values, batches
of 8 x 64 tokens of the sentiment texts, AdamW. Memory is what the model adds to a process that has imported everything:
after loading and one forward pass, its own and mapped from files (which the kernel may drop and other processes share);
time is CPU seconds. What the model says is compared with float32: the mean change of the last hidden states over their
spread, and for a language model the loss of a token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedpeft.engines.memory import tame_memory

ROWS, TOKENS, RANK = 8, 64, 8
TARGETS = {"minilm": ["query", "value"], "smollm2": ["q_proj", "v_proj"]}
FORMS = (
    ("float32", None, "float32"),
    ("bfloat16", None, "bfloat16"),
    ("int8", 8, "float32"),
    ("int8", 8, "bfloat16"),
    ("nf4", 4, "float32"),
    ("nf4", 4, "bfloat16"),
)
"""Storage of the linear layers, bits to quantise to, and dtype of the rest and of the products."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--steps", type=int, default=8, help="timed training steps")
    parser.add_argument("--row", nargs=4, metavar=("MODEL", "FOLDER", "DTYPE", "HIDDEN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        model, folder, dtype, hidden = args.row
        print(json.dumps(measure(model, folder, dtype, Path(hidden), args.steps)))
        return
    print(
        "| model | linear layers | rest and products | on disk MB | loaded, own MB | loaded, of files MB "
        "| peak of loading MB | peak of training MB | a fork's own MB | CPU s a step | change | loss of a token |"
    )
    print("|" + "---|" * 12)
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            compare(model, Path(scratch), args.steps)


def compare(model: str, scratch: Path, steps: int) -> None:
    """Print a row for each form of one model."""
    for storage, bits, dtype in FORMS:
        folder = scratch / f"{model}-{storage}-{dtype}"
        store(model, folder, bits, dtype)
        row = json.loads(
            subprocess.run(
                [
                    *(sys.executable, __file__, "--steps", str(steps)),
                    *("--row", model, str(folder), dtype, str(scratch / f"{model}.npy")),
                ],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            ).stdout.splitlines()[-1]
        )
        disk = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        print(
            f"| {model} | {storage} | {dtype} | {disk:.0f} | {row['own_mb']:.0f} | {row['file_mb']:.0f} "
            f"| {row['load_peak_mb']:.0f} | {row['train_peak_mb']:.0f} | {row['fork_mb']:.0f} | {row['step_s']:.3f} "
            f"| {row['change']:.2%} | {loss} |",
            flush=True,
        )


def store(model: str, folder: Path, bits: int | None, dtype: str) -> None:
    """Write the model in the form in which a device would keep it."""
    import torch
    import transformers
    from transformers.utils import logging

    from fedpeft.data.sources import resolve_model
    from fedpeft.tasks.models import load_tokenizer
    from fedpeft.tasks.quantise import quantise

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = resolve_model(f"package:{model}")
    if bits is not None:
        quantise(path, folder, bits=bits, dtype=dtype)
        return
    kind = transformers.AutoModelForCausalLM if model == "smollm2" else transformers.AutoModel
    kind.from_pretrained(path, dtype=getattr(torch, dtype)).save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)


def measure(model: str, folder: str, dtype: str, hidden: Path, steps: int) -> dict[str, Any]:
    """Load, compare, train and fork one form; memory in MB above what the imports take."""
    tame_memory()
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedpeft.client.trainer import autocast
    from fedpeft.methods.lora import LoRA
    from fedpeft.tasks.models import load_classifier
    from fedpeft.tasks.quantised import loading_options, need_bitsandbytes, settle

    torch.set_num_threads(1)
    need_bitsandbytes()
    batches = read_batches(folder, steps + 3)
    before, own, file = status("VmRSS"), status("RssAnon"), status("RssFile")
    Path("/proc/self/clear_refs").write_text("5")
    if model == "smollm2":
        config = AutoConfig.from_pretrained(folder)
        base: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), **loading_options(config, folder)
        )
        settle(base, dtype)
    else:
        base = load_classifier(folder, num_labels=2, dtype=dtype, dropout=0.0, seed=0)
    facts: dict[str, Any] = {"load_peak_mb": status("VmHWM") - before}
    with autocast(dtype, torch.device("cpu")), torch.inference_mode():
        output = base.eval()(**batches[0], output_hidden_states=True)
        states = output.hidden_states[-1].float().numpy()
    facts["own_mb"], facts["file_mb"] = status("RssAnon") - own, status("RssFile") - file
    if not hidden.exists():
        np.save(hidden, states)
    exact = np.load(hidden)
    facts["change"] = float(np.abs(states - exact).mean() / exact.std())
    facts["loss"] = float(next_token_loss(output.logits, batches[0])) if model == "smollm2" else None
    del output
    tunable = LoRA(rank=RANK, alpha=16, target_modules=TARGETS[model]).attach(base, "share")
    optimizer = torch.optim.AdamW(tunable.trainable, lr=1e-4)
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for batch in batches[:steps]:
        started = time.process_time()
        step(tunable.model, optimizer, batch, dtype)
        seconds.append(time.process_time() - started)
    facts["train_peak_mb"], facts["step_s"] = status("VmHWM") - before, statistics.median(seconds)
    facts["fork_mb"] = in_fork(lambda: step(tunable.model, optimizer, batches[-1], dtype))
    return facts


def read_batches(folder: str, count: int) -> list[dict[str, Any]]:
    """Return batches of sentiment texts, 8 x 64 tokens with no padding: texts are strung together."""
    import torch

    from fedpeft.data.sources import load_table
    from fedpeft.tasks.models import load_tokenizer

    table = load_table("package:sentiment", text_columns=["text"], label_column="label")
    ids = load_tokenizer(folder)("\n".join(text[0] for text in table.texts[:1500]), verbose=False)["input_ids"]
    blocks = torch.tensor(ids[: count * ROWS * TOKENS]).reshape(count, ROWS, TOKENS)
    return [{"input_ids": block, "attention_mask": torch.ones_like(block)} for block in blocks]


def step(model: Any, optimizer: Any, batch: dict[str, Any], dtype: str) -> None:
    """Do one step of training, on the labels 0 and 1 in turn or on the next token."""
    import torch

    from fedpeft.client.trainer import autocast

    model.train()
    with autocast(dtype):
        logits = model(**batch).logits
        loss = (
            next_token_loss(logits, batch)
            if logits.dim() == 3
            else torch.nn.functional.cross_entropy(logits.float(), torch.arange(ROWS) % 2)
        )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def next_token_loss(logits: Any, batch: dict[str, Any]) -> Any:
    """Return the mean cross-entropy of a token."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["input_ids"][:, 1:].flatten())


def in_fork(work: Any) -> float:
    """Return the MB that a forked worker has for itself after some work, beyond what it is born with."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        born = rollup("Private_Dirty")
        work()
        os.write(write, str(rollup("Private_Dirty") - born).encode())
        os._exit(0)
    os.close(write)
    told = os.read(read, 100).decode()
    os.waitpid(pid, 0)
    return float(told)


def status(name: str) -> float:
    """Return a line of /proc/self/status in MB."""
    return _kilobytes("/proc/self/status", name) * 1024 / 1e6


def rollup(name: str) -> float:
    """Return a line of /proc/self/smaps_rollup in MB."""
    return _kilobytes("/proc/self/smaps_rollup", name) * 1024 / 1e6


def _kilobytes(file: str, name: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
