"""Break every rule on purpose, one fact at a time, and see at least one test fail; print what no test notices.

python tools/mutate_rules.py                               # what is not known yet, then the table
python tools/mutate_rules.py --only 'Conv@1*' --jobs 2
python tools/mutate_rules.py --only 'Gemm@1 equal*' --again --show
python tools/mutate_rules.py --minutes 20 --table tools/results/mutate_rules.md

First the tests of the rules run unbroken, while somebody listens: which rule is asked in which test, and what it says
there. Then each mutant (see tools/mutants.py) has a process of its own, forked from one that has read all tests: only
tests in which the mutant says something else run, the fastest first, until one fails. What was found is a line in
tools/results/mutate_rules.jsonl, so that a run that was stopped goes on where it was. A mutant that survives is
explained in tools/mutants_explained.py, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tools.mutants import Mutant, broken, installed, rules  # noqa: E402 - found through the line above
from tools.mutants_explained import EXPLAINED  # noqa: E402 - found through the line above

RECORDS = ROOT / "tools" / "results" / "mutate_rules.jsonl"
HEARD = ROOT / "runs" / "mutate_rules"  # which test asks which rule
FILES = ("test_rules*.py", "test_integers.py", "test_growing.py")
FIRST = ("test_rules_mutants", "test_growing")  # written for what others leave: they ask for much in little time


@dataclass(frozen=True, slots=True)
class Heard:
    """A test that passes unbroken: its seconds, and the mutants that would say something else in it."""

    test: str
    seconds: float
    passed: bool
    mutants: tuple[str, ...]
    record: str = ""  # what it was read from: another one, where its file or a rule has changed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: killed by a test, survived, or out of time; of how many tests, and their digest."""

    mutant: str
    verdict: str
    by: str
    detail: str
    tests: int
    digest: str


