"""``fedpeft data quantize``: a base model in 8 or 4 bits, stored once."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from fedpeft.core.paths import cache_dir

EXAMPLES = """examples:
  fedpeft data quantize package:minilm --bits 4
  fedpeft data quantize HuggingFaceTB/SmolLM2-135M --bits 8 --dtype bfloat16
  fedpeft data quantize ~/models/mine --bits 4 --out models/mine-nf4 --json

The folder that it prints is a Hugging Face model: fedpeft simulate model=hub model.path=FOLDER
It is kept in $FEDPEFT_CACHE/quantised, or in ~/.cache/fedpeft/quantised. Needs pip install fedpeft[quant].
Exit codes: 0 done; 1 no such model, or the folder exists or cannot be written; 2 a wrong argument or no bitsandbytes.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedpeft data quantize`` on its parser."""
    parser.description = "Store a base model's linear layers in 8 or 4 bits, once, as a Hugging Face folder."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="package:NAME, a local folder, or a Hugging Face id")
    parser.add_argument(
        "--bits", type=int, choices=(8, 4), required=True, help="8 (int8, a scale a row) or 4 (nf4, a scale a block)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write, in the cache unless given")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of embeddings, norms and heads; the model's own unless given",
    )
    parser.add_argument("--revision", help="hub revision of MODEL")
    parser.add_argument("--force", action="store_true", help="replace the folder if it is there")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of the folder")


def run(args: argparse.Namespace) -> int:
    """Quantise as the arguments say, print the folder and return the exit code.

    Raises:
        FedPeftError: the model cannot be read or the folder cannot be written; the caller prints it.
    """
    from fedpeft.data.sources import resolve_model
    from fedpeft.tasks.quantise import quantise

    path = resolve_model(args.model, args.revision, progress=_say)
    written = quantise(
        path,
        args.out.expanduser().absolute() if args.out else _default_folder(path, args.revision, args.bits),
        bits=args.bits,
        dtype=args.dtype,
        revision=args.revision,
        force=args.force,
        progress=_say,
    )
    share = written.quantised_parameters / written.parameters
    _say(
        f"{written.stored_bytes / 1e6:.1f} MB instead of {written.float_bytes / 1e6:.1f} MB: "
        f"{share:.0%} of the weights in {written.kind}, the others in {written.dtype}"
    )
    if not args.json:
        print(written.folder)
        return 0
    facts = {
        "model": args.model,
        "folder": str(written.folder),
        "kind": written.kind,
        "stored_bytes": written.stored_bytes,
        "float_bytes": written.float_bytes,
        "parameters": written.parameters,
        "quantised_parameters": written.quantised_parameters,
        "dtype": written.dtype,
    }
    print(json.dumps(facts, indent=2))
    return 0


def _default_folder(path: str, revision: str | None, bits: int) -> Path:
    name = Path(path).name if Path(path).is_dir() else path
    parts = [name, *([revision] if revision else []), {8: "int8", 4: "nf4"}[bits]]
    return cache_dir() / "quantised" / re.sub(r"[^\w.-]+", "-", "-".join(parts))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
