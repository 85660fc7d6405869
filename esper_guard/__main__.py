"""``python -m esper_guard``: the same as the ``esper-guard`` command."""

from esper_guard.cli import main

if __name__ == "__main__":
    main()
