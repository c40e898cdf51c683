"""What goes wrong with a private server, as a sentence for the person at the terminal."""


class ServerError(Exception):
    """A private server cannot be set up, started or used; the text says which, why, and what to do."""
