"""Run an experiment file: the runs that are missing, several at once, then its figures.

Finished runs are skipped and cut ones resumed, so the same command goes on after Ctrl-C, a crash or a power
cut. A run that fails is reported, the others go on, and the exit status is 1.

An experiment file (TOML) holds the commands as one would type them, the most important first:

    title = "SAC on Hopper-v4"
    about = "What is claimed, by whom, and what would show it."
    hardware = "2 CPU cores"                # optional: what the minutes were measured on

    [[run]]
    name = "pretrain"                       # for {pretrain}, the log and the display
    command = "offline_pretrain_sac.py --num-seeds 3"
    minutes = 11
    gpu = true                              # optional: not run on a machine without one

    [[run]]
    name = "finetune"
    command = "online_finetune_sac.py --num-seeds 3 --checkpoint {pretrain}"
    minutes = 9

    [[figure]]
    command = "plot_curves.py {pretrain} {finetune} --out {runs}/finetune"

{pretrain} is the folder of that run, which must stand above; a run starts when those that it names have
finished. {runs}, in figures, is <runs-dir>/<name of the file>. That folder is appended to every run's command
as --runs-dir. In a figure, runs without results are left out. To start a run by hand, type its command with
--runs-dir at its end: a run is recognised by the command in its config.json. Estimated times are the file's
minutes, scaled by how long its finished runs took.

Reads   experiments/NAME.toml, <runs-dir>/NAME/<env>/<run>/seed<k>/config.json.
Writes  <runs-dir>/NAME/logs/<name of the run>.log, what the commands write, and results.zip: all of it
        but checkpoints and TensorBoard's events.
Run     python run_experiments.py experiments/smoke.toml
        python run_experiments.py experiments/chapter.toml --dry-run
        python run_experiments.py experiments/sac.toml --jobs 2 --minutes 60
        python run_experiments.py experiments/chapter.toml --ray    # on a Ray cluster: requirements-ray.txt
"""

import ctypes
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import tyro
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent  # the scripts lie beside this one
FORMAT = 2  # of config.json; runs of another format are ignored
KEYS = {  # of an experiment file: required ones, then optional ones
    "file": ({"title": str, "about": str, "run": list}, {"hardware": str, "figure": list}),
    "run": ({"name": str, "command": str, "minutes": int | float}, {"gpu": bool}),
    "figure": ({"command": str}, {}),
}
NAME = re.compile(r"\{([^{}]*)\}")
# The line that an evaluation leaves in a log: phase, step, result.
LINE = re.compile(r"^(offline|online) +([\d,]+): (return .*)$", re.M)
TO_DO = ("missing", "cut", "lost")  # lost: cut before its first save
AT_WORK = ("running", "finished")
STATUS_EVERY = 600  # seconds between the lines about running jobs, where there is no terminal


@dataclass
class Args:
    """Run an experiment file: start missing runs, resume cut ones, skip finished ones, draw the figures.

    Ctrl-C stops: running jobs save their state, and the same command continues. With --ray, the machines of
    the cluster must see this folder, its Python environment and --runs-dir at the same paths.
    """

    experiment: tyro.conf.Positional[Path]  # a file of experiments/
    dry_run: bool = False  # print what would run, what is finished and what would be resumed; start nothing
    jobs: int = 0  # runs at once; 0: one per CPU core, or --jobs-per-gpu on each GPU
    jobs_per_gpu: int = 3  # runs that share a GPU; more make online runs wait for each other
    minutes: float = math.inf  # then save and stop; start only what fits, by the file's estimates
    runs_dir: str = "runs"  # results, logs and figures go to <runs-dir>/<name of the file>/
    ray: tuple[str, ...] | None = None  # run on Ray: at this address, else on a running cluster or here


