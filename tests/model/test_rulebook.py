"""The rulebook: what is understood, what is refused and with which words, what is only worth knowing."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, field_validator

from talaria.model.dicom import AETitle, Tags
from talaria.model.document import SIZE_LIMIT_BYTES, Problem
from talaria.model.errors import ConfigError, Position
from talaria.model.extensions import Limits, Module, Target
from talaria.model.forms import (
    CompletionForm,
    Listener,
    ModuleForm,
    Retry,
    RuleForm,
    Sender,
    Settings,
    StepForm,
    TargetOptions,
    check_name,
)
from talaria.model.job import Patience, Priority
from talaria.model.retention import Retention
from talaria.model.rulebook import (
    Action,
    Collect,
    Late,
    Rulebook,
    RulebookError,
    Shelves,
    Trigger,
    Unknown,
    parse,
)
from talaria.model.rules import Context
from talaria.registry import discover


class Dicom(Target):
    """A DICOM node that is never reached."""

    kind: ClassVar[str] = "dicom"

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 104
    called_ae: AETitle
    calling_ae: AETitle = AETitle("TALARIA")
    associations: Annotated[int, Field(ge=1, le=64)] = 1
    password: SecretStr = SecretStr("")

    @field_validator("host")
    @classmethod
    def _is_host(cls, host: str) -> str:
        if host == "nowhere":
            raise ConfigError("host 'nowhere' has no address")
        return host


class Folder(Target):
    """A folder that is never written."""

    kind: ClassVar[str] = "folder"

    path: Path
    layout: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Deidentify(Module):
    """A module with settings."""

    kind: ClassVar[str] = "deidentify"

    profile: str
    options: tuple[str, ...] = ()


class Pass(Module):
    """A module without settings."""

    kind: ClassVar[str] = "pass"


SHELVES = Shelves(
    targets={"dicom": Dicom, "folder": Folder},
    modules={"deidentify": Deidentify, "pass": Pass},
    missing={("targets", "sftp"): "needs talaria-dicom[sftp], which is not installed"},
)

EXAMPLE = """\
# Everything that this version knows.
settings:
  series_quiet: 60s            # no new instance for this long
  study_quiet: 15m
  retention: {discarded: 3d, done: 3d, failed: never, held: never}
  off_peak: "22:00-06:00"
  time_zone: Europe/Berlin
  extra_tags: [ConvolutionKernel, "0019,10xx/SIEMENS MR HEADER"]
  record_days: 400
listeners:
  TALARIA: {unknown: accept}
senders:
  ct1: {ae: CT1, address: 10.0.1.0/24, owner: "Radiology, ext. 12"}
targets:
  archive: {kind: dicom, host: 10.0.0.5, port: 104, called_ae: PACS, calling_ae: TALARIA, verify: none, associations: 4,
            retry: {first: 5s, most: 10m, budget: 72h}}
  share:   {kind: folder, path: /data/out, layout: "{PatientID}/{StudyInstanceUID}", include: [dicom, results],
            exclude: ["*.json"], comment: for the physicists}
modules:
  look: {builtin: pass, settings: {threshold: 0.5}, timeout: 20m, memory: 8g, environment: {MODE: fast},
         may_be_empty: true, concurrency: 2, executor: process}
  deid: {builtin: deidentify, settings: {profile: basic, options: [retain-uids]}}
rules:
  chest-ct:
    when: tags.Modality == "CT" and "chest" in tags.StudyDescription.lower()
    trigger: study              # series (default) | study
    collect: matching
    complete: {quiet: 10m}
    action: process
    process: [look, {module: deid, settings: {options: [], profile: strict}}]
    keep_inputs: true
    send: [archive, share]
    priority: urgent
    late: hold
    fallback: false
    disabled: false
    notify: []
    owner: Ada
    tags: [ct, chest]
  rest:
    when: tags.SenderAET != ""
    send: [share]
    fallback: true
