"""What a GPU does with these scripts, in at most nine minutes, the most telling first.

    python benchmarks/gpu.py                       all parts, one table, results in gpu.csv
    python benchmarks/gpu.py --only check speed    some of them
    python benchmarks/gpu.py --device cpu --quick  does it run at all? (two minutes on a CPU)

check     every script compiles with one, two and ten seeds, never falls back to eager, and has the eager numbers after
          50 updates; a process per script and number of seeds, side by side
speed     updates/s of all seeds together: TD3+BC and SAC offline, one and ten seeds, beside eager ones
online    environment steps/s per seed of SAC, one update per step, with 1 and 10 seeds; beside it waiting for the device
          twice a step, as the scripts did before; and ten seeds with two more such runs on the card
workers   steps/s of ten Hoppers alone: in this process; Gymnasium's ten; two to ten with a pipe; as the scripts do,
          ten with shared memory and semaphores
variants  of TD3+BC and SAC with ten seeds and one: inputs padded to multiples of four, Inductor's joined kernels,
          updates per CUDA graph, the critics' last layer as a matrix product instead of multiply-and-sum
growth    SAC offline over 1, 2, 5, 10, 20, 50 seeds
profile   the kernels of one compiled update of SAC and of TD3+BC, ten seeds, with their times

Every row is printed and written as soon as it is measured; what no longer fits into --minutes is left out and said.
Batch 256, networks of 2x256, ReLU, no LayerNorm, Hopper's sizes, 200,000 rows of noise.
"""

import csv
import importlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OBS_DIM, ACTION_DIM = 11, 3
SCRIPTS = ["td3_bc", "td3_c", "offline_pretrain_sac", "online_finetune_sac", "sac_scratch"]
SCRIPTS += ["cql_sac", "iql", "awac", "bear", "o3f_select"]  # awr.py needs whole episodes, not noise


@dataclass
class Args:
    only: tuple[
        Literal["check", "speed", "online", "workers", "variants", "growth", "profile"], ...
    ] = ()  # default: all
    device: Literal["cuda", "cpu"] = "cuda"
    quick: bool = False  # a few updates of each, to see that it runs
    minutes: float = 9.0  # nothing is begun after them
    out: str = "gpu.csv"  # table of all rows
    script: str | None = None  # check this one only, in this process
    seeds: int = 1  # with --script
    busy: bool = False  # step environments and update until killed


class Training:
    """A script's update loop, as main would build it, on random rows."""

    def __init__(self, name: str, num_seeds: int, device: str, compile: str, **shape):
        self.script = script = importlib.import_module(name)
        self.args = script.Args(num_seeds=num_seeds, compile=compile, device=device)
        num_critics = getattr(self.args, "num_critics", 2)
        shape = {
            "obs_dim": OBS_DIM,
            "action_dim": ACTION_DIM,
            "hidden_dim": 256,
            "num_critics": num_critics,
        } | shape
        shape |= {"network": "relu"} if hasattr(self.args, "network") else {"layer_norm": False}
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((200_000, 2 * OBS_DIM + ACTION_DIM + 2)).astype(np.float32).clip(-1, 1)
        rows[:, -1] = 0
        self.algorithm = script.ALGORITHM(self.args, **shape)
        states = [self.algorithm.init(seed) for seed in range(num_seeds)]
        if script.FAMILY == "lapo":
            states = [state | self.algorithm.from_data(rows) for state in states]
        self.state = tree_map(lambda tensor: tensor.to(device), script.stack(states))
        dataset = script.Dataset(rows, np.zeros(len(rows), np.uint8), {})
        self.replay = script.Replay(self.args, shape, dataset, 10_000, device)
        self.loop = script.update_loop(self.algorithm, self.state, self.replay, self.args, 10**9)


def rate(function: Callable[[], None], count: int, args: Args, seconds: float = 2.0) -> float:
    """Calls/s times `count`, after calls that compile, warm up and record graphs."""
    for _ in range(4):
        function()
    synchronize(args)
    start, calls = time.perf_counter(), 0
    while calls == 0 or (time.perf_counter() - start < seconds and not args.quick):
        function()
        calls += 1
    synchronize(args)
    return calls * count / (time.perf_counter() - start)


def synchronize(args: Args) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