@dataclass(eq=False)
class Job:
    """One [[run]] of the file, and where it stands."""

    name: str
    command: str  # as in the file
    minutes: float
    root: Path  # <runs-dir>/<name of the file>
    gpu: bool = False
    needs: list["Job"] = field(default_factory=list)  # the runs that its command names
    state: str = "missing"  # of TO_DO, or running, finished, failed, elsewhere, not run
    note: str = ""  # why it failed or is not run
    first: Path | None = None  # folder of its first seed
    spent: float = 0.0  # minutes that it has run so far, by its last save
    started: float = 0.0

    @property
    def log(self) -> Path:
        return self.root / "logs" / f"{self.name}.log"

    def words(self) -> list[str]:
        """The command, with the folders of the runs that it names, as far as these have begun."""
        folders = {job.name: str(job.first.parent) for job in self.needs if job.first}
        return [fill(word, folders) for word in shlex.split(self.command)]

    def look(self) -> None:
        """Takes over what lies on the disk."""
        self.state, self.first, self.spent = look(self.words(), self.root)
        if self.state == "diverged":
            self.state, self.note = "failed", f"diverged; delete {self.first.parent} to try it again"
        if self.state == "elsewhere":
            self.note = "is run by another process"

    def block(self) -> None:
        """Not to be run, if a run that it starts from will not be there."""
        there = (*TO_DO, *AT_WORK)
        lost = [f"needs {need.name}: {need.state}" for need in self.needs if need.state not in there]
        if self.state in TO_DO and lost:
            self.state, self.note = "not run", ", ".join(lost)


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# ---- the experiment file ----


def check_keys(table: dict, kind: str, where: str) -> None:
    required, optional = KEYS[kind]
    if not isinstance(table, dict):
        fail(f"{where}: {table!r} is not a table")
    for key, value in table.items():
        if key not in required | optional:
            fail(f"{where}: unknown key {key}; choose among {', '.join(required | optional)}")
        wanted = (required | optional)[key]
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            fail(f"{where}: {key} = {value!r} has the wrong type")
    missing = [key for key in required if not table.get(key)]
    if missing:
        fail(f"{where}: {missing[0]} is missing or empty")


def check_command(command: str, names: set[str], where: str) -> list[str]:
    """The names that it refers to; ends with one line if it cannot run."""
    try:
        words = shlex.split(command) or [""]
    except ValueError as error:
        fail(f"{where}: {error} in {command}")
    if not re.fullmatch(r"\w+\.py", words[0]) or not (ROOT / words[0]).is_file():
        fail(f"{where}: there is no script {words[0]} in {ROOT}")
    reserved = {"--runs-dir", "--resume", "--overwrite"} & set(words)
    if reserved:
        fail(f"{where}: {min(reserved)} is for run_experiments.py to choose; leave it out")
    used = NAME.findall(command)
    for name in used:
        if name not in names:
            fail(f"{where}: unknown name {{{name}}}; named so far: {', '.join(sorted(names)) or 'none'}")
    return list(dict.fromkeys(used))


def read_experiment(path: Path, root: Path) -> tuple[dict, list[Job]]:
    """The file and its runs; ends with one line if anything is wrong with them."""
    try:
        experiment = {"figure": []} | tomllib.loads(path.read_text())
    except OSError as error:
        there = ", ".join(f"experiments/{file.name}" for file in sorted(ROOT.glob("experiments/*.toml")))
        fail(f"{path}: {error.strerror}; choose among {there or 'none'}")
    except ValueError as error:  # no TOML, or no text
        fail(f"{path}: {error}")
    check_keys(experiment, "file", str(path))
    jobs, commands = {}, {}
    for i, table in enumerate(experiment["run"], 1):
        where = f"{path}, run {i}"
        check_keys(table, "run", where)
        name, command = table["name"], table["command"]
        if not re.fullmatch(r"[\w-]+", name) or name in ("runs", *jobs):
            fail(f"{where}: name {name!r} is taken, or not made of letters, digits, - and _")
        if not 0 < table["minutes"] < math.inf:
            fail(f"{where}: minutes = {table['minutes']} must be positive")
        needs = [jobs[need] for need in check_command(command, set(jobs), where)]
        first = commands.setdefault(tuple(shlex.split(command)), name)
        if first != name:
            fail(f"{where}: {name} has the same command as {first}")
        jobs[name] = Job(**table, root=root, needs=needs)
    for i, table in enumerate(experiment["figure"], 1):
        check_keys(table, "figure", f"{path}, figure {i}")
        check_command(table["command"], {*jobs, "runs"}, f"{path}, figure {i}")
    return experiment, list(jobs.values())


def fill(word: str, values: dict[str, str]) -> str:
    """Replaces the {names} that are known."""
    return NAME.sub(lambda match: values.get(match[1], match[0]), word)