"""
#: Settings of a module that has none are refused, so the example's are taken out where it is really read.
GOOD = EXAMPLE.replace("settings: {threshold: 0.5}, ", "")


def read(text: str) -> Rulebook:
    """A rulebook against the plugs of this page."""
    return parse(text, shelves=SHELVES, number=7)


def problems(text: str) -> list[str]:
    """What is wrong with a rulebook, in its own words, one for each line."""
    with pytest.raises(RulebookError) as raised:
        read(text)
    return str(raised.value).splitlines()


def warnings(text: str) -> list[str]:
    """What is worth knowing of a rulebook."""
    return [str(warning) for warning in read(text).warnings]


SENDERS = "senders: {ct: {ae: CT}}\n"
SHARE = SENDERS + "targets: {share: {kind: folder, path: /out}}\n"


# -- what is understood --


def test_settings_listeners_senders_targets() -> None:
    """
    Everything around the rules is read into checked values.
    """
    book = read(GOOD)

    assert (7, GOOD) == (book.number, book.text)
    assert timedelta(seconds=60) == book.settings.series_quiet
    assert timedelta(minutes=15) == book.settings.study_quiet
    assert Retention() == book.settings.retention
    assert book.settings.off_peak.contains(time(23))
    assert ZoneInfo("Europe/Berlin") == book.settings.time_zone
    assert 400 == book.settings.record_days
    assert {AETitle("TALARIA"): Listener(unknown=Unknown.ACCEPT)} == book.listeners
    assert ip_network("10.0.1.0/24") == book.senders["ct1"].address
    assert "Radiology, ext. 12" == book.senders["ct1"].owner
    assert Dicom(host="10.0.0.5", called_ae=AETitle("PACS"), associations=4) == book.targets["archive"].plug
    assert Patience() == book.targets["archive"].patience
    assert "for the physicists" == book.targets["share"].comment


def test_modules() -> None:
    """
    A module is read with its limits; a built-in one runs in the executor process.
    """
    module = read(GOOD).modules["look"]

    assert Limits(timeout=timedelta(minutes=20), memory_bytes=8 << 30) == module.limits
    assert ("pass", None, "process", 2, True) == (
        module.builtin,
        module.image,
        module.executor,
        module.concurrency,
        module.may_be_empty,
    )
    assert {"MODE": "fast"} == module.environment


def test_rule() -> None:
    """
    A rule is read with its chain, whose settings override those of the module key by key.
    """
    rule = read(GOOD).rule("chest-ct")

    assert (Trigger.STUDY, Collect.MATCHING, Action.PROCESS) == (rule.trigger, rule.collect, rule.action)
    assert timedelta(minutes=10) == rule.quiet
    assert [("look", {}), ("deid", {"profile": "strict", "options": []})] == [
        (step.module, dict(step.settings)) for step in rule.process
    ]
    assert (("archive", "share"), Priority.URGENT, Late.HOLD) == (rule.send, rule.priority, rule.late)
    assert (True, False, False) == (rule.keep_inputs, rule.fallback, rule.disabled)
    assert ("Ada", ("ct", "chest")) == (rule.owner, rule.tags)


def test_rules_match() -> None:
    """
    A rule that was read can be asked.
    """
    rule = read(GOOD).rules[0]
    tags = Tags({"Modality": "CT", "StudyDescription": "CHEST LOW DOSE"})
    context = Context(tags=tags, now=datetime(2030, 1, 1, tzinfo=UTC), count=1, series=())

    assert rule.expression.matches(context)


def test_order_is_that_of_the_text() -> None:
    """
    Rules are kept in the order in which they are written.
    """
    names = ["zebra", "ant", "10", "9"]
    book = read(SHARE + "rules:\n" + "".join(f"  {name}: {{when: tags.Modality, send: [share]}}\n" for name in names))

    assert names == [rule.name for rule in book.rules]


@pytest.mark.parametrize(
    ("rule", "late"),
    [("send: [share]", Late.NEW), ("action: process, process: [p]", Late.WHOLE), ("action: discard", Late.NEW)],
)
def test_late_by_action(rule: str, late: Late) -> None:
    """
    Where a rule does not say it, late instances go alone when routing and make the whole case run when processing.
    """
    book = read(SHARE + f"modules: {{p: {{builtin: pass}}}}\nrules: {{a: {{when: tags.Modality, {rule}}}}}")

    assert late is book.rule("a").late


def test_quiet_times() -> None:
    """
    A series rule waits for its own quiet time, else for the settings'; a study rule for both kinds.
    """
    book = read(
        SHARE
        + """
