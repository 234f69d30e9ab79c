"""Evaluate the policies of checkpoints over many episodes, compare them on the same starts, and film them.

A policy acts through the functions of the script that trained it: deterministic actions are what evaluations
execute, stochastic ones are draws from its distribution, where it has one. Episode k's reset seed and noise
follow from (--seed, k), for every policy alike, so that differences are taken start by start.

Printed for a policy: mean return with the 95% percentile bootstrap interval over its episodes, median,
extremes, mean length, normalised score of the mean, number of episodes truncated by the time limit. For
several seeds of a run also the mean of their means, with the interval over seeds. Report that one: the
episodes of one policy say nothing about another training run. With more arguments, the returns minus those of
the first argument (its policy of the same seed, or its only one). The intervals over episodes take the
policies as given.

Reads   checkpoints: a checkpoint.pt, or those in the folder of a seed or of a run (all its seeds), as plain
        tensors. Of what they name, only the training scripts beside this file are imported.
Writes  what is asked for. --out: a CSV with a row per episode: where the policy comes from, reset seed,
        return (undiscounted, in the environment's units), length in steps, normalised score (percent between
        D4RL's random and expert returns), 1 if it was truncated. --video: episode 0 of each policy, in
        real time unless it is long (.gif), or as a row of eight frames (.png); MuJoCo needs OpenGL for it.

Run, after `python sac_scratch.py --online-steps 3000 --warmup-steps 500 --eval-every 1000`:
    python watch_policy.py runs/Hopper-v4/sac_scratch-* --episodes 20 --video hopper.gif
Run, before and after finetuning:
    python watch_policy.py runs/Hopper-v4/offline_pretrain_sac* runs/Hopper-v4/online_finetune_sac*
"""

import csv
import importlib
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.stats import bootstrap
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

SCRIPTS = (  # whose checkpoints these are
    *("sac_scratch", "offline_pretrain_sac", "online_finetune_sac", "cql_sac"),
    *("td3_bc", "td3_c", "iql", "awac", "awr", "bear", "o3f_select"),
)
EPISODE_LIMIT = 100_000  # steps of an evaluation episode
SIDE_BY_SIDE = 16  # episodes, for one batched call of the policy
BACKENDS = "egl", "osmesa", "glfw"  # of MUJOCO_GL, in the order in which they are tried
PROBE = """import sys, gymnasium
env = gymnasium.make(sys.argv[1], render_mode="rgb_array", disable_env_checker=True)
env.reset(seed=0)
env.render()[0, 0]"""
GIF_FPS, GIF_FRAMES, GIF_WIDTH = 25, 120, 256  # frames at most, pixels of a frame
STRIP_FRAMES, STRIP_WIDTH = 8, 160
CSV_COLUMNS = (
    *("checkpoint", "run", "seed", "phase", "gradient_step", "env_step", "episode", "reset_seed"),
    *("return", "length", "normalized_score", "truncated", "actions"),
)

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class Args:
    policies: tyro.conf.Positional[tuple[Path, ...]]  # checkpoint.pt, folder of a seed, or folder of a run
    episodes: Count = 100  # for each policy
    seed: Whole = 0  # of the episodes: starts and noise, the same for every policy
    env: str | None = None  # Gymnasium id; needed if it names a module, which is then imported
    actions: Literal["deterministic", "stochastic", "noisy"] = "deterministic"  # noisy: plus Gaussian noise
    noise_std: NonNegative = 0.1  # of noisy actions, in units of actions in [-1, 1]; the sum is clipped
    out: Path | None = None  # CSV file for the episodes
    video: Path | None = None  # .gif, or .png for a strip of frames
    overwrite: bool = False  # replace --out and --video if they exist


class Scores(NamedTuple):
    returns: np.ndarray  # (N,) undiscounted
    lengths: np.ndarray  # (N,) steps
    cut: np.ndarray  # (N,) whether the episode was truncated


