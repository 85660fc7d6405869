"""One file a hazard. To add one, write its file with a `Hazard` in it and list it in `registry.py`."""
