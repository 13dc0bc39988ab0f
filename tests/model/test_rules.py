"""The rule language: what mercure's rules answer, what is refused and where, limits, explanations."""

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talaria.model.bounds import AbsentValue
from talaria.model.dicom import Tags
from talaria.model.errors import Position, RuleError
from talaria.model.evaluation import Run
from talaria.model.rules import Came, Context, Explanation, Expression, Part, compile_rule

KNOWN = (
    "Modality", "SeriesDescription", "StudyDescription", "SliceThickness", "ImageType", "Manufacturer", "StationName",
    "ProtocolName", "SeriesNumber", "PatientAge", "PatientBirthDate", "StudyDate", "AcquisitionDateTime",
    "ConvolutionKernel", "MagneticFieldStrength", "SoftwareVersions", "InstitutionName", "SenderAET", "ReceiverAET",
    "SenderAddress", "0019,100c/SIEMENS MR HEADER", "0019,100c",
    "RequestAttributesSequence[0].ScheduledProcedureStepID",
)  # fmt: skip
SPELLED = {name.lower(): name for name in KNOWN}

VALUES: dict[str, str | None] = {
    "Modality": "CT",
    "SeriesDescription": "CHEST 2.0 B30f",
    "StudyDescription": "CT Thorax nativ",
    "SliceThickness": "2.50",
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
    "Manufacturer": "SIEMENS",
    "StationName": "CT1",
    "ProtocolName": None,
    "SeriesNumber": "3",
    "PatientAge": "045Y",
    "PatientBirthDate": "19810102",
    "StudyDate": "20261120",
    "AcquisitionDateTime": "20261120101500.123000+0100",
    "MagneticFieldStrength": "",
    "InstitutionName": "Universitätsklinikum Köln",
    "SenderAET": "CT1",
    "ReceiverAET": "TALARIA",
    "SenderAddress": "10.0.1.7",
    "0019,100c/SIEMENS MR HEADER": "1000",
    "RequestAttributesSequence[0].ScheduledProcedureStepID": "STEP1",
}
TAGS = Tags(VALUES)
SERIES = (TAGS, Tags({**VALUES, "SeriesDescription": "T1", "SliceThickness": "5", "SeriesNumber": "4"}))
NOW = datetime(2026, 11, 20, 22, 30, tzinfo=UTC)  # a Friday
CONTEXT = Context(tags=TAGS, now=NOW, count=7, series=SERIES)


