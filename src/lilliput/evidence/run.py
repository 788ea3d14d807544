"""A run: the directory in which a job leaves what it did, what it found, and how it knows.

While the job works the directory is called ``NAME.partial``; only a run that came to its end gets its name. A name that is taken is never
written over. Each finished step is kept with its result, so a run that was cut short goes on from there. An error of the user's before
anything was made leaves nothing, so that the corrected command finds the name free.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import lilliput
from lilliput.errors import ConfigError, DataError, LilliputError
from lilliput.evidence import atomic
from lilliput.evidence.evidence import Evidence
from lilliput.evidence.plain import differences, to_plain
from lilliput.evidence.schema import read_checked, read_json, schema
from lilliput.evidence.sections import Figure, Report, Section
from lilliput.evidence.surroundings import machine, versions


@dataclass
class Step:
    """One step of a job: save its result, or find it saved by an earlier attempt."""

    name: str
    done: bool = False
    """Whether an earlier attempt finished it; its result is then in ``result`` and the work is to be skipped."""
    result: Any = None
    """As JSON gives it back: tuples are lists, keys are text."""
    seconds: float = 0.0
    """Wall-clock seconds of all attempts."""

    def save(self, result: Any) -> None:
        """Keep the step's result: numbers, text, paths, lists, mappings, dataclasses. Large things belong in ``Run.artifact``."""
        self.result = to_plain(result, f"result of step '{self.name}'")