settings: {series_quiet: 1m, study_quiet: 20m}
rules:
  series: {when: tags.Modality, send: [share]}
  slow-series: {when: tags.Modality, send: [share], complete: {quiet: 5m}}
  study: {when: tags.Modality, send: [share], trigger: study}
  slow-study: {when: tags.Modality, send: [share], trigger: study, complete: {quiet: 2h}}
"""
    )
    minute = timedelta(minutes=1)

    assert [minute, 5 * minute, minute, minute] == [book.quiet_of(rule) for rule in book.rules]
    assert [20 * minute, 120 * minute] == [book.study_quiet_of(rule) for rule in book.rules[2:]]


def test_recorded_names() -> None:
    """
    Recorded are the usual tags, the extra ones and those that rules read, each once, by their own spelling; what the
    association tells stands in no data set.
    """
    book = read(
        SHARE
        + """
settings: {extra_tags: [convolutionkernel, "0019,10XX/SIEMENS MR HEADER"]}
rules:
  a: {when: tags.TimeOfLastCalibration == "" and tags.modality and tags.senderaet, send: [share]}
"""
    )
    names = book.recorded_names

    assert {"Modality", "ConvolutionKernel", "0019,10xx/SIEMENS MR HEADER", "TimeOfLastCalibration"} <= set(names)
    assert len(set(names)) == len(names)
    assert "SenderAET" not in names


@pytest.mark.parametrize(
    "text", ["rules: {}", "rules:\n", "rules: []", "settings:\nlisteners:\nrules: {}", "\ufeffrules: {}"]
)
def test_least_rulebook(text: str) -> None:
    """
    A rulebook without rules is one; its only listener is TALARIA, and it takes whoever calls.
    """
    book = read(text)

    assert () == book.rules
    assert {AETitle("TALARIA"): Listener()} == book.listeners
    assert Settings() == book.settings


def test_key_without_value_is_not_given() -> None:
    """
    A key without a value counts as not given.
    """
    book = read(SHARE + "rules:\n  a:\n    when: tags.Modality\n    send: [share]\n    owner:\n    late:\n")

    assert ("", Late.NEW) == (book.rules[0].owner, book.rules[0].late)


def test_rule_of_a_name() -> None:
    """
    A rule that is not there is an error which says what is near.
    """
    with pytest.raises(ConfigError) as raised:
        read(GOOD).rule("chest-mr")

    assert "rule 'chest-mr' is not in rulebook 7; did you mean 'chest-ct'?" == str(raised.value)


def test_ten_thousand_lines_are_read() -> None:
    """
    A rulebook of two thousand rules is read.
    """
    rules = "".join(f"  r{n}: {{when: tags.Modality == 'CT', send: [share]}}\n" for n in range(2000))

    assert 2000 == len(read(SHARE + "rules:\n" + rules).rules)


# -- what is refused --


WRONG = """\
settings:
  series_quiet: 60
  time_zone: Europe/Berln
  extra_tags: [ConvolutionKernel, Sharpnes]
listeners: {"A\\\\B": {}}
senders: {ct: {adress: 10.0.0.1}, mr: {address: 10.0.1.5/24}}
targets:
  archive: {kind: dicom, host: a, port: 70000, called_ae: PACS, retry: {fist: 1s}, asociations: 2, password: 123}
  web: {kind: dicomwob}
  far: {kind: sftp}
  gone: {kind: dicom, host: nowhere, called_ae: X}
modules:
  deid: {builtin: deidentfy}
  both: {builtin: pass, image: x}
  wrong: {builtin: pass, settings: {a: 1}, executor: docker}
rules:
  a/b: {when: True, send: [archive]}
  chest-ct:
    when: tags.Modalty == "CT"
    send: [archve]
  head:
    send: [archive]
    action: proces
  body: {when: True, action: process, process: [ded, {module: deid}]}
  chest-ct: {}
