"""The module that changes nothing."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from talaria.model.extensions import Module
from talaria.modules import files

log = logging.getLogger(__name__)


class Pass(Module):
    """Copies its input to its output unchanged, files other than DICOM too; for trying a rule out."""

    kind: ClassVar[str] = "pass"

    def run(self, source: Path, destination: Path, task: Mapping[str, Any]) -> None:
        """Copy every file of the input, byte for byte, under its own name."""
        count = 0
        for name in files.inputs(source):
            files.copy(name, source, destination)
            count += 1
        log.info("%d files copied", count)
