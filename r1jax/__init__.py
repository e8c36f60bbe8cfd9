"""The DeepSeek-R1 recipe in pure-functional JAX."""

__version__ = "0.1.0"
