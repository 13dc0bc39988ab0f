"""Talaria, a DICOM orchestrator: receives studies, routes them by rules, processes and delivers them, and proves it."""

__version__ = "0.1.0"
