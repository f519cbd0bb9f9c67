"""Aggregation strategies: one file each, on the contract of ``base.FedPeft``."""