def resolve(name: str) -> str:
    """The canonical name of a tag of this small dictionary."""
    if found := SPELLED.get(name.lower()):
        return found
    near = difflib.get_close_matches(name, KNOWN, 1)
    raise LookupError(f"unknown tag {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def rule(text: str) -> Expression:
    """A rule, compiled."""
    return compile_rule(text, resolve=resolve)


def answer(text: str) -> Any:
    """The value of a rule, where its truth would say too little."""
    expression = rule(text)
    return expression._root(Run(CONTEXT, expression._variables))


def refusal(text: str) -> RuleError:
    """The error with which a rule is refused when it is saved."""
    with pytest.raises(RuleError) as caught:
        rule(text)
    return caught.value


def breaking(text: str) -> RuleError:
    """The error with which a rule breaks when it is asked."""
    expression = rule(text)
    with pytest.raises(RuleError) as caught:
        expression.matches(CONTEXT)
    return caught.value


LEGACY = [
    # constants and plain look-up
    ("True", True),
    ("False", False),
    ("1", True),
    ("0", False),
    ("''", False),
    ("None", False),
    ("tags.Modality == 'CT'", True),
    ('tags.Modality == "MR"', False),
    ("tags.modality == 'CT'", True),
    ("tags.MODALITY == 'CT'", True),
    ("tags['Modality'] == 'CT'", True),
    ('tags["SeriesDescription"] == "CHEST 2.0 B30f"', True),
    ("@Modality@ == 'CT'", True),
    ("@SeriesDescription@.lower() == 'cine'", False),
    ("('CHEST' in @SeriesDescription@) and (@Modality@=='CT')", True),
    ("@Modality@=='CT'and'B30'in @SeriesDescription@", True),
    ("'@Modality@' == 'CT'", False),
    ("tags.ProtocolName == ''", True),
    ("not tags.ProtocolName", True),
    ("tags.ProtocolName", False),
    ("tags.Modality", True),
    ("tags.Modality != 'CT'", False),
    ("tags.StationName == tags.SenderAET", True),
    # documented examples
    ("'CINE' in tags.SeriesDescription", False),
    ("tags.SeriesDescription.lower() == 'cine'", False),
    ("float(tags.SliceThickness) < 2.0", False),
    ("float(tags.SliceThickness) < 3.0", True),
    ("(tags.Manufacturer=='SIEMENS') and (tags.Modality=='CT')", True),
    ("(tags.Manufacturer == 'SIEMENS') and (tags.Modality == 'MR')", False),
    # tests of names
    ("'Modality' in tags", True),
    ("'ProtocolName' in tags", True),
    ("'ConvolutionKernel' in tags", False),
    ("'ConvolutionKernel' not in tags", True),
    ("len(tags) > 10", True),
    ("'Modality' in list(tags)", True),
    ("sorted(tags)[0][:4] == '0019'", True),
    # logic
    ("tags.Modality == 'CT' and tags.StationName == 'CT1'", True),
    ("tags.Modality == 'MR' or tags.StationName == 'CT1'", True),
    ("tags.Modality == 'MR' or tags.StationName == 'CT2' or tags.SeriesNumber == '3'", True),
    ("tags.Modality == 'CT' and tags.StationName == 'CT1' and tags.SeriesNumber == '4'", False),
    ("not tags.Modality == 'CT'", False),
    ("not (tags.Modality == 'MR' or 'Scout' in tags.SeriesDescription)", True),
    ("(tags.Modality == 'CT') & (tags.SeriesNumber == '3')", True),
    ("(tags.Modality == 'MR') | (tags.SeriesNumber == '3')", True),
    ("(tags.Modality == 'MR') ^ (tags.SeriesNumber == '3')", True),
    ("('T1' in tags.SeriesDescription) | ('T2' in tags.SeriesDescription) | (tags.Modality == 'MR')", False),
    # methods of texts
    ("tags.SeriesDescription.startswith('CHEST')", True),
    ("tags.SeriesDescription.startswith(('HEAD', 'CHEST'))", True),
    ("tags.SeriesDescription.endswith('B30f')", True),
    ("'thorax' in tags.StudyDescription.lower()", True),
    ("tags.StudyDescription.upper().find('THORAX') >= 0", True),
    ("tags.SeriesDescription.split(' ')[1] == '2.0'", True),
    ("len(tags.SeriesDescription.split()) == 3", True),
    ("tags.SeriesDescription.replace('CHEST', 'HEAD') == 'HEAD 2.0 B30f'", True),
    ("tags.SeriesDescription.strip().count('0') == 2", True),
    ("tags.StationName.isalnum() and tags.SeriesNumber.isdigit()", True),
    ("' '.join(['CHEST', '2.0', 'B30f']) == tags.SeriesDescription", True),
    ("tags.SeriesNumber.zfill(3) == '003'", True),
    ("tags.InstitutionName.upper() == 'UNIVERSITÄTSKLINIKUM KÖLN'", True),
    ("tags.SeriesDescription.partition(' ')[0] == 'CHEST'", True),
    ("tags.Modality.casefold() in ['ct', 'mr']", True),
    # parts of texts
    ("tags.SeriesDescription[0] == 'C'", True),
    ("tags.SeriesDescription[-4:] == 'B30f'", True),
    ("tags.SeriesDescription[:5] + '!' == 'CHEST!'", True),
    ("tags.SeriesDescription[::-1][:4] == 'f03B'", True),
    ("int(tags.PatientAge[:3]) > 18", True),
    ("tags.PatientAge[-1] == 'Y'", True),
    # several values
    ("'AXIAL' in tags.ImageType", True),
    ("tags.ImageType.split('\\\\')[2] == 'AXIAL'", True),
    ("'DERIVED' not in tags.ImageType.split('\\\\')", True),
    # literals
    ("tags.Modality in ['CT', 'MR']", True),
    ("tags.Modality in ('CT', 'MR')", True),
    ("tags.Modality in {'PT', 'MR'}", False),
    ("tags.Modality not in ('US', 'XA')", True),
    ("{'CT': 1, 'MR': 2}[tags.Modality] == 1", True),
    ("{'CT': 1}.get(tags.StationName, 5) == 5", True),
    ("(1, 2) < (1, 3)", True),
    ("[1, 2] + [3] == [1, 2, 3]", True),
    # numbers
    ("int(tags.SeriesNumber) == 3", True),
    ("2 <= float(tags.SliceThickness) <= 3", True),
    ("float(tags.SliceThickness) * 2 == 5", True),
    ("int(tags.SeriesNumber) % 2", True),
    ("int(tags.SeriesNumber) // 2 == 1", True),
    ("int(tags.SeriesNumber) ** 2 == 9", True),
    ("-int(tags.SeriesNumber) + 3 == 0", True),
    ("abs(-3) == 3 and round(2.567, 1) == 2.6 and pow(2, 3) == 8 and divmod(7, 2) == (3, 1)", True),
    ("sqrt(9) == 3 and floor(2.7) == 2 and ceil(2.1) == 3 and trunc(-2.7) == -2", True),
    ("log10(100) == 2 and log2(8) == 3 and log(e) == 1 and exp(0) == 1", True),
    ("fabs(sin(pi)) < 0.001 and cos(0) == 1 and tan(0) == 0", True),
    ("atan2(0, 1) == asin(0) == acos(1) == atan(0)", True),
    ("isnan(float('nan')) and isinf(float('inf')) and factorial(5) == 120", True),
    ("min(3, 1, 2) == 1 and max([3, 1]) == 3 and sum([1, 2, 3]) == 6", True),
    ("all([True, 1]) and any([0, 'x'])", True),
    ("sorted(['b', 'a']) == ['a', 'b'] and list(reversed('ab')) == ['b', 'a']", True),
    ("list(range(3)) == [0, 1, 2] and list(enumerate('a')) == [(0, 'a')]", True),
    ("list(zip('ab', [1, 2])) == [('a', 1), ('b', 2)]", True),
    ("max(map(float, tags.SliceThickness.split('\\\\'))) > 2", True),
    ("len(list(filter(None, tags.SeriesDescription.split(' ')))) == 3", True),
    ("chr(67) == 'C' and ord('C') == 67 and hex(255) == '0xff' and oct(8) == '0o10' and bin(2) == '0b10'", True),
    ("format(2.5, '.2f') == '2.50' and repr('a') == \"'a'\" and str(5) == '5'", True),
    ("bool('x') and int('7') == 7 and complex('1+2j') == 1+2j", True),
    ("tuple([1]) == (1,) and set('aa') == {'a'} and dict([('a', 1)]) == {'a': 1} and frozenset('a') == {'a'}", True),
    # what could not be converted was no match
    ("float(tags.ProtocolName) < 2", False),
    ("not (float(tags.MagneticFieldStrength) < 2)", False),
    ("float(tags.MagneticFieldStrength) < 2 or True", False),
    ("int(tags.ProtocolName[:3]) > 18", False),
    ("tags.ProtocolName.split('_')[3] == 'x'", False),
    ("tags.ProtocolName[0] == 'x'", False),
    ("True or float(tags.ProtocolName) < 2", True),
]


@pytest.mark.parametrize(("text", "expected"), LEGACY)
def test_rules_of_mercure_give_their_answer(text: str, expected: bool) -> None:
    """
    A rule written for mercure is true of the same series.
    """
    assert expected == rule(text).matches(CONTEXT)


NEWER = [
    ("tags['0019,100C/siemens mr header'] == '1000'", True),
    ("number(tags['0019,100c/SIEMENS MR HEADER']) == 1000", True),
    ("tags['RequestAttributesSequence[0].ScheduledProcedureStepID'] == 'STEP1'", True),
    ("tags.RequestAttributesSequence[0].ScheduledProcedureStepID == 'STEP1'", True),
    ("tags.RequestAttributesSequence[0].ScheduledProcedureStepID.lower() == 'step1'", True),
    ("tags.ConvolutionKernel == ''", True),
    ("tags.SenderAET == 'CT1' and tags.ReceiverAET == 'TALARIA' and tags.SenderAddress.startswith('10.')", True),
    ("number(tags.SliceThickness) == 2.5", True),
    ("date(tags.StudyDate) > date('20260101')", True),
    ("date(tags.AcquisitionDateTime) == date(tags.StudyDate)", True),
    ("date(tags.ProtocolName) > date('20260101')", False),
    ("(now.date - date(tags.PatientBirthDate)).days > 18 * 365", True),
    ("date(tags.StudyDate).weekday == 4 and date(tags.StudyDate).year == 2026", True),
    ("values(tags.ImageType) == ['ORIGINAL', 'PRIMARY', 'AXIAL'] and values(tags.ImageType)[-1] == 'AXIAL'", True),
    ("values(tags.ProtocolName) == []", True),
    ("values(tags.ProtocolName)[0] == 'x'", False),
    ("max(values(tags.ProtocolName)) == 'x'", False),
    ("tags.ProtocolName.index('x') == 0", False),
    ("max(s.Modality for s in series if s.Modality == tags.ProtocolName) == 'x'", False),
    ("any(values(s.ProtocolName)[0] == 'x' for s in series)", False),
    ("any(tags[name].split()[1] == 'x' for name in ['ProtocolName'])", False),
    ("now.hour >= 22 or now.hour < 6", True),
    ("now.weekday == 4 and now.minute == 30 and now.month == 11 and now.day == 20 and now.second == 0", True),
    ("count == 7 and 1 < count < 9", True),
    ("len(series) == 2", True),
    ("any(s.SeriesDescription == 'T1' for s in series)", True),
    ("all(s.Modality == 'CT' for s in series)", True),
    ("any('T1' in s['SeriesDescription'] for s in series)", True),
    ("series[1].SeriesDescription == 'T1' and series[0]['seriesnumber'] == '3'", True),
    ("sum(1 for s in series if number(s.SliceThickness) > 3) == 1", True),
    ("[s.SeriesNumber for s in series] == ['3', '4']", True),
    ("{s.SeriesNumber: s.SeriesDescription for s in series}['4'] == 'T1'", True),
    ("{s.Modality for s in series} == {'CT'}", True),
    ("any('CHEST' in tags[name] for name in ('SeriesDescription', 'ProtocolName'))", True),
    ("tags['Series' + 'Number'] == '3'", True),
    ("matches(tags.SeriesDescription, '^CHEST.*f$')", True),
    ("matches(tags.SeriesDescription, '(?i)chest')", True),
    ("matches(tags.SeriesDescription, 'chest')", False),
    ("matches(tags.InstitutionName, 'Köln$')", True),
    ("matches(tags.Modality, tags.StationName[:2])", True),
    ("'thin' == ('thin' if number(tags.SliceThickness) < 3 else 'thick')", True),
    ("[a + b for a in 'xy' for b in '12' if b != '1'] == ['x2', 'y2']", True),
    ("[a for a, (b, c) in [(1, (2, 3))] if b < c] == [1]", True),
    ("list(zip(*[(x for x in [1, 2]) for i in range(2)])) == [(1, 1), (2, 2)]", True),
    ("list(zip(*[(x + y for x in [1, 5] for y in [1, 2]) for i in range(2)]))[1] == (3, 3)", True),
    ("max(*[1, 2], 0) == 2 and [*'ab', 'c'] == ['a', 'b', 'c']", True),
    ("sorted(['bb', 'a'], key=len, reverse=True) == ['bb', 'a'] and max(['a', 'bb'], key=len) == 'bb'", True),
    ("min([], default=4) == 4 and dict(a=1) == {'a': 1}", True),
    ("[e for e in [1]] == [1] and e > 2.7", True),
    ("3 in range(5) and 2 in (x for x in [1, 2])", True),
    ("tags.Modality is not None and None is None", True),
    ("tags.Modality == 'CT'\n  and  # the scanner\n  tags.StationName == 'CT1'  # in room 4", True),
    ("tags.Modality == 'CT' and \\\r\n tags.SeriesNumber == '3'", True),
    ("'''C\nT''' != tags.Modality", True),
    (r"matches(tags.SeriesDescription, '\d\.\d')", True),
    ("tags.Modality == 'CT',", True),
]


@pytest.mark.parametrize(("text", "expected"), NEWER)
def test_what_is_new(text: str, expected: bool) -> None:
    """
    The language goes beyond mercure's: conversions, time, other series, comprehensions, patterns.
    """
    assert expected == rule(text).matches(CONTEXT)


@pytest.mark.parametrize("text", [text for text, _ in (*LEGACY, *NEWER)])
def test_explaining_gives_the_same_answer(text: str) -> None:
    """
    What explains a rule evaluates it as what asks it.
    """
    assert rule(text).matches(CONTEXT) == rule(text).explain(CONTEXT).matches


ESCAPES = [
    "__import__('os')", "__import__('os').system('id')", "().__class__.__mro__[1].__subclasses__()", "().__class__",
    "tags.__class__", "tags.__dict__", "tags._values", "tags.Modality.__class__", "''.__class__.__base__",
    "'{0.__class__}'.format(tags)", "'{x}'.format_map({'x': tags})", "f'{tags.__class__}'", "f'{1}'", "rf'{1}'",
    "F'''{1}'''", "lambda: 1", "(lambda: 1)()", "[].__reduce__()", "[].append(1)", "getattr(tags, 'x')",
    "setattr(tags, 'x', 1)", "eval('1')", "exec('1')", "compile('1', '', 'eval')", "open('/etc/passwd')",
    "globals()", "locals()", "vars()", "dir()", "type(1)", "type('X', (), {})", "object()", "super()", "help()",
    "input()", "print(1)", "breakpoint()", "memoryview(b'')", "isinstance(1, int)", "id(1)", "hash('x')",
    "iter([1])", "next(zip())", "callable(len)", "bytes(5)", "bytearray(5)", "staticmethod(len)", "exit()",
    "(x := 1)", "[y := 1, y]", "import os", "from os import path", "def f(): pass", "class X: pass",
    "while True: pass", "for x in y: pass", "try: 1", "with open('x') as f: 1", "del tags", "assert True",
    "raise ValueError", "return 1", "pass", "global x", "yield 1", "(yield)", "(yield from [])", "await x",
    "[x async for x in y]", "x = 1", "x: int = 1", "tags.Modality = 'CT'", "1; 2", "a, b = 1, 2", "1 << 9999",
    "1 >> 1", "'a' @ 'b'", "b'bytes'", "...", "len.__call__([])", "len.__self__", "str.format('{}', 1)",
    "str.lower('A')", "[len][0]([])", "(len if True else max)([])", "len(*[1], **{})", "dict(**{'a': 1})",
    "{**{}}", "[x.y for x.y in [1]]", "[x[0] for x[0] in [1]]", "tags.Modality.encode('utf-8')",
    "tags.Modality.translate({})", "''.maketrans('a', 'b')", "{}.update(a=1)", "{}.pop('a')", "{1}.add(2)",
    "[1].sort()", "tags.get('Modality')", "tags.items()", "now.replace(hour=1)", "now.strftime('%Y')",
    "now.tzinfo", "now.__class__", "series.append(1)", "count.bit_length()", "date('20260101').isoformat()",
    "date.today()", "number.__doc__", "matches.func_globals", "(1).__class__", "1 .real", "exit", "quit",
    "__builtins__", "__name__", "self", "run", "os", "math.pi", "re.match('a', 'b')", "series.x.y",
    "1) or (2", "1]", ")(", "('", "\"", "'''", "@", "@Modality", "Modality@", "@@", "tags.", "tags..Modality", "tags[",
    "tags[]", "x for x in series", "*tags", "**tags", "not", "and", "1 1", "tags Modality", "0x", "1e", "0777",
    "int('7', foo=1)", "len()", "len(1, 2)", "matches('a')", "sorted()", "number(value=1, value=2)",
]  # fmt: skip


@pytest.mark.parametrize("text", ESCAPES)
def test_what_is_not_listed_is_refused(text: str) -> None:
    """
    A rule that would reach beyond its tags, or is none, is refused when it is saved, at a place in its text.
    """
    error = refusal(text)

    lines = text.split("\n")
    assert text == error.source
    assert 1 <= error.position.line <= len(lines)
    assert 1 <= error.position.column <= len(lines[error.position.line - 1]) + 1


REFUSED = [
    ("tags.SeriesDescripton == 'x'", "unknown tag 'SeriesDescripton'; did you mean 'SeriesDescription'?", 1, 6),
    ("tags['SeriesDescripton'] == 'x'", "unknown tag 'SeriesDescripton'; did you mean 'SeriesDescription'?", 1, 6),
    ("'SeriesDescripton' in tags", "unknown tag 'SeriesDescripton'; did you mean 'SeriesDescription'?", 1, 1),
    (
        "@Modality@ == 'CT' and (@SeriesDescripton@ == 'x')",
        "unknown tag 'SeriesDescripton'; did you mean 'SeriesDescription'?",
        1,
        25,
    ),
    ("@Modality@ == 'CT' and open(1)", "function 'open' is not available in rules", 1, 24),
    ("'ä' == @Modality@ and foo", "unknown name 'foo'; did you mean 'floor'?", 1, 23),
    ("'𝒳ß' in tags.Modality\n or  @Modality@ == 'Ü' or tags.Foo", "unknown tag 'Foo'", 2, 32),
    ("any(s.Foo for s in series)", "unknown tag 'Foo'", 1, 7),
    ("SeriesDescription == 'x'", "unknown name 'SeriesDescription'; did you mean tags.SeriesDescription?", 1, 1),
    ("lenght(tags) > 2", "function 'lenght' is not available in rules; did you mean 'len'?", 1, 1),
    ("@Modality@and", "unknown name '@Modality@and'", 1, 1),
    ("true", "unknown name 'true'; did you mean 'True'?", 1, 1),
    ("open('x')", "function 'open' is not available in rules", 1, 1),
    ("1 and (lambda: 1)", "a lambda is not available in rules", 1, 8),
    ("'a' + f'{1}'", "an f-string is not available in rules; put the text together with '+'", 1, 7),
    ("(x := 1)", "an assignment ':=' is not available in rules", 1, 4),
    ("1 << 2", "the operator '<<' is not available in rules", 1, 3),
    ("import os", "'import' is not available in rules; a rule is one expression", 1, 1),
    ("tags.Modality.format()", "method 'format' is not available in rules", 1, 15),
    ("tags.Modality.lowr()", "method 'lowr' is not available in rules; did you mean 'lower'?", 1, 15),
    ("tags.Modality.lower == 'x'", "'lower' is a method; write lower()", 1, 15),
    ("tags.Modality()", "'Modality' is a value, not a method; leave out the brackets", 1, 6),
    ("now.weekday() == 1", "'weekday' is a value, not a method; leave out the brackets", 1, 5),
    ("now.hours == 1", "attribute 'hours' is not available in rules; did you mean 'hour'?", 1, 5),
    ("tags.Modality.__class__", "attribute '__class__' is not available in rules", 1, 15),
    ("tags.get('Modality')", "tags has no method 'get'", 1, 6),
    ("count.lower()", "count has no method 'lower'", 1, 7),
    ("count() > 3", "'count' is a value, not a function", 1, 1),
    ("[len][0]('x')", "only a function or a method, by its name, can be called", 1, 1),
    ("tags.Modality.startswith()", "startswith() takes 1 to 3 arguments, 0 are given", 1, 15),
    ("len(tags, 2)", "len() is written len(value); it has other arguments here", 1, 1),
    ("matches(tags.Modality, '(')", "not a pattern that RE2 takes: missing ): (", 1, 24),
    ("matches(tags.Modality, '" + "a" * 1001 + "')", "the pattern is longer than 1,000 characters", 1, 24),
    ("tags.Modality = 'CT'", "use '==' to compare, not '='", 1, 15),
    ("tags.Modality.lower() = 'ct'", "use '==' to compare, not '='", 1, 23),
    ("'ä' in tags.Modality and (tags.Modality = 'CT')", "use '==' to compare, not '='", 1, 41),
    ("tags.Modality == 'CT' && True", "use 'and', not '&&'", 1, 23),
    ("tags.Modality == 'CT' || True", "use 'or', not '||'", 1, 23),
    ("!tags.Modality", "use 'not', not '!'", 1, 1),
    ("tags.Modality <> 'CT'", "use '!=', not '<>'", 1, 15),
    ("tags.Modality 'CT'", "an operator is missing between two values here, such as '==', 'in', 'and'", 1, 1),
    ("tags.Modality ==", "the rule ends too early: something is missing here", 1, 17),
    ("tags.Modality == 'CT' and\n", "the rule ends too early: something is missing here", 2, 1),
    ("tags.Modality == 'CT", "the text that begins here is never closed", 1, 18),
    ("(tags.Modality == 'CT'", "'(' is never closed", 1, 1),
    ("len(tags] > 3", "']' does not close '('", 1, 9),
    ("1) or (2", "')' closes nothing", 1, 2),
    ("", "the rule is empty; write True to match every series", 1, 1),
    ("  \n ", "the rule is empty; write True to match every series", 1, 1),
    ("# every series", "the rule is empty; write True to match every series", 1, 1),
    ("x for x in series", "a generator alone is always true; write any(...) or all(...)", 1, 1),
    ("tags.Modality == 'C\0T'", "the character U+0000 cannot be seen; delete it", 1, 20),
    ("tags.Modality ==\u00a0'CT'", "the character U+00A0 is no blank; write a plain one", 1, 17),
    ("'\u202e' in tags.Modality", "the character U+202E cannot be seen; delete it", 1, 2),
    ("'\ud800' in tags.Modality", "the character U+D800 cannot be seen; delete it", 1, 2),
    ("tags.Modality ＝＝ 'CT'", "invalid character '＝' (U+FF1D)", 1, 15),
    ("tags.Modality == “CT”", "invalid character '“' (U+201C)", 1, 18),
    ("(" * 10_000 + ")" * 10_000, "brackets are nested deeper than 50", 1, 51),
    ("not " * 10_000 + "1", "the rule is nested too deeply", 1, 1),
    ("-" * 60_000 + "1", "the rule is nested too deeply", 1, 1),
    ("1" + "+1" * 500, "the rule is nested deeper than 100 levels", 1, 1),
    ("1" * 1_000_000, "the rule has 1,000,000 characters; 65,536 are possible", 1, 1),
    ("[" + "1," * 20_000 + "]", "the rule has more than 10,000 parts", 1, 1),
    ("9" * 5_000, "the number is too large", 1, 1),
    ("1" + "0" * 400, "the number becomes larger than 1,024 bits", 1, 1),
    ("b'x' == 1", "a text of bytes is not available in rules", 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "line", "column"), REFUSED)
def test_refusal_says_what_and_where(text: str, message: str, line: int, column: int) -> None:
    """
    A rule is refused with a message that helps, at the place in the text as it was written.
    """
    error = refusal(text)

    assert (message, Position(line=line, column=column)) == (error.message, error.position)


#: `{}` in a message stands for the whole rule.
BROKEN = [
    ("1/0", "{}: division by 0", 1, 2),
    ("count and 5 % (count - 7)", "5 % (count - 7): division by 0", 1, 13),
    ("float(tags.Modality) < 2", "float(tags.Modality): the value is not a number", 1, 1),
    ("int(tags.SliceThickness) < 2", "int(tags.SliceThickness): the value is not a whole number", 1, 1),
    ("number(tags.Modality)", "{}: the value is not a number", 1, 1),
    ("number(tags.ImageType)", "{}: the text has several values; take one with values(...)[0]", 1, 1),
    ("number('nan')", "{}: the value is not a number", 1, 1),
    ("number(None)", "{}: nothing is not a number", 1, 1),
    ("date(tags.Modality)", "{}: the value is not a date such as 20261120", 1, 1),
    ("date('99991399')", "{}: the value is not a date such as 20261120", 1, 1),
    (
        "tags.SliceThickness < 5",
        "{}: cannot apply '<' to a text and a number; convert the text with number(...)",
        1,
        21,
    ),
    ("5 in tags.Modality", "{}: cannot apply 'in' to a number and a text; convert the text with number(...)", 1, 3),
    (
        "tags.Modality == 'CT' & tags.StationName == 'CT1'",
        "'CT' & tags.StationName: cannot apply '&' to a text and a text; put each comparison in brackets",
        1,
        23,
    ),
    ("tags.SeriesNumber + 1", "{}: cannot apply '+' to a text and a number; convert the text with number(...)", 1, 19),
    ("values(tags.ImageType)[5]", "{}: there is no item at that place", 1, 1),
    ("{'MR': 1}[tags.Modality]", "{}: there is no such key", 1, 1),
    ("tags.Modality.index('X')", "{}: what is looked for is not there", 1, 15),
    ("max(s.Modality for s in series if s.Modality == 'q')", "{}: there is nothing to choose from", 1, 1),
    ("max([])", "{}: there is nothing to choose from", 1, 1),
    ("log(0)", "{}: a logarithm takes a number above 0", 1, 1),
    ("sqrt(-1)", "{}: a square root takes no number below 0", 1, 1),
    ("exp(1000)", "{}: the number becomes too large", 1, 1),
    ("acos(2)", "{}: a value is not one that it takes", 1, 1),
    ("sqrt('a')", "{}: cannot take a text", 1, 1),
    ("9**9**9", "{}: the number becomes larger than 1,024 bits", 1, 2),
    ("'a'*10**10", "{}: the text becomes longer than 65,536 characters", 1, 4),
    ("[0]*10**9", "{}: the answer becomes longer than 10,000 items", 1, 4),
    ("sum(range(10**10))", "range(10**10): range() of more than 10,000 numbers", 1, 5),
    ("[x for x in range(10**9)]", "range(10**9): range() of more than 10,000 numbers", 1, 13),
    ("[x for x in range(9999)]", "the rule takes more than 10,000 steps", 1, 1),
    ("any(0 for x in range(999) for y in range(999))", "the rule takes more than 10,000 steps", 1, 4),
    ("sum(sum(range(9000)) for x in range(9))", "the rule takes more than 10,000 steps", 1, 5),
    ("''.join('x' * 60000 for x in range(900))", "the rule takes more than 10,000 steps", 1, 13),
    ("list(zip(*[range(1000)] * 1000))", "the rule takes more than 10,000 steps", 1, 6),
    ("'a'.replace('', 'x' * 60000)", "{}: the text becomes longer than 65,536 characters", 1, 5),
    ("'x'.zfill(99999999999)", "{}: the text becomes longer than 65,536 characters", 1, 5),
    ("'x'.center(99999999999)", "{}: the text becomes longer than 65,536 characters", 1, 5),
    ("'\\t'.expandtabs(99999999999)", "{}: the text becomes longer than 65,536 characters", 1, 6),
    ("'%s' % tags.Modality", "{}: '%' does not format text in rules; put the text together with '+'", 1, 6),
    ("format(1, '>99999999')", "{}: the format is not one that rules know; write it like '.2f' or '>8'", 1, 1),
    ("factorial(10**6)", "{}: factorial() takes numbers up to 170", 1, 1),
    ("round(1, -10**9)", "{}: round() takes at most 308 digits", 1, 1),
    ("pow(3, 10**9, 10**99)", "{}: pow() with a modulus takes numbers of at most 64 bits", 1, 1),
    ("int('9' * 4000)", "{}: the number becomes larger than 1,024 bits", 1, 1),
    ("str(tags)", "{}: a set of tags has no text", 1, 1),
    ("str([len])", "{}: a function has no text", 1, 1),
    ("repr(x for x in '')", "{}: a generator has no text", 1, 1),
    ("matches('a' * 10000, '((a{0,10}){0,10}){0,8}$')", "the rule takes more than 10,000 steps", 1, 1),
    ("matches('a', '(' + 'b')", "{}: not a pattern that RE2 takes: missing ): (b", 1, 1),
    ("tags['Foo' + 'Bar']", "{}: there is no tag of that name", 1, 1),
    ("[s.Modality for s in 'ab']", "s.Modality: a text has no tags", 1, 2),
    ("[a for a, b in [(1, 2, 3)]]", "a, b: 2 values are needed here", 1, 8),
    ("[a for a in 5]", "5: a number has no items to go through", 1, 13),
    ("{[1]: 2}", "{}: a value is not one that it takes", 1, 1),
    ("[1] in {1}", "{}: a list cannot be looked up in a set", 1, 1),
    ("(1).lower()", "{}: a number has no method 'lower'", 1, 5),
    ("(1).hour", "{}: a number has no attribute 'hour'", 1, 1),
    ("~True", "{}: '~' does not negate; write 'not'", 1, 1),
    ("-'a'", "{}: cannot take a text", 1, 1),
    ("list(map(5, 'a'))", "map(5, 'a'): map() takes a function first, by its name", 1, 6),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "line", "column"), BROKEN)
