"""run_experiments.py: on a stand-in for the training scripts, which is quick, and on the scripts themselves.

The stand-in keeps the scripts' promises: command and status in config.json, resume.pt while it is not finished,
SIGTERM saves and ends. Its `--steps` take a tenth of a second each; it ends sooner when there is a file `finish`,
and at `--fail N` with exit status 1.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import tyro

import run_experiments

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """
import json, os, re, signal, sys, time
from pathlib import Path

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--resume" in given:  # the folder of the first seed
    folder = Path(given["--resume"])
    config = json.loads((folder / "config.json").read_text())
    step, given = int((folder / "resume.pt").read_text()), config["given"]
    print("resumes: at step", step)
else:
    folder = Path(given["--runs-dir"], re.sub("[:/]", "_", given.get("--env", "Env")), "train-" + given["--tag"], "seed1")
    if folder.exists() and "--overwrite" not in sys.argv:
        sys.exit(f"error: {folder} exists")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"script": "train", "command": ["train.py", *sys.argv[1:]], "given": given, "seed": 1, "num_seeds": 1}
    config["format"] = 2
    step = 0
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

def write(status):
    facts = {"status": status, "started": started, "seconds": time.time() - started, "pid": os.getpid()}
    (folder / "config.part").write_text(json.dumps(config | facts))
    os.replace(folder / "config.part", folder / "config.json")

started = time.time()
write("running")
total = int(given.get("--steps", 3))
while step < total and not Path('finish').exists():
    (folder / "resume.pt").write_text(str(step))
    print(f"online {step:>9,}: return 7 +- 1 over 2 seeds, 0.1 min", flush=True)
    if stopped:
        write("interrupted")
        sys.exit(143)
    if step == int(given.get("--fail", -1)):
        write("failed")
        sys.exit("error: this went wrong")
    time.sleep(0.1)
    step += 1
    with open(folder / "eval.csv", "a") as file:
        file.write(f"{step} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['OMP_NUM_THREADS']}\\n")
