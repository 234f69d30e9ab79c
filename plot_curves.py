"""Overlay the learning curves of all runs in a folder, and print the table that goes with them.

Reads    <runs>/<env>/<run>/seed<k>/{config.json, eval.csv}, and metrics.csv with --metric.
Writes   <out>.png and <out>.svg, one panel per environment; without --metric also the table, as <out>.csv (one
         row per run) and <out>.md (the same, and one row per seed). Equal runs give equal bytes.
Run      python plot_curves.py runs/
         python plot_curves.py runs/ --x total --label 'SAC finetuned*' --out figures/finetune
         python plot_curves.py runs/ --rename 'SAC finetuned, Q-filter 25=with the Q-filter'

A label is the script in plain words and the options that set a run apart from the others on the picture; it is
made from config.json. The score of an evaluation is the mean over its episodes, per seed: undiscounted return,
or percent with --y score. A line is the mean over the seeds that have an evaluation at that step, the band its
95% percentile bootstrap interval (of two or three seeds, its ends are the lowest and the highest); one seed
alone has no band. Dotted: the last score of a run without an online phase. Dashed: any other pretrained score.

Each quantity of the table is taken per seed, then over seeds: the mean, unless said otherwise.
    offline     score of the policy that the online phase starts from, at env_step 0 (`start` says whether it
                was pretrained or untrained); of a run without an online phase, its last score
    final       score of the last evaluation, never of the best one, also of a seed that stopped early;
                final_low and final_high are the ends of the bootstrap interval of the mean; offline_std and
                final_std the standard deviations over seeds (n - 1)
    iqm         interquartile mean of the final scores (see `iqm`), with its own interval
    last_five   mean score of the last five evaluations of the same phase (of all where there are fewer)
    delta       final - offline
    drop        deepest fall below the offline score, max(0, max_t(offline - score_t)). It is a maximum over
                noisy evaluations: a small drop is seen even where the policy never got worse
    recovery    length in env steps of the excursion that holds the deepest evaluation: from the last
                evaluation before it at or above the offline score, to the first one after it that is at or
                above again and whose mean with the next two (as far as there are any) is so too: one lucky
                evaluation is no recovery. 0 where no score is below. Over seeds the median, in which "not
                recovered" counts as longest; `recovered` counts the seeds that came back or never fell
    auc         trapezoid area under the online scores divided by their length in env steps: a mean score
"""

import csv
import json
import math
import os
import re
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NoReturn

os.environ["MPLBACKEND"] = "agg"  # only files are drawn; a notebook's or a mistyped backend stops the import

import matplotlib
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import bootstrap

# Okabe & Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color/, its pale yellow left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # the next one once the colours are used up
PHASES = ("offline", "online")
UNITS = {"offline": "gradient updates", "online": "env steps"}
Y_LABELS = {"return": "evaluation return", "score": "normalised score (%)"}
METHODS = {
    "sac_scratch": "SAC",
    "offline_pretrain_sac": "SAC",
    "online_finetune_sac": "SAC",
    "td3_bc": "TD3+BC",
    "td3_c": "TD3-C",
    "cql_sac": "CQL",
    "iql": "IQL",
    "awac": "AWAC",
    "o3f_select": "O3F (LAPO)",
}
USUAL_SOURCES = {"online_finetune_sac": "offline_pretrain_sac", "td3_c": "td3_bc"}  # others: the script itself
BUNDLED = ("hopper/medium-replay-v0", "hopper/medium-v0")  # self-collected, not D4RL's
WORDS = {  # of an option with its value; any other is its name and the value
    "actor_lr": "actor rate {}",
    "awac_lambda": "temperature {}",
    "anneal": "{}",
    "bc_alpha": "cloning bonus {}",
    "cql_alpha": "alpha {}",
    "critic_lr": "critic rate {}",
    "dual_lr": "dual rate {}",
    "layer_norm": "LayerNorm {}",
    "num_candidates": "best of {}",
    "num_critics": "{} critics",
    "q_filter_actions": "Q of {} actions",
    "q_filter_percentile": "Q-filter {}",
    "q_filter_value": "Q-filter at {}",
    "q_filter_weight": "filter weight {}",
    "script": "{}.py",
    "source": "from {}",
}
# Treatments and the value that means "off": named wherever they are on.
OFF = {
    "q_filter_percentile": 0,
    "q_filter_value": None,
    "num_candidates": 0,
    "epsilon": math.inf,
    "offline_ratio": None,
    "bc_alpha": 0,
    "source": None,
}
NEEDS = {  # options without effect unless one of these treatments is on
    "q_filter_weight": ("q_filter_percentile", "q_filter_value"),
    "q_filter_actions": ("q_filter_percentile", "q_filter_value"),
    "candidate_std": ("num_candidates",),
    "optimism": ("num_candidates",),
    "dual_init": ("epsilon",),
    "dual_lr": ("epsilon",),
}
# Options that are named only where two runs would have one label, and those that never are.
STEPS = ("offline_steps", "online_steps", "pretraining_steps")
LAST_RESORT = ("eval_every", "eval_episodes", "compile", "device", "num_seeds", "seed", "script", "format")
NEVER = ("env", "runs_dir", "overwrite", "resume", "checkpoint", "checkpoint_every", "keep_replay", "log_every")
NEVER += ("track", "scratch", "obs_dim", "action_dim")


