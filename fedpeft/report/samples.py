"""The part of the page that shows what a language model says, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.report import numbers
from fedpeft.report.blocks import Section, Table, titled
from fedpeft.report.reader import RunView

MOST_LETTERS = 600


def samples(views: Sequence[RunView], names: Sequence[str]) -> Section:
    """Held-out prompts, what a person said there, and what the initial and the final model say."""
    head = ("prompt", "what a person said", "before training", "after training")
    columns = frozenset(range(len(head)))
    tables = [
        Table(
            caption=titled("What the model says", name, len(views) > 1),
            head=head,
            rows=tuple(
                tuple(
                    numbers.name(text, MOST_LETTERS)
                    for text in (sample.prompt, sample.reference, sample.initial, sample.final)
                )
                for sample in view.samples
            ),
            text_columns=columns,
            note="The likeliest token each time.",
            wraps=True,
        )
        for view, name in zip(views, names, strict=True)
        if view.samples
    ]
    return Section(
        title="Samples",
        lead="Prompts from the examples that the server holds out." if tables else "",
        tables=tuple(tables),
        missing=() if tables else ("No language model has said anything.",),
    )