sendrs: {}
"""

TOLD = """\
line 2: settings.series_quiet: 60 is not a duration; write 90s, 15m, 2h, 3d or never
line 3: settings.time_zone: time zone 'Europe/Berln' is not known; did you mean 'Europe/Berlin'?
line 5: listeners.A\\B: 'A\\\\B' is not an AE title: 1 to 16 printable ASCII characters, no backslash, not all blanks
line 6: senders.ct.adress: unknown key; did you mean 'address'?
line 6: senders.mr.address: 10.0.1.5/24 has host bits set; write an address such as 10.0.1.5 or a network such as \
10.0.1.0/24
line 8: targets.archive.port: should be at most 65535, is 70000
line 8: targets.archive.retry.fist: unknown key; did you mean 'first'?
line 8: targets.archive.asociations: unknown key; did you mean 'associations'?
line 8: targets.archive.password: should be text, is a number; put it in quotes if it is meant as text
line 9: targets.web.kind: kind 'dicomwob' is not on the shelf; there are: dicom, folder; did you mean 'dicom'?
line 10: targets.far.kind: kind 'sftp' needs talaria-dicom[sftp], which is not installed
line 11: targets.gone: host 'nowhere' has no address
line 13: modules.deid.builtin: builtin 'deidentfy' is not on the shelf; there are: deidentify, pass; \
did you mean 'deidentify'?
line 14: modules.both: should have either an image or a builtin
line 14: modules.both.image: needs an executor for containers, which is not on the shelf yet
line 15: modules.wrong.settings.a: unknown key
line 15: modules.wrong.executor: executor 'docker' is not defined; there is: process
line 17: rules.a/b: 'a/b' is no name; use 1 to 64 letters, digits, blanks and _ . + - ( ) @, without '..'
line 19: rules.chest-ct.when: no DICOM element is called 'Modalty'; did you mean Modality? (column 6 of the rule)
    tags.Modalty == "CT"
         ^