def main() -> int:
    """1 where a mutant survives without an explanation, a rule is never asked, or a test fails unbroken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="mutants to try, as in a shell")
    parser.add_argument("--tests", nargs="+", type=Path, default=None, metavar="F", help="instead of all of the rules'")
    parser.add_argument("--keyword", default="", metavar="K", help="only tests that pytest -k would run")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=None, help="begin no mutant after so many")
    parser.add_argument("--again", action="store_true", help="also those that have been killed before")
    parser.add_argument("--show", action="store_true", help="print every verdict, with the test that failed")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="F", help="where verdicts are kept")
    parser.add_argument("--heard", type=Path, default=HEARD, metavar="DIR", help="where it is kept who asks which rule")
    parser.add_argument("--table", type=Path, default=None, metavar="F", help="write the table here")
    options = parser.parse_args()
    files = options.tests or sorted(path for pattern in FILES for path in (ROOT / "tests").glob(pattern))
    examiner = Examiner(options)
    keyword = ["-k", options.keyword] if options.keyword else []
    quiet = ["-q", "-s", "--no-header", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    status = pytest.main([*quiet, *keyword, *map(str, files)], plugins=[examiner])
    if status:
        return int(status)
    if options.table:
        options.table.write_text(table(examiner))
    return report(examiner)


@dataclass
class Examiner:
    """A pytest plugin that runs the tests it is given once unbroken, and then broken, each time in a fork."""

    options: argparse.Namespace
    heard: list[Heard] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # in a forked process: what has failed in it

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pytest calls this after each phase of a test."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failures.append(" ".join((crash.message if crash else report.longreprtext).split())[:80])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Pytest calls this when it has read all tests."""
        if session.testsfailed:
            raise session.Failed("some tests cannot be read")
        import networkx  # noqa: F401 - once for all forks, in which the package would import it
        import onnxruntime  # noqa: F401 - the same; a session would start threads, which no fork has

        gc.freeze()  # a fork need not copy what its collector looks at
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
            self._listen(session.items, Path(folder))
            self._break(session.items, Path(folder))
        return True

    def _listen(self, items: Sequence[pytest.Item], folder: Path) -> None:
        """Who asks which rule: by file, from records where neither the file nor a rule has changed."""
        by_file: dict[Path, list[pytest.Item]] = {}
        for item in items:
            by_file.setdefault(item.path, []).append(item)
        at = self.options.heard
        records = {path: at / f"{path.stem}-{_digest(path, own)}.jsonl" for path, own in by_file.items()}
        pending = []
        for path, own in by_file.items():
            if not (kept := records[path]).exists():
                pending += [(path.stem, kept, own[k : k + 100]) for k in range(0, len(own), 100)]
        left = Counter(kept for _, kept, _ in pending)
        made: dict[Path, list[str]] = {}

        def begin(task: tuple[str, Path, list[pytest.Item]], result: Path) -> None:
            result.write_text("".join(json.dumps(asdict(self._heard_in(item))) + "\n" for item in task[2]))

        at.mkdir(parents=True, exist_ok=True)
        for (stem, kept, own), result, ended in _forked(pending, begin, self.options.jobs, folder, lambda task: 900):
            if ended:
                raise RuntimeError(f"{stem}: the process that ran {own[0].nodeid} and others ended by {ended}")
            made.setdefault(kept, []).append(result.read_text())
            print(f"listened to {len(own)} tests of {stem}", flush=True)
            left[kept] -= 1
            if not left[kept]:
                for old in at.glob(f"{stem}-*"):
                    old.unlink()
                kept.write_text("".join(made[kept]))
        for kept in records.values():
            self.heard += [Heard(**json.loads(line) | {"record": kept.stem}) for line in kept.read_text().splitlines()]

    def _heard_in(self, item: pytest.Item) -> Heard:
        said: set[str] = set()
        self.failures.clear()
        began = time.perf_counter()
        end = installed(lambda operator, since, change: said.add(str(Mutant(operator, since, change))))
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        end()
        return Heard(item.nodeid, time.perf_counter() - began, not self.failures, tuple(sorted(said)))

    def _break(self, items: Sequence[pytest.Item], folder: Path) -> None:
        """Try every mutant that has no verdict yet, or survived other tests than there are now."""
        known = self.options.records.read_text().splitlines() if self.options.records.exists() else []
        self.verdicts = {v.mutant: v for v in (Verdict(**json.loads(line)) for line in known)}
        by_name = {item.nodeid: item for item in items}
        reach = self.reach()
        due = []
        for mutant, tests in reach.items():
            old = self.verdicts.get(mutant)
            settled = old and (old.verdict == "killed" or old.digest == _of(tests)) and not self.options.again
            if not settled and fnmatch.fnmatch(mutant, self.options.only):
                due.append((mutant, tests))
        due.sort(key=lambda task: len(task[1]))  # those that survive many tests take long
        began = time.monotonic()

        def in_time() -> Iterator[tuple[str, list[Heard]]]:
            for n, task in enumerate(due):
                minutes = (time.monotonic() - began) / 60
                if self.options.minutes is not None and minutes >= self.options.minutes:
                    print(f"{len(due) - n} mutants are left for another time", flush=True)
                    return
                yield task

        def begin(task: tuple[str, list[Heard]], result: Path) -> None:
            mutant, tests = task
            broken(_parsed(mutant))
            for test in tests:
                self.failures.clear()
                by_name[test.test].ihook.pytest_runtest_protocol(item=by_name[test.test], nextitem=None)
                if self.failures:
                    result.write_text(json.dumps([test.test, self.failures[0]]))
                    return
            result.write_text(json.dumps(["", ""]))

        def limit(task: tuple[str, list[Heard]]) -> int:
            return int(60 + 10 * sum(test.seconds for test in task[1]))

        self.options.records.parent.mkdir(parents=True, exist_ok=True)
        tried: Counter[str] = Counter()
        for (mutant, tests), result, ended in _forked(in_time(), begin, self.options.jobs, folder, limit):
            crashed = ("", "") if ended == "SIGALRM" else ("a crash", ended)  # of a session on a model that is wrong
            by, detail = crashed if ended else json.loads(result.read_text())
            word = "killed" if by else "out of time" if ended else "survived"
            verdict = Verdict(mutant, word, by, detail, len(tests), _of(tests))
            self.verdicts[mutant] = verdict
            with self.options.records.open("a") as file:
                file.write(json.dumps(asdict(verdict)) + "\n")
            tried[word] += 1
            if self.options.show or word != "killed":
                print(f"{word}: {mutant}   # {f'{by}: {detail}' if by else f'{len(tests)} tests'}", flush=True)
            if sum(tried.values()) % 100 == 0:
                seconds = time.monotonic() - began
                print(f"{sum(tried.values())} of {len(due)}: {dict(tried)} in {seconds:.0f} s", flush=True)
        if self.whole:  # what could be broken once and is not there any more is forgotten
            self.verdicts = {name: self.verdicts[name] for name in reach if name in self.verdicts}
        lines = (json.dumps(asdict(verdict)) + "\n" for _, verdict in sorted(self.verdicts.items()))
        self.options.records.write_text("".join(lines))

    @property
    def whole(self) -> bool:
        """Whether these are all the tests that there are."""
        return not self.options.tests and not self.options.keyword

    def reach(self) -> dict[str, list[Heard]]:
        """For each mutant, the tests that pass unbroken and in which it would say something else, fastest first."""
        found: dict[str, list[Heard]] = {}
        for test in sorted(self.heard, key=lambda test: (not any(name in test.test for name in FIRST), test.seconds)):
            for mutant in test.mutants if test.passed else ():
                found.setdefault(mutant, []).append(test)
        return dict(sorted(found.items()))


