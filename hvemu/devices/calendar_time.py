"""The calendar of the clock chip: its eight fields to seconds since 1970 and back, for any bytes a guest may write.

Pure functions for cmos_rtc.py; the host's clock and time zone are never asked. Fields are numbers in this order:
second, minute, hour, weekday (Sunday is 1), day, month, year of the century, century. Impossible dates carry
over: 31 February is 3 March.
"""

from datetime import date
from typing import Final

EPOCH: Final = date(1970, 1, 1).toordinal()
DAY: Final = 86_400


def to_fields(seconds: int) -> list[int]:
    """The fields of a time, clamped to the years 1 to 9999."""
    days, rest = divmod(seconds, DAY)
    ordinal = min(max(days + EPOCH, 1), date.max.toordinal())
    day = date.fromordinal(ordinal)
    time_of_day = [rest % 60, rest // 60 % 60, rest // 3600]
    return [*time_of_day, ordinal % 7 + 1, day.day, day.month, day.year % 100, day.year // 100]


def to_seconds(fields: list[int]) -> int:
    """The time of the fields; the weekday does not count."""
    second, minute, hour, _, day, month, year, century = fields
    whole_year = min(max(century * 100 + year, 1), 9999)
    ordinal = date(whole_year, min(max(month, 1), 12), 1).toordinal() + day - 1
    return (ordinal - EPOCH) * DAY + hour * 3600 + minute * 60 + second


def plus_seconds(fields: list[int], seconds: int) -> list[int]:
    """The fields some seconds later. The weekday runs on from what the guest set, right or wrong."""
    before = to_seconds(fields)
    later = to_fields(before + seconds)
    days = (before + seconds) // DAY - before // DAY
    later[3] = (fields[3] - 1 + days) % 7 + 1
    return later


def next_match(after: int, hour: int | None, minute: int | None, second: int | None) -> int | None:
    """The first second later than ``after`` at which an alarm matches; None is a wildcard, or never."""
    time = after + 1
    for _ in range(256):  # a day has 24 hours, an hour 60 minutes, a minute 60 seconds to try
        if hour is not None and time // 3600 % 24 != hour:
            time = (time // 3600 + 1) * 3600
        elif minute is not None and time // 60 % 60 != minute:
            time = (time // 60 + 1) * 60
        elif second is not None and time % 60 != second:
            time += 1
        else:
            return time
    return None
