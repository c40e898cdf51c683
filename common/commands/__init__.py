"""Commands that belong to no side: keys, broker definitions, run, status."""
