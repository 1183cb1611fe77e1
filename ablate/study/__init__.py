"""Declare: a YAML file becomes a frozen, typed ``Study``. Knows no torch and no database."""
