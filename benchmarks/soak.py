"""Kills runs at random moments, resumes them, and checks what is left in the end.

A SIGKILL to the run and its processes loses what came after the last save, and nothing else:
    offline   the run ends with the very bits of a run that was not killed, and the same evaluations;
    online    each resume.pt holds all transitions of the one before it; the run ends with all its steps,
              each evaluation once, and finite parameters.
A run without a resume.pt yet begins anew. Networks are tiny: this is about files and processes.

    python benchmarks/soak.py --out results/reliability/soak.csv               20 kills a run
    python benchmarks/soak.py --runs td3_bc sac_scratch --kills 3 --steps 3000 --out soak.csv
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--batch-size 32 --eval-episodes 1 --log-every 100 --compile off --device cpu --checkpoint-every 0.005"
)
TINY = "--hidden-dim 16 --dataset hopper/medium-v0"
ONLINE = "--online-steps {half} --keep-replay"
OFFLINE_ONLY = "--offline-steps {steps}"
BOTH = f"--offline-steps {{half}} {ONLINE}"
RUNS = {  # name: script and options
    "offline_pretrain_sac": f"offline_pretrain_sac {TINY} {OFFLINE_ONLY}",
    "td3_bc": f"td3_bc {TINY} {OFFLINE_ONLY}",
    "cql_sac_offline": f"cql_sac {TINY} {OFFLINE_ONLY}",
    "iql_offline": f"iql {TINY} {OFFLINE_ONLY}",
    "awac_offline": f"awac {TINY} {OFFLINE_ONLY}",
    "o3f_select_offline": f"o3f_select {TINY} {OFFLINE_ONLY}",
    "sac_scratch": f"sac_scratch --hidden-dim 16 --warmup-steps 100 --num-seeds 2 {ONLINE}",
    "online_finetune_sac": f"online_finetune_sac {ONLINE}",
    "td3_c": f"td3_c --hidden-dim 16 --scratch --warmup-steps 100 {ONLINE}",
    "cql_sac": f"cql_sac {TINY} {BOTH}",
    "iql": f"iql {TINY} {BOTH}",
    "awac": f"awac {TINY} {BOTH}",
    "awr": f"awr {TINY} {BOTH}",
    "bear": f"bear {TINY} {BOTH}",
    "o3f_select": f"o3f_select {TINY} --updates-per-step 2 --num-candidates 5 {BOTH}",
}


@dataclass
class Args:
    out: str  # CSV
    runs: tuple[str, ...] = tuple(RUNS)  # which of the runs
    kills: int = 20  # kills a run
    steps: int = 12_000  # of a run: updates offline, half as many steps online
    longest: float = 8.0  # seconds from the first step to a kill, at most; one of five comes before it
    seed: int = 0  # of the moments


def start(words: list[str], folder: Path) -> subprocess.Popen:
    """A script with its processes in a group of their own, in `folder`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / f"{words[0]}.py", *words[1:]]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)


def finish(words: list[str], folder: Path) -> None:
    process = start(words, folder)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{out}")


def kill_later(process: subprocess.Popen, generator: random.Random, longest: float) -> float:
    """Kills the group; seconds after its start."""
    started = time.monotonic()
    if generator.random() < 0.2:
        time.sleep(generator.uniform(0, 3))
    else:
        for line in process.stdout:
            if "writes: " in line:
                break
        time.sleep(generator.uniform(0, longest))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return time.monotonic() - started


def command_of(words: list[str], folder: Path) -> list[str]:
    """What goes on in `folder`: the run that is there, or a new one."""
    saved = list(folder.glob("runs/*/*/seed*/resume.pt"))
    if saved:
        return [words[0], "--resume", str(saved[0].parents[1])]
    return [*words, "--overwrite"]