def test_what_breaks_when_asked_says_what_and_where(text: str, message: str, line: int, column: int) -> None:
    """
    A rule that breaks on a series is in error, with a message that helps and holds no value of the series.
    """
    error = breaking(text)

    expected = (message.replace("{}", text), Position(line=line, column=column))
    assert expected == (error.message, error.position)


@pytest.mark.parametrize("text", [text for text, *_ in BROKEN])
def test_what_breaks_is_explained_as_broken(text: str) -> None:
    """
    Explaining a broken rule gives its error, not an exception.
    """
    explanation = rule(text).explain(CONTEXT)

    assert explanation.matches is None
    assert explanation.error is not None
    assert breaking(text).message == explanation.error.message


def test_no_value_of_the_series_in_an_error() -> None:
    """
    What a patient is called does not stand in the error of a rule that stumbled over it.
    """
    tags = Tags({"StationName": "DOE^JANE"})
    context = Context(tags=tags, now=NOW, count=1)
    for text in ("float(tags.StationName)", "{'a': 1}[tags.StationName]", "int(tags.StationName)", "-tags.StationName",
                 "tags.StationName < 1", "[1].index(tags.StationName)", "date(tags.StationName)",
                 "ord(tags.StationName)", "complex(tags.StationName)", "matches('', '(' + tags.StationName[:0])",
                 "round(tags.StationName)", "tags.StationName[99]", "tags[tags.StationName]"):  # fmt: skip
        with pytest.raises(RuleError) as caught:
            rule(text).matches(context)

        assert "DOE" not in str(caught.value)


