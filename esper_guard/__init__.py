"""Find, prove and prevent hidden tensor copies and lost memory formats in PyTorch code."""

__version__ = "0.1.0"