line 20: rules.chest-ct.send: target 'archve' is not defined; did you mean 'archive'?
line 21: rules.head.when: is missing
line 23: rules.head.action: should be one of: route, process, notify, discard; is 'proces'; did you mean 'process'?
line 24: rules.body.process: module 'ded' is not defined; did you mean 'deid'?
line 25: rules.chest-ct: is given twice, first on line 18
line 26: sendrs: unknown section; did you mean 'senders'?
"""


def test_every_problem_is_told_with_its_line() -> None:
    """
    A rulebook is refused with everything that is wrong with it, in the order of its lines.
    """
    assert TOLD.splitlines() == problems(WRONG)


def test_extra_tag_that_nobody_knows() -> None:
    """
    A tag to record that no dictionary has is refused at its place in the list.
    """
    assert ["line 2: settings.extra_tags[1]: no DICOM element is called 'Modalty'; did you mean Modality?"] == problems(
        "settings:\n  extra_tags: [Modality, Modalty]\nrules: {}"
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{when: True}", "line 3: rules.a: action route needs send"),
        ("{when: True, send: []}", "line 3: rules.a: action route needs send"),
        ("{when: True, send: [share], process: [p]}", "line 3: rules.a.process: action route takes no process"),
        ("{when: True, action: process}", "line 3: rules.a: action process needs process"),
        ("{when: True, action: process, send: [share]}", "line 3: rules.a: action process needs process"),
        ("{when: True, action: discard, send: [share]}", "line 3: rules.a.send: action discard takes no send"),
        ("{when: True, action: discard, process: [p]}", "line 3: rules.a.process: action discard takes no process"),
        ("{when: True, send: share}", "line 3: rules.a.send: should be a list such as [a, b], is text"),
        ("{when: 5, send: [share]}", "line 3: rules.a.when: should be text, is a number; put it in quotes if it is "
                                     "meant as text"),
        ("5", "line 3: rules.a: should be a mapping such as {key: value}, is a number"),
        ("{when: True, send: [5]}", "line 3: rules.a.send[0]: should be text, is a number; put it in quotes if it is "
                                    "meant as text"),
        ("{when: True, send: [share], complete: {quiet: never}}", "line 3: rules.a.complete.quiet: 'never' is not "
         "possible here; write a duration such as 90s, 15m, 2h or 3d"),
        ("{when: True, send: [share], dynamic_routing: {allowed: [share]}}",
         "line 3: rules.a.dynamic_routing: routing by a module's word is not available in this version"),
        ("{when: True, send: [share], promise: 5m}",
         "line 3: rules.a.promise: promises are not available in this version: nothing would watch over them"),
        ("{when: True, send: [share], resend: true}",
         "line 3: rules.a.resend: sending identical images again is not available in this version"),
        ("{when: True, send: [share], priority: high}",
         "line 3: rules.a.priority: should be one of: normal, urgent, offpeak; is 'high'"),
    ],
)  # fmt: skip
def test_rule_that_is_refused(rule: str, message: str) -> None:
    """
    What an action needs, and what it must not have, is told with its line.
    """
    text = SENDERS + "targets: {share: {kind: folder, path: /o}}\n" + f"rules: {{a: {rule}}}\n"

    assert message in problems(text + "modules: {p: {builtin: pass}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: {either: {targets: [archive]}}", "groups: groups of targets are not available in this version"),
        ("executors: {c: {kind: nomad}}", "executors: executors are not available in this version; built-in modules "
                                          "need none"),
        ("channels: {team: {kind: slack}}", "channels: channels are not available in this version"),
        ("alerts: {slow: {query: select 1}}", "alerts: alerts are not available in this version"),
        ("tests: [{name: x}]", "tests: tests are not available in this version"),
        ("listeners: {A: {unknown: quarantine}}", "listeners.A.unknown: quarantine is not available in this version"),
        ("senders: {s: {certificate: CN=s}}", "senders.s.certificate: certificates of senders are not available in "
                                              "this version"),
        ("targets: {t: {kind: folder, path: /o, verify: hash}}", "targets.t.verify: verification is not available in "
         "this version; leave it out or write none"),
        ("targets: {t: {kind: folder, path: /o, window: '18:00-08:00'}}", "targets.t.window: windows of time are not "
         "available in this version"),
        ("targets: {t: {kind: folder, path: /o, bandwidth: 20m/s}}", "targets.t.bandwidth: limits of bandwidth are "
         "not available in this version"),
        ("targets: {t: {kind: folder, path: /o, tls: {ca: c}}}", "targets.t.tls: TLS to targets is not available in "
         "this version"),
        ("targets: {t: {kind: s3}}", "targets.t.kind: kind 's3' is not on the shelf; there are: dicom, folder"),
        ("modules: {m: {image: 'registry:5000/lung:1.2', gpu: 1, executor: docker}}", "modules.m.image: needs an "
         "executor for containers, which is not on the shelf yet"),
    ],
)  # fmt: skip
def test_not_available_yet(text: str, message: str) -> None:
    """
    What has no service in this version is refused as such, once, and as nothing else.
    """
    assert [f"line 1: {message}"] == problems(f"{text}\nrules: {{}}")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("action: notify, notify: [{channel: team}]", "notify: notices are not available in this version"),
        ("action: notify, notify: [{channel: team}]", "action: action notify is not available in this version"),
        ("send: [share], complete: {series: \"'AX T2'\", give_up: 90m, then: wait}",
         "complete.series: completion by a list of series is not available in this version"),
        ("send: [share], complete: {released: true}",
         "complete.released: completion at release is not available in this version"),
    ],
)  # fmt: skip
def test_rule_with_what_is_not_available_yet(written: str, message: str) -> None:
    """
    A rule that asks for what has no service in this version is refused with the key that asks.
    """
    found = problems(f"{SHARE}rules: {{a: {{when: tags.Modality, {written}}}}}")

    assert f"line 3: rules.a.{message}" in found
    assert all("not available in this version" in line for line in found)


def test_targets_of_a_refused_group_are_not_told_again() -> None:
    """
    A rule that sends to a group is not blamed for the group.
    """
    text = "groups: {either: {targets: [a]}}\nrules: {a: {when: tags.Modality, send: [either]}}"

    assert ["line 1: groups: groups of targets are not available in this version"] == problems(text)


def test_what_is_not_yet_may_say_nothing() -> None:
    """
    The same keys with nothing in them are fine.
    """
    text = """