def test_caret_stands_under_the_place() -> None:
    """
    The caret stands under the first character of what is wrong, in the line that it stands in.
    """
    error = refusal("tags.Modality == 'CT'\nand tags.Foo")

    expected = "and tags.Foo\n         ^"
    assert expected == error.caret


def test_names_are_those_it_reads() -> None:
    """
    The tags that a rule reads are known by the names they are recorded under, so that they get recorded.
    """
    text = (
        "@modality@ == 'CT' and tags.seriesDESCRIPTION and tags['0019,100C'] and 'StationName' in tags "
        "and any(s.SeriesNumber == '1' for s in series) and tags['protocol' + 'name'] and tags.Modality"
    )
    expected = {"Modality", "SeriesDescription", "0019,100c", "StationName", "SeriesNumber"}

    assert expected == rule(text).names


def test_names_that_are_put_together_are_taken_from_the_texts_of_the_rule() -> None:
    """
    Where a tag is looked up by a name in a variable, every text of the rule that is a tag counts as read.
    """
    text = "any('x' in tags[name] for name in ('SeriesDescription', 'protocolname', 'other'))"

    assert {"SeriesDescription", "ProtocolName"} == rule(text).names


def test_unrecorded_names_are_told() -> None:
    """
    A tag that was never looked for in a series makes the answer there unknown; one looked for and absent does not.
    """
    expression = rule("tags.ProtocolName == 'x' or tags.ConvolutionKernel == 'B30f'")

    assert frozenset({"ConvolutionKernel"}) == expression.unrecorded(TAGS)


