"""Moving a model to the accelerator that a device's operator names."""

from __future__ import annotations

import os
from dataclasses import replace

from fedpeft.core.errors import ConfigError
from fedpeft.methods.base import Tunable
from fedpeft.tasks.quantised import is_quantised

ACCELERATORS = ("cpu", "cuda")


def check_build(name: str) -> None:
    """Refuse an accelerator that this torch has no code for, without waking its driver.

    Args:
        name: one of ``ACCELERATORS``.

    Raises:
        ConfigError: torch is built without it.
    """
    # Whatever library asks torch for a card while it is imported must not wake the driver before a fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    if name != "cpu" and torch.version.cuda is None:
        raise ConfigError(
            f"--accelerator {name}: torch {torch.__version__} is built for the CPU alone (install a build for CUDA, "
            "pytorch.org/get-started/locally, or leave --accelerator out)"
        )


def check_accelerator(name: str) -> str:
    """Return what torch calls an accelerator, for people.

    The process that asks cannot hand the accelerator on to a fork: CUDA's driver is awake in it from now on.

    Args:
        name: one of ``ACCELERATORS``.

    Raises:
        ConfigError: torch does not find it.
    """
    import torch

    if name == "cpu":
        return "cpu"
    check_build(name)
    if not torch.cuda.is_available():
        raise ConfigError(
            f"--accelerator cuda: torch {torch.__version__} finds no card, or a driver older than its CUDA "
            f"{torch.version.cuda} (see nvidia-smi, or leave --accelerator out)"
        )
    return torch.cuda.get_device_name()


def place(tunable: Tunable, device: str) -> Tunable:
    """Move a model with its adapter to where it is to compute; return it with the tensors that are live there.

    Args:
        tunable: the model, changed in place.
        device: as torch names it.

    Raises:
        ConfigError: the base is stored in a form that only the CPU reads.
    """
    if device == "cpu":
        return tunable
    if is_quantised(tunable.model):
        raise ConfigError(
            "an int8 or nf4 base computes on the CPU only (leave --accelerator out, or take the float model)"
        )
    names = {id(parameter): name for name, parameter in tunable.model.named_parameters()}
    shared, local = (
        {key: names[id(value)] for key, value in tensors.items()} for tensors in (tunable.shared, tunable.local)
    )
    # torch may put other objects in the place of parameters that it moves.
    moved = dict(tunable.model.to(device).named_parameters())
    return replace(
        tunable,
        shared={key: moved[name] for key, name in shared.items()},
        local={key: moved[name] for key, name in local.items()},
    )
