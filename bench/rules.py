"""
Rates of rule evaluation, on one core (budget P7: 500,000 rules/s; 100 rules on one series below 5 ms).

Beside each rule stands the same expression compiled by Python itself, without any protection: the nearest that an
evaluator in Python could come to. The former way, which makes an interpreter for each evaluation, was measured at 11 to
13 thousand rules/s on the same kind of machine (asteval; it is not installed here).

    python bench/rules.py
"""

import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from pydicom.datadict import tag_for_keyword

from talaria.model.dicom import Tags
from talaria.model.rules import Context, Expression, compile_rule

RULES = (
    "True",
    "tags.Modality == 'CT'",
    "'CINE' in tags.SeriesDescription",
    "tags.SeriesDescription.lower() == 'cine'",
    "float(tags.SliceThickness) < 2.0",
    "(tags.Manufacturer == 'SIEMENS') and (tags.Modality in ('CT', 'MR')) and 'chest' in tags.StudyDescription.lower()",
    "('T1' in @SeriesDescription@) | ('T2' in @SeriesDescription@)",
    "tags.Modality == 'MR' or tags.Modality == 'CT' and not tags.ProtocolName.startswith('Scout')",
    "tags.ImageType.split('\\\\')[2] == 'AXIAL' and float(tags.SliceThickness) <= 3",
    "matches(tags.SeriesDescription, '^CHEST.*[0-9]')",
    "any(s.SeriesDescription == 'T1' for s in series)",
)

VALUES = {
    "Modality": "CT", "SeriesDescription": "CHEST 2.0 B30f", "StudyDescription": "CT CHEST", "SliceThickness": "2.5",
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL", "Manufacturer": "SIEMENS", "ProtocolName": "Thorax",
    **{f"(0019,10{number:02X})": "x" for number in range(130)},
}  # fmt: skip


def resolve(name: str) -> str:
    """Keywords of PS3.6, as they are."""
    if tag_for_keyword(name) is None:
        raise LookupError(f"unknown tag {name!r}")
    return name


def rate(act: Callable[[], object], *, seconds: float = 0.3, rounds: int = 5) -> float:
    """Calls per second; the median of some rounds."""
    rates = []
    for _ in range(rounds):
        count, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds / rounds:
            for _ in range(200):
                act()
            count += 200
        rates.append(count / spent)
    return statistics.median(rates)


class Plain:
    """What `tags` is for Python's own evaluation."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.__dict__.update(values)

    def __getitem__(self, name: str) -> object:
        return self.__dict__[name]


def native(text: str, names: dict[str, object]) -> float | None:
    """Python's own rate, for rules that it understands."""
    try:
        code = compile(text, "rule", "eval")
        eval(code, names)
    except (SyntaxError, NameError):
        return None
    return rate(lambda: eval(code, names))


def main() -> None:
    """Print a line for each rule, and one for 100 rules on one series."""
    tags = Tags(VALUES)
    context = Context(tags=tags, now=datetime(2026, 11, 20, 12, tzinfo=UTC), count=300, series=[tags] * 5)
    plain = Plain(VALUES)
    names: dict[str, object] = {"tags": plain, "series": [plain] * 5}
    compiled: list[Expression] = []
    print(f"{'rules/s':>10} {'Python':>10}  ratio  rule")
    for text in RULES:
        rule = compile_rule(text, resolve=resolve)
        compiled.append(rule)
        ours, theirs = rate(partial(rule.matches, context)), native(text, names)
        beside = f"{theirs:>10,.0f}  {ours / theirs:5.2f}" if theirs else " " * 17
        print(f"{ours:>10,.0f} {beside}  {text}")

    hundred = [compiled[1 + number % (len(compiled) - 1)] for number in range(100)]

    def ask() -> None:
        fresh = Context(tags=tags, now=context.now, count=300, series=context.series)
        for rule in hundred:
            rule.matches(fresh)

    print(f"100 rules on one series: {1e3 / rate(ask, seconds=1):.3f} ms")
    print(f"compiling a rule: {1e6 / rate(lambda: compile_rule(RULES[5], resolve=resolve), seconds=1):.0f} us")
    print(f"explaining a rule: {1e6 / rate(lambda: compiled[5].explain(context), seconds=1):.0f} us")


if __name__ == "__main__":
    main()
