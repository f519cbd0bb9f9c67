"""Gradients of single examples where Opacus' hooks cannot see them.

Opacus watches modules whose forward pass takes a batch and computes with parameters of their own. Many adapters are
built otherwise, and then Opacus fails, or computes something that is no example's gradient. Three repairs cover them:

- `Whole`: a module that takes a batch, whatever goes on inside, is watched from outside. The gradient of one example is
  the vector-Jacobian product of the module run on that example alone: all examples at once by ``torch.func.vmap``, or
  one after the other where its operations cannot be batched.
- `Repeated`: values that come from parameters alone (a prompt, a prefix) and are repeated for each example. The
  gradient of each copy is the example's own.
- `LookedUp`: rows of a table that are looked up once for a whole batch (positions) are looked up for each example, and
  Opacus does the rest.

All are held against gradients computed one by one before they are used (``privacy/self_test``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

Named = dict[str, torch.Tensor]


class Sampler(Protocol):
    """Computes gradients of single examples for a module."""

    def __call__(
        self, module: nn.Module, trained: Named, args: tuple[Any, ...], kwargs: dict[str, Any], gradient: torch.Tensor
    ) -> Named:
        """Return (examples, *shape) for each trained parameter.

            g_i = d/dtheta <f(x_i; theta), dL/dy_i>

        Args:
            module: f; what it returns first, or alone, is y.
            trained: theta, the parameters by name, detached.
            args: what it was called with, detached; tensors whose first dimension is the batch's are cut by example,
                others are handed on whole.
            kwargs: likewise.
            gradient: dL/dy, (examples, ...).
        """
        ...


class Repair(ABC):
    """Computes gradients of single examples for the trained parameters of one module.

    Args:
        module: the module; it is changed by nothing but hooks.
    """

    replaces = True
    """Whether Opacus is to leave the module alone."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: dict[torch.Tensor, torch.Tensor] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Watch the module from now on."""
        self._handles.extend(self._watch())

    def detach(self) -> None:
        """Leave the module as it was."""
        while self._handles:
            self._handles.pop().remove()
        self.found.clear()

    @abstractmethod
    def _watch(self) -> Sequence[Any]:
        """Start watching and return what ends it, each by ``remove()``."""

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The module's trained parameters by name, those of its children among them."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    def _add(self, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.trained.items():
            if name in gradients:
                before = self.found.get(parameter)
                self.found[parameter] = gradients[name] if before is None else before + gradients[name]


class Whole(Repair):
    """A module that takes a batch and gives one, the examples along the first dimension of both.

    Args:
        module: the module; what it computes depends on no trained parameter of others.
        sampler: computes the gradients.
        without: names of arguments that are left out when the module is run again, because it would write to them.
    """

    def __init__(self, module: nn.Module, sampler: Sampler, without: Sequence[str] = ()) -> None:
        super().__init__(module)
        self._sampler = sampler
        self._without = without
        self._busy = False

    @property
    def draws(self) -> bool:
        """Whether dropout is drawn inside, which would be another one when the module is run again."""
        rates = [
            getattr(module, name, 0.0)
            for module in self.module.modules()
            for name in ("attention_dropout", "p" if isinstance(module, nn.Dropout) else "")
        ]
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    def _watch(self) -> Sequence[Any]:
        return [self.module.register_forward_hook(self._after, with_kwargs=True)]

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first = _first(output)
        if self._busy or not first.requires_grad:
            return
        kept = {name: None if name in self._without else value for name, value in kwargs.items()}
        args, kept = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kept))
        take = partial(self._take, args, kept, torch.is_autocast_enabled(first.device.type))
        first.register_hook(take)

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any], mixed: bool, gradient: torch.Tensor) -> None:
        self._busy = True
        trained = {name: value.detach() for name, value in self.trained.items()}
        try:
            with torch.autocast(gradient.device.type, torch.bfloat16) if mixed else nullcontext():
                self._add(self._sampler(self.module, trained, args, kwargs, gradient))
        finally:
            self._busy = False


