"""Expand: a ``Study`` becomes arms, contrasts and trials. Pure: no clock, disk, database or user code."""
