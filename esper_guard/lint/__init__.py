"""The static half: source text to findings. Never imports torch, and LibCST only at the first hit."""
