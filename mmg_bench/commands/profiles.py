"""The profile of a table that is made here: the one asked for, or the first that this machine can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def choose(
    spec: dict[str, Any],
    wanted: str,
    what: Callable[[dict[str, Any]], str],
    lacks: Callable[[dict[str, Any]], list[str]],
) -> tuple[str, dict[str, Any]]:
    """A profile of a table, by name; says which, why, and what the others lack.

    what: what a profile measures, in words. lacks: what it needs and this machine has not, a line each.
    """
    profiles: dict[str, dict[str, Any]] = spec["profiles"]
    if wanted != "auto":
        if wanted not in profiles:
            raise ValueError(f"table {spec['name']!r} has no profile {wanted!r}; choose auto or {', '.join(profiles)}")
        print(f"Profile {wanted}: asked for.", flush=True)
        return wanted, profiles[wanted]
    for name, profile in profiles.items():
        missing = lacks(profile)
        if not missing:
            print(f"Profile {name} ({what(profile)}) runs: everything it needs is at hand.\n", flush=True)
            return name, profile
        print(f"Profile {name} ({what(profile)}) is passed over. Missing here:", *missing, sep="\n  - ")
        print(
            f"  How to get them: docs/reproducing.md. Then:  mmg-bench table table={spec['name']} profile={name}\n",
            flush=True,
        )
    raise ValueError(f"no profile of table {spec['name']!r} can run here; what each lacks is listed above")
