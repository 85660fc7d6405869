"""The rules of esper-guard, one a file. In the wheel this is the package ``esper_guard.rules``."""
