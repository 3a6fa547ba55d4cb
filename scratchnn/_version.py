"""The version, in one place that can be read without loading the extension."""

__version__ = "0.1.0"
