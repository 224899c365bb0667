"""The configuration: its sections, its files, and every mistake of a file in one list. The only home of
pydantic.
"""
