"""esper-guard within other tools."""