class Table:
    """Rows on the terminal and in a CSV; counts the time."""

    def __init__(self, args: Args):
        self.args, self.end = args, time.time() + 60 * args.minutes
        self.hardware = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
        with open(args.out, "w") as file:
            csv.writer(file).writerow(["part", "what", "seeds", "value", "unit", "hardware", "torch"])

    def add(
        self, part: str, what: str, seeds: int, measure: Callable[[], float | str], unit: str = ""
    ) -> None:
        if time.time() > self.end:
            print(f"{part:9} {what:48} {seeds:3} seeds  left out: no time")
            return
        try:
            value = measure()
        except Exception as error:  # one part that fails leaves the others
            value = f"failed: {error!r:.200}"
        self.write(part, what, seeds, value, unit)

    def write(self, part: str, what: str, seeds: int, value: float | str, unit: str = "") -> None:
        text = f"{value:,.0f}" if isinstance(value, float) else value
        print(f"{part:9} {what:48} {seeds:3} seeds  {text} {unit}", flush=True)
        with open(self.args.out, "a") as file:
            csv.writer(file).writerow([part, what, seeds, value, unit, self.hardware, torch.__version__])


def check_script(name: str, args: Args) -> None:
    """Prints the largest difference of compiled and eager states; same noise and batches, no TF32."""
    torch.set_float32_matmul_precision("highest")
    states = []
    for compile in ("off", "on"):
        training = Training(name, args.seeds, args.device, compile)
        fix_draws(training)
        for first in range(1, 11 if args.quick else 51):
            training.loop(first)
        states.append(tree_map(torch.Tensor.cpu, training.state))
    same_step = training.loop.step is not training.loop.plain  # else it fell back to eager
    pairs = zip(*map(tree_leaves, states), strict=True)
    difference = max(((one - two).abs() / (1 + one.abs())).max().item() for one, two in pairs)
    print(f"compiled, differs by {difference:.0e}" if same_step else "FELL BACK TO EAGER", flush=True)


def fix_draws(training: Training) -> None:
    """From now on each update sees the same noise and batch: compiled code draws other numbers than eager."""
    algorithm, replay, seeds = training.algorithm, training.replay, len(training.replay.rings)
    device, update = replay.rows.device, algorithm.update
    torch.manual_seed(0)
    noise = {name: torch.randn(shape).to(device) for name, shape in algorithm.update_noise.items()}
    numbers = torch.randint(replay.num_offline, (seeds, training.args.batch_size)).to(device)
    algorithm.update_noise = {}
    algorithm.update = lambda state, batch, _, policy_turn: update(state, batch, noise, policy_turn)
    replay.sample = lambda _: replay.gather(numbers)


def check_rows(args: Args) -> None:
    """Raises if the ring does not hold what was stored: a host buffer was written while it was read."""
    training, collector = start_online(2, args)
    added, add = [], training.replay.add

    def recorded(*transition) -> None:
        added.append(np.column_stack(transition[:5]).astype(np.float32))
        add(*transition)

    training.replay.add = recorded
    for first in range(1, 301):
        collector.act()
        training.loop(first)
        collector.step()
    if not np.array_equal(training.replay.rings[:, :300].cpu().numpy(), np.stack(added, 1)):
        raise RuntimeError("rows in the ring are not those that were stored")


def check(table: Table, args: Args) -> None:
    options = ["--device", args.device, *(["--quick"] if args.quick else [])]

    def watch(seeds: int, name: str) -> None:
        """Adds the row of one process; kills it when the time is up."""
        command = [sys.executable, __file__, *options, "--script", name, "--seeds", str(seeds)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=table.end - time.time())
        except subprocess.TimeoutExpired:
            table.write("check", name, seeds, "left out: no time")
            return
        if result.returncode:
            error = (result.stderr.splitlines() or [""])[-1]
            table.write("check", name, seeds, f"failed, exit status {result.returncode}: {error:.200}")
        else:
            table.write("check", name, seeds, result.stdout.splitlines()[-1])

    table.add("check", "300 stored rows are in the ring", 2, lambda: check_rows(args) or "yes")
    with ThreadPoolExecutor(20 if args.device == "cuda" else 1) as pool:
        counts = (1, 2) if args.quick else (10, 1, 2)
        for _ in pool.map(watch, *zip(*itertools.product(counts, SCRIPTS), strict=True)):
            pass


def offline_rate(name: str, seeds: int, args: Args, compile: str = "on", per_call: int = 10) -> float:
    training = Training(name, seeds, args.device, compile)
    return seeds * rate(lambda: training.loop(1, per_call), per_call, args)


def speed(table: Table, args: Args) -> None:
    for seeds in (1, 10):
        for name in ("td3_bc", "offline_pretrain_sac"):
            for compile in ("on", "off"):
                what = f"{name}, {'compiled' if compile == 'on' else 'eager'}"
                measure = partial_rate(name, seeds, args, compile)
                table.add("speed", what, seeds, measure, "updates/s of all seeds together")


