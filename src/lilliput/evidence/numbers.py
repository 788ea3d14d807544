"""How a report writes numbers: digits in groups of three, units by name, shares as percentages."""

from __future__ import annotations

from typing import Any

Number = int | float


def grouped(number: Number) -> str:
    """A number to read: whole ones in full, others to four significant digits.

    >>> grouped(16384), grouped(0.98765), grouped(1234.5678), grouped(2.0e-9)
    ('16,384', '0.9877', '1,235', '2e-09')
    """
    if isinstance(number, int) or (float(number).is_integer() and abs(number) < 1e15):
        return f"{int(number):,}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"


def percent(share: Number) -> str:
    """A share as a percentage, with one decimal; never rounded to a 0 or a 100 that it is not.

    >>> percent(0.9875), percent(1), percent(0.9999), percent(0.0001), percent(0)
    ('98.8%', '100%', '99.99%', '0.01%', '0%')
    """
    for decimals in (1, 2, 3, 4):
        text = f"{100 * share:.{decimals}f}"
        if share in (0, 1) or float(text) not in (0.0, 100.0):
            break
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def amount(value: Any, unit: str = "") -> str:
    """A value with its unit.

    >>> amount(11204, "bytes"), amount(0.9875, "share"), amount(True), amount(3.14159, "seconds"), amount("exact")
    ('11,204 bytes', '98.8%', 'yes', '3.1 seconds', 'exact')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"{value} {unit}".rstrip()
    if unit == "share":
        return percent(value)
    if unit == "seconds":
        return f"{duration(value)} seconds"
    return f"{grouped(value)} {unit}".rstrip()


def duration(seconds: Number) -> str:
    """Seconds with as many digits as a clock deserves.

    >>> duration(83.24), duration(3.14159), duration(0.0421), duration(0.0000021)
    ('83', '3.1', '0.042', '2.1e-06')
    """
    if seconds >= 10:
        return f"{seconds:,.0f}"
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"
