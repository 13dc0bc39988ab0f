"""The processor: runs a job's chain of modules on links to its instances, and takes the results into the spool."""

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog

import talaria
from talaria.failpoint import failpoint
from talaria.model.dicom import UID, Instance, Origin, Tags
from talaria.model.errors import ConfigError, NoRoom, NotAnInstance, Permanent, Transient
from talaria.model.extensions import Executor, Run
from talaria.model.header import Header, TagList, scan
from talaria.model.job import Kind, Patience
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, parse_meta
from talaria.model.result import FILE_NAME, SIZE_LIMIT_BYTES, StepResult, read_result
from talaria.model.rulebook import ModuleEntry, Rule, Rulebook, Step
from talaria.model.task import Host, task_document
from talaria.services.loop import Clock, Done, Heart, Pulse, is_off_peak, perform, wall_clock
from talaria.store.jobs import Claim, Jobs
from talaria.store.results import Made, Output, Results, RunRecord
from talaria.store.revisions import Rulebooks
from talaria.store.spool import HEAD_BYTES, Spool, disk_errors, new_ulid, open_regular

log = structlog.get_logger()

#: How often a failed run that may pass is tried again.
_PATIENCE = Patience(first=timedelta(seconds=10), most=timedelta(minutes=10), budget=timedelta(hours=24))
#: How often an idle processor looks for what attempts that died left.
_TIDY_EVERY = timedelta(minutes=1)
#: What one step leaves that the next is not to see.
_OWN_TO_A_STEP = ("task.json", "result.json")