def partial_rate(name: str, seeds: int, args: Args, compile: str = "on", per_call: int = 10):
    return lambda: offline_rate(name, seeds, args, compile, per_call)


def start_online(seeds: int, args: Args) -> tuple:
    training = Training("sac_scratch", seeds, args.device, "on")
    parts = training.algorithm, training.state, training.replay, training.args
    return training, training.script.Collector(*parts, 0)


def online_rate(seeds: int, args: Args, waits: bool = False) -> float:
    """Environment steps/s of each seed; `waits`: for the device after the action and after the update."""
    training, collector = start_online(seeds, args)

    def step() -> None:
        collector.act()
        if waits:
            synchronize(args)
        training.loop(1)
        collector.step()
        if waits:
            synchronize(args)

    return rate(step, 1, args, seconds=8.0)


def online(table: Table, args: Args) -> None:
    unit = "steps/s of each seed"
    for seeds in (1, 10) if args.device == "cuda" else (1, 4, 10):
        measure = partial(online_rate, seeds, args)
        table.add("online", "sac_scratch", seeds, measure, unit)
        table.add("online", "sac_scratch, waiting twice a step", seeds, partial(measure, waits=True), unit)
    table.add("online", "sac_scratch, beside two more", 10, lambda: beside(2, args), unit)


def beside(count: int, args: Args) -> float:
    """Steps/s of each of ten seeds while `count` processes do the same."""
    command = [sys.executable, __file__, "--device", args.device, "--busy", *["--quick"] * args.quick]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in others:
            while "at work" not in process.stdout.readline():
                if process.poll() is not None:
                    raise RuntimeError("a process beside it ended")
        value = online_rate(10, args)
        if any(process.poll() is not None for process in others):
            raise RuntimeError("a process beside it ended")
        return value
    finally:
        for process in others:
            process.kill()
            process.wait()


def work(args: Args) -> None:
    """Says that it is at work once its update is compiled; ends when it is killed, or the benchmark is."""
    parent = os.getppid()
    training, collector = start_online(10, args)
    for count in itertools.count():
        collector.act()
        training.loop(1)
        collector.step()
        if count == 4:
            print("at work", flush=True)
        if os.getppid() != parent:
            return


def serve(pipe, count: int) -> None:
    """A process that steps `count` environments in turn."""
    from sac_scratch import make_env, step_env, work_beside

    work_beside()
    envs = [make_env("Hopper-v4") for _ in range(count)]
    for env in envs:
        env.reset()
    shared = np.zeros((count, ACTION_DIM + 3 + 2 * OBS_DIM), np.float32)
    pipe.send_bytes(b"ready")
    while True:
        action = np.frombuffer(pipe.recv_bytes(), np.float32).reshape(-1, ACTION_DIM)
        if not len(action):
            return
        shared[:, :ACTION_DIM] = action
        for env, row in zip(envs, shared, strict=True):
            step_env(env, row)
        pipe.send_bytes(shared[:, ACTION_DIM:].copy())


def group_rate(sizes: list[int], args: Args) -> float:
    """Steps/s of ten environments in processes of so many each."""
    context, pipes, processes = multiprocessing.get_context("spawn"), [], []
    for size in sizes:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, size), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a process that dies is an error here, not a wait
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv_bytes()
    actions = np.zeros((sum(sizes), ACTION_DIM), np.float32)

    def step() -> np.ndarray:
        for pipe, part in zip(pipes, np.split(actions, np.cumsum(sizes)[:-1]), strict=True):
            pipe.send_bytes(part)
        parts = [np.frombuffer(pipe.recv_bytes(), np.float32) for pipe in pipes]
        return np.concatenate(parts).reshape(len(actions), -1)

    try:
        return rate(step, 1, args)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send_bytes(b"")
            process.join()


def workers(table: Table, args: Args) -> None:
    from sac_scratch import make_env

    def whole(kind, **options) -> Callable[[], float]:
        def measure() -> float:
            mode = gym.vector.AutoresetMode.SAME_STEP
            envs = kind([partial(make_env, "Hopper-v4")] * 10, autoreset_mode=mode, **options)
            envs.reset(seed=0)
            action = np.zeros((10, ACTION_DIM), np.float32)
            try:
                return rate(lambda: envs.step(action), 1, args)
            finally:
                envs.close()

        return measure

    unit = "steps/s of each environment"
    table.add("workers", "SyncVectorEnv", 10, whole(gym.vector.SyncVectorEnv), unit)
    table.add("workers", "AsyncVectorEnv", 10, whole(gym.vector.AsyncVectorEnv, context="spawn"), unit)
    for sizes in ([5, 5], [4, 3, 3], [2] * 5, [1] * 10):
        what = f"{len(sizes)} processes, a pipe each"
        table.add("workers", what, 10, lambda sizes=sizes: group_rate(sizes, args), unit)
    table.add("workers", "10 processes, semaphores, as the scripts", 10, lambda: own_rate(args), unit)


