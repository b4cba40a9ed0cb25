"""The one exception that a person, not a programmer, is meant to read."""


class BadInput(ValueError):
    """Input that cannot be used; the message is one sentence: what is wrong, where, and how to mend it."""
