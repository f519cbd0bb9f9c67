"""The version of the package, here so that every floor can tell it."""

__version__ = "0.1.0"