# ---- what lies on the disk ----


def normal(command: list[str]) -> list[str]:
    """A command without the place of its runs folder, and with paths relative to it."""
    words = [word for word in command if word != "--overwrite"]
    if "--runs-dir" in words[:-1]:
        i = words.index("--runs-dir")
        root = words[i + 1].rstrip("/") + "/"
        words = [word.removeprefix(root) for word in words[:i] + words[i + 2 :]]
    return words


def alive(config: dict) -> bool:
    """Whether the process that wrote it is still at work on this machine (known on Linux only)."""
    try:
        return config["script"].encode() in Path(f"/proc/{config['pid']}/cmdline").read_bytes()
    except (OSError, KeyError):
        return False


def look(words: list[str], root: Path) -> tuple[str, Path | None, float]:
    """State of the run that this command makes, folder of its first seed, and minutes that it took so far."""
    wanted, folders = normal([*words, "--runs-dir", str(root)]), {}
    for path in root.glob("*/*/seed*/config.json"):
        with suppress(Exception):  # whatever a half-written or a foreign file brings
            config = json.loads(path.read_text())
            if config["format"] == FORMAT and normal(config["command"]) == wanted:
                folders.setdefault(path.parents[1], []).append(config)
    if not folders:
        return "missing", None, 0.0
    folder, configs = max(folders.items(), key=lambda item: item[1][0]["started"])
    statuses, config = {config["status"] for config in configs}, min(configs, key=lambda c: c["seed"])
    first = folder / f"seed{config['seed']}"
    if "running" in statuses and any(map(alive, configs)):
        state = "elsewhere"
    elif len(configs) == config["num_seeds"] and statuses <= {"finished", "diverged"}:
        state = "diverged" if "diverged" in statuses else "finished"
    else:
        state = "cut" if (first / "resume.pt").is_file() else "lost"
    return state, first, config["seconds"] / 60


def command_now(words: list[str], root: Path) -> list[str]:
    """What to type now: the command itself, or what goes on with its run."""
    state, first, _ = look(words, root)
    if state == "cut":
        return [words[0], "--resume", str(first)]
    return [*words, "--runs-dir", str(root), *(["--overwrite"] if state == "lost" else [])]


def tail(log: Path) -> str:
    """The end of what the last start of a job wrote."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            return file.read().decode(errors="replace").rpartition("\n$ ")[2]
    except OSError:
        return ""


def last_lines(log: Path, count: int = 5) -> list[str]:
    lines = [line.rstrip() for line in tail(log).splitlines()]
    return [line for line in lines if line][-count:]


# ---- where jobs run ----


def end_with_parent() -> None:
    """In a new job: it gets SIGTERM, and saves its state, whatever ends its parent (Linux only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def launch(words: list[str], root: Path, log: Path, env: dict) -> subprocess.Popen:
    """Starts a job, or goes on with it where it was cut.

    It gets a session of its own: a Ctrl-C is for us, not for it.
    """
    command = command_now(words, root)
    env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ, **env}
    with open(log, "a") as file:
        print(f"\n$ python {shlex.join(command)}", file=file, flush=True)
        full = [sys.executable, str(ROOT / command[0]), *command[1:]]
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        return subprocess.Popen(full, env=env, start_new_session=True, preexec_fn=end_with_parent, **streams)


def find_gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = [str(i) for i, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU ")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not gpus:
        return gpus
    return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]


