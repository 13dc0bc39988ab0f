"""Our DICOM upper layer: sockets and bytes, nothing of jobs."""