def check_end(folder: Path, whole: Path | None, online_steps: int, eval_every: int) -> str:
    """What is wrong with the finished run, compared with one that was not killed; "" if nothing."""
    for path in sorted(folder.glob("runs/*/*/seed*/checkpoint.pt")):
        state = torch.load(path)
        if not all(leaf.isfinite().all() for leaf in tree_leaves(state["state"])):
            return "parameters are not finite"
        if state["env_step"] != online_steps:
            return f"ended at online step {state['env_step']}"
        with open(path.with_name("eval.csv")) as file:
            rows = [(row["phase"], row["gradient_step"], row["env_step"]) for row in csv.DictReader(file)]
        if len(rows) != len(set(rows)):
            return "an evaluation is there twice"
        if sum(row[0] == "online" for row in rows) != (online_steps // eval_every + 1 if online_steps else 0):
            return "an online evaluation is missing"
        if whole:
            other = whole / path.relative_to(folder)
            pairs = zip(tree_leaves(state["state"]), tree_leaves(torch.load(other)["state"]), strict=True)
            if not all(torch.equal(one, two) for one, two in pairs):
                return "other bits than without kills"
            texts = [(at.with_name("eval.csv")).read_text().split("\n") for at in (path, other)]
            without_seconds = [[line.rpartition(",")[0] for line in lines] for lines in texts]
            if without_seconds[0] != without_seconds[1]:
                return "other evaluations than without kills"
    return ""


def soak(name: str, args: Args, folder: Path) -> list[dict]:
    """A row per kill and one for the end."""
    options = RUNS[name].format(steps=args.steps, half=args.steps // 2)
    eval_every = args.steps // 4
    words = [*options.split(), *SMALL.split(), "--eval-every", str(eval_every)]
    online_steps = args.steps // 2 if "--online-steps" in words else 0
    generator, rows, before, whole = random.Random(f"{args.seed} {name}"), [], None, None
    killed = folder / "killed"
    killed.mkdir(parents=True)
    if words[0] == "online_finetune_sac":
        pretraining = f"offline_pretrain_sac {TINY} {SMALL} --offline-steps 100 --runs-dir pretrained"
        finish(pretraining.split(), killed)
        words += ["--checkpoint", str(next(killed.glob("pretrained/*/*")))]
    if not online_steps:
        whole = folder / "whole"
        whole.mkdir()
        finish(words, whole)
    for kill in range(1, args.kills + 1):
        process = start(command_of(words, killed), killed)
        seconds = kill_later(process, generator, args.longest)
        row = {
            "run": name,
            "kill": kill,
            "seconds": round(seconds, 2),
            "phase": "",
            "saved_step": "",
            "problem": "",
        }
        if process.returncode != -signal.SIGKILL:
            row["problem"] = "ended before the kill"
        path = next(killed.glob("runs/*/*/seed*/resume.pt"), None)
        if path:
            saved = torch.load(path)
            row["phase"] = saved["progress"]["phase"]
            row["saved_step"] = saved["progress"]["env_step" if row["phase"] == "online" else "step"]
            rings = saved["rings"]
            if before is not None and not torch.equal(rings[:, : before.shape[1]], before):
                row["problem"] = "transitions are lost"
            before = rings
        rows.append(row)
        print(row, flush=True)
        if row["problem"]:
            break
    finish(command_of(words, killed), killed)
    problem = check_end(killed, whole, online_steps, eval_every)
    rows.append(
        {"run": name, "kill": "end", "saved_step": args.steps if whole else online_steps, "problem": problem}
    )
    print(rows[-1], flush=True)
    return rows


def main(args: Args) -> None:
    rows = []
    for name in args.runs:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        rows += soak(name, args, folder)
        shutil.rmtree(folder)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w", newline="") as file:
            writer = csv.DictWriter(file, ["run", "kill", "seconds", "phase", "saved_step", "problem"])
            writer.writeheader()
            writer.writerows(rows)
    problems = [row for row in rows if row["problem"]]
    print(f"{len(rows) - len(args.runs)} kills of {len(args.runs)} runs, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
