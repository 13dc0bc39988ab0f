"""A DICOM orchestrator."""
