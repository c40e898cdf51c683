"""Commands of the primary's side."""