class Policy:
    """A checkpoint's policy: what the checkpoint says of itself, and how the policy acts."""

    def __init__(self, path: Path, saved: dict, script: ModuleType):
        self.path, self.script, self.shape, self.state = path, script, saved["shape"], saved["state"]
        self.env, self.run, self.seed, self.phase = (saved[key] for key in ("env", "run", "seed", "phase"))
        self.gradient_step, self.env_step = saved["gradient_step"], saved["env_step"]
        self.references = saved["scores"]  # returns of a random and of an expert policy, if they are known
        self.algorithm = script.ALGORITHM(script.Args(**saved["args"]), **self.shape)
        self.has_distribution = hasattr(script, "sample_action") or hasattr(script, "draw_action")
        self.group = ""  # a letter per argument
        self.scores: Scores | None = None

    @property
    def label(self) -> str:
        return f"{self.group} seed {self.seed}"

    @property
    def steps(self) -> str:
        online = f", {self.env_step:,} online steps" if self.phase == "online" else ""
        return f"{self.gradient_step:,} updates{online}"

    @property
    def unfinished(self) -> bool:
        """Whether config.json beside the checkpoint says so; a checkpoint copied alone cannot tell."""
        try:
            return json.loads(self.path.with_name("config.json").read_text())["status"] != "finished"
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def normalise(self, returns: float) -> float:
        """Percent between the reference returns; NaN where there are none."""
        low, high = self.references or (math.nan, math.nan)
        return 100 * (returns - low) / (high - low)

    def draw(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions from the policy's distribution; noise (B, A) is standard normal."""
        distribution = self.algorithm.actor(self.state["actor"], obs)
        if hasattr(self.script, "draw_action"):  # IQL and AWAC
            return self.script.draw_action(*distribution, noise)
        action, _ = self.script.sample_action(*distribution, noise)
        return action

    def act(self, obs: np.ndarray, noise: np.ndarray, args: Args) -> np.ndarray:
        """obs (B, O), standard normal noise (B, A), both float32 -> actions (B, A) in [-1, 1]."""
        obs, noise = torch.from_numpy(obs), torch.from_numpy(noise)
        if args.actions == "stochastic":
            return self.draw(obs, noise).numpy()
        action = self.algorithm.best_action(self.state, obs)
        if args.actions == "noisy":
            action = (action + args.noise_std * noise).clamp(-1, 1)
        return action.numpy()


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def bootstrap_interval(values):
    """95% percentile bootstrap interval (low, high) of the mean of values (n,); NaN for fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    return bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval


def check_options(args: Args) -> None:
    """Ends with one line if no policy is named, or if a file could not be written in the end."""
    if not args.policies:
        fail("name a checkpoint.pt, the folder of a seed, or the folder of a run")
    if args.video and args.video.suffix not in (".gif", ".png"):
        fail(f"--video {args.video}: must end in .gif or .png")
    for option, path in (("--out", args.out), ("--video", args.video)):
        if path is None:
            continue
        if path.exists() and not args.overwrite:
            fail(f"{option} {path}: exists; --overwrite replaces it")
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            fail(f"{option} {path}: cannot be written there")


def checkpoints_in(folder: Path, option: str = "") -> list[Path]:
    """A checkpoint.pt, or those of a run's seeds in their order; ends with one line if there is none."""
    seeds = folder.glob("seed*/checkpoint.pt")
    seeds = sorted(seeds, key=lambda path: (len(path.parent.name), path.parent.name))  # seed2 before seed10
    for paths in ([folder], [folder / "checkpoint.pt"], seeds):
        if paths and all(path.is_file() for path in paths):
            return paths
    name = f"{option} {folder}".strip()
    fail(f"{name}: neither a checkpoint.pt, nor the folder of a seed or of a run with one")


def read_checkpoint(name: str, path: Path) -> dict:
    """What a checkpoint.pt, called `name`, holds; ends with one line if it is none of ours."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # refuses a file that carries code
        script, *names = (saved[key] for key in ("script", "env", "run", "phase"))
        if "format" not in saved:
            fail(f"{name}: was written by the first version of these scripts, which is gone; train again")
        if not all(text.isprintable() for text in (script, *names)):
            raise ValueError("names that cannot be printed")
        if not all(tensor.isfinite().all() for tensor in tree_leaves(saved["state"])):
            raise ValueError("a tensor is not finite")
        for key in ("seed", "gradient_step", "env_step"):
            saved[key] = int(saved[key])
    except Exception as error:  # whatever torch.load raises on a damaged or foreign file
        fail(f"{name}: not a checkpoint of these scripts: {error!r:.100}")
    if script not in SCRIPTS:
        fail(f"{name}: its script is {script}, not one of {', '.join(SCRIPTS)}")
    return saved


def load_policy(path: Path, args: Args, option: str = "") -> Policy:
    """The policy in a checkpoint; ends with one line if it does not act here, or is not of --env.

    collect_dataset.py calls it too: its Args have the same `env`, `actions` and `noise_std`.
    """
    name = f"{option} {path}".strip()
    saved = read_checkpoint(name, path)
    env_id = saved["env"]
    if args.env not in (None, env_id):
        fail(f"--env {args.env}: the checkpoint {path} is of {env_id}")
    if ":" in env_id and args.env is None:  # a file must not choose what is imported
        fail(f"{name}: its environment imports a module; if you trust it, give --env {env_id}")
    try:
        script = importlib.import_module(saved["script"])
        if saved["format"] != script.FORMAT:
            raise ValueError(f"{script.SCRIPT}.py writes another format today")
        env = script.make_env(env_id)
        sizes = [*env.observation_space.shape, *env.action_space.shape]
        if sizes != [saved["shape"]["obs_dim"], saved["shape"]["action_dim"]]:
            raise ValueError(f"{env_id} has other sizes, {sizes}")
        policy = Policy(path, saved, script)
        if policy.algorithm.best_action(policy.state, torch.zeros(1, sizes[0])).shape != (1, sizes[1]):
            raise ValueError("its tensors have other sizes")
    except Exception as error:  # of Gymnasium, or of PyTorch where sizes and tensors do not fit
        reason = (str(error).strip().splitlines() or [""])[0]
        fail(f"{name}: its policy of {env_id} cannot be restored ({reason})")
    if args.actions == "stochastic" and not policy.has_distribution:
        fail(f"--actions stochastic: the policy of {path} has no distribution; use deterministic or noisy")
    return policy


def load_groups(args: Args) -> list[list[Policy]]:
    """The policies of each argument; all are of one environment."""
    groups = [[load_policy(path, args) for path in checkpoints_in(folder)] for folder in args.policies]
    first = groups[0][0]
    for number, group in enumerate(groups):
        for policy in group:
            policy.group = f"{chr(ord('A') + number % 26)}{number // 26 or ''}"
            if policy.env != first.env:
                fail(f"{policy.path}: is of {policy.env}, but {first.path} of {first.env}")
    return groups


def reset_seed(args: Args, episode: int) -> int:
    return int(np.random.SeedSequence((args.seed, episode)).generate_state(1)[0])


def play(
    policy: Policy, envs: list[gym.Env], seeds: list[int], args: Args, look: Callable | None = None
) -> Scores:
    """Episodes with these reset seeds, one in each environment at a time.

    look(env, step, return) sees every state. The policy always gets SIDE_BY_SIDE rows, used or not, so that
    no episode depends on those beside it: products with more or fewer rows are rounded differently.
    """
    scores = Scores(np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool))
    obs = np.zeros((SIDE_BY_SIDE, policy.shape["obs_dim"]), np.float32)
    noise = np.zeros((SIDE_BY_SIDE, policy.shape["action_dim"]), np.float32)
    waiting, running = list(range(len(seeds))), {}  # running: row -> episode, generator of its noise
    progress = tqdm(total=len(seeds), desc=policy.label, unit=" episodes", leave=False, disable=None)

    def begin(row: int) -> None:
        if not waiting:
            return
        number = waiting.pop(0)
        running[row] = number, np.random.default_rng((args.seed, number))
        obs[row], _ = envs[row].reset(seed=seeds[number])
        if look:
            look(envs[row], 0, 0.0)

    for row in range(len(envs)):
        begin(row)
    while running:
        for row, (_, generator) in running.items():
            noise[row] = generator.standard_normal(noise.shape[1])
        actions = policy.act(obs, noise, args)
        for row, (i, _) in list(running.items()):
            obs[row], reward, terminated, truncated, _ = envs[row].step(actions[row])
            scores.returns[i] += reward
            scores.lengths[i] += 1
            if look:
                look(envs[row], scores.lengths[i], scores.returns[i])
            if scores.lengths[i] == EPISODE_LIMIT:
                fail(f"{policy.path}: an episode reached the limit of {EPISODE_LIMIT:,} steps")
            if terminated or truncated:
                scores.cut[i] = not terminated
                progress.update()
                del running[row]
                begin(row)
    progress.close()
    return scores


def interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return "-" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def print_scores(groups: list[list[Policy]], args: Args) -> None:
    about = f"{args.episodes} episodes per policy, {args.actions} actions, starts of --seed {args.seed}"
    print(f"{groups[0][0].env}: {about}; truncated: ended by the time limit")
    lines = [["", "mean", "95% interval", "median", "min", "max", "length", "score", "truncated"]]
    for group in groups:
        unfinished = ", ".join(f"seed {policy.seed}" for policy in group if policy.unfinished)
        mark = f"; unfinished: {unfinished}" * bool(unfinished)
        print(f"{group[0].group}  {group[0].run}, {group[0].steps}{mark}")
        for policy in group:
            returns, lengths, cut = policy.scores
            numbers = [np.median(returns), returns.min(), returns.max(), lengths.mean()]
            numbers.append(policy.normalise(returns.mean()))
            cells = [f"{number:.1f}" for number in numbers]
            lines.append([policy.label, f"{returns.mean():.1f}", interval(returns), *cells, f"{cut.sum()}"])
        if len(group) > 1:
            means = np.array([policy.scores.returns.mean() for policy in group])
            name, score = f"{group[0].group} mean of {len(group)} seeds", group[0].normalise(means.mean())
            lines.append([name, f"{means.mean():.1f}", interval(means), "", "", "", "", f"{score:.1f}", ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        columns = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *columns]).rstrip())


def print_differences(groups: list[list[Policy]]) -> None:
    """Returns minus those of the first argument, start by start."""
    first, *others = groups
    if others:
        print("difference of the returns from the same starts (95% interval)")
    for group in others:
        pairs = [(a, b) for b in group for a in first if len(first) == 1 or a.seed == b.seed]
        gains = [b.scores.returns - a.scores.returns for a, b in pairs]
        for (a, b), gain in zip(pairs, gains, strict=True):
            counts = f"higher in {(gain > 0).sum()} and lower in {(gain < 0).sum()} of {len(gain)}"
            print(f"{b.label} - {a.label}: {gain.mean():+.1f} ({interval(gain)}), {counts}")
        means, name = np.array([gain.mean() for gain in gains]), f"{group[0].group} - {first[0].group}"
        if len(pairs) > 1:
            print(f"{name}, mean of {len(pairs)} seeds: {means.mean():+.1f} ({interval(means)} over seeds)")
        if len(pairs) < len(group):
            alone = f"{len(group) - len(pairs)} of {len(group)} seeds"
            print(f"{name}: {alone} are not among those of {first[0].group}")


def write_csv_file(part: Path, policies: list[Policy], args: Args) -> None:
    """A row per episode."""
    with open(part, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for policy in policies:
            for i, (value, length, cut) in enumerate(zip(*policy.scores, strict=True)):
                score = round(policy.normalise(value), 3) if policy.references else ""
                row = [i, reset_seed(args, i), round(value, 3), length, score, int(cut), args.actions]
                moment = [policy.phase, policy.gradient_step, policy.env_step]
                writer.writerow([policy.path, policy.run, policy.seed, *moment, *row])


def choose_backend(env_id: str, given: str | None, path: Path) -> None:
    """Sets MUJOCO_GL to what renders here; each is tried in its own process: a failed one stays loaded."""
    backends, reasons = [given] if given else BACKENDS, []
    for backend in backends:
        command, variables = [sys.executable, "-c", PROBE, env_id], os.environ | {"MUJOCO_GL": backend}
        try:
            subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True)
        except subprocess.SubprocessError as error:
            reasons.append((str(error.stderr or error).strip().splitlines() or [""])[-1])
        else:
            os.environ["MUJOCO_GL"] = backend
            return
    advice = "install libegl1 and libgl1-mesa-dri, or libosmesa6; the returns need neither: leave --video out"
    tried = f"{reasons[0]}; tried MUJOCO_GL={', '.join(backends)}"
    fail(f"--video {path}: nothing renders {env_id} here ({tried}); {advice}")


def film(policy: Policy, steps: list[int], width: int, args: Args) -> list[tuple[int, float, Image.Image]]:
    """Episode 0 again, as it was scored: (step, return so far, frame) at these steps."""
    spec, frames = gym.spec(policy.env.rpartition(":")[2]), []
    env = policy.script.make_env(replace(spec, kwargs=spec.kwargs | {"render_mode": "rgb_array"}))
    if hasattr(env.unwrapped, "mujoco_renderer"):
        import mujoco

        model, camera = env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA
        model.vis.quality.shadowsize, model.vis.quality.offsamples = 1024, 0  # 4 times as fast without a GPU
        track = mujoco.mj_name2id(model, camera, "track")  # Gymnasium's camera stands still
        env.unwrapped.mujoco_renderer.camera_id = track

    def look(env: gym.Env, step: int, total: float) -> None:
        if step in steps:
            image = Image.fromarray(env.render())
            frames.append((step, total, image.resize((width, width * image.height // image.width))))

    play(policy, [env], [reset_seed(args, 0)], args, look)
    env.close()
    return frames


def captioned(image: Image.Image, lines: list[str]) -> Image.Image:
    """The image with lines of text above it."""
    picture = Image.new("RGB", (image.width, image.height + 14 * len(lines) + 6), "white")
    picture.paste(image, (0, picture.height - image.height))
    for i, line in enumerate(lines):
        ImageDraw.Draw(picture).text((3, 14 * i + 2), line, "black", ImageFont.load_default(11))
    return picture


def tiled(images: list[Image.Image], columns: int) -> Image.Image:
    """Images of one size, row by row."""
    width, height = images[0].size
    picture = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for i, image in enumerate(images):
        picture.paste(image, (i % columns * width, i // columns * height))
    return picture


def write_strip(part: Path, policies: list[Policy], args: Args) -> None:
    """A row per policy: frames at equal distances, from the start to the end."""
    rows = []
    for policy in policies:
        steps = np.linspace(0, policy.scores.lengths[0], STRIP_FRAMES).round().tolist()
        frames = film(policy, steps, STRIP_WIDTH, args)
        images = [captioned(image, [f"step {step}, return {total:.0f}"]) for step, total, image in frames]
        rows.append(captioned(tiled(images, STRIP_FRAMES), [f"{policy.label}: {policy.run}, {policy.steps}"]))
    tiled(rows, 1).save(part, "PNG")


def write_gif(part: Path, policies: list[Policy], args: Args) -> None:
    """The policies side by side; those that end early stay at their last state."""
    fps = policies[0].script.make_env(policies[0].env).metadata.get("render_fps", GIF_FPS)
    longest = max(policy.scores.lengths[0] for policy in policies)
    every = max(1, round(fps / GIF_FPS), math.ceil(longest / GIF_FRAMES))
    films = []
    for policy in policies:
        length = policy.scores.lengths[0]
        films.append(film(policy, [*range(0, length, every), length], GIF_WIDTH, args))
    count = max(map(len, films))

    def draw(number: int) -> Image.Image:
        panels = []
        for policy, frames in zip(policies, films, strict=True):
            step, total, image = frames[min(number, len(frames) - 1)]
            end = ""
            if number >= len(frames) - 1:
                end = ", truncated" if policy.scores.cut[0] else ", over"
            name = [*textwrap.wrap(policy.run, 42, max_lines=3, placeholder="..."), "", ""][:3]
            lines = [f"{policy.label}, {policy.steps}", *name, f"step {step}, return {total:.0f}{end}"]
            panels.append(captioned(image, lines))
        return tiled(panels, min(4, len(panels))).quantize(64)

    pictures = map(draw, range(1, count))
    durations = [max(20, round(1000 * every / fps, -1))] * (count - 1) + [2000]  # milliseconds
    draw(0).save(part, "GIF", save_all=True, append_images=pictures, duration=durations, loop=0)


def main(args: Args) -> None:
    check_options(args)
    backend = os.environ.pop("MUJOCO_GL", None)  # with one that does not work MuJoCo cannot be imported
    groups = load_groups(args)
    policies = [policy for group in groups for policy in group]
    if args.video:
        choose_backend(policies[0].env, backend, args.video)
    torch.set_num_threads(1)  # small networks
    script, seeds = policies[0].script, [reset_seed(args, i) for i in range(args.episodes)]
    envs = [script.make_env(policies[0].env) for _ in range(min(SIDE_BY_SIDE, args.episodes))]
    try:
        for policy in policies:
            policy.scores = play(policy, envs, seeds, args)
        print_scores(groups, args)
        print_differences(groups)
        if args.out:
            write_atomically(args.out, lambda part: write_csv_file(part, policies, args))
            print(f"wrote {args.out}: {len(policies) * args.episodes:,} episodes")
        if args.video:
            write = write_gif if args.video.suffix == ".gif" else write_strip
            write_atomically(args.video, lambda part: write(part, policies, args))
            print(f"wrote {args.video}: episode 0 of each policy")
    except (KeyboardInterrupt, OSError) as error:
        fail(f"stopped before the end ({str(error) or 'interrupted'})")


if __name__ == "__main__":
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # no link in tyro's box
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