@dataclass
class Args:
    """Overlay the learning curves of all runs found (mean over seeds, 95% bootstrap interval) and tabulate
    offline and final score, drop and recovery. `--env` and `--label` take an exact name, a part of one or a
    quoted glob ('*filter 25'); these and `--rename` may be repeated."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)  # folders to search for runs
    x: Literal["online", "total"] = "online"  # online env steps, or offline gradient updates + env steps
    y: Literal["return", "score"] = "return"  # undiscounted return, or normalised score in percent
    metric: str = ""  # plot this name from metrics.csv instead, without a table
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these environments
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # only these runs, by label or name of the folder
    rename: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # OLD=NEW label; OLD is a label or a run's folder
    out: str = ""  # folder or file prefix; empty: curves.* in the first folder of runs


@dataclass
class Seed:
    """One seed of a run. `series[phase]` is (steps (T,), values (T,)); steps as in UNITS."""

    folder: Path
    number: int
    config: dict
    series: dict
    offset: int  # gradient step of the policy that the online phase starts from; 0: untrained

    @property
    def phase(self):
        """The phase that the results are about: the last one that has values."""
        return "online" if "online" in self.series else "offline"

    @property
    def progress(self):
        """How far it got, such as '12k of 50k'."""
        planned = self.config["args"].get(f"{self.phase}_steps")
        reached = short(self.series[self.phase][0][-1])
        return f"{reached} of {short(planned)}" if planned else reached

    @property
    def status(self):
        status = self.config.get("status", "status unknown")
        return "running or killed" if status == "running" else status


@dataclass
class Curve:
    """One run with its seeds, and how it is drawn."""

    env: str
    run: str
    seeds: list
    label: str = ""
    color: str = ""
    style: object = "-"

    @property
    def config(self):
        return self.seeds[0].config

    @property
    def offset(self):
        return float(np.mean([seed.offset for seed in self.seeds]))

    @property
    def num_starts(self):
        """Different checkpoints that the seeds start from; as many as seeds where there is none."""
        checkpoints = [seed.config.get("checkpoint") or {} for seed in self.seeds]
        paths = {checkpoint.get("path", i) for i, checkpoint in enumerate(checkpoints)}
        return max(len(paths), *[checkpoint.get("starts", 1) for checkpoint in checkpoints])

    @property
    def name(self):
        """The label, and the number of seeds where they share a start."""
        if self.num_starts >= len(self.seeds):
            return self.label
        starts = "one start" if self.num_starts == 1 else f"{self.num_starts} starts"
        return f"{self.label}, {len(self.seeds)} seeds from {starts}"

    @property
    def incomplete(self):
        """What is missing, for the legend and the table; '' when all seeds have finished."""
        unfinished = [seed for seed in self.seeds if seed.status != "finished"]
        if not unfinished:
            return ""
        offline = [seed for seed in unfinished if seed.phase == "offline"]
        reached = min(offline or unfinished, key=last_step).progress + (" offline" if offline else "")
        some = f"{len(unfinished)} of {len(self.seeds)} seeds " if len(unfinished) < len(self.seeds) else ""
        return f"{some}incomplete, {reached}"

    def has(self, phase):
        return any(phase in seed.series for seed in self.seeds)


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def last_step(seed):
    return seed.series[seed.phase][0][-1]


def short(number, _=None):
    """12000 -> '12k', for steps and ticks."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"
