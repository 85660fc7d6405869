"""``esper-guard profile``: what a memory format costs a model in bytes and time, and where."""
