"""
Runs benchmarks, each in a process of its own, and prints their tables.

    python -m bench [receive|send|header|rules|ledger|start ...] [--quick] [--save]

Without a name it runs them all. `--save` adds the tables, with machine and date, to docs/benchmarks.md.
"""

import subprocess
import sys
from pathlib import Path

from bench import measure

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
SECTION = "## Results"

#: Name: its budget, and what it is beside.
BENCHMARKS = {
    "receive": "P1 and P2, receiving",
    "send": "P4, sending",
    "header": "P3, header extraction",
    "rules": "P7, rule evaluation",
    "scale": "P13, cost as the work grows",
    "ledger": "P8, jobs through the ledger",
    "start": "from a series' completion to its jobs' start",
}

#: Those that have a short form.
_HAVE_QUICK = {"receive", "send", "scale", "ledger"}


def run(name: str, *options: str) -> str:
    """Run one; what it printed, which is shown as it comes."""
    lines = []
    command = [sys.executable, "-m", f"bench.{name}", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return "".join(lines)


def save(tables: dict[str, str]) -> None:
    """Add the tables to the section of the page, newest first."""
    text = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
    if SECTION not in text:
        text = f"{text.rstrip()}\n\n{SECTION}\n"
    before, _, after = text.partition(f"{SECTION}\n")
    blocks = "".join(f"\n**{BENCHMARKS[name]}**\n\n```\n{table.rstrip()}\n```\n" for name, table in tables.items())
    PAGE.write_text(f"{before}{SECTION}\n\n### {measure.machine()}\n{blocks}{after}")


def main() -> None:
    """See above."""
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or list(BENCHMARKS)
    unknown = [*(set(names) - set(BENCHMARKS)), *(set(options) - {"--quick", "--save"})]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}, --quick and --save")
    print(measure.machine(), flush=True)
    tables = {}
    for name in names:
        print(f"\n{BENCHMARKS[name]}", flush=True)
        tables[name] = run(name, *(["--quick"] if "--quick" in options and name in _HAVE_QUICK else []))
    if "--save" in options:
        save(tables)


if __name__ == "__main__":
    main()