class Processor:
    """One step runs one job, the whole chain."""

    name = "processor"

    def __init__(
        self,
        *,
        jobs: Jobs,
        results: Results,
        rulebooks: Rulebooks,
        spool: Spool,
        executors: dict[str, Executor],
        heart: Heart,
        owner: str,
        clock: Clock = wall_clock,
        lanes: int = 2,
    ) -> None:
        self._jobs, self._results, self._rulebooks = jobs, results, rulebooks
        self._spool, self._executors, self._heart = spool, executors, heart
        self._owner, self._clock = owner, clock
        self.lanes = lanes
        self._in_hand: set[str] = set()
        self._tidied: datetime | None = None
        self._lock = threading.Lock()
        self._host = Host(version=talaria.__version__, appliance="talaria", server=os.uname().nodename)

    def step(self, now: datetime) -> bool:
        """Run the next job that is due; whether there may be more."""
        if not self._heart.books.catch_up():
            return False
        claim = self._jobs.claim(
            Kind.PROCESS,
            owner=self._owner,
            spools=[self._spool.name],
            now=now,
            clock=self._clock,
            off_peak=is_off_peak(self._rulebooks.follow(now), now),
        )
        if claim is None:
            self._tidy_sometimes(now)
            return False
        with self._holding(f"job-{claim.job.id}-{claim.job.attempt}") as name:
            is_written = perform(
                claim,
                lambda pulse: self._process(claim, name, pulse),
                jobs=self._jobs,
                heart=self._heart,
                patience=_PATIENCE,
                clock=self._clock,
            )
            if is_written:  # else its results may belong to an end that the ledger gets from the journal
                self._undo(name)
        return True

    def idle(self, now: datetime) -> timedelta:
        """Until the next job is due."""
        due = self._jobs.next_due(Kind.PROCESS)
        return timedelta(seconds=1) if due is None or due <= now else due - now

    def tidy(self) -> int:
        """Undo what attempts that died left: folders, and results that never came into the ledger; how many."""
        names = self._spool.folders()  # before asking which jobs are active: a folder is made after its job is claimed
        active = self._jobs.active_ids(Kind.PROCESS)
        with self._lock:
            left = [name for name in names if _job_of(name) not in active and name not in self._in_hand]
        for name in left:
            self._undo(name)
        return len(left)

    def _tidy_sometimes(self, now: datetime) -> None:
        with self._lock:
            if self._tidied is not None and abs(now - self._tidied) < _TIDY_EVERY:
                return
            self._tidied = now
        try:
            self._spool.check()
            self.tidy()
        except (NoRoom, OSError) as error:
            log.warning("what dead attempts left cannot be removed now", reason=str(error))

    @contextmanager
    def _holding(self, name: str) -> Iterator[str]:
        """Nobody tidies a folder away while its job is worked on."""
        with self._lock:
            self._in_hand.add(name)
        try:
            yield name
        finally:
            with self._lock:
                self._in_hand.discard(name)

    # -- one job --

    def _process(self, claim: Claim, name: str, pulse: Pulse) -> Done:
        """The chain, from the untouched inputs, in a folder of that name."""
        with self._disk():
            self._spool.check()
            for left in self._spool.folders():
                if _job_of(left) == claim.job.id:
                    self._undo(left)
            book = self._book(claim)
            rule = book.rule(claim.job.rule)
            root = self._spool.folder(name)
            origin = self._results.origin(claim)  # the ledger may be away when the run ends
            output, found = self._chain(claim, book, rule, root, origin, pulse)
            outputs = self._take(book, output, root)
        made = Made(
            rule=rule.name, send=tuple(rule.send), keep_inputs=rule.keep_inputs, origin=origin, outputs=tuple(outputs),
            found=tuple(found), time=self._clock(),
        )  # fmt: skip
        return Done(made=made)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """
        Tell an error of the disk from a bug.

        Raises:
            NoRoom: It is full, broken or away.
            Transient: Something was taken away from the job's folder.
        """
        try:
            with disk_errors("run a job"):
                yield
        except FileNotFoundError as error:
            self._spool.check()
            raise Transient(f"something was removed from its folder while it ran: {error.strerror}") from error

    def _book(self, claim: Claim) -> Rulebook:
        try:
            return self._rulebooks.of(claim.job.revision)
        except ConfigError as error:
            raise Transient(
                f"revision {claim.job.revision} of the rulebook, under which it was made, cannot be read here: {error}"
            ) from error

    def _chain(
        self, claim: Claim, book: Rulebook, rule: Rule, root: Path, origin: Origin, pulse: Pulse
    ) -> tuple[Path, list[StepResult]]:
        """Run every step; the output folder of the last, and what each found."""
        found: list[StepResult] = []
        wanted = TagList.of(book.recorded_names)
        tags = self._results.tags(claim)
        source = self._lay_out(claim, root)
        for number, step in enumerate(rule.process, start=1):
            module = book.modules[step.module]
            folder = root / f"step-{number}"
            folder.mkdir(mode=0o750)
            os.rename(source, folder / "in")
            for left in (*_OWN_TO_A_STEP, *(p.name for p in _entries(folder / "in") if p.suffix == ".tags")):
                (folder / "in" / left).unlink(missing_ok=True)
            (folder / "out").mkdir(mode=0o750)
            _write_tags(folder / "in", wanted, origin)
            document = task_document(claim.job, rule, step, module, tags=tags, origin=origin, host=self._host)
            (folder / "in" / "task.json").write_text(json.dumps(document, ensure_ascii=False))
            failpoint("processor.run.ready")
            self._run(claim, number, step, module, folder, pulse)
            source = folder / "out"
            found += _found(source, number, module)
        return source, found

    def _lay_out(self, claim: Claim, root: Path) -> Path:
        """Links to every input, named as modules expect."""
        source = root / "inputs"
        source.mkdir(mode=0o750)
        for row in self._results.inputs(claim):
            try:
                self._spool.link(row.id, source / f"{row.series_instance_uid}#{row.sop_instance_uid}.dcm")
            except FileNotFoundError as error:
                self._spool.check()
                raise Permanent(f"an input is gone from the spool: {error}") from error
        if not any(source.iterdir()):
            raise Permanent("none of its instances is in the spool any more; restart is of no use")
        return source

    def _run(self, claim: Claim, number: int, step: Step, module: ModuleEntry, folder: Path, pulse: Pulse) -> None:
        executor = self._executors.get(module.executor)
        if executor is None:
            raise Transient(f"executor '{module.executor}' of module '{module.name}' is missing here")
        run = Run(
            job_id=claim.job.id, attempt=claim.job.attempt, step=number, module=module.name, builtin=module.builtin,
            image=module.image, folder=folder, environment=_environment(folder, module), limits=module.limits,
        )  # fmt: skip
        began = self._clock()
        handle = executor.submit(run)
        failpoint("processor.run.started")
        ended = executor.follow(handle, run, stop=pulse)
        failpoint("processor.run.ended")
        if ended is None:
            raise Transient(f"module '{module.name}': the run was lost; it starts again")
        now = self._clock()
        self._heart.books.note(
            RunRecord(
                job_id=claim.job.id, attempt=claim.job.attempt, step=number, module=module.name, code=ended.code,
                reason=ended.reason, seconds=(now - began).total_seconds(), log=ended.log, ended=now,
            )
        )  # fmt: skip
        if module.builtin and ended.code == os.EX_TEMPFAIL:
            raise NoRoom(f"module '{module.name}' (step {number}): no room for what it writes; it runs again")
        if not ended.ok:
            raise Permanent(f"module '{module.name}' (step {number}): {ended.reason or f'exit code {ended.code}'}")
        if not module.may_be_empty and not any(path.name != "task.json" for path in _entries(folder / "out")):
            raise Permanent(f"module '{module.name}' (step {number}): ended well but wrote no file at all")

    # -- results --

    def _take(self, book: Rulebook, output: Path, root: Path) -> list[Output]:
        """Copy every DICOM output into the spool, synced; the ledger learns of them when the job ends."""
        paths = sorted(path for path in _entries(output) if path.suffix.lower() == ".dcm")
        now = self._clock()
        names = {path: new_ulid(now, of_result=True) for path in paths}
        manifest = root / "adopting"
        manifest.write_text("\n".join(names.values()))
        wanted = TagList.of(book.recorded_names)
        return [self._take_one(path, instance_id, wanted, now) for path, instance_id in names.items()]

    def _take_one(self, path: Path, instance_id: str, wanted: TagList, now: datetime) -> Output:
        try:
            meta, header, _ = _examine(path, wanted)
            size, sha256 = self._spool.adopt(path, instance_id)
            failpoint("processor.result.taken")
        except NotAnInstance as error:
            raise Permanent(f"result {path.name!r} is no DICOM instance: {error}") from error
        return Output(
            instance=Instance(
                id=instance_id,
                sop_instance_uid=header.sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                series_instance_uid=header.series_instance_uid,
                study_instance_uid=header.study_instance_uid,
                transfer_syntax_uid=UID(meta.transfer_syntax_uid),
                size_bytes=size,
                sha256=sha256,
                spool=self._spool.name,
                received=now,
            ),
            tags=header.tags,
            flags=header.flags,
        )

    def _undo(self, name: str) -> None:
        """Remove a folder, and what was copied into the spool for it but never came into the ledger."""
        manifest = self._spool.work / name / "adopting"
        try:
            ids = manifest.read_text().split()
        except OSError:
            ids = []
        if ids:
            known = self._results.known(ids)
            for instance_id in ids:
                if instance_id not in known:
                    self._spool.drop(instance_id)
        try:
            remove_tree(self._spool.work / name)
            failpoint("processor.folder.removed")
        except OSError as error:
            log.warning("a job's folder cannot be removed; it is tried again", folder=name, reason=error.strerror)


