"""The capstone's arithmetic: from a real server's measurements to a fleet, its day, its bill, and a design note."""

from labkit.capstone.day import Hour, bill_usd, day, day_of_replicas, fleet_per_day
from labkit.capstone.fleet import Fleet, Promise, capacity_per_s, fleet, share_kept, traffic_like
from labkit.capstone.note import Facts, Guess, design_note, guesses_of
from labkit.capstone.replica import Level, Replayed, check_plan, level, pace, replay, room_for, service_of, slower

__all__ = [
    "Facts",
    "Fleet",
    "Guess",
    "Hour",
    "Level",
    "Promise",
    "Replayed",
    "bill_usd",
    "capacity_per_s",
    "check_plan",
    "day",
    "day_of_replicas",
    "design_note",
    "fleet",
    "fleet_per_day",
    "guesses_of",
    "level",
    "pace",
    "replay",
    "room_for",
    "service_of",
    "share_kept",
    "slower",
    "traffic_like",
]
