"""Reads from a file of the spool alone what the ledger has to know of it: who sent which instance to whom."""

import os
from datetime import datetime
from pathlib import Path

from talaria.model.dicom import UID, Instance
from talaria.model.header import TagList, scan
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.store.arrivals import Arrival
from talaria.store.spool import HEAD_BYTES, file_digest, origin_of


def examine(path: Path, *, instance_id: str, spool: str, wanted: TagList, received: datetime) -> Arrival:
    """
    An instance as its file tells of it; all of the file is read.

    Args:
        path: Where it lies.
        instance_id: Its ULID.
        spool: Its spool's name.
        wanted: The tags to record.
        received: When it came.

    Raises:
        NotAnInstance: It cannot be read as a DICOM instance.
        OSError: It cannot be read at all.
    """
    with path.open("rb") as file:
        meta = parse_meta(file.read(META_LIMIT_BYTES))
        size = os.fstat(file.fileno()).st_size - meta.offset
        header = scan(
            os.pread(file.fileno(), HEAD_BYTES, meta.offset),
            transfer_syntax_uid=meta.transfer_syntax_uid,
            wanted=wanted,
            read_on=lambda offset, length: os.pread(file.fileno(), length, meta.offset + offset),
            size_bytes=size,
            sop_class_uid=meta.sop_class_uid,
        )
    origin = origin_of(meta)
    instance = Instance(
        id=instance_id,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        series_instance_uid=header.series_instance_uid,
        study_instance_uid=header.study_instance_uid,
        transfer_syntax_uid=UID(meta.transfer_syntax_uid),
        size_bytes=size,
        sha256=file_digest(path, offset=meta.offset),
        spool=spool,
        received=received,
    )
    sent_by = {"SenderAET": origin.calling_ae, "ReceiverAET": origin.called_ae, "SenderAddress": origin.address}
    tags = header.tags.with_values(sent_by)
    return Arrival(instance=instance, origin=origin, association="", tags=tags, flags=header.flags)