def exit_text(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else ""


class Machine:
    """Runs jobs as processes of this machine, each on a CPU core of its own, or sharing the GPUs."""

    def __init__(self, args: Args):
        self.gpus = find_gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.size = args.jobs or len(self.gpus) * args.jobs_per_gpu or cores
        self.what = f"{len(self.gpus)} GPU" if self.gpus else f"{cores} CPU cores, no GPU"
        self.processes, self.slots = {}, {}

    def start(self, job: Job) -> None:
        self.slots[job] = slot = min({*range(self.size)} - {self.slots[other] for other in self.processes})
        env = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        self.processes[job] = launch(job.words(), job.root, job.log, env)

    def poll(self, job: Job) -> str | None:
        """None while it runs, then how it ended; '' if it ended well."""
        code = self.processes[job].poll()
        if code is not None:
            del self.processes[job]
        return None if code is None else exit_text(code)

    def stop(self, at_once: bool) -> None:
        for process in self.processes.values():
            if process.poll() is None and at_once:
                os.killpg(process.pid, signal.SIGKILL)
            elif process.poll() is None:
                process.terminate()


def work(words: list[str], root: Path, log: Path, folder: str) -> int:
    """A job, on a worker of Ray; returns its exit status. Ray calls it again if the worker is lost."""
    os.chdir(folder)
    # A background shell ignores SIGINT, by which ray.cancel stops a task.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while look(words, root)[0] == "elsewhere":  # of the worker that was lost, still saving
        time.sleep(0.3)
    process = launch(words, root, log, {})
    try:
        while process.poll() is None:  # not wait(), which ray.cancel could not interrupt
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode


class RayCluster(Machine):
    """Runs jobs as tasks of Ray, on a core each or sharing GPUs; a lost worker's are resumed elsewhere."""

    def __init__(self, args: Args):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            fail("--ray: Ray is not installed; pip install -r requirements-ray.txt")
        options = {"log_to_driver": False, "logging_level": "error"}
        options |= {"include_dashboard": False} if "local" in args.ray else {}
        try:
            for place in re.findall(r"^(?:ray://)?([^:/]+):(\d+)$", *args.ray or [""]):
                socket.create_connection(place, timeout=10).close()  # Ray itself tries for minutes
            ray.init(args.ray[0] if args.ray else None, **options)
        except Exception as error:  # whatever a cluster that does not answer makes of it
            fail(f"--ray {' '.join(args.ray)}: {str(error).splitlines()[0]}")
        self.ray, resources = ray, ray.cluster_resources()
        cores, self.gpus = int(resources.get("CPU", 0)), [""] * int(resources.get("GPU", 0))
        self.size = args.jobs or len(self.gpus) * args.jobs_per_gpu or cores
        self.what = f"a Ray cluster with {cores} CPU cores and {len(self.gpus)} GPU"
        share = 1 / args.jobs_per_gpu if self.gpus else 0
        self.task, self.tasks = ray.remote(num_cpus=1, num_gpus=share, max_retries=3)(work), {}

    def start(self, job: Job) -> None:
        self.tasks[job] = self.task.remote(job.words(), job.root, job.log, os.getcwd())

    def poll(self, job: Job) -> str | None:
        if not self.ray.wait([self.tasks[job]], timeout=0)[0]:
            return None
        try:
            return exit_text(self.ray.get(self.tasks.pop(job)))
        except self.ray.exceptions.RayError as error:
            return f"Ray: {type(error).__name__}"

    def stop(self, at_once: bool) -> None:
        for task in self.tasks.values():
            self.ray.cancel(task, force=at_once)


# ---- what is shown ----


class Display:
    """Events, a line each; below them the running jobs.

    They are redrawn on a terminal, elsewhere printed every STATUS_EVERY seconds.
    """

    def __init__(self):
        self.live, self.drawn = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb", 0
        self.due = time.time() + STATUS_EVERY

    def say(self, text: str) -> None:
        self.draw([])
        print(text, flush=True)

    def event(self, what: str, job: Job, text: str) -> None:
        self.say(f"{time.strftime('%H:%M')} {what:8} {job.name}: {text}")

    def draw(self, lines: list[str]) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            erase = f"\x1b[{self.drawn}A\x1b[J" if self.drawn else ""
            print(erase + "".join(f"{line[:width]}\n" for line in lines), end="", flush=True)
            self.drawn = len(lines)
        elif lines and time.time() >= self.due:
            self.due = time.time() + STATUS_EVERY
            print("\n".join(f"{time.strftime('%H:%M')} {line}" for line in lines), flush=True)


def duration(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    if minutes < 59.5:
        return f"about {minutes:.0f} min"
    return "about {} h {:02} min".format(*divmod(round(minutes), 60))


def describe(job: Job) -> str:
    """Where a running job stands, by the end of its log."""
    lines = LINE.findall(tail(job.log))
    text = "{} {}: {}".format(*lines[-1]) if lines else "starting"
    return f"  {job.name}: {text}, for {duration((time.time() - job.started) / 60)}"


def summary(jobs: list[Job], machine: Machine) -> str:
    counts = {what: sum(job.state == what for job in jobs) for what in ("finished", "failed", "not run")}
    text = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "finished")
    left = [minutes_left(job, jobs) for job in jobs if job.state in (*TO_DO, "running")]
    about = sum(left) / max(1, min(machine.size, len(left)))
    return f"{len(jobs)} runs: {text}" + (f", {duration(about)} to go" if left else "")


def minutes_left(job: Job, jobs: list[Job]) -> float:
    """By the file's minutes, times what the finished runs took of theirs."""
    finished = [job for job in jobs if job.state == "finished"]
    scale = sum(job.spent for job in finished) / sum(job.minutes for job in finished) if finished else 1.0
    now = (time.time() - job.started) / 60 if job.state == "running" else 0.0
    return max(0.0, job.minutes * scale - job.spent - now)


def print_plan(experiment: dict, jobs: list[Job]) -> None:
    """--dry-run: what would be done with every run, and the figures."""
    for job in jobs:
        if job.state in TO_DO:
            doing = "resume" if job.state == "cut" else "run"
            print(f"{doing:9} {job.name}, {duration(minutes_left(job, jobs))}: {typed(job)}")
        elif job.state == "finished":
            print(f"finished  {job.name}: {job.first.parent}")
    for figure in experiment["figure"]:
        print(f"figure    python {fill(figure['command'], {'runs': str(jobs[0].root)})}")


def print_rest(jobs: list[Job]) -> None:
    """What failed; what was not run, and how to run it."""
    for job in jobs:
        if job.state in ("failed", "elsewhere"):
            print(f"{job.state}: {job.name}: {job.note}")
    lines = [f"not run: {job.name} ({job.note}): {typed(job)}" for job in jobs if job.state == "not run"]
    for line in lines:
        print(line)
    if any(map(NAME.search, lines)):
        print("         ({name} is the folder that the run of that name writes)")


def typed(job: Job) -> str:
    """What to type for it now; {names} are left as they are."""
    words = command_now(job.words(), job.root)
    return " ".join(["python", *(word if NAME.fullmatch(word) else shlex.quote(word) for word in words)])


# ---- the work ----


def choose(jobs: list[Job], args: Args, machine: Machine) -> None:
    """Marks what this machine or the time cannot run."""
    budget, ends = args.minutes * machine.size, {}
    for job in jobs:
        if job.gpu and not machine.gpus and job.state in TO_DO:
            job.state, job.note = "not run", "needs a GPU"
        job.block()
        if job.state not in TO_DO:
            continue
        left = minutes_left(job, jobs)
        ends[job] = left + max([ends.get(need, 0.0) for need in job.needs], default=0.0)
        if left > budget or ends[job] > args.minutes:
            job.state, job.note = "not run", f"{duration(left)}: does not fit into --minutes {args.minutes:g}"
        else:
            budget -= left


def start_ready(jobs: list[Job], machine: Machine, display: Display) -> None:
    """Starts the next jobs, as far as there is room for them and their starts have finished."""
    for job in jobs:
        job.block()
        room = sum(other.state == "running" for other in jobs) < machine.size
        if job.state in TO_DO and room and all(need.state == "finished" for need in job.needs):
            doing = "resumed" if job.state == "cut" else "started"
            display.event(doing, job, f"{duration(minutes_left(job, jobs))}, log {job.log}")
            machine.start(job)
            job.state, job.started = "running", time.time()


def settle(job: Job, ended: str, stopping: bool, display: Display) -> None:
    """What became of a job that ended."""
    job.look()
    if job.state == "finished" and not ended:
        last = [line for line in last_lines(job.log) if line.startswith("finished in")]
        text = last[-1].removeprefix("finished ") if last else f"in {duration(job.spent)}"
        display.event("finished", job, text)
    elif stopping and job.state in TO_DO:
        display.event("stopped", job, "its state is saved" if job.state == "cut" else "before its first save")
    else:
        ended = ended or "it left no finished run"
        again = "; the next call goes on with it" if job.state == "cut" else ""
        job.state, job.note = "failed", job.note or f"{ended}, see {job.log}{again}"
        display.event("FAILED", job, "\n    ".join([f"{ended}; the end of {job.log}:", *last_lines(job.log)]))


def run_jobs(jobs: list[Job], machine: Machine, display: Display, minutes: float) -> int:
    """Runs all that can run, for so long; returns the signal that ended it, or 0."""
    signals, stops, limit = [], 0, time.time() + 60 * minutes
    handlers = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    while True:
        if not signals:
            start_ready(jobs, machine, display)
        running = [job for job in jobs if job.state == "running"]
        if not running:
            break
        if time.time() > limit and not signals:
            signals.append(0)  # as if told to stop
        if len(signals) > stops:
            saving = f"stopping: {len(running)} jobs save their state (Ctrl-C again kills them)"
            display.say("killing them" if stops else saving)
            machine.stop(at_once=stops > 0)
            stops += 1
        for job in running:
            ended = machine.poll(job)
            if ended is not None:
                settle(job, ended, bool(signals), display)
        stands = [describe(job) for job in running if job.state == "running"]
        display.draw([*stands, f"  {summary(jobs, machine)}"])
        time.sleep(0.3)
    display.draw([])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return signals[0] if signals else 0


def draw_figures(figures: list[dict], jobs: list[Job]) -> bool:
    """Draws what has results; whether none failed."""
    there = [job for job in jobs if job.first and (job.first / "eval.csv").is_file()]
    folders = {job.name: str(job.first.parent) for job in there} | {"runs": str(jobs[0].root)}
    good = True
    for command in (figure["command"] for figure in figures):
        words = dict.fromkeys(fill(word, folders) for word in shlex.split(command))  # each folder once
        words = [word for word in words if not NAME.search(word)]
        wanted = {*NAME.findall(command)} - {"runs"}
        if there and (not wanted or wanted & {*folders}):
            print(f"\nfigure: python {shlex.join(words)}", flush=True)
            good &= subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]]).returncode == 0
    return good