class Repeated(Repair):
    """Values that a module makes of its parameters alone, repeated for each example of a batch.

    Args:
        module: the module.
        values: makes the values of the module, a tensor or several.
        point: calls back with the repeated values while the model runs, the examples along their first dimension; what
            it returns ends it by ``remove()``.
    """

    def __init__(
        self,
        module: nn.Module,
        values: Callable[[nn.Module], Sequence[torch.Tensor]],
        point: Callable[[nn.Module, Callable[[Sequence[torch.Tensor]], None]], Any],
    ) -> None:
        super().__init__(module)
        self._values = values
        self._point = point

    def _watch(self) -> Sequence[Any]:
        return [self._point(self.module, self._seen)]

    def _seen(self, copies: Sequence[torch.Tensor]) -> None:
        if not all(copy.requires_grad for copy in copies):
            return
        gradients: dict[int, torch.Tensor] = {}
        for i, copy in enumerate(copies):
            take = partial(self._take, gradients, i, len(copies))
            copy.register_hook(take)

    def _take(self, gradients: dict[int, torch.Tensor], i: int, count: int, gradient: torch.Tensor) -> None:
        gradients[i] = gradient
        if len(gradients) < count:
            return
        wrapped = _Maker(self.module, self._values)
        trained = {name: value.detach() for name, value in self.trained.items()}

        def make(values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            renamed = {"module." + name: value for name, value in values.items()}
            made: tuple[torch.Tensor, ...] = torch.func.functional_call(wrapped, renamed, ())
            return made

        made, pull = torch.func.vjp(make, trained)[:2]
        # Each example's copy as a batch of one, which is what is made without the others.
        each = tuple(gradients[i].to(value.dtype).unsqueeze(1) for i, value in enumerate(made))
        self._add(torch.func.vmap(lambda *one: pull(tuple(one))[0])(*each))


class LookedUp(Repair):
    """An embedding whose rows may be looked up once for all examples.

    Args:
        module: the embedding.
        backbone: what is called with the batch, as ``input_ids`` or ``inputs_embeds``.
    """

    replaces = False

    def __init__(self, module: nn.Embedding, backbone: nn.Module) -> None:
        super().__init__(module)
        self._backbone = backbone
        self._count = 0

    def _watch(self) -> Sequence[Any]:
        return [
            self._backbone.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.module.register_forward_pre_hook(self._before),
        ]

    def _enter(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        self._count = len(next(one for one in inputs if one is not None))

    def _before(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (ids,) = args
        return (ids.expand(self._count, *ids.shape[1:]),) if len(ids) == 1 else args


class _Maker(nn.Module):
    """Makes ``values(module)`` the forward pass of a module, which is what ``functional_call`` can call."""

    def __init__(self, module: nn.Module, values: Callable[[nn.Module], Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.module = module
        self._values = values

    def forward(self) -> tuple[torch.Tensor, ...]:
        return tuple(self._values(self.module))


def all_at_once(
    module: nn.Module, trained: Named, args: tuple[Any, ...], kwargs: dict[str, Any], gradient: torch.Tensor
) -> Named:
    """Sample by ``torch.func.vmap``; see `Sampler`."""
    own, product = _product(module, args, kwargs, len(gradient))
    found: Named = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(trained, own, gradient)
    return found


def one_after_another(
    module: nn.Module, trained: Named, args: tuple[Any, ...], kwargs: dict[str, Any], gradient: torch.Tensor
) -> Named:
    """Sample by a loop, for operations that ``vmap`` does not know; see `Sampler`."""
    own, product = _product(module, args, kwargs, len(gradient))
    leaves = {name: value.requires_grad_() for name, value in trained.items()}
    found = []
    with torch.enable_grad():
        for i, part in enumerate(gradient):
            value = product(leaves, tuple(one[i] for one in own), part)
            found.append(torch.autograd.grad(value, list(leaves.values())))
    return {name: torch.stack(each) for name, each in zip(leaves, zip(*found, strict=True), strict=True)}


def _product(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], count: int
) -> tuple[tuple[torch.Tensor, ...], Callable[[Named, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]]:
    """Return the inputs that are cut by example, and the function <f(x_i; theta), dL/dy_i>."""
    flat, shape = tree_flatten((args, kwargs))
    cut = [isinstance(one, torch.Tensor) and one.ndim > 0 and len(one) == count for one in flat]

    def product(values: Named, own: tuple[torch.Tensor, ...], part: torch.Tensor) -> torch.Tensor:
        rest = iter(own)
        inputs = [next(rest).unsqueeze(0) if is_cut else one for one, is_cut in zip(flat, cut, strict=True)]
        positional, named = tree_unflatten(inputs, shape)
        output = _first(torch.func.functional_call(module, values, positional, named))
        return (output.float() * part.unsqueeze(0).float()).sum()

    return tuple(one for one, is_cut in zip(flat, cut, strict=True) if is_cut), product


def _first(output: Any) -> torch.Tensor:
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
