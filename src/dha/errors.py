"""The one error that users of dha are meant to see."""


class DhaError(ValueError):
    """Bad input, named before any long work starts: the message says which value, where it is, and what to do about it."""
