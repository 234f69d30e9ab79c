"""A million online steps of sac_scratch.py's loop without the updates: is the memory flat once the ring is full?

    python tests/soak_memory.py --out results/speed/soak_memory.csv

The replay wraps around 20 times, episodes end, evaluations are logged to CSV and TensorBoard, states for --resume are
saved; only `update` and the policy's network are left out, so that it takes minutes. Prints and writes the resident
memory of the process every 50,000 steps; exits 1 if it grew by more than 20 MB after the second lap of the ring.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import sac_scratch as sac  # noqa: E402


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def write(path: str, rows: list) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["env_step", "resident_mb"], *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--out", default="soak_memory.csv")
    options = parser.parse_args()
    rows, record = [], sac.Run.record

    def measured(run: sac.Run, where: tuple, *given) -> None:
        record(run, where, *given)
        step = where[2]
        if step % 50_000 == 0:
            rows.append([step, round(resident_mb(), 1)])
            print(f"\nstep {step:,}: {rows[-1][1]} MB", flush=True)
            write(options.out, rows)

    def act(agent: sac.Agent, obs: torch.Tensor, args: sac.Args) -> tuple[torch.Tensor, dict]:
        action = torch.rand(args.num_seeds, 1, 3) * 2 - 1
        return action, {"candidates/distance": action.square().sum((1, 2))}

    def update(agent: sac.Agent, batch: sac.Batch, args: sac.Args, policy_turn: bool) -> dict:
        return {"loss/critic": batch.reward.mean(1)}

    sac.Run.record, sac.select_action, sac.update = measured, act, update
    with tempfile.TemporaryDirectory() as folder:
        args = sac.Args(online_steps=options.steps, warmup_steps=0, replay_capacity=50_000, batch_size=8, hidden_dim=8)
        args.eval_episodes, args.checkpoint_every, args.compile, args.runs_dir = 1, 0.1, "off", folder
        sac.main(args)
    settled = [memory for step, memory in rows if step >= 2 * args.replay_capacity]
    return max(settled) - settled[0] > 20


if __name__ == "__main__":
    sys.exit(main())
