"""The demo's job as users of Flower write it today.

Stock FedAvg and ``run_simulation``, float32, random batches, the model built in each message. The data, the split, the
cohort size, the steps, the batch size, the learning rate, the optimiser and the dropout are the demo's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft import config as cfg
from fedpeft.cli.launch import new_config

WORKERS = 2


def build_model(config: dict[str, Any], path: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    torch.manual_seed(config["seed"])
    rate = config["model"]["dropout"]
    extra = {} if rate is None else {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32, **extra)
    method = config["method"]
    return get_peft_model(
        base,
        LoraConfig(
            task_type="SEQ_CLS",
            r=method["rank"],
            lora_alpha=method["alpha"],
            lora_dropout=method["dropout"],
            target_modules=method["target_modules"],
        ),
    )


def batch_of(examples: Any, rows: np.ndarray) -> dict[str, Any]:
    """Pad to the longest text of the batch, as a stock data collator does."""
    return examples.task.collate(rows)


def client_app(config: dict[str, Any], path: str) -> Any:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        torch.set_num_threads(1)
        examples = cached_examples(config, path)
        model = build_model(config, path)
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        client = config["client"]
        held = examples.rows[examples.partition.indices(int(context.node_config["partition-id"]))]
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=client["lr"], weight_decay=client["weight_decay"]
        )
        model.train()
        rng, order = np.random.default_rng(), np.empty(0, dtype=np.int64)
        for _ in range(client["local_steps"]):
            if len(order) < min(client["batch_size"], len(held)):
                order = rng.permutation(held)
            rows, order = order[: client["batch_size"]], order[client["batch_size"] :]
            batch = batch_of(examples, rows)
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), client["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
        content = RecordDict({
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord({"num-examples": len(held), "train-loss": float(loss.detach())}),
        })  # fmt: skip
        return Message(content, reply_to=message)

    return app


_EXAMPLES: dict[str, Any] = {}


def cached_examples(config: dict[str, Any], path: str) -> Any:
    """Flower's examples cache the dataset in a module global; so does this."""
    from fedpeft.client.examples import load_examples

    if "examples" not in _EXAMPLES:
        _EXAMPLES["examples"] = load_examples(config, path)
    return _EXAMPLES["examples"]


def server_app(config: dict[str, Any], path: str, result: dict[str, float]) -> Any:
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        model, examples = build_model(config, path), cached_examples(config, path)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            set_peft_model_state_dict(model, arrays.to_torch_state_dict())
            model.eval()
            hits, rows, size = 0, examples.eval_rows, config["evaluate"]["batch_size"]
            with torch.inference_mode():
                for start in range(0, len(rows), size):
                    batch = batch_of(examples, rows[start : start + size])
                    hits += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
            result["accuracy"] = hits / len(rows)
            return MetricRecord({"accuracy": result["accuracy"]})

        share = config["cohort_size"] / config["num_clients"]
        strategy = FedAvg(
            fraction_train=share, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=config["num_clients"]
        )
        strategy.start(
            grid, ArrayRecord(get_peft_model_state_dict(model)), num_rounds=config["rounds"], evaluate_fn=evaluate
        )

    return app


def main() -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    from flwr.simulation import run_simulation

    from fedpeft.data.sources import resolve_model

    config = new_config({**cfg.compose(sys.argv[1:]), "run_dir": str(Path("unused"))})
    path, result = resolve_model(config["model"]["path"]), {}
    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": WORKERS, "log_to_driver": False, "logging_level": logging.ERROR},
    }
    run_simulation(
        server_app(config, path, result), client_app(config, path), config["num_clients"], backend_config=resources
    )
    print(json.dumps(result))


if __name__ == "__main__":
    # Ray pickles what it finds in __main__ by value, with every message; an imported module it pickles by name.
    import flower_today

    flower_today.main()