def test_tag_in_another_spelling_is_found() -> None:
    """
    Tags that were written by hand in another case, as in a test of the rulebook, are found.
    """
    context = Context(tags=Tags({"modality": "CT"}), now=NOW, count=1)

    assert rule("tags.Modality == 'CT' and [s for s in [tags]][0].Modality == 'CT'").matches(context)


def test_ten_megabytes_in_a_tag_are_no_danger() -> None:
    """
    A tag with a huge value can be compared, and is an error where every character would have to be handled.
    """
    context = Context(tags=Tags({"SeriesDescription": "x" * 10_000_000}), now=NOW, count=1)

    assert not rule("tags.SeriesDescription == 'x'").matches(context)
    with pytest.raises(RuleError, match="the rule takes more than 10,000 steps"):
        rule("tags.SeriesDescription.lower() == 'x'").matches(context)


def test_the_budget_is_anew_for_each_evaluation() -> None:
    """
    A rule that takes most of its steps can be asked again and again.
    """
    expression = rule("sum(range(9000)) > 0")

    assert all(expression.matches(CONTEXT) for _ in range(5))


def test_what_shares_its_parts_cannot_grow_beyond_bounds() -> None:
    """
    A list that holds another many times over weighs as much as it would print.
    """
    text = "[a for a in ['x']"
    for name, inner in zip("bcdefghijk", "abcdefghij", strict=True):
        text += f" for {name} in [[{inner}] * 9]"

    with pytest.raises(RuleError):
        rule(text + "]").matches(CONTEXT)


