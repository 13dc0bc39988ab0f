"""The `task.json` that a module finds beside its input: mercure's schema, filled from our own nouns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from talaria.model.dicom import Origin, Tags
from talaria.model.job import Job
from talaria.model.rulebook import Action, ModuleEntry, Rule, Step

#: What mercure writes for a tag that is absent.
_MISSING = "MISSING"


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where the module runs, as `info` tells it."""

    version: str
    appliance: str
    server: str


def task_document(
    job: Job, rule: Rule, step: Step, module: ModuleEntry, *, tags: Tags, origin: Origin, host: Host
) -> dict[str, Any]:
    """
    What one step of a chain is told.

    `process` is this step alone; its settings are the module's with the rule's put over them. The module's
    environment is not in it: it may hold secrets.

    Source: mercure 0.4, `Task`.
    """
    return {
        "id": str(job.id),
        "info": _info(job, rule, tags=tags, origin=origin, host=host),
        "dispatch": {"target_name": list(rule.send), "status": {}} if rule.send else {},
        "process": {
            "module_name": step.module,
            "module_config": {"docker_tag": module.image or "", "settings": dict(module.settings)},
            "settings": dict(step.settings),
            "retain_input_images": rule.keep_inputs,
            "output": None,
        },
        "study": {} if job.series_instance_uid else {"study_uid": job.study_instance_uid},
        "nomad_info": None,
    }


def _info(job: Job, rule: Rule, *, tags: Tags, origin: Origin, host: Host) -> Mapping[str, Any]:
    return {
        "action": "both" if rule.send and rule.action is Action.PROCESS else rule.action,
        "uid": job.series_instance_uid or job.study_instance_uid,
        "uid_type": "series" if job.series_instance_uid else "study",
        "triggered_rules": {rule.name: True},
        "applied_rule": rule.name,
        "patient_name": tags.get("PatientName") or _MISSING,
        "mrn": tags.get("PatientID") or _MISSING,
        "acc": tags.get("AccessionNumber") or _MISSING,
        "sender_address": origin.address or _MISSING,
        "sender_aet": origin.calling_ae or _MISSING,
        "receiver_aet": origin.called_ae or _MISSING,
        "mercure_version": host.version,
        "mercure_appliance": host.appliance,
        "mercure_server": host.server,
        "device_serial_number": tags.get("DeviceSerialNumber") or None,
        "fail_stage": None,
    }
