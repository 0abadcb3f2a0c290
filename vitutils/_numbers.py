"""Numbers that a function was given, as Python's own or refused. Nothing here needs torch."""

import math
from collections.abc import Callable
from numbers import Integral, Real


def at_least_1(**numbers: int) -> None:
    """Hold that each named number is a whole one and 1 or more."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"expected {name} to be a whole number, 1 or more, got {shown(value)}")


def plain(value: object) -> object:
    """A number of NumPy's, or a tensor that holds one, as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def shown(value: object) -> str:
    """A value as Python writes it, in 60 characters or fewer."""
    if isinstance(value, int) and abs(value) > 10**40:  # Python itself refuses to write out the largest
        return "a whole number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checked_number(value: object, what: str, fits: Callable[[float], bool]) -> float:
    """A real number of any library's as Python's float. what: what was expected, in words. fits: whether it is that."""
    found = plain(value)
    number = math.nan
    if isinstance(found, Real) and not isinstance(found, bool) and abs(found) <= 10**308:
        number = float(found)
    elif isinstance(found, float):
        number = found
    if math.isnan(number) or not fits(number):
        raise ValueError(f"expected {what}, got {shown(value)}")
    return number


def checked_rate(lr: object) -> float:
    """A learning rate, above 0 and finite, as Python's float: an optimizer would write into a tensor."""
    return checked_number(lr, "a learning rate above 0", lambda x: 0 < x < math.inf)