groups: {}
executors: {}
channels:
alerts: {}
tests: []
senders: {s: {ae: S, certificate: ""}}
targets: {t: {kind: folder, path: /o, verify: none}}
rules: {a: {when: tags.Modality, send: [t], notify: [], complete: {released: false}}}
"""

    assert ["t"] == list(read(text).targets)


def test_missing_rules() -> None:
    """
    A rulebook that was cut off before its rules is not one without rules.
    """
    assert ["line 1: rules: is missing; an empty rulebook says `rules: {}`"] == problems("settings: {}")


@pytest.mark.parametrize(
    ("written", "line", "column", "caret"),
    [
        ("when: foo(1)", 5, 11, "foo(1)\n^"),
        ('when: "foo(1)"', 5, 12, "foo(1)\n^"),
        ("when: |\n      True and\n      foo(1)", 7, 1, "foo(1)\n^"),
        ("when: >\n      True and\n      foo(1)", 5, 11, None),
    ],
)
def test_place_of_an_error_in_a_rule(written: str, line: int, column: int, caret: str | None) -> None:
    """
    An error in a rule points into the document, and shows the rule with a caret.
    """
    with pytest.raises(RulebookError) as raised:
        read(f"{SHARE}rules:\n  a:\n    {written}\n    send: [share]\n")
    problem = raised.value.problems[0]

    assert (("rules", "a", "when"), Position(line=line, column=column)) == (problem.place, problem.position)
    assert caret is None or caret == problem.caret


def test_settings_of_a_step() -> None:
    """
    A module may leave to its rules what it needs; a rule that does not give it is refused at its step.
    """
    text = """\
modules: {deid: {builtin: deidentify}}
rules:
  good: {when: tags.Modality, action: process, process: [{module: deid, settings: {profile: basic}}]}
  poor: {when: tags.Modality, action: process, process: [deid]}
  odd:
    when: tags.Modality
    action: process
    process:
      - module: deid
        settings: {profile: 5}
