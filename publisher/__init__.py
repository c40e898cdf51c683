"""The primary's side: capture, outbox, relay, journal, control."""