def own_rate(args: Args) -> float:
    import sac_scratch

    sac_scratch.num_cores = lambda: 8  # or fewer cores than that keep them in this process
    envs = sac_scratch.TrainingEnvs("Hopper-v4", list(range(10)), OBS_DIM, ACTION_DIM)
    actions = np.zeros((10, ACTION_DIM), np.float32)
    return rate(lambda: envs.step(actions), 1, args)


def variants(table: Table, args: Args) -> None:
    unit = "updates/s of all seeds together"
    for seeds, name in itertools.product((10, 1), ("td3_bc", "offline_pretrain_sac")):
        table.add("variants", f"{name}, as it is", seeds, partial_rate(name, seeds, args), unit)
        for what, change in (("inputs of 12 and 16", padded), ("joined kernels", joined)):
            measure = partial(changed_rate, name, seeds, args, change)
            table.add("variants", f"{name}, {what}", seeds, measure, unit)
    for seeds, per_call in itertools.product((10, 1), (1, 50, 100)):
        measure = partial_rate("td3_bc", seeds, args, per_call=per_call)
        table.add("variants", f"td3_bc, {per_call} updates a graph", seeds, measure, unit)
    for seeds in (10, 1):
        measure = partial(changed_rate, "td3_bc", seeds, args, matrix)
        table.add("variants", "td3_bc, last layer a matrix product", seeds, measure, unit)


def changed_rate(name: str, seeds: int, args: Args, change: Callable) -> float:
    """Updates/s with a context manager around compilation that changes the script."""
    torch._dynamo.reset()  # or what was compiled before is taken
    try:
        with change(importlib.import_module(name)):
            training = Training(name, seeds, args.device, "on")
            value = seeds * rate(lambda: training.loop(1, 10), 10, args)
        if training.loop.step is training.loop.plain:
            raise RuntimeError("it fell back to eager")
        return value
    finally:
        torch._dynamo.reset()


def joined(_: ModuleType):
    return torch._inductor.config.patch(combo_kernels=True)


def matrix(script: ModuleType):
    return patch.object(script, "mlp", matrix_mlp)


def padded(_: ModuleType):
    """12 numbers for 11 and 16 for 14, sizes that suit tensor cores: what padding could gain at most."""
    return patch.multiple(sys.modules[__name__], OBS_DIM=12, ACTION_DIM=4)


def matrix_mlp(params: dict, x: torch.Tensor, layer_norm: bool = False) -> torch.Tensor:
    """The scripts' mlp, without multiply-and-sum in a last layer with one output."""
    last = len(params) // 2 - 1
    for layer in range(last):
        x = torch.nn.functional.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]).relu()
    out = torch.nn.functional.linear(x, params[f"{last}.weight"], params[f"{last}.bias"])
    return out[..., 0] if out.shape[-1] == 1 else out


def growth(table: Table, args: Args) -> None:
    for seeds in (1, 2) if args.quick else (1, 2, 5, 10, 20, 50):
        measure = partial_rate("offline_pretrain_sac", seeds, args)
        table.add("growth", "offline_pretrain_sac", seeds, measure, "updates/s of all seeds together")


def profile(table: Table, args: Args) -> None:
    """Kernels of ten compiled updates, those that take longest together first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    kind = ProfilerActivity.CUDA if args.device == "cuda" else ProfilerActivity.CPU
    key = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    for name in ("offline_pretrain_sac", "td3_bc"):
        training = Training(name, 10, args.device, "on")
        for _ in range(4):
            training.loop(1, 10)
        with record(activities=[kind]) as recorded:
            training.loop(1, 10)
            synchronize(args)
        events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
        count, total = (
            sum(event.count for event in events) / 10,
            sum(getattr(event, key) for event in events) / 10,
        )
        table.write("profile", f"{name}, {count:g} kernels", 10, total, "us per update")
        for event in events[:30]:
            what = f"{name}, {event.key:.60} x {event.count / 10:g}"
            table.write("profile", what, 10, f"{getattr(event, key) / 10:.1f}", "us per update")


def main(args: Args) -> None:
    torch.set_float32_matmul_precision("high")
    if args.script:
        return check_script(args.script, args)
    if args.busy:
        return work(args)
    table, parts = Table(args), [check, speed, online, workers, variants, growth, profile]
    for part in parts:
        if not args.only or part.__name__ in args.only:
            part(table, args)
    print(f"all rows are in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
