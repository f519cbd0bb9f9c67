"""What a device answers messages with: our ClientApp over its own data, behind its operator's fence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import WireError

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from fedpeft.client.fence import Fence
    from fedpeft.client.own import OwnData


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Makes the app, and builds ahead what it needs.

    Args:
        own: the device's data.
        fence: what its operator allows.
    """

    own: OwnData
    fence: Fence

    def make_app(self) -> Callable[[Message, Context], Message]:
        """Return the ClientApp; it refuses messages with more bytes than the fence lets in."""
        from fedpeft.client.app import build_app

        app = build_app(allow=self.fence.allow, own=self.own, admit=self.admit)

        def answer(message: Message, context: Context) -> Message:
            found = sum(record.count_bytes() for record in message.content.array_records.values())
            if found > self.fence.bounded(found):
                raise WireError(
                    "size", f"{found} bytes of arrays, this device takes {self.fence.max_bytes} (--max-bytes)"
                )
            return app(message, context)

        return answer

    def warm(self, config: str) -> None:
        """Build model and data of a run, so that forks have them.

        Args:
            config: the run's config as it travels.

        Raises:
            FedPeftError: the config is refused, or cannot be built.
        """
        from fedpeft.client.building import runtime_for

        self.admit(config)
        runtime = runtime_for(config, self.fence.allow, self.own)
        # Counted once here instead of in every fork.
        _ = runtime.train_flops, runtime.eval_flops

    def admit(self, config: str) -> None:
        """Refuse a config that the operator does not allow.

        Args:
            config: the run's config as it travels.

        Raises:
            ConfigError: a line for each problem.
            WireError: it is no config.
        """
        try:
            plain: Any = json.loads(config)
        except (ValueError, RecursionError) as error:
            raise WireError("config", "the run's config is no JSON") from error
        if not isinstance(plain, dict):
            raise WireError("config", f"the run's config is a {type(plain).__name__}")
        self.fence.check(plain, num_examples=most_examples(Path(self.own.path)))


def most_examples(path: Path) -> int:
    """Return the most examples that a file or folder of data may hold, without reading more than is needed to count.

    Args:
        path: parquet, csv or jsonl.

    Raises:
        DataError: there are no data files.
    """
    from fedpeft.data.readers import files_of_split

    return sum(_most_rows(file) for file in files_of_split(path, "train"))


def _most_rows(file: Path) -> int:
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)
    # A line each; texts with line breaks in a CSV make it more than there are, which is on the safe side.
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