def pack(root: Path) -> Path:
    """All that figures and tables need, in one file: no checkpoints, no events of TensorBoard."""
    with zipfile.ZipFile(root / "results.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.suffix in (".csv", ".json", ".log", ".png", ".svg"):
                archive.write(path, path.relative_to(root))
    return root / "results.zip"


def main(args: Args) -> None:
    if len(args.ray or ()) > 1:
        fail(f"--ray {' '.join(args.ray)}: takes one address, or none")
    if args.jobs < 0 or args.jobs_per_gpu < 1 or not args.minutes > 0:
        fail("--jobs, --jobs-per-gpu and --minutes must be positive")
    root = Path(args.runs_dir) / args.experiment.stem
    if args.ray is not None:
        root = root.resolve()  # other machines start elsewhere
    experiment, jobs = read_experiment(args.experiment, root)
    for job in jobs:
        job.look()
    machine = Machine(args) if args.ray is None else RayCluster(args)
    choose(jobs, args, machine)
    print(f"{args.experiment}: {experiment['title']}\n\n{experiment['about'].strip()}\n")
    hardware = f"; the file's minutes are for {experiment['hardware']}" if "hardware" in experiment else ""
    print(f"{summary(jobs, machine)}, {machine.size} at once on {machine.what}{hardware}", flush=True)
    if args.dry_run:
        print_plan(experiment, jobs)
        return print_rest(jobs)

    try:
        (root / "logs").mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / "logs" / "lock")  # held until this process ends
        lock.acquire(timeout=0)
    except Timeout:
        fail(f"--runs-dir {args.runs_dir}: another run_experiments.py is at work in {root}")
    except OSError as error:
        fail(f"--runs-dir {args.runs_dir}: {error.strerror} ({error.filename or root})")
    display = Display()
    stopped = run_jobs(jobs, machine, display, args.minutes)
    if stopped:
        print(f"interrupted; go on with: python {shlex.join(sys.argv)}")
        raise SystemExit(128 + stopped)
    drawn = draw_figures(experiment["figure"], jobs)
    print()
    print_rest(jobs)
    for job in jobs:
        if job.state in TO_DO:
            print(f"not finished: {job.name}; the same command goes on")
    print(f"{summary(jobs, machine)}; results in {root}, zipped without checkpoints in {pack(root)}")
    if not drawn or any(job.state == "failed" for job in jobs):
        raise SystemExit(1)


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    if arguments.dry_run and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    try:
        main(arguments)
    except KeyboardInterrupt:  # while no job runs
        raise SystemExit(130) from None
