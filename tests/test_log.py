"""The log: no line of it names a patient, and none of it can stop what it tells of."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.server  # each starts a process of its own

FORMS = ("console", "json")
SET_UP = """
import logging, os, sys, threading, structlog
from talaria.log import set_up
set_up(level="info", form=sys.argv[1], service="x")
log = structlog.get_logger()
def look_up(key):
    try:
        {}[key]  # Doe^Jane 19700101
    except KeyError as error:
        raise ValueError(f"not found: {key}") from error
def caught():
    try:
        look_up("Doe^Jane 19700101")
    except ValueError as error:
        return error
"""


def logged(script: str, form: str, *, stderr: int = subprocess.PIPE) -> str:
    """What a process logs; it has to come to its end in good order."""
    code = f"{SET_UP}\n{script}\nprint('went on')"
    done = subprocess.run(
        [sys.executable, "-c", code, form], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False
    )
    assert "went on\n" == done.stdout, done.stderr
    return done.stderr or ""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "script",
    [
        "log.error('it broke', exc_info=caught())",
        "log.error('it broke', bug=caught())",
        "try: look_up('Doe^Jane 19700101')\nexcept ValueError: log.exception('it broke')",
        "logging.getLogger('uvicorn.error').error('it broke\\n', exc_info=caught())",
        "try: look_up('Doe^Jane 19700101')\nexcept ValueError: logging.getLogger('sqlalchemy').exception('it broke')",
        "logging.getLogger('psycopg').warning('it broke: %s', caught())",
        "logging.getLogger('asyncio').error(f'it broke\\nfuture: {caught()!r}', exc_info=caught())",
        "thread = threading.Thread(target=look_up, args=('Doe^Jane 19700101',), name='it broke')\n"
        "thread.start(); thread.join()",
    ],
    ids=["exc_info", "value", "exception", "uvicorn", "sqlalchemy", "argument", "asyncio", "thread"],
)
def test_exception_is_told_without_its_text(script: str, form: str) -> None:
    """
    An exception is logged as its types and where it came from, by us and by libraries; never its text nor its lines.
    """
    said = logged(script, form)

    assert ("it broke" in said, "ValueError" in said, "Doe^Jane" in said, "19700101" in said) == (
        True, True, False, False
    ), said  # fmt: skip


def test_cause_is_told_too() -> None:
    """
    An exception that another one caused names both, and the place of each.
    """
    line = json.loads(logged("log.error('it broke', exc_info=caught())", "json"))

    assert "ValueError at <string>:" in line["bug"]
    assert "; from KeyError at <string>:" in line["bug"]


def test_library_record_that_cannot_be_formatted_is_left_out() -> None:
    """
    A record whose arguments do not fit is not printed with its values.
    """
    assert "" == logged("logging.getLogger('any').error('%d', 'Doe^Jane')", "json")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "script",
    [
        "reader, writer = os.pipe(); os.dup2(writer, 2); os.close(reader)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "os.close(2)",
        "sys.stderr.close()",
    ],
    ids=["reader gone", "disk full", "closed", "closed in Python"],
)
def test_log_that_cannot_be_written_stops_nothing(script: str, form: str) -> None:
    """
    Where standard error takes no more lines, who logs goes on.
    """
    both = "log.error('one', key=1); logging.getLogger('any').error('two', exc_info=caught())"

    logged(f"{script}\nfor _ in range(2000): {both}\nos.dup2(os.open(os.devnull, os.O_WRONLY), 2)", form)


def test_process_without_standard_error_goes_on() -> None:
    """
    A process that was started with its standard error closed logs nothing, and goes on.
    """
    code = f"import sys; sys.stderr = None\n{SET_UP}\nlog.error('one')\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", code, "console"], capture_output=True, text=True, check=False)

    assert ("went on\n", "") == (done.stdout, done.stderr)


def test_lost_lines_are_counted() -> None:
    """
    As soon as lines can be written again, one says how many could not.
    """
    script = """
kept = os.dup(2)
os.dup2(os.open('/dev/full', os.O_WRONLY), 2)
for _ in range(3): log.error('lost')
os.dup2(kept, 2)
log.error('back')
"""
    said = [json.loads(line) for line in logged(script, "json").splitlines()]

    assert [("back", None), ("log lines were lost", 3)] == [(line["event"], line.get("lost_lines")) for line in said]
    assert {"x"} == {line["service"] for line in said}


#: Standard error is a pipe that nobody reads, until `read()` collects what came.
BLOCKED = """
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(writer)
os.set_blocking(reader, True)
said = []
def read():
    thread = threading.Thread(target=lambda: said.extend(open(reader)))
    thread.start()
    logging.shutdown()
    os.close(2)
    thread.join()
    return [json.loads(line) for line in said]
"""


def test_log_that_nobody_reads_holds_up_nothing() -> None:
    """
    Where standard error is a pipe that is full, who logs goes on at once; later all errors are there, and of the other
    lines as many as had a place, and one that says how many had none.
    """
    script = f"""{BLOCKED}
import json, time
began = time.monotonic()
for number in range(9000):
    log.info('told', number=number)
    if number % 100 == 0: log.error('broke', number=number)
assert time.monotonic() - began < 30, 'it waits'
lines = read()
told = [line['number'] for line in lines if line['event'] == 'told']
lost = sum(line.get('lost_lines', 0) for line in lines)
assert list(range(0, 9000, 100)) == [line['number'] for line in lines if line['event'] == 'broke']
assert told == sorted(told) and 9000 == len(told) + lost, (len(told), lost)
assert 2000 <= len(told) < 9000
"""

    logged(script, "json")


def test_process_ends_where_nobody_reads() -> None:
    """
    A process whose lines nobody takes ends all the same, a little later.
    """
    script = f"""{BLOCKED}
for number in range(3000): log.error('told', number=number)
"""

    logged(script, "json")


def test_line_of_any_thread_names_the_service() -> None:
    """
    Which service a line is of does not hang on the thread that tells of it, nor on whether a library does.
    """
    script = """
def tell():
    log.error('ours')
    logging.getLogger('any').error('theirs')
thread = threading.Thread(target=tell); thread.start(); thread.join()
"""
    said = [json.loads(line) for line in logged(script, "json").splitlines()]

    assert [("ours", "x"), ("theirs", "x")] == [(line["event"], line["service"]) for line in said]


def test_child_that_was_forked_logs_for_itself() -> None:
    """
    What waits is the parent's to write, and a child's lines are written though it has no thread of its parent's.
    """
    script = """
log.error('parent')
if not os.fork():
    log.info('child')
    logging.shutdown()
    os._exit(0)
os.wait()
log.error('parent again')
"""
    said = [json.loads(line)["event"] for line in logged(script, "json").splitlines()]

    assert ["parent", "child", "parent again"] == said


@pytest.mark.parametrize("form", FORMS)
def test_what_would_name_a_patient_is_not_logged(form: str) -> None:
    """
    A key that names a patient, or a secret, loses its value.
    """
    said = logged("log.info('received', patient_name='Doe^Jane', token='abc123')", form)

    assert (True, 2, False, False) == (
        "received" in said, said.count("(not logged)"), "Doe" in said, "abc123" in said
    )  # fmt: skip