@dataclass
class Run:
    """A run directory, being written (from :meth:`create`) or read (from :meth:`load`)."""

    path: Path
    """Where the files are now; ends in ``.partial`` until the run is complete."""
    job: str
    config: dict[str, Any]
    seed: int | None
    versions: dict[str, str]
    platform: dict[str, Any]
    started: str
    lilliput_version: str = lilliput.__version__
    status: str = "running"
    error: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    """Wall-clock seconds of all attempts together, up to the last write."""
    steps: dict[str, Step] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    """By name, in the order recorded."""
    report: Report | None = None

    _name: Path | None = field(default=None, repr=False)  # the path it gets when complete
    _lock: int | None = field(default=None, repr=False)
    _clock: float = field(default=0.0, repr=False)
    _entered: set[str] = field(default_factory=set, repr=False)
    _made_here: bool = field(default=True, repr=False)  # no earlier attempt left anything
    _fresh: set[str] = field(default_factory=set, repr=False)  # evidence of this attempt

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        job: str,
        config: Any = None,
        seed: int | None = None,
        resume: bool = False,
        may_differ: Collection[str] = ("resume", "out", "quiet"),
    ) -> Run:
        """Begin a run, or with ``resume`` go on with one that was cut short. Use it in a ``with`` statement.

        Args:
            path: what the directory is called when complete; parents are made.
            config: a dataclass or mapping of what JSON can hold.
            resume: without an unfinished run of this name, a new one begins.
            may_differ: config fields that change nothing about the result.
        Raises:
            ConfigError: the name is taken; an unfinished run is in the way; it is being written by another process; or it was begun with
                another job, config, seed or version.
        """
        name = Path(path)
        if name.name in ("", "..") or name.name.endswith(".partial"):
            raise ConfigError(
                f"run directory {str(path)!r}: must be a name that does not end in .partial; try 'runs/{job}'"
            )
        partial = name.with_name(name.name + ".partial")
        _refuse_taken(name)
        plain = to_plain({} if config is None else config, "config")
        if not isinstance(plain, dict):
            raise ConfigError(f"config: a {type(config).__name__} has no named fields; give a dataclass or a mapping")
        _make_directory(partial, resume)
        run = cls(partial, job, plain, seed, versions(), machine(), _now(), _name=name, _clock=time.perf_counter())
        run._lock = _locked(partial)
        try:
            if (partial / "run.json").exists():
                run._continue_from(partial, may_differ)
            for directory in ("figures", "artifacts"):
                (partial / directory).mkdir(exist_ok=True)
            run._write_run()
            run._write_evidence()
        except BaseException:
            run._unlock()
            raise
        return run

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a finished run.

        Raises:
            DataError: missing, unfinished or damaged; names the file.
        """
        directory = Path(path)
        if not directory.is_dir():
            partial = directory.with_name(directory.name + ".partial") if directory.name else directory
            hint = (
                f"{partial} is unfinished: continue it with --resume"
                if partial.is_dir()
                else "there is no such directory"
            )
            raise DataError(f"{directory}: is not a finished run; {hint}")
        run = cls._read(directory)
        if run.status != "complete" or directory.name.endswith(".partial"):
            raise DataError(f"{directory}: the run is not finished (status '{run.status}'); continue it with --resume")
        if (directory / "report.json").exists():
            document = read_json(directory / "report.json")
            run.report = Report.from_json(document, source=str(directory / "report.json"))
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._finish()
            finally:
                self._unlock()
            return
        if isinstance(error, LilliputError) and not any((self.path / "artifacts").iterdir()) and self._made_here:
            # What was asked for cannot be, and nothing was made yet: the corrected command must find the name free.
            shutil.rmtree(self.path)
            self._unlock()
            return
        self.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.error = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            self._write_run()
        except OSError as fault:  # a full disk must not hide what went wrong first
            error.add_note(f"{self.path / 'run.json'} could not be written: {fault}")
        finally:
            self._unlock()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a part of the job and keep its result; ``step.done`` says that an earlier attempt did it.

        Raises:
            ConfigError: the job has run a step of this name already.
        """
        if name in self._entered:
            raise ConfigError(f"step '{name}': this run has one of that name already; names must differ")
        self._entered.add(name)
        step = self.steps.setdefault(name, Step(name))
        if step.done:
            yield step
            return
        begin, before = time.perf_counter(), step.seconds
        try:
            yield step
        except BaseException:
            step.result = None  # saved, perhaps, but not to be trusted
            raise
        else:
            step.done = True
        finally:
            step.seconds = round(before + time.perf_counter() - begin, 6)
            if step.done:
                self._write_run()

    def result(self, step: str) -> Any:
        """What a finished step saved.

        Raises:
            ConfigError: the step has not run.
        """
        if step not in self.steps or not self.steps[step].done:
            done = ", ".join(each.name for each in self.steps.values() if each.done) or "none"
            raise ConfigError(f"step '{step}' has no result: finished steps are {done}")
        return self.steps[step].result

    def record(self, *evidence: Evidence) -> None:
        """Add figures to ``evidence.json``.

        Raises:
            ConfigError: a name this attempt has recorded with another value.
        """
        for each in evidence:
            if each.name in self._fresh and self.evidence[each.name] != each:
                before = self.evidence[each.name].value
                raise ConfigError(
                    f"evidence '{each.name}': is {before!r} already, and now {each.value!r}; give one a longer name"
                )
            self.evidence[each.name] = each
            self._fresh.add(each.name)
        self._write_evidence()

    def artifact(self, name: str) -> Path:
        """Path for a file or directory the job leaves, inside ``artifacts/``; its parents are made.

        Raises:
            ConfigError: the name leads out of the run directory.
        """
        target = self.path / "artifacts" / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"artifact {name!r}: must be a relative name without '..'; try 'model.c'")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write_report(
        self,
        sections: Sequence[Section],
        *,
        title: str | None = None,
        verdict: str = "",
        holds: bool | None = None,
        highlights: Sequence[str] = (),
    ) -> Path:
        """Write ``report.json``, ``report.html`` and ``figures/``; the page ends with how each figure was obtained.

        Args:
            title: the page's heading; the job and the run's name where there is none.
            verdict: one line that answers what the job was run for.
            holds: whether that is the good answer.
            highlights: names of a few figures to show under it.
        Raises:
            ConfigError: a name of evidence that the run has not recorded.
        """
        title = title or f"{self.job}: {self.name}"
        report = Report(title, sections, verdict, holds, highlights)
        for name in report.evidence_names():
            if name not in self.evidence:
                known = ", ".join(self.evidence) or "none"
                raise ConfigError(f"report shows evidence '{name}', which the run has not recorded; it has {known}")
        self.report = report
        atomic.write_json(self.path / "report.json", report.to_json())
        for section in report.sections:
            drawings = [block for block in section.blocks if isinstance(block, Figure)]
            for number, drawing in enumerate(drawings, start=1):
                suffix = f"-{number}" if len(drawings) > 1 else ""
                atomic.write_text(self.path / "figures" / f"{section.id}{suffix}.svg", drawing.svg)
        return self.write_page()

    def write_page(self) -> Path:
        """Draw ``report.html`` (again) from the run's data.

        Raises:
            DataError: the run has no report.
        """
        from lilliput.evidence.page import render_report

        page = self.path / "report.html"
        atomic.write_text(page, render_report(self))
        return page

    @property
    def name(self) -> str:
        """What the run is called, without the directories above it."""
        return (self._name or self.path.resolve()).name

    def _finish(self) -> None:
        assert self._name is not None
        _refuse_taken(self._name)
        self.status, self.error = "complete", None
        self._write_run()
        if self.report is not None:
            self.write_page()  # once more: it tells the time that all steps took
        try:
            os.rename(self.path, self._name)
        except OSError as fault:
            raise ConfigError(
                f"{self.path} is whole, but cannot be renamed to {self._name}: {fault.strerror}"
            ) from fault
        atomic.sync_directory(self._name.parent)
        self.path = self._name

    def _continue_from(self, partial: Path, may_differ: Collection[str]) -> None:
        before = self._read(partial)
        for what, then, now in (
            ("job", before.job, self.job),
            ("seed", before.seed, self.seed),
            ("Lilliput's version", before.lilliput_version, self.lilliput_version),
        ):
            if then != now:
                raise ConfigError(f"{partial} cannot be resumed: {what} was {then} and is {now}; {_ways_out(partial)}")
        for name, text_then, text_now in differences(before.config, self.config):
            if name.split(".")[0] not in may_differ:
                raise ConfigError(
                    f"{partial} cannot be resumed: config field '{name}' was {text_then} and is {text_now}; {_ways_out(partial)}"
                )
        atomic.remove_leftovers(partial)
        self._made_here = False
        self.steps, self.evidence = before.steps, before.evidence
        self.started, self.attempts = before.started, before.attempts + 1
        self._clock -= before.seconds

    @classmethod
    def _read(cls, directory: Path) -> Run:
        facts = read_checked(directory / "run.json", "run")
        figures = (
            read_checked(directory / "evidence.json", "evidence") if (directory / "evidence.json").exists() else None
        )
        if figures is None and facts["status"] == "complete":
            raise DataError(f"{directory / 'evidence.json'}: is missing; the run directory is damaged")
        steps = {
            name: Step(name, each["done"], each.get("result"), each["seconds"]) for name, each in facts["steps"].items()
        }
        evidence = {name: Evidence.from_json(name, each) for name, each in (figures or {}).items() if name != "$schema"}
        return cls(
            path=directory,
            steps=steps,
            evidence=evidence,
            lilliput_version=facts["lilliput"],
            error=facts.get("error"),
            **{name: facts[name] for name in ("job", "config", "seed", "versions", "platform", "started", "status")},
            **{name: facts[name] for name in ("attempts", "seconds")},
        )

    def _write_run(self) -> None:
        self.seconds = round(time.perf_counter() - self._clock, 6)
        facts: dict[str, Any] = {"$schema": schema("run")["$id"], "job": self.job, "status": self.status}
        if self.error is not None:
            facts["error"] = self.error
        facts |= {
            "config": self.config,
            "seed": self.seed,
            "lilliput": self.lilliput_version,
            "versions": self.versions,
        }
        facts |= {
            "platform": self.platform,
            "started": self.started,
            "seconds": self.seconds,
            "attempts": self.attempts,
        }
        facts["steps"] = {}
        for step in self.steps.values():
            kept = {"result": step.result} if step.done and step.result is not None else {}
            facts["steps"][step.name] = {"seconds": step.seconds, "done": step.done} | kept
        atomic.write_json(self.path / "run.json", facts)

    def _write_evidence(self) -> None:
        figures: dict[str, Any] = {"$schema": schema("evidence")["$id"]}
        atomic.write_json(
            self.path / "evidence.json", figures | {name: each.to_json() for name, each in self.evidence.items()}
        )

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _refuse_taken(name: Path) -> None:
    if name.exists() or name.is_symlink():
        raise ConfigError(f"{name} exists already, and a run is never written over; give another name, or remove it")


def _make_directory(partial: Path, resume: bool) -> None:
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except FileExistsError:
        if not partial.is_dir():
            raise ConfigError(f"run directory {partial}: a file is in the way; give another name, or move it") from None
        if not resume:
            raise ConfigError(
                f"{partial} is an unfinished run; continue it with --resume, or remove it to start anew"
            ) from None
    except OSError as error:
        raise ConfigError(f"run directory {partial} cannot be made: {error.strerror}; give another name") from error


def _locked(directory: Path) -> int | None:
    """Hold the directory against a second process; the system lets go of it even when this one is killed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(
            f"{directory} is being written by another process; wait for it, or give another name"
        ) from None
    except OSError:  # a network file system without locks
        os.close(handle)
        return None
    return handle


def _ways_out(partial: Path) -> str:
    return f"give what it was begun with, or remove {partial} to start anew"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
