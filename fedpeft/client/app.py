"""The ClientApp: the same for every engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft.client.building import runtime_for
from fedpeft.client.lifetime import RUNS
from fedpeft.client.own import OwnData, measuring
from fedpeft.client.private_round import told
from fedpeft.client.runtime import Runtime
from fedpeft.client.state import PersonalState, personal_state
from fedpeft.core import wire
from fedpeft.core.errors import BudgetError, FedPeftError, PrivacyError, WireError, printable
from fedpeft.tasks.base import Scores

DEFAULT_ALLOW = (
    "fedpeft.methods.",
    "fedpeft.codecs.",
    "fedpeft.device_profiles.",
    "fedpeft.privacy.",
    "fedpeft.data.pooled.",
    "flwr_datasets.partitioner.",
)
CHECKPOINT_ROUND = "checkpoint-round"
log = logging.getLogger(__name__)


def build_app(
    config_json: str | None = None,
    allow: Sequence[str] | None = DEFAULT_ALLOW,
    *,
    own: OwnData | None = None,
    admit: Callable[[str], None] = lambda config_json: None,
) -> ClientApp:
    """Return a ClientApp with ``train``, ``evaluate`` and ``query.hello``.

    Args:
        config_json: the config; None to take it from Flower's run config, as a deployed client does.
        allow: class-path prefixes that a config may name; None for any, which only a simulation's own user should say.
        own: the real device that this is; None in a simulation.
        admit: raises where the config asks for what the device's operator does not allow; called before anything of it
            is built.
    """
    app = ClientApp()
    prefixes = None if allow is None else tuple(allow)

    def runtime_of(context: Context) -> Runtime:
        sent = config_json or str(context.run_config[wire.RUN_CONFIG_KEY])
        admit(sent)
        return runtime_for(sent, prefixes, own)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return Message(_hello(runtime_of(context), context), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        runtime = runtime_of(context)
        try:
            return Message(_train(runtime, message, context), reply_to=message)
        except BudgetError as error:
            return Message(Error(wire.ERROR_BUDGET, str(error)), reply_to=message)
        except Exception as error:
            if runtime.privacy is None or isinstance(error, FedPeftError):
                raise
            # A library's error may quote an example.
            log.exception("client %d cannot train", _client_id(context, own))
            raise PrivacyError(f"{type(error).__name__}; what it says stays in this private client's log") from None

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(_evaluate(runtime_of(context), message, context), reply_to=message)

    return app


def _client_id(context: Context, own: OwnData | None = None) -> int:
    return own.client_id if own else int(context.node_config["partition-id"])


def _hello(runtime: Runtime, context: Context) -> RecordDict:
    own, client_id = runtime.own, _client_id(context, runtime.own)
    device = own.device if own else str(context.node_config.get("device", "")) or runtime.devices[client_id]
    return wire.hello_reply(
        client_id=client_id,
        num_examples=runtime.num_train_examples(client_id),
        device=device,
        rank=runtime.tunable.rank,
        profile=own.profile if own else "",
    )


def _personal(runtime: Runtime, context: Context) -> tuple[int, PersonalState]:
    """Return who this client is and where it keeps what is its own."""
    client_id = _client_id(context, runtime.own)
    folder = str(context.node_config.get("state-dir", "")) or None
    if runtime.own is not None and runtime.own.state_dir is not None:
        folder = str(Path(runtime.own.state_dir) / RUNS / runtime.identity.run_id)
    return client_id, personal_state(runtime.config, client_id, folder)


def _read(runtime: Runtime, message: Message) -> wire.Instruction:
    """Check what the server sent before any of it is used."""
    limit = runtime.config["guard"]["max_bytes"]
    instruction = wire.read_instruction(message.content, runtime.payload_spec, max_bytes=limit)
    # Stock Flower strategies send no identity; a server that sends one must mean this run, config and base model.
    if instruction.identity not in (wire.Identity(), runtime.identity):
        raise WireError("identity", _difference(instruction.identity, runtime.identity))
    return instruction


def _difference(theirs: wire.Identity, ours: wire.Identity) -> str:
    """Say in which of the run, its config and the base model two identities differ, and what to do."""
    if theirs.run_id != ours.run_id:
        return (
            f"the server speaks of run {printable(theirs.run_id, 64)}, this client has the config of run {ours.run_id}"
        )
    if theirs.config_hash != ours.config_hash:
        return "the server computes by another config than the one it sent (one fedpeft of the same version on both)"
    return (
        f"the base model here is another one than the server's: its sha256 begins with {ours.model_hash[:12]}, the "
        f"server's with {printable(theirs.model_hash[:12])} (copy the server's model folder and name it by --model)"
    )


def _train(runtime: Runtime, message: Message, context: Context) -> RecordDict:
    with measuring(runtime.own) as measured:
        instruction = _read(runtime, message)
        client_id, personal = _personal(runtime, context)
        keep_from = instruction.config.get(CHECKPOINT_ROUND, 0)
        if type(keep_from) is not int or keep_from < 0:
            raise WireError("config", f"{CHECKPOINT_ROUND} must be a whole number >= 0, got {keep_from!r}")
        trained = runtime.train(client_id, instruction, personal, keep_from)
    result, sizes = trained.result, {True: 0, False: 0}
    for key, value in trained.tensors.items():
        sizes[key.partition(":")[0] in runtime.tunable.head_keys] += value.nbytes
    rows, _ = runtime.client_rows(client_id)
    metrics: dict[str, float | list[float]] = {
        wire.NUM_EXAMPLES: len(rows),
        "train-loss": result.loss,
        "train-cpu-s": result.cpu_s,
        "train-flops": result.flops,
        "train-steps": result.steps,
        "adapter-bytes": sizes[False],
        "head-bytes": sizes[True],
        **trained.metrics,
        **measured,
    }
    return wire.reply(instruction, trained.tensors, told(runtime.privacy, metrics))


def _evaluate(runtime: Runtime, message: Message, context: Context) -> RecordDict:
    instruction = _read(runtime, message)
    client_id, personal = _personal(runtime, context)
    scores = runtime.evaluate_client(client_id, instruction, personal)
    if scores is None:
        raise WireError("data", f"client {client_id} keeps no examples for evaluation")
    return wire.reply(instruction, None, evaluation_metrics(scores))


def evaluation_metrics(scores: Scores) -> dict[str, float | list[float]]:
    """Return scores as a client reports them."""
    return {
        wire.NUM_EXAMPLES: scores.num_examples,
        "eval-loss": scores.mean_loss,
        "eval-accuracy": scores.accuracy,
        "eval-cpu-s": scores.cpu_s,
        "eval-flops": scores.flops,
        "eval-steps": scores.steps,
        "group-correct": [float(v) for v in scores.correct],
        "group-count": [float(v) for v in scores.count],
    }


app = build_app()
