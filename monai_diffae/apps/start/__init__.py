"""The command ``start``: the other commands, one after the other, for the first hour with a new cohort."""

__all__: list[str] = []