"""

    assert [
        "line 4: rules.poor.process[0].settings.profile: is missing",
        "line 10: rules.odd.process[0].settings.profile: should be text, is a number; "
        "put it in quotes if it is meant as text",
    ] == problems(text)


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "a#b",
        "..",
        "a..b",
        "",
        " ",
        " a",
        "a ",
        "x" * 65,
        "a\nb",
        "\u0430\u0301/",
        "a\u200b",
        "e\u0301",
        "a:b",
        "-a",
    ],
)
def test_names_that_are_none(name: str) -> None:
    """
    A name that could be mistaken in a path, an address or a log is refused.
    """
    with pytest.raises(ValueError, match="is no name"):
        check_name(name)

    assert any("is no name" in line for line in problems(json.dumps({"rules": {name: {"when": "True"}}})))


@pytest.mark.parametrize(
    "name", ["chest-ct", "Schädel MRT", "头部 CT", "a", "10", "x" * 64, "CT (low dose) v1.2 @night"]
)
def test_names(name: str) -> None:
    """
    Names may be written in any language, with blanks, dots and brackets.
    """
    assert name == check_name(name)


def test_listener_that_is_there_twice() -> None:
    """
    Two AE titles that differ in blanks around them only are one.
    """
    assert ["line 1: listeners.A : AE title 'A' is given twice; blanks around it mean nothing"] == problems(
        "listeners: {A: {}, 'A ': {}}\nrules: {}"
    )


def test_time_zone_with_a_path_in_it() -> None:
    """
    A time zone cannot name a file.
    """
    assert ["line 1: settings.time_zone: time zone '../../etc/passwd' is not known"] == problems(
        "settings: {time_zone: ../../etc/passwd}\nrules: {}"
    )


def test_large_rulebook() -> None:
    """
    A rulebook of more than a megabyte is refused unread.
    """
    assert [f"is {SIZE_LIMIT_BYTES + 9} bytes; at most {SIZE_LIMIT_BYTES} are read"] == problems(
        "rules: {}" + "#" * SIZE_LIMIT_BYTES
    )


# -- what is worth knowing --


def test_nobody_is_listed() -> None:
    """
    Without senders everybody is accepted, or nobody, and that is told.
    """
    rule = "rules: {a: {when: tags.Modality, action: discard}}"

    assert ["senders: nobody is listed: listener 'TALARIA' accepts every calling AE title"] == [
        warning.split(": ", 1)[1] for warning in warnings(rule)
    ]
    assert ["line 1: listeners.T: refuses whoever is not in senders, and nobody is: nothing is received"] == warnings(
        f"listeners: {{T: {{unknown: refuse}}}}\n{rule}"
    )


def test_good_rulebook_needs_no_warning() -> None:
    """
    The example leaves nothing to be said.
    """
    assert () == read(GOOD).warnings


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("{}", ["rules: no rule is asked: whatever arrives is kept for 3 d and then deleted"]),
        ("{a: {when: True, send: [share]}}", ["rules.a.when: is always true"]),
        ("{a: {when: true, send: [share]}}", ["rules.a.when: is always true"]),
        ("{a: {when: 1 < 2, send: [share]}}", ["rules.a.when: is always true"]),
        ("{a: {when: True, send: [share], fallback: true}}", []),
        ("{a: {when: tags.Modality, send: [share]}, b: {when: tags.Modality, action: discard}}",
         ["rules.b: discard wins over rules that matched before it: a"]),
        ("{a: {when: True, action: discard}, b: {when: tags.Modality, send: [share]}}",
         ["rules.a.when: is always true", "rules.b: is never asked: rule 'a' discards everything before it"]),
        ("{a: {when: tags.Modality, send: [share], disabled: true}}",
         ["rules: no rule is asked: whatever arrives is kept for 3 d and then deleted",
          "rules.a: is disabled and never asked"]),
        ("{a: {when: True, send: [share]}, b: {when: True, send: [share], fallback: true}}",
         ["rules.a.when: is always true", "rules.b: is never asked: rule 'a' always matches"]),
        ("{a: {when: tags.Modality, send: [share], collect: matching, keep_inputs: true}}",
         ["rules.a.collect: has no effect with trigger series", "rules.a.keep_inputs: has no effect without process"]),
        ("{a: {when: tags.Modality, action: process, process: [p]}}",
         ["rules.a: sends nothing: the results of the modules stay here until retention ends"]),
    ],
)  # fmt: skip
def test_warnings(rules: str, expected: list[str]) -> None:
    """
    What is odd but possible is told and stands in nobody's way.
    """
    text = SHARE + "modules: {p: {builtin: pass}}\nrules: " + rules

    assert [f"line 4: {warning}" for warning in expected] == warnings(text)


def test_container_settings_of_a_built_in_module() -> None:
    """
    What shapes a container does nothing for a module that has none.
    """
    text = SENDERS + "modules: {p: {builtin: pass, gpu: 1}}\nrules: {a: {when: tags.Modality, action: discard}}"

    assert ["line 2: modules.p.gpu: has no effect on a built-in module, which has no container"] == warnings(text)


# -- whatever is written --


def refused_with(text: str) -> tuple[Problem, ...] | None:
    """What is wrong with a rulebook; None where it can be used."""
    try:
        read(text)
    except RulebookError as error:
        return error.problems
    return None


@pytest.mark.slow
def test_cut_anywhere() -> None:
    """
    The example, cut off after any of its characters, is read or refused, and nothing else.
    """
    assert () not in [refused_with(GOOD[:end]) for end in range(len(GOOD))]


KINDS: tuple[Any, ...] = (5, -1, 1.5, True, "text", "", [], ["a"], {}, {"a": 1}, [[]], [5], None)
#: Where each form stands, in a rulebook that is right.
PLACES: tuple[tuple[type[BaseModel], tuple[str | int, ...]], ...] = (
    (Settings, ("settings",)),
    (Retention, ("settings", "retention")),
    (Listener, ("listeners", "TALARIA")),
    (Sender, ("senders", "ct1")),
    (TargetOptions, ("targets", "archive")),
    (Retry, ("targets", "archive", "retry")),
    (Dicom, ("targets", "archive")),
    (Folder, ("targets", "share")),
    (ModuleForm, ("modules", "deid")),
    (RuleForm, ("rules", "chest-ct")),
    (CompletionForm, ("rules", "chest-ct", "complete")),
    (StepForm, ("rules", "chest-ct", "process", 1)),
)
BASE: Mapping[str, Any] = {
    "settings": {"retention": {}},
    "listeners": {"TALARIA": {}},
    "senders": {"ct1": {"ae": "CT1"}},
    "targets": {
        "archive": {"kind": "dicom", "host": "h", "called_ae": "PACS", "retry": {}},
        "share": {"kind": "folder", "path": "/o"},
    },
    "modules": {"deid": {"builtin": "deidentify", "settings": {"profile": "basic"}}, "look": {"builtin": "pass"}},
    "rules": {
        "chest-ct": {
            "when": "tags.Modality",
            "action": "process",
            "process": ["look", {"module": "deid"}],
            "send": ["share"],
            "complete": {},
        }
    },
}


def fields() -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every field that there is, with its place."""
    for form, place in PLACES:
        for name in form.model_fields:
            yield place, name


