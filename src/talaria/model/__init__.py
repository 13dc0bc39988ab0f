"""Thinking: values and decisions, with no disk, socket, clock, thread or log."""
