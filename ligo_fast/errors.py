"""The one error this package raises for input it cannot grow."""


class GrowthError(ValueError):
    """Bad input to growth; the message names the axis or parameter and the numbers.

    Raised before anything is written: the target model is left as it was.
    """
