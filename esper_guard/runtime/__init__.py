"""Tensors to facts: memory formats, gradient isolation, and known native bugs. Needs torch, never libcst."""
