"""Entry points for demo and tests, and the private servers they run on."""