def _shape(part: Part) -> Any:
    return (part.text, part.came.value, part.value, part.decided, [_shape(child) for child in part.children])


def _decisive(explanation: Explanation) -> str:
    return " | ".join(part.text for part in explanation.decisive)


def explained(text: str, context: Context = CONTEXT) -> Explanation:
    """Why a rule is true or not."""
    return rule(text).explain(context)


def test_explanation_shows_values_and_what_decided() -> None:
    """
    The tree holds every part with its value; parts behind the one that decided were not evaluated.
    """
    explanation = explained("tags.Modality == 'MR' and float(@SliceThickness@) < 5")

    expected = (
        "tags.Modality == 'MR' and float(@SliceThickness@) < 5", "value", "False", True, [
            ("tags.Modality == 'MR'", "value", "False", True, [("tags.Modality", "value", "'CT'", False, [])]),
            ("float(@SliceThickness@) < 5", "skipped", "", False, [
                ("float(@SliceThickness@)", "skipped", "", False, [("@SliceThickness@", "skipped", "", False, [])]),
            ]),
        ],
    )  # fmt: skip
    assert expected == _shape(explanation.tree)
    decided = "tags.Modality == 'MR'"
    assert decided == _decisive(explanation)


def test_explanation_names_the_absent_tag() -> None:
    """
    Where a value was absent, the explanation says which, and that the rule is false for it.
    """
    explanation = explained("tags.Modality == 'CT' and (float(tags.ProtocolName) < 5 or True)")

    expected = (False, ("ProtocolName",), Came.ABSENT)
    assert expected == (explanation.matches, explanation.absent, explanation.decisive[0].came)


