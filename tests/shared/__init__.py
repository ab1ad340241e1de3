"""Helpers that tests share: the oracle, named cases, geometries and winners, and the instructions of programs."""
