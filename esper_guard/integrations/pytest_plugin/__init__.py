"""The pytest plugin. Loading it imports neither torch nor the rest of this package."""