def test_explanation_of_an_error_points_at_it() -> None:
    """
    A broken rule is explained down to the part that broke.
    """
    explanation = explained("tags.Modality == 'CT' and float(tags.StationName) < 5")

    expected = {"message": "float(tags.StationName): the value is not a number", "line": 1, "column": 27}
    assert explanation.as_document()["matches"] is None
    assert expected == explanation.as_document()["error"]
    assert _decisive(explanation) in explanation.tree.text
    assert len("float(tags.StationName)") == len(_decisive(explanation))


def test_explanation_of_a_loop_shows_the_round_that_decided() -> None:
    """
    What any() found last is what made it true.
    """
    explanation = explained("any(s.SeriesDescription == 'T1' for s in series)")

    [loop] = explanation.tree.children
    expected = "'T1'"
    assert expected == loop.children[0].children[0].value


def test_values_in_an_explanation_are_cut() -> None:
    """
    A value of a megabyte does not make a page of a megabyte.
    """
    context = Context(tags=Tags({"SeriesDescription": "x" * 1_000_000}), now=NOW, count=1)

    assert len(explained("tags.SeriesDescription == 'a'", context).tree.children[0].value) <= 120


FRAGMENTS = [
    "tags", ".Modality", ".SliceThickness", "@Modality@", "'CT'", '"', "'", "1", "0", "9**", "1e5", " and ", " or ",
    " not ", " in ", "==", "=", "<", "(", ")", "[", "]", "{", "}", ",", ":", ".", "lower()", ".split('\\\\')", "len(",
    "float(", "map(", "range(", "matches(", "for x in ", "x", " if ", " else ", "lambda", "*", "**", "-", "%",
    "|", "&", "~", "@", "\n", "#", "\\", "\0", "ä", "__class__", "import ", "f'", "None", "series", "s.",
    "now.hour", "count", ";", "sorted(", "zip(", "any(", "sum(", "str(", "9999999", "*10**9", "😀", "\u202e", ":=",
    "await ", "yield ", "'''",
]  # fmt: skip