def with_value(place: tuple[str | int, ...], value: object) -> str:
    """The right rulebook with one value replaced; JSON is YAML."""
    document = json.loads(json.dumps(BASE))
    here = document
    for step in place[:-1]:
        here = here[step]
    here[place[-1]] = value
    return json.dumps(document)


def test_base_is_right() -> None:
    """
    The rulebook into which wrong values are put is right without them.
    """
    assert ["chest-ct"] == [rule.name for rule in read(json.dumps(BASE)).rules]


@pytest.mark.parametrize(("place", "name"), list(fields()))
def test_wrong_type_for_each_field(place: tuple[str | int, ...], name: str) -> None:
    """
    Every field takes some kind of value, refuses others at its own place, and falls over none.
    """
    refusals = [found for value in KINDS if (found := refused_with(with_value((*place, name), value))) is not None]
    at_home = {place[:2], ("rules", "chest-ct"), ("targets", "archive")}

    assert len(refusals) >= 4 or name == "settings"
    assert at_home >= {problem.place[: len(place[:2])] for found in refusals for problem in found if len(place) > 1}


@pytest.mark.parametrize("place", [place for _, place in PLACES])
def test_unknown_key_anywhere(place: tuple[str | int, ...]) -> None:
    """
    A key that no form knows is refused wherever it stands.
    """
    written = with_value((*place, "wrong_key"), 1)

    assert any(line.split(": ", 2)[2].startswith("unknown key") for line in problems(written))


def test_repeated_key_anywhere() -> None:
    """
    A line of the example that comes twice makes a key that is there twice, and both lines are told.
    """
    lines = GOOD.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    ") and ": " in line and not line.startswith("     "):
            text = "\n".join([*lines[: number + 1], line, *lines[number + 1 :]])
            key = line.split(":")[0].strip()

            assert any(f".{key}: is given twice, first on line {number + 1}" in told for told in problems(text))


WORDS = (
    "rules settings targets modules listeners senders when send process action kind builtin True folder pass share "
    "path /o 60s never [ ] { } : , - & * ! | > # \" ' ? %YAML --- ... <<"
)


@settings(max_examples=400)
@given(st.lists(st.sampled_from([*WORDS.split(), "\n", "\n  ", ""]), max_size=40).map(" ".join) | st.text())
def test_anything_is_read_or_refused(text: str) -> None:
    """
    No text raises anything but the refusal of a rulebook.
    """
    assert refused_with(text) != ()


@settings(max_examples=200)
@given(st.data())
def test_one_character_changed(data: st.DataObject) -> None:
    """
    The example with any one character changed is read or refused, and nothing else.
    """
    place = data.draw(st.integers(0, len(GOOD) - 1))
    text = GOOD[:place] + data.draw(st.characters()) + GOOD[place + 1 :]
    assert refused_with(text) != ()


def test_tags_of_a_layout_are_recorded() -> None:
    """
    What a target's settings speak of is recorded of every series, whoever else reads it.
    """
    book = parse(
        "targets: {share: {kind: folder, path: /o, layout: '{PatientAge}/{0019,10AB}'}}\nrules: {}\n",
        shelves=discover(),
    )

    assert {"PatientAge", "0019,10ab"} <= {name.lower() if "," in name else name for name in book.recorded_names}
