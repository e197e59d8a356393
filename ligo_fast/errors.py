"""The errors this package raises."""


class GrowthError(ValueError):
    """Bad input to growth; the message names the axis or parameter and the numbers.

    Raised before anything is written: the target model is left as it was.
    """


class VerifyError(GrowthError):
    """What was written is not what it should be."""
