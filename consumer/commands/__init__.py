"""Commands of a secondary's side."""
