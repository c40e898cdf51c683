"""What both sides of stsync share."""

__version__ = "0.1.0"