def remove_tree(root: Path) -> None:
    """
    Remove a folder and all in it, also where a module took our rights to a part of it away; gone already is well.

    Raises:
        OSError: Something in it can be removed by nobody like us; what can be was.
    """
    shutil.rmtree(root, ignore_errors=True)
    if not os.path.lexists(root):
        return
    folders = [] if root.is_symlink() else [root]
    while folders:  # rights first, then a look inside; files are links into the store: theirs are left alone
        with suppress(OSError):
            folder = folders.pop()
            folder.chmod(0o700)
            with os.scandir(folder) as entries:
                folders += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    shutil.rmtree(root)


def _job_of(name: str) -> int:
    """The job that a folder of `work/` belongs to; 0 for none."""
    number = name.removeprefix("job-").partition("-")[0]
    return int(number) if number.isdigit() else 0


def _environment(folder: Path, module: ModuleEntry) -> dict[str, str]:
    """What every module may rely on, by the names of mercure, MONAI and Holoscan too."""
    source, destination = str(folder / "in"), str(folder / "out")
    return {
        **module.environment,
        "TALARIA_IN_DIR": source, "TALARIA_OUT_DIR": destination, "TALARIA_TASK": str(folder / "in" / "task.json"),
        "MERCURE_IN_DIR": source, "MERCURE_OUT_DIR": destination,
        "MONAI_INPUTPATH": source, "MONAI_OUTPUTPATH": destination,
        "HOLOSCAN_INPUT_PATH": source, "HOLOSCAN_OUTPUT_PATH": destination,
    }  # fmt: skip


def _entries(folder: Path) -> Iterator[Path]:
    """The regular files of a folder itself; links, pipes, devices and what lies deeper are not results."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _found(output: Path, number: int, module: ModuleEntry) -> list[StepResult]:
    """What a step said besides its images; nothing where it wrote no `result.json`."""
    path = output / FILE_NAME
    if not os.path.lexists(path):
        return []
    try:
        with open_regular(path) as file:
            value, trouble = read_result(file.read(SIZE_LIMIT_BYTES + 1))
    except NotAnInstance:
        value, trouble = "", "is no regular file"
    except PermissionError:
        value, trouble = "", "cannot be read by us; its rights were taken away"
    version = module.image or talaria.__version__
    return [StepResult(step=number, module=module.name, version=version, value=value, trouble=trouble)]


def _examine(path: Path, wanted: TagList) -> tuple[FileMeta, Header, int]:
    """Meta header, header, and size of the data set of a file that a module may have written."""
    with open_regular(path) as file:
        meta = parse_meta(file.read(META_LIMIT_BYTES))
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size - meta.offset
        header = scan(
            os.pread(descriptor, HEAD_BYTES, meta.offset),
            transfer_syntax_uid=meta.transfer_syntax_uid,
            wanted=wanted,
            read_on=lambda offset, length: os.pread(descriptor, length, meta.offset + offset),
            size_bytes=size,
            sop_class_uid=meta.sop_class_uid,
        )
    return meta, header, size


def _write_tags(folder: Path, wanted: TagList, origin: Origin) -> None:
    """A `.tags` file beside each instance, written anew for every step."""
    sender: dict[str, str | None] = {
        "SenderAET": origin.calling_ae, "ReceiverAET": origin.called_ae, "SenderAddress": origin.address
    }  # fmt: skip
    for path in _instances(folder):
        try:
            tags: Tags = _examine(path, wanted)[1].tags.with_values(sender)
        except NotAnInstance:
            continue  # a step may pass on what is no DICOM; the last step's results are checked
        path.with_suffix(".tags").write_text(json.dumps(dict(tags), ensure_ascii=False))


def _instances(folder: Path) -> Iterable[Path]:
    return [path for path in _entries(folder) if path.suffix.lower() == ".dcm"]
