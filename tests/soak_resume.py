"""Kills training processes with SIGKILL at random moments until they are through; the end must equal an uncut run's.

    python tests/soak_resume.py --kills 20                     every script, 20 kills each
    python tests/soak_resume.py --kills 5 --scripts td3_c iql

Prints a line a script and exits 1 if one differs. Not part of the test suite: it takes minutes.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from test_resume import CASES, content  # noqa: E402


def run(script: str, arguments: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / f"{script}.py"), *arguments.split()]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(out[-3000:])
    return out


def soak(script: str, kills: int, cwd: Path) -> tuple[int, int, bool]:
    """(kills, resumes, whether the end is that of an uncut run)"""
    command = CASES[script][0].replace("hopper/tiny-v0", "hopper/medium-replay-v0")
    command = command.replace("--online-steps 60", "--online-steps 600").replace(
        "--online-steps 40", "--online-steps 400"
    )
    command = command.replace("--offline-steps 30", "--offline-steps 300").replace(
        "--offline-steps 50", "--offline-steps 900"
    )
    if script == "online_finetune_sac":
        finish(run("offline_pretrain_sac", "--offline-steps 10 --hidden-dim 16 --num-seeds 2 --runs-dir start", cwd))
        command += f" --checkpoint {next(cwd.glob('start/*/*/'))}"
    start = time.time()
    finish(run(script, f"{command} --runs-dir whole", cwd))
    seconds, killed, resumed, arguments = time.time() - start, 0, 0, f"{command} --runs-dir cut"
    while killed < kills:
        process = run(script, arguments, cwd)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(0.3, 1) * seconds)  # imports take the first part of it
        if process.poll() is not None:
            break  # it got through
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed += 1
        if list(cwd.glob("cut/*/*/seed1/resume.pt")):
            arguments, resumed = f"--resume {next(cwd.glob('cut/*/*/'))}", resumed + 1
        else:
            arguments = f"{command} --runs-dir cut --overwrite"  # nothing was saved yet
    if process.poll() is None or process.returncode:
        finish(run(script, arguments, cwd))
    return killed, resumed, content(next(cwd.glob("cut/*/*/"))) == content(next(cwd.glob("whole/*/*/")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each script (fewer if it gets through before)")
    parser.add_argument("--scripts", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, bad = parser.parse_args(), 0
    random.seed(args.seed)
    for script in args.scripts:
        killed = resumed = 0
        while killed < args.kills:
            with tempfile.TemporaryDirectory() as folder:
                kills, resumes, same = soak(script, args.kills - killed, Path(folder))
            killed, resumed, bad = killed + kills, resumed + resumes, bad + (not same)
            print(f"{script}: {killed} kills, {resumed} resumes, {'equal' if same else 'DIFFERENT'}", flush=True)
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