def _ask(text: str) -> None:
    """Compile, ask, explain; whatever is no RuleError comes out."""
    try:
        expression = rule(text)
    except RuleError as error:
        error.caret.encode(errors="replace")
        return
    try:
        expression.matches(CONTEXT)
    except RuleError as error:
        error.caret.encode(errors="replace")
    expression.explain(CONTEXT).as_document()


relaxed = settings(max_examples=500, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    """
    Whatever is written, the only error is RuleError.
    """
    _ask(text)


@relaxed
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_any_text_of_fragments_is_a_rule_or_refused(text: str) -> None:
    """
    Whatever is put together of pieces of rules, the only error is RuleError.
    """
    _ask(text)


def _calls(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = "len float int str sorted sum min max list tuple set range number values date abs round zip map any format"
    return st.builds(lambda name, args: f"{name}({', '.join(args)})", st.sampled_from(names.split()),
                     st.lists(inner, min_size=1, max_size=3))  # fmt: skip


ATOMS = st.sampled_from([
    "tags.Modality", "tags.ProtocolName", "tags.ImageType", "tags", "series", "now", "count", "now.date", "0", "1", "7",
    "-3", "2.5", "1e308", "10**9", "''", "'CT'", "'\\\\'", "'x' * 999", "None", "True", "[]", "()", "{}", "{1: 2}", "x",
    "len", "float", "range(99)", "[*range(50)]", "float('nan')", "1j",
])  # fmt: skip
OPERATORS = [
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "|",
    "&",
    "^",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "is",
    "not in",
    "is not",
    "and",
    "or",
]
METHODS = ["join", "split", "replace", "count", "index", "strip", "zfill", "get"]
WILD = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(OPERATORS), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{} for x in {}]".format, inner, inner),
        st.builds("({} for x in {} if {})".format, inner, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("[{}, *{}]".format, inner, inner),
        st.builds("{{{}, {}}}".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
        st.builds("({}).{}({})".format, inner, st.sampled_from(METHODS), inner),
        st.builds("matches({}, {})".format, inner, inner),
        _calls(inner),
    ),
    max_leaves=12,
)  # fmt: skip


@relaxed
@given(WILD)
def test_no_expression_breaks_out(text: str) -> None:
    """
    Whatever functions, methods and operators are handed, the only error is RuleError, and soon.
    """
    _ask(text)
    _ask(f"[{text} for x in [1, 'a']]")


NUMBERS = st.one_of(st.integers(-20, 20).map(str), st.sampled_from(["0.5", "2.5", "count", "len(tags.Modality)"]))
TEXTS = st.sampled_from(["'CT'", "'a b'", "tags.Modality", "tags.SeriesDescription", "tags['StationName']", "''"])
SAFE_NUMBERS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner),
        st.builds("({} if {} < {} else {})".format, inner, inner, inner, inner),
        st.builds("abs({})".format, inner),
        st.builds("max({}, {})".format, inner, inner),
        st.builds("sum([x * {} for x in range(4) if x != {}])".format, inner, inner),
        st.builds("(-{})".format, inner),
    ),
    max_leaves=8,
)
SAFE_TEXTS = st.recursive(
    TEXTS,
    lambda inner: st.one_of(
        st.builds("({} + {})".format, inner, inner),
        st.builds(
            "{}.{}()".format, inner, st.sampled_from(["lower", "upper", "strip", "title", "swapcase", "capitalize"])
        ),
        st.builds("{}[{}:{}]".format, inner, st.integers(-5, 5), st.integers(-5, 5)),
        st.builds("{}[{}]".format, inner, st.integers(-3, 3)),
        st.builds("{}.replace({}, {})".format, inner, inner, inner),
        st.builds("'-'.join({}.split())".format, inner),
        st.builds("({} or {})".format, inner, inner),
    ),
    max_leaves=6,
)
SAFE = st.recursive(
    st.one_of(
        st.builds("{} {} {}".format, SAFE_NUMBERS, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), SAFE_NUMBERS),
        st.builds("{} {} {}".format, SAFE_TEXTS, st.sampled_from(["==", "!=", "<", "in"]), SAFE_TEXTS),
        st.builds("{} <= {} < {}".format, SAFE_NUMBERS, SAFE_NUMBERS, SAFE_NUMBERS),
        st.builds("{} in [{}, {}]".format, SAFE_TEXTS, SAFE_TEXTS, SAFE_TEXTS),
    ),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", "|", "&", "=="]), inner),
        st.builds("(not {})".format, inner),
        st.builds("any([{}, {}])".format, inner, inner),
    ),
    max_leaves=5,
)


class _Plain(SimpleNamespace):
    """Tags as Python's own evaluator sees them."""

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)


PLAIN = _Plain(**{name: value or "" for name, value in VALUES.items() if name.isidentifier()})


def _python(text: str) -> object:
    """What Python makes of it; a type of exception where it raises one."""
    try:
        return eval(text, {"tags": PLAIN, "count": 7})
    except (ArithmeticError, TypeError, LookupError, ValueError) as error:
        return type(error)


@relaxed
@given(st.one_of(SAFE, SAFE_NUMBERS, SAFE_TEXTS))
def test_python_says_the_same(text: str) -> None:
    """
    On what both understand, a rule has the value that Python gives it, and breaks where Python raises.
    """
    expected = _python(text)
    try:
        found = answer(text)
    except (RuleError, AbsentValue):
        assert isinstance(expected, type)
    else:
        assert repr(expected) == repr(found)


def test_rules_can_be_shared_between_threads() -> None:
    """
    A compiled rule keeps nothing of an evaluation: one that was interrupted leaves no trace in the next.
    """
    expression = rule("[x + 1 for x in range(count)] == [1, 2]")
    answers: Sequence[bool] = [
        expression.matches(Context(tags=TAGS, now=NOW, count=count)) for count in (2, 3, 2, 0, 2)
    ]  # fmt: skip

    expected = [True, False, True, False, True]
    assert expected == answers
