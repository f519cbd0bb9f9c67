"""Fewer bytes for the same change: one file a codec, and the change-with-residual that all of them share."""
