"""Faults by the seed: a whole server in virtual time, everything that can go wrong, and what must hold all the same.

`plan` what happens, `world` lets it happen, `account` what must hold, `coverage` what was met, `shrinking` less of it.
Lives among the tests because it puts parts together that may not know each other: driver, wire, instances, policies.
"""
