"""What strategies may count on in a method; both ends of the check name the same words."""

from __future__ import annotations

FACTORS = "factors"
"""Trait: plain LoRA pairs ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``, change = scaling B A."""
RANKS = "ranks"
"""Trait: the pairs can be resized, so that clients may differ in rank."""
LAYERS = "layers"
"""Trait: every adapter key carries its layer's number as a dotted part, so that layers can travel separately."""
SPARSE = "sparse"
"""Trait: values at masked places of the base's matrices train too (SLoRA's first stage)."""
CORE = "core"
"""Trait: a small matrix R between fixed factors trains, change = B R A (LoRA-SB)."""