write(given.get("--status", "finished"))
(folder / "resume.pt").unlink(missing_ok=True)
print("finished in 0.0 min: return 7")
"""
PLOT = "import sys; print('drawn:', *sys.argv[1:])"
SAY_GPUS = "#!/bin/sh\nprintf 'GPU 0: one\\nGPU 1: two\\n'\n"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A folder with run_experiments.py, the stand-in and a `plot.py`; no GPU is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(ROOT / "run_experiments.py", tmp_path)
    (tmp_path / "train.py").write_text(STAND_IN)
    (tmp_path / "plot.py").write_text(PLOT)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def write(*runs: str, figures: tuple[str, ...] = ()) -> str:
    """An experiment file; a run is 'name: command' or 'name (gpu): command'."""
    lines = ['title = "test"', 'about = "nothing"']
    for run in runs:
        name, _, command = run.partition(": ")
        lines += ["[[run]]", f'name = "{name.split()[0]}"', f'command = "{command}"', "minutes = 1"]
        lines += ["gpu = true"] * ("gpu" in name)
    for figure in figures:
        lines += ["[[figure]]", f'command = "{figure}"']
    Path("exp.toml").write_text("\n".join(lines))
    return "exp.toml"


def begin(arguments: str) -> subprocess.Popen:
    command = [sys.executable, "run_experiments.py", *arguments.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(arguments: str, status: int = 0, timeout: float = 100) -> str:
    process = begin(arguments)
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == status and "Traceback" not in out, out
    assert "\x1b" not in out  # nobody looks at a terminal here
    return out


def until(condition, timeout: float = 300):
    deadline = time.time() + timeout
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def steps(tag: str) -> list[list[str]]:
    return [
        line.split() for line in Path(f"runs/exp/Env/train-{tag}/seed1/eval.csv").read_text().splitlines()
    ]


def change(tag: str, **facts) -> None:
    path = Path(f"runs/exp/Env/train-{tag}/seed1/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def files() -> dict:
    return {str(path): path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}


def test_runs_wait_for_their_starts_and_a_second_call_skips_all(repo):
    name = write(
        "a: train.py --tag a --env module:Field/Spaced-v0",
        "b: train.py --tag b --from {a}",
        "c: train.py --tag c",
        figures=("plot.py {a} {b} --out {runs}/x",),
    )
    out = run(f"{name} --jobs 2")
    events = [line.split()[1:3] for line in out.splitlines() if line[2:3] == ":"]
    assert events.index(["started", "b:"]) > events.index(["finished", "a:"])
    assert sorted(events) == sorted([what, f"{job}:"] for what in ("started", "finished") for job in "abc")
    assert "3 runs: 0 finished, about 2 min to go, 2 at once" in out and "in 0.0 min: return 7" in out
    start = "runs/exp/module_Field_Spaced-v0/train-a"
    folders = f"{start} runs/exp/Env/train-b"
    assert f"drawn: {folders} --out runs/exp/x" in out and "3 runs: 3 finished; results in runs/exp" in out
    command = json.loads(Path("runs/exp/Env/train-b/seed1/config.json").read_text())["command"]
    assert command == ["train.py", "--tag", "b", "--from", start, "--runs-dir", "runs/exp"]
    before = {path: text for path, text in files().items() if "runs/" in path}
    out = run(name)
    assert "started" not in out and "3 finished" in out
    assert {path: text for path, text in files().items() if "runs/" in path} == before
    Path("runs").rename("moved")  # paths in commands are taken relative to the runs folder
    assert "started" not in run(f"{name} --runs-dir {Path.cwd()}/moved")


def test_jobs_run_side_by_side_up_to_the_number_asked_for(repo):
    name = write(*(f"{tag}: train.py --tag {tag} --steps 1000" for tag in "abc"))
    process = begin(f"{name} --jobs 2")
    folders = [Path(f"runs/exp/Env/train-{tag}/seed1") for tag in "ab"]
    until(lambda: all((folder / "resume.pt").is_file() for folder in folders))  # both are at work
    assert not Path("runs/exp/Env/train-c").exists()
    Path("finish").touch()
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "3 finished" in out, out
    assert all(step[1:] == ["None", "1"] for step in steps("a"))  # no GPU, one thread


def test_foreign_files_under_the_runs_folder_do_no_harm(repo):
    """Nor runs of the first version, whose config.json names no format."""
    name = write("a: train.py --tag a")
    first_house = {"command": ["train.py", "--tag", "a"], "status": "finished"}
    for i, text in enumerate(("", "[]", "{", "{}", '{"command": 3}', json.dumps(first_house))):
        folder = Path(f"runs/exp/Env/other{i}/seed1")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
    assert "1 finished" in run(name)


def test_a_failing_run_is_reported_and_the_others_finish(repo):
    name = write(
        "bad: train.py --tag bad --fail 1",
        "after: train.py --tag after --from {bad}",
        "last: train.py --tag last --from {after}",
        "good: train.py --tag good",
        "diverging: train.py --tag diverging --status diverged",
        figures=("plot.py {good} {after}", "plot.py {after}", "plot.py {runs}"),
    )
    out = run(f"{name} --jobs 1", status=1)
    assert (
        "FAILED   bad: exit status 1; the end of runs/exp/logs/bad.log:\n    python train.py --tag bad" in out
    )
    assert "\n    error: this went wrong\n" in out
    assert "failed: bad: exit status 1, see runs/exp/logs/bad.log" in out
    assert "failed: diverging: diverged; delete runs/exp/Env/train-diverging" in out
    assert (
        "not run: after (needs bad: failed): python train.py --tag after --from runs/exp/Env/train-bad" in out
    )
    assert (
        "not run: last (needs after: not run): python train.py --tag last --from {after} --runs-dir runs/exp"
        in out
    )
    assert "5 runs: 1 finished, 2 failed, 2 not run" in out
    assert "drawn: runs/exp/Env/train-good\n" in out and out.count("drawn:") == 2  # what has results
    change(tag="bad", given={"--tag": "bad"})  # the fault is repaired
    out = run(f"{name} --jobs 1", status=1)  # goes on with what failed, not with what diverged
    assert "resumed  bad" in out and "finished last" in out and "started  diverging" not in out
    assert [step[0] for step in steps("bad")] == ["1", "2", "3"]


def test_dry_run_writes_and_starts_nothing(repo):
    name = write("a: train.py --tag a", "b: train.py --tag b --from {a}", "c (gpu): train.py --tag c")
    before = files()
    out = run(f"{name} --dry-run")
    assert files() == before
    assert "run       a, about 1 min: python train.py --tag a --runs-dir runs/exp\n" in out
    assert "run       b, about 1 min: python train.py --tag b --from {a} --runs-dir runs/exp\n" in out
    assert "not run: c (needs a GPU): python train.py --tag c --runs-dir runs/exp\n" in out
    run(name)
    change(tag="b", status="interrupted")
    Path("runs/exp/Env/train-b/seed1/resume.pt").write_text("2")
    out = run(f"{name} --dry-run")
    assert "finished  a: runs/exp/Env/train-a\n" in out
    assert ": python train.py --resume runs/exp/Env/train-b/seed1\n" in out


def test_a_dry_run_whose_reader_leaves_ends_quietly(repo):
    name = write(*(f"r{i}: train.py --tag {i} --note {'x' * 300}" for i in range(400)))
    command = [sys.executable, "run_experiments.py", name, "--dry-run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == -signal.SIGPIPE


def test_a_terminal_shows_where_the_running_jobs_stand(repo):
    ours, theirs = os.openpty()
    command = [sys.executable, "run_experiments.py", write("a: train.py --tag a --steps 12"), "--jobs", "1"]
    process = subprocess.Popen(command, stdout=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "150"})
    process.wait(60)
    shown = os.read(ours, 100_000).decode()
    os.close(theirs)
    assert process.returncode == 0 and "\x1b[2A\x1b[J" in shown
    assert re.search(r"  a: online \d+: return 7 \+- 1 over 2 seeds, 0.1 min, for under a minute\r\n", shown)
    assert "  1 runs: 0 finished, under a minute to go\r\n" in shown or "about 1 min to go\r\n" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_runner_stops_its_jobs_and_the_same_command_goes_on(repo, number):
    name = write(
        "a: train.py --tag a --steps 1000", "b: train.py --tag b --steps 1000", "c: train.py --tag c"
    )
    process = begin(f"{name} --jobs 2")
    until(lambda: len([*Path("runs").glob("exp/*/*/seed1/eval.csv")]) == 2)
    pids = [json.loads(path.read_text())["pid"] for path in Path("runs").glob("exp/*/*/seed1/config.json")]
    assert "another run_experiments.py is at work in runs/exp" in run(name, status=2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "stopping: 2 jobs save their state" in out
    assert "stopped  a: its state is saved" in out and "started  c" not in out
    assert "interrupted; go on with: python run_experiments.py exp.toml --jobs 2" in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    Path("finish").touch()
    out = run(f"{name} --jobs 2")
    assert "resumed  a" in out and "resumed  b" in out and "started  c" in out and "3 finished" in out


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent died"
)
def test_jobs_of_a_killed_runner_save_and_end(repo):
    name = write("a: train.py --tag a --steps 1000")
    process = begin(name)
    until(lambda: [*Path("runs").glob("exp/*/*/seed1/eval.csv")])
    config = Path("runs/exp/Env/train-a/seed1/config.json")
    process.kill()
    process.communicate()
    until(lambda: json.loads(config.read_text() or "{}").get("status") == "interrupted", 10)


def test_a_run_that_somebody_started_by_hand_is_left_alone(repo):
    name = write("a: train.py --tag a --steps 1000", "b: train.py --tag b --from {a}", "c: train.py --tag c")
    arguments = "train.py --tag a --steps 1000 --runs-dir runs/exp"
    process = subprocess.Popen([sys.executable, *arguments.split()], stdout=subprocess.DEVNULL)
    try:
        until(lambda: [*Path("runs").glob("exp/*/*/seed1/eval.csv")])
        out = run(name)
        assert "elsewhere: a: is run by another process" in out and "not run: b (needs a: elsewhere)" in out
        assert "finished c" in out and "resumed" not in out
    finally:
        process.kill()
        process.wait()
    Path("finish").touch()
    assert "resumed  a" in run(name)  # no process: it was killed


def test_a_run_that_was_cut_before_its_first_save_starts_again(repo):
    name = write("a: train.py --tag a")
    run(name)
    change(tag="a", status="running")
    assert "--overwrite" in run(f"{name} --dry-run")
    assert "finished a" in run(name) and "started" not in run(name)


def test_gpus_are_shared_out_and_minutes_limit_what_is_started(repo, monkeypatch):
    (repo / "bin" / "nvidia-smi").write_text(SAY_GPUS)
    name = write(*(f"{tag} (gpu): train.py --tag {tag} --steps 5" for tag in "abcd"))
    out = run(f"{name} --jobs-per-gpu 1 --minutes 1.4")
    assert "2 at once on 2 GPU" in out and "4 runs: 2 finished, 2 not run" in out
    assert {steps("a")[0][1], steps("b")[0][1]} == {"0", "1"}
    assert "not run: c (about 1 min: does not fit into --minutes 1.4): python train.py --tag c" in out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "3 at once on 1 GPU" in run(f"{name} --dry-run")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert out.count("not run: ") == 2 and "needs a GPU" in run(f"{name} --dry-run")


def test_minutes_count_the_runs_that_a_run_waits_for(repo):
    name = write("a: train.py --tag a", "b: train.py --tag b --from {a}", "c: train.py --tag c")
    out = run(f"{name} --jobs 3 --minutes 1.5 --dry-run")
    assert "run       a" in out and "run       c" in out and "not run: b (about 1 min: does not fit" in out


def test_what_a_run_has_behind_it_is_not_to_come(tmp_path):
    """A finished run took half of its 8 minutes: so will the others, and one of them is cut after 3."""
    done = run_experiments.Job("a", "train.py", 8, tmp_path, state="finished", spent=4.0)
    cut = run_experiments.Job("b", "train.py", 10, tmp_path, state="cut", spent=3.0)
    assert run_experiments.minutes_left(cut, [done, cut]) == pytest.approx(2)


def test_of_two_runs_of_one_command_the_later_counts(tmp_path):
    for started, name, status in ((1.0, "a", "finished"), (3.0, "b", "failed"), (2.0, "c", "finished")):
        folder = tmp_path / "Env" / name / "seed1"
        folder.mkdir(parents=True)
        facts = {"format": 2, "script": "train", "command": ["train.py"], "seed": 1, "num_seeds": 1}
        facts |= {"started": started, "seconds": 60 * started, "status": status}
        (folder / "config.json").write_text(json.dumps(facts))
    assert run_experiments.look(["train.py"], tmp_path) == ("lost", tmp_path / "Env/b/seed1", 3.0)


def test_at_the_limit_all_is_saved_and_packed_and_the_same_command_goes_on(repo):
    name = write("a: train.py --tag a --steps 1", "b: train.py --tag b --steps 400")
    Path(name).write_text(Path(name).read_text().replace("minutes = 1", "minutes = 0.01"))
    out = run(f"{name} --minutes 0.1")
    assert "finished a" in out and "stopped  b: its state is saved" in out
    assert "not finished: b; the same command goes on" in out
    with zipfile.ZipFile("runs/exp/results.zip") as archive:
        names = archive.namelist()
    assert any(n.endswith("eval.csv") for n in names) and not any(n.endswith(".pt") for n in names)
    assert "resume    b" in run(f"{name} --dry-run")


@pytest.mark.slow
def test_ray_resumes_the_run_of_a_lost_worker_and_stops_when_told(repo):
    """A real Ray on this machine: two jobs at once, each the child of its worker; one worker is killed."""
    pytest.importorskip("ray", reason="Ray is optional: pip install -r requirements-ray.txt")
    name = write(
        "a: train.py --tag a --steps 40",
        "b: train.py --tag b --steps 40",
        "c: train.py --tag c --steps 1000 --from {a} --with {b}",
    )
    process = begin(f"{name} --ray local --jobs 2")
    try:
        until(lambda: len([*Path("runs").glob("exp/*/*/seed1/eval.csv")]) == 2)
        until(lambda: len(steps("b")) > 3)
        jobs = [
            json.loads(Path(f"runs/exp/Env/train-{tag}/seed1/config.json").read_text())["pid"] for tag in "ab"
        ]
        workers = [int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in jobs]
        assert len({process.pid, *workers}) == 3
        os.kill(workers[1], signal.SIGKILL)
        until(lambda: Path("runs/exp/Env/train-c/seed1/eval.csv").exists())
        (job,) = [json.loads(Path("runs/exp/Env/train-c/seed1/config.json").read_text())["pid"]]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.terminate()  # lets Ray end its own processes
            process.communicate(timeout=30)
    assert process.returncode == 143 and "finished a" in out and "finished b" in out, out
    assert "stopped  c: its state is saved" in out and not Path(f"/proc/{job}").exists()
    resumed = {tag: "resumes: at step" in Path(f"runs/exp/logs/{tag}.log").read_text() for tag in "ab"}
    assert resumed == {"a": False, "b": True}
    assert [step[0] for step in steps("b")] == [
        str(i) for i in range(1, 41)
    ]  # nothing was lost or done twice
    assert "resume    c" in run(f"{name} --dry-run")  # and paths are those of a run without Ray


TOP = "title = 'x'\nabout = 'y'\n"
RUN = "[[run]]\nname = 'a'\nminutes = 1\ncommand = 'train.py --tag a'\n"
BAD_FILES = {
    "title = ": "exp.toml: Invalid value",
    "titel = 'x'": "exp.toml: unknown key titel; choose among title, about, run, hardware, figure",
    TOP: "exp.toml: run is missing or empty",
    f"{TOP}run = ['x']": "exp.toml, run 1: 'x' is not a table",
    f"{TOP}[[run]]\nname = 'a'\nminutes = 1": "exp.toml, run 1: command is missing",
    f"{TOP}{RUN}seed = 3": "exp.toml, run 1: unknown key seed",
    f"{TOP}{RUN}gpu = 1": "exp.toml, run 1: gpu = 1 has the wrong type",
    TOP + RUN.replace("= 1", "= -1"): "run 1: minutes = -1 must be positive",
    TOP + RUN.replace("'a'", "'a b'"): "run 1: name 'a b' is taken, or not made",
    TOP + RUN + RUN: "run 2: name 'a' is taken",
    TOP + RUN + RUN.replace("'a'", "'b'").replace("--tag a", "--tag  a"): "b has the same command as a",
    TOP + RUN.replace("train", "nothing"): "run 1: there is no script nothing.py in",
    TOP + RUN.replace("--tag a", "{b}"): "unknown name {b}; named so far: none",
    TOP + RUN.replace("--tag a", '"x'): "run 1: No closing quotation in",
    TOP + RUN.replace("--tag", "--runs-dir"): "--runs-dir is for run_exp",
    f"{TOP}{RUN}[[figure]]\ncommand = 'plot.py {{b}}'": "figure 1: unknown name {b}; named so far: a, runs",
}


def test_bad_files_end_with_one_line_and_nothing_is_started(repo, monkeypatch, capsys, subtests):
    monkeypatch.setattr(run_experiments, "ROOT", repo)
    for text, message in BAD_FILES.items():
        Path("exp.toml").write_text(text)
        before = files()
        with subtests.test(message):
            with pytest.raises(SystemExit) as ended:
                run_experiments.main(run_experiments.Args(Path("exp.toml")))
            out, error = capsys.readouterr()
            assert ended.value.code == 2 and out == "" and files() == before
            assert error.startswith("error: ") and error.count("\n") == 1 and message in error


BAD_OPTIONS = ["exp.toml --jobs -1", "exp.toml --minutes 0", "exp.toml --jobs-per-gpu 0", "missing.toml"]


@pytest.mark.parametrize("arguments", [*BAD_OPTIONS, "exp.toml --runs-dir train.py", "exp.toml --ray a b"])
def test_bad_options_end_with_one_line(repo, arguments):
    write("a: train.py --tag a")
    out = run(arguments, status=2).splitlines()[-1]
    assert out.startswith("error: ") and arguments.removeprefix("exp.toml ").split()[0] in out


# ---- the scripts themselves ----


def test_a_killed_training_run_is_resumed(tmp_path, monkeypatch):
    """The environment's id has a module and a slash."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    name = write(
        "scratch: sac_scratch.py --env odd_envs:Odd/Spaced-v0 --num-seeds 2 --hidden-dim 8 --batch-size 16 "
        "--online-steps 60 --warmup-steps 20 --eval-every 60 --eval-episodes 1 --compile off "
        "--checkpoint-every 0"
    )
    command = [sys.executable, str(ROOT / "run_experiments.py"), name]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **streams)
    until(lambda: [*Path("runs").glob("exp/*/*/seed1/resume.pt")])
    (folder,) = Path("runs/exp/odd_envs_Odd_Spaced-v0").glob("sac_scratch-*")
    os.kill(json.loads((folder / "seed1/config.json").read_text())["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "FAILED   scratch: killed by SIGKILL" in out, out
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "resumed  scratch" in again.stdout, again
    assert "finished scratch: in 0." in again.stdout and "return 10" in again.stdout
    for seed in "12":
        assert json.loads((folder / f"seed{seed}/config.json").read_text())["status"] == "finished"
        assert ",60," in (folder / f"seed{seed}/eval.csv").read_text().splitlines()[-1]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True).stdout
    assert f"finished  scratch: {folder}" in dry


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiment_files_are_sound(path):
    """Every command is one that its script takes, and every figure's options are plot_curves.py's."""
    experiment, jobs = run_experiments.read_experiment(path, Path("runs") / path.stem)
    assert tomllib.loads(path.read_text())["title"] and jobs
    commands = [job.command for job in jobs] + [figure["command"] for figure in experiment["figure"]]
    for script, *words in map(str.split, commands):
        module = import_module(script.removesuffix(".py"))
        tyro.cli(module.Args, args=[word.strip("'") for word in words])


def shrink(text: str) -> str:
    """An experiment file at a few steps and one seed, for a CPU."""
    text = re.sub(r" --(num-seeds|eval-every|eval-episodes|warmup-steps|updates-per-step) \d+", "", text)
    text = re.sub(r"(--(?:offline|online)-steps) [1-9]\d*", r"\1 120", text)
    text = text.replace("hopper/random-v0", "hopper/medium-v0").replace("gpu = true\n", "")
    options = "--log-every 60 --eval-every 60 --eval-episodes 1 --compile off --batch-size 16"
    text = re.sub(r'(command = "(?!plot_curves).*)"', rf'\1 {options}"', text)
    return re.sub(
        r'(command = "(?:sac_scratch|td3_c|online_finetune_sac)\.py.*)"', r'\1 --warmup-steps 20"', text
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiment_files_run(path, tmp_path, monkeypatch):
    """All runs and figures of a file, at a few steps each."""
    monkeypatch.chdir(tmp_path)
    Path(path.name).write_text(shrink(path.read_text()))
    command = [sys.executable, str(ROOT / "run_experiments.py"), path.name, "--jobs", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    count = len(tomllib.loads(path.read_text())["run"])
    assert ended.returncode == 0 and f"{count} runs: {count} finished" in ended.stdout, ended.stdout[-3000:]
    assert list(Path("runs").glob("*/*.png"))
