"""The one error that users of dha are meant to see."""


class DhaError(ValueError):
    """Bad input, found before any long work starts: the message names the value, the place and the remedy."""
