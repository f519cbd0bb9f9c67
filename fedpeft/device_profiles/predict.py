"""Seconds that a piece of work takes on a device."""

from __future__ import annotations

from fedpeft.core.errors import ConfigError
from fedpeft.core.types import Cost, Work
from fedpeft.device_profiles.schema import DeviceProfile

_SHORT_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def predict(profile: DeviceProfile, work: Work) -> Cost:
    """Return the expected seconds of download, compute and upload, without jitter.

        down_s    = rtt + 8 * bytes_down / (down_bps * payload_efficiency)
        compute_s = flops / (achievable_flops[dtype] * train_efficiency) + num_steps * step_overhead
        up_s      = rtt + 8 * bytes_up / (up_bps * payload_efficiency)

    After FedScale (Lai et al. 2022, arXiv:2105.11367), which takes 3 * batch * steps * latency whatever the model and
    the method, and one rate for both directions; here FLOPs come from the real step and each direction has its rate.

    Differs: one round trip a transfer, so TCP slow start and connection set-up are not counted. A step is taken to be
    bound by arithmetic, not by memory bandwidth.

    Args:
        profile: the device.
        work: FLOPs, bytes and steps of one exchange; a dtype the device has no rate for is calculated in float32,
            as torch then does.

    Raises:
        ConfigError: the dtype is none of float32, float16, bfloat16.
    """
    compute, network = profile.compute, profile.network
    flops_per_s = 1e9 * _achievable_gflops(profile, work.dtype) * compute.train_efficiency
    rtt_s, byte_bits = network.rtt_ms / 1e3, 8 / (1e6 * network.payload_efficiency)
    return Cost(
        down_s=rtt_s + byte_bits * work.bytes_down / network.down_mbps,
        compute_s=work.flops / flops_per_s + work.num_steps * compute.step_overhead_ms / 1e3,
        up_s=rtt_s + byte_bits * work.bytes_up / network.up_mbps,
    )


def _achievable_gflops(profile: DeviceProfile, dtype: str) -> float:
    if dtype not in _SHORT_NAMES:
        raise ConfigError(f"dtype of the work must be one of {', '.join(_SHORT_NAMES)}, got {dtype!r}")
    rates = profile.compute.achievable_gflops
    rate: float | None = getattr(rates, _SHORT_NAMES[dtype]) or rates.fp32
    assert rate is not None, "from_mapping refuses a profile without a float32 rate"
    return rate