def _forked(
    tasks: Iterable[Any],
    begin: Callable[[Any, Path], None],
    jobs: int,
    folder: Path,
    limit: Callable[[Any], int],
) -> Iterator[tuple[Any, Path, str]]:
    """Run each task in a process of its own, so many at a time: the task, the file in which it says what it found, and
    the signal that ended it otherwise.

    That is SIGALRM where it took longer than its limit (in seconds), and another one where it crashed.
    """
    running: dict[int, tuple[Any, Path]] = {}
    for n, task in enumerate(tasks):
        while len(running) >= jobs:
            yield _ended(running)
        result = folder / f"result{n}"
        result.unlink(missing_ok=True)
        if (process := os.fork()) == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(limit(task))
            _silence()
            try:
                begin(task, result)
            finally:
                os._exit(0)
        running[process] = task, result
    while running:
        yield _ended(running)


def _ended(running: dict[int, tuple[Any, Path]]) -> tuple[Any, Path, str]:
    """Wait for one of these processes: its task, its file, and by which signal it ended, if by one."""
    process, status = os.wait()
    task, result = running.pop(process)
    if not os.WIFSIGNALED(status) and not result.exists():
        raise RuntimeError(f"the process for {task} ended without a word")
    return task, result, signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _digest(path: Path, items: Sequence[pytest.Item]) -> str:
    """What a file's tests say depends on: its text, which of its tests there are, the rules and what asks them."""
    package = ROOT / "conet_onnx"
    sources = [path, *sorted((package / "rules").glob("*.py")), package / "folding.py", package / "integers.py"]
    sources += [ROOT / "tools" / "mutants.py", *sorted((ROOT / "tests").glob("strategies*/*.py"))]
    text = b"".join(source.read_bytes() for source in sources) + "".join(i.nodeid for i in items).encode()
    return hashlib.sha256(text).hexdigest()[:12]


def _of(tests: Sequence[Heard]) -> str:
    return hashlib.sha256("".join(sorted(test.record + test.test for test in tests)).encode()).hexdigest()[:12]


def _parsed(text: str) -> Mutant:
    rule, _, change = text.partition(" ")
    operator, _, since = rule.rpartition("@")
    return Mutant(operator, int(since), change)


# What was found


def explained(mutant: str) -> str | None:
    """Why a mutant survives; None where nobody knows."""
    return next((why for pattern, why in EXPLAINED.items() if fnmatch.fnmatch(mutant, pattern)), None)


def unasked(examiner: Examiner) -> list[str]:
    """Rules that no test asks."""
    asked = {f"{m.operator}@{m.since}" for m in map(_parsed, examiner.reach())}
    return [name for name in (f"{operator}@{since}" for operator, since in rules()) if name not in asked]


def report(examiner: Examiner) -> int:
    """Print what survived, and return the exit status."""
    verdicts = examiner.verdicts.values()
    left = [v for v in verdicts if v.verdict != "killed"]
    unexplained = [v for v in left if explained(v.mutant) is None]
    failed = [test.test for test in examiner.heard if not test.passed]
    never = [name for name in unasked(examiner) if explained(name) is None] if examiner.whole else []
    gone = [*(v.mutant for v in left), *unasked(examiner)]
    idle = [pattern for pattern in EXPLAINED if examiner.whole and not fnmatch.filter(gone, pattern)]
    for v in left:
        print(f"{v.verdict}: {v.mutant}   # {explained(v.mutant) or 'UNEXPLAINED'}")
    for kind, names in (("never asked", never), ("fails unbroken", failed), ("explains nothing", idle)):
        for name in names:
            print(f"{kind}: {name}")
    counts = Counter(v.verdict for v in verdicts)
    print(f"{len(verdicts)} mutants of {len(rules())} rules: {dict(counts)}, {len(unexplained)} unexplained")
    return int(bool(unexplained or never or failed or idle))


def table(examiner: Examiner) -> str:
    """The table of all rules, and the survivors with what explains them."""
    rows: dict[str, Counter[str]] = {f"{operator}@{since}": Counter() for operator, since in rules()}
    for verdict in examiner.verdicts.values():
        rows[verdict.mutant.partition(" ")[0]][verdict.verdict] += 1
    every = sum(rows.values(), Counter())
    left = sorted(v.mutant for v in examiner.verdicts.values() if v.verdict != "killed")
    reasons: dict[str, list[str]] = {}
    for name in (*left, *unasked(examiner)):
        reasons.setdefault(explained(name) or "**not explained**", []).append(name)
    lines = ["# Broken rules", "", f"Made by `python tools/mutate_rules.py`, with {len(examiner.heard)} tests: "]
    lines[-1] += f"{every.total()} mutants of {len(rows)} rules, {every['killed']} killed, {len(left)} left."
    lines += ["", "## What no test notices, and why", ""]
    for why, names in reasons.items():
        lines += [f"- {why}", *(f"    - `{name}`" for name in names)]
    lines += ["", "## By rule", "", "| rule | mutants | killed | left |", "|---|---:|---:|---:|"]
    for name, found in rows.items():
        lines.append(f"| `{name}` | {found.total()} | {found['killed']} | {found.total() - found['killed']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
