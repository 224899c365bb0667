"""Child processes of tests."""

WAIT_SECONDS = 600
"""Longest wait for a child process: a test fails rather than hangs, also on a busy machine."""
