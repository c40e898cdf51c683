"""A secondary's side: receive, verify, replay, quarantine, report."""
