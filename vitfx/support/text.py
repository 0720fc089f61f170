"""Numbers as tables and sentences show them."""

from __future__ import annotations

GIB = 2**30


def digits(value: float) -> str:
    """Three significant digits, and all that a large number has before its point: 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def large(count: int) -> str:
    """Three significant digits of a count from a million on, and all of a smaller one: 21.6 M, 2.87 G, 13,584."""
    for name, unit in (("G", 10**9), ("M", 10**6)):
        if count >= unit:
            return f"{digits(count / unit)} {name}"
    return f"{count:,}"


def percent(share: float | None) -> str:
    """Two decimals; a dash for what is not known, such as an accuracy without labels."""
    return "–" if share is None else f"{share:.2%}"


def time_left(seconds: float) -> str:
    """ ", 12 min left", or hours where it is long."""
    minutes = seconds / 60
    if minutes > 90:
        return f", {minutes / 60:.1f} h left"
    return f", {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"


def faster(speedup: float) -> str:
    return f"{speedup:.2f}× faster" if speedup >= 1 else f"{1 / speedup:.2f}× slower"


def amount(size: int) -> str:
    """Of memory, from bytes: 1.20 GiB, 25.0 MiB."""
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.1f} MiB"
