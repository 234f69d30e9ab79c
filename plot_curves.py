"""Overlay the learning curves of all runs in a folder, and print the table that goes with them.

Reads    <runs>/<env>/<run>/seed<k>/{config.json, eval.csv}, and metrics.csv with --metric
Writes   <out>.png and <out>.svg, one panel per environment; without --metric also the table, as <out>.csv
         and, with a row per seed, as <out>.md. Equal runs give equal bytes
Run      python plot_curves.py runs/
         python plot_curves.py runs/ --x total --rename 'SAC finetuned, Q-filter 25=with the Q-filter'

A label, read from config.json, is the script in plain words and the options that set a run apart. A score is
the mean over an evaluation's episodes, per seed: undiscounted return, or percent with --y score. A line is
the mean over the seeds that have the step, the band its 95% percentile bootstrap interval (of two or three
seeds from the lowest to the highest). Dotted: the last score of a run without an online phase.

Each quantity of the table is taken per seed, then over seeds: the mean, unless said otherwise.
    offline     score of the policy that the online phase starts from, at env_step 0 (`start` says whether it
                was pretrained or untrained); of a run without an online phase, its last score
    final       score of the last evaluation, never of the best one, also of a seed that stopped early;
                final_low and final_high: its interval; final_std, offline_std: deviations over seeds (n - 1)
    iqm         interquartile mean of the final scores (see `iqm`), with its own interval
    last_five   mean score of the last five evaluations of the same phase (of all where there are fewer)
    delta       final - offline
    drop        deepest fall below the offline score, max(0, max_t(offline - score_t)). It is a maximum over
                noisy evaluations: a small drop is seen even where the policy never got worse
    recovery    length in env steps of the excursion that holds the deepest evaluation: from the last one
                before it at or above the offline score, to the first one after it that is at or above again
                and whose mean with the next two (as far as there are any) is so too: one lucky evaluation is
                no recovery. 0 where no score is below. Over seeds the median, in which "not recovered" counts
                as longest; `recovered` counts the seeds that came back or never fell
    auc         trapezoid area under the online scores divided by their length in env steps: a mean score
"""

import csv
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

os.environ["MPLBACKEND"] = "agg"  # only files are drawn; a notebook's or a mistyped backend stops the import

import matplotlib
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import bootstrap

# Okabe & Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color/, its pale yellow left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # the next one once the colours are used up
Y_LABELS = {"return": "evaluation return", "score": "normalised score (%)"}
QUANTITIES = ("offline", "final", "last_five", "delta", "drop", "recovery", "auc")
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
# What a script starts from by itself; the others start from their own runs.
USUAL_SOURCES = {"online_finetune_sac": "offline_pretrain_sac", "td3_c": "td3_bc"}
BUNDLED = ("hopper/medium-replay-v0", "hopper/medium-v0")  # self-collected, not D4RL's
WORDS = {  # of an option and its value; any other option: its name and the value
    "anneal": "{}",
    "awac_lambda": "temperature {}",
    "cql_alpha": "alpha {}",
    "num_candidates": "best of {}",
    "num_critics": "{} critics",
    "online_only": "{}",
    "q_filter_actions": "Q of {} actions",
    "q_filter_percentile": "Q-filter {}",
    "q_filter_value": "Q-filter at {}",
    "q_filter_weight": "filter weight {}",
    "run": "{}",
    "source": "from {}",
}
# Named wherever they are on, as are the options that anneal another (*_end).
TREATMENTS = ("source", "epsilon", "online_only", "offline_ratio", "bc_alpha", "num_candidates")
TREATMENTS += ("q_filter_percentile", "q_filter_value")
OFF = (None, False, 0, math.inf)
# Named only where two runs would have one label, in this order until they differ; and never.
LATE = ("offline_steps", "online_steps", "pretraining_steps", "format", "script", "eval_every")
LATE += ("eval_episodes", "compile", "device", "num_seeds", "seed", "runs_dir", "run")
NEVER = ("env", "overwrite", "resume", "checkpoint_every", "keep_replay", "log_every", "track", "scratch")
NEVER += ("dataset", "checkpoint")


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


class Seed(NamedTuple):
    """One seed of a run. `series[phase]` is (steps (T,), values (T,)): updates offline, env steps online."""

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
        """How far it got, such as 'online 12k of 50k'."""
        reached, planned = self.series[self.phase][0][-1], self.config["args"].get(f"{self.phase}_steps")
        return f"{self.phase} {short(reached)}" + (f" of {short(planned)}" if planned else "")


class Curve:
    """One run, its seeds, and how it is drawn."""

    def __init__(self, env, run, seeds):
        self.env, self.run, self.seeds, self.config = env, run, seeds, seeds[0].config
        self.phases = {phase for seed in seeds for phase in seed.series}
        self.offset = float(np.mean([seed.offset for seed in seeds]))
        checkpoints = [seed.config["checkpoint"] for seed in seeds]
        paths = [checkpoint.get("path") or i for i, checkpoint in enumerate(checkpoints)]
        starts = max(len(set(paths)), checkpoints[0].get("starts", self.config.get("num_seeds", 1)))
        self.start = checkpoints[0].get("run", run), paths[0], starts  # equal where curves start alike
        self.share_starts = starts < len(seeds)
        self.count = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
        if self.share_starts:
            self.count += f" from {starts} starts" if starts > 1 else " from one start"

    @property
    def name(self):
        """The label, which tells where seeds share a start."""
        return f"{self.label}, {self.count}" if self.share_starts else self.label

    @property
    def status(self):
        """'finished', or what became of the other seeds and how far the shortest one got."""
        cut = [seed for seed in self.seeds if seed.config["status"] != "finished"]
        if not cut:
            return "finished"
        some = f"{len(cut)} of {len(self.seeds)} seeds " if len(cut) < len(self.seeds) else ""
        shortest = min(cut, key=last_step)
        return f"{some}{shortest.config['status']}, {shortest.progress}"


def last_step(seed):
    return seed.phase, seed.series[seed.phase][0][-1]


def fail(message: str) -> NoReturn:
    """Bad input: one line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def short(number, _=None):
    """12000 -> '12k', for steps and ticks."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def read_config(path):
    """The config.json of a run; None if it is missing, cut or something else's."""
    try:
        config = json.loads(path.read_text())
        dicts = {name: config.get(name) or {} for name in ("args", "checkpoint", "dataset", "shape")}
        texts = {name: config[name] for name in ("script", "env", "status")}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if {type(part) for part in dicts.values()} != {dict} or {type(text) for text in texts.values()} != {str}:
        return None
    dicts["args"] = {name: math.inf if value == "inf" else value for name, value in dicts["args"].items()}
    status = {"running": "running or killed"}.get(config["status"], config["status"])
    return {"format": 1, "scores": None} | config | dicts | {"status": status}


def read_rows(path):
    """The whole lines of a CSV as dicts; a killed run may leave the last line unfinished."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def to_series(rows, key, column):
    """Mean over the rows (episodes, told apart by `key`) of each step, as {phase: (steps (T,), values (T,))}.

    A row written again after a resume replaces the first one. A last evaluation with fewer episodes than
    the one before was cut short, and is left out.
    """
    values = {"offline": {}, "online": {}}
    for row in rows:
        try:
            step = int(row["env_step"] if row["phase"] == "online" else row["gradient_step"])
            if math.isfinite(float(row[column])):
                values[row["phase"]].setdefault(step, {})[row[key]] = float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
    series = {}
    for phase in [phase for phase in values if values[phase]]:
        steps = sorted(values[phase])
        if len(steps) > 1 and len(values[phase][steps[-1]]) < len(values[phase][steps[-2]]):
            steps.pop()
        means = [np.mean(list(values[phase][step].values())) for step in steps]
        series[phase] = np.array(steps), np.array(means)
    return series


def load_seed(folder, config, args):
    rows = read_rows(folder / "eval.csv")
    starts = to_series(rows, "episode", "gradient_step").get("online")
    if args.metric:
        rows = [row for row in read_rows(folder / "metrics.csv") if row.get("name") == args.metric]
        series = to_series(rows, "name", "value")
    elif args.y == "score" and config["format"] == 1:
        series = to_series(rows, "episode", "normalized_score")
    else:
        series = to_series(rows, "episode", "return")
        if args.y == "score":
            low, high = config["scores"] or (0, math.inf)
            series = {phase: (steps, 100 * (v - low) / (high - low)) for phase, (steps, v) in series.items()}
            series = series if config["scores"] else {}
    return Seed(int(folder.name[4:]), config, series, int(starts[1][0]) if starts else 0)


def find_curves(args):
    """All runs in the given folders, and notes. The seeds of a run may lie in several of the folders."""
    seeds, runs, notes = {}, {}, {}
    for root in args.runs:
        if not root.is_dir():
            fail(f"runs: {root} is not a folder; give the folder the training scripts wrote, such as runs/")
        folders = [path.resolve() for path in (root, *root.rglob("seed*")) if path.is_dir()]
        folders = [path for path in folders if re.fullmatch(r"seed\d+", path.name)]
        if not folders:
            fail(f"runs: {root} holds no run; looked for <env>/<run>/seed<k> folders in it")
        for folder in folders:
            config = read_config(folder / "config.json")
            if not config:
                notes[folder] = f"{folder}: skipped, its config.json is missing, cut or not a run's"
                continue
            key = config["env"], folder.parent.name, config["format"], int(folder.name[4:])
            other = seeds.setdefault(key, (folder, config))[0]
            if other != folder:
                fail(f"runs: {other} and {folder} are the same run and seed; give one of them, or rename one")
    for (env, run, house, _), (folder, config) in sorted(seeds.items()):
        runs.setdefault((env, run, house), []).append(load_seed(folder, config, args))
    curves = [Curve(env, run, own_seeds) for (env, run, _), own_seeds in runs.items()]
    return curves, [notes[folder] for folder in sorted(notes)]


def method_words(config):
    """What a run is: 'SAC finetuned', 'TD3-C online', 'CQL pretrained'."""
    script, args = config["script"], config["args"]
    method = METHODS.get(script, script)
    if script == "td3_c" and args.get("epsilon") == math.inf:
        method = "TD3+BC" if args.get("alpha") else "TD3"
    if not args.get("online_steps"):
        return f"{method} pretrained"
    if config["checkpoint"]:
        return "SAC finetuned" if script == "online_finetune_sac" else f"{method} online"
    if args.get("offline_steps"):
        return method
    return f"{method} from scratch with data" if config["dataset"] else f"{method} from scratch"


def data_words(config):
    """'' without a dataset."""
    if not config["dataset"]:
        return ""
    words = f"{config['dataset'].get('name')} data"
    return f"self-collected {words}" if config["dataset"].get("source") in BUNDLED else words


def read_options(curve, scripts):
    """{option: value} of what may set a run apart; None: not given. `scripts` is {run: script} of all."""
    config, checkpoint = curve.config, curve.config["checkpoint"]
    source = checkpoint.get("script") or scripts.get(checkpoint.get("run"), config["script"])
    usual = source in (config["script"], USUAL_SOURCES.get(config["script"]))
    options = {"source": None if usual else METHODS.get(source, source), "online_only": None}
    options |= (config["shape"] or checkpoint.get("shape", {})) | config["args"]
    if options.get("epsilon") == math.inf:
        options.pop("dual_lr", None)  # without effect, and the first house changed its default
    if not options.get("online_steps"):
        options.pop("num_candidates", None)
    for name in [name for name in options if name.endswith("_end") and options[name] is not None]:
        start = options.pop(name.removesuffix("_end"), None)
        options[name] = f"{option_text(start)} to {option_text(options[name])}"
    if options.pop("replay", None) == "online" or options.get("offline_ratio") == 0:
        options["online_only"] = "online rows only"  # the first house had --replay online for a ratio of 0
    facts = {"script": config["script"], "format": config["format"], "run": curve.run}
    facts["pretraining_steps"] = checkpoint.get("gradient_step")
    return {name: None if value == "none" else value for name, value in (options | facts).items()}


def option_text(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return short(value) if isinstance(value, int | float) else str(value)


def option_words(name, value):
    name = name.removesuffix("_end")
    return WORDS.get(name, name.replace("_", " ") + " {}").format(option_text(value))


def same_labels(curves):
    """Groups of curves that have one label in one environment."""
    groups = {}
    for curve in curves:
        groups.setdefault((curve.env, curve.label), []).append(curve)
    return [group for group in groups.values() if len(group) > 1]


def is_treatment(name):
    return name in TREATMENTS or name.endswith("_end")


def name_option(group, name):
    """Adds an option that differs to the labels of the group, except where it is what it is in most runs."""
    values = [curve.options[name] for curve in group if name in curve.options]
    usual = [value for value in values if 2 * values.count(value) > len(values)]
    for curve in group:
        value = curve.options.get(name)
        if value is not None and value not in usual:
            curve.label += f", {option_words(name, value)}"


def set_labels(curves):
    """Each curve's method, the treatments that are on, and what else sets it apart on the picture."""
    scripts = {curve.run: curve.config["script"] for curve in curves}
    for curve in curves:
        curve.options, curve.label = read_options(curve, scripts), method_words(curve.config)
    methods = same_labels(curves)
    num_datasets = len({data_words(curve.config) for curve in curves} - {""})
    for curve in curves:
        words = [data_words(curve.config)] if num_datasets > 1 and curve.config["dataset"] else []
        for name, value in curve.options.items():
            if is_treatment(name) and value not in OFF:
                words.append(option_words(name, value))
        curve.label = ", ".join([curve.label, *words])
    names = dict.fromkeys(name for curve in curves for name in curve.options)
    for name in [name for name in names if name not in (*LATE, *NEVER) and not is_treatment(name)]:
        for group in methods:
            name_option(group, name)
    for name in LATE:
        for group in same_labels(curves):
            name_option(group, name)


def rename(curves, pairs):
    """Applies --rename OLD=NEW."""
    labels = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        named = [i for i, curve in enumerate(curves) if old in (curve.label, curve.name, curve.run)]
        if not new or not named:
            fail(f"--rename {pair}: write OLD=NEW, OLD one of: {', '.join(sorted(c.label for c in curves))}")
        labels |= dict.fromkeys(named, new)
    for i, label in labels.items():
        curves[i].label = label
    if same_labels(curves):
        fail(f"--rename: two runs would be called {same_labels(curves)[0][0].label}")


def select(curves, patterns, option, names):
    """The curves with a pattern among their names, else those with a name that it matches or is part of."""
    chosen = set() if patterns else {*curves}
    pairs = [(curve, name) for curve, own in zip(curves, names, strict=True) for name in own]
    for pattern in patterns:
        exact = {curve for curve, name in pairs if name == pattern}
        parts = {curve for curve, name in pairs if fnmatchcase(name, pattern) or pattern in name}
        if not parts:
            choices = ", ".join(sorted({own[0] for own in names}))
            fail(f"{option} {pattern}: matches no run; choose among: {choices}")
        chosen |= exact or parts
    return [curve for curve in curves if curve in chosen]


def reading_order(curve):
    scripts = [*METHODS, curve.config["script"]]
    return curve.env, scripts.index(curve.config["script"]), curve.label


def choose_curves(curves, args):
    """The curves to draw, in reading order, with labels and colours; and notes on what is left out."""
    curves = select(curves, args.env, "--env", [(curve.env,) for curve in curves])
    set_labels(curves)
    curves = select(curves, args.label, "--label", [(curve.label, curve.run) for curve in curves])
    plotted, notes = [], []
    for curve in curves:
        seeds = [seed for seed in curve.seeds if seed.series]
        missing = len(curve.seeds) - len(seeds)
        if missing:
            what = f"{missing} of {len(curve.seeds)} seeds left out, no {args.metric or args.y} in the files"
            notes.append(f"{curve.env}/{curve.run}: {what}")
        if seeds:
            plotted.append(Curve(curve.env, curve.run, seeds))
    if not plotted and args.metric:
        rows = [row for root in args.runs for path in root.rglob("metrics.csv") for row in read_rows(path)]
        names = sorted({row["name"] for row in rows if "name" in row})
        fail(f"--metric {args.metric}: no run has it; choose among: {', '.join(names)}")
    if not plotted:
        fail(f"--y {args.y}: no run has one yet; wait for an evaluation, or use --y return")
    set_labels(plotted)
    rename(plotted, args.rename)
    plotted.sort(key=reading_order)
    labels = list(dict.fromkeys(curve.label for curve in plotted))
    for curve in plotted:
        turn, color = divmod(labels.index(curve.label), len(COLORS))
        curve.color, curve.style = COLORS[color], LINE_STYLES[turn % len(LINE_STYLES)]
    return plotted, notes


def align(seeds, phase):
    """Steps (T,) that any seed has in this phase, and values (n, T), NaN where a seed has none."""
    series = [seed.series.get(phase, ([], [])) for seed in seeds]
    all_steps = np.unique(np.concatenate([steps for steps, _ in series]))
    aligned = np.full((len(series), len(all_steps)), np.nan)
    for row, (steps, values) in zip(aligned, series, strict=True):
        row[np.searchsorted(all_steps, steps)] = values
    return all_steps, aligned


def iqm(values, axis=-1):
    """Interquartile mean, the mean of the middle half (Agarwal et al. 2021).

    The i-th of n sorted values weighs as much as [i/n, (i+1)/n] has in common with [1/4, 3/4]: where 4
    divides n this is the 25% trimmed mean, and three values weigh 1/6, 2/3, 1/6.
    """
    edges = np.clip(np.linspace(0, 1, np.shape(values)[axis] + 1), 0.25, 0.75)
    return np.average(np.sort(values, axis=axis), axis=axis, weights=np.diff(edges))


def bootstrap_interval(values, statistic=np.mean):
    """95% percentile bootstrap interval (low, high) of a statistic of values (n,); NaN for fewer than two."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    return bootstrap((values,), statistic, method="percentile", n_resamples=2000, rng=rng).confidence_interval


def recovery_steps(steps, scores):
    """Length in env steps of the deepest excursion below scores[0]; 0: none, inf: not recovered (see top)."""
    deepest = int(np.argmin(scores))
    if scores[deepest] >= scores[0]:
        return 0.0
    start = np.flatnonzero(scores[:deepest] >= scores[0])[-1]
    for i in range(deepest + 1, len(scores)):
        if scores[i] >= scores[0] and scores[i : i + 3].mean() >= scores[0]:
            return float(steps[i] - steps[start])
    return math.inf


def summarise_seed(seed):
    """The table's quantities for one seed, as defined at the top; NaN where one does not apply."""
    steps, scores = seed.series[seed.phase]
    row = {"seed": seed.number, "status": seed.config["status"], "progress": seed.progress}
    row |= dict.fromkeys(QUANTITIES, np.nan)
    row |= {"final": scores[-1], "last_five": scores[-5:].mean()}
    if seed.phase == "offline":
        return row | {"offline": scores[-1]}
    if len(steps) > 1:
        row["auc"] = np.trapezoid(scores, steps) / (steps[-1] - steps[0])
    if steps[0] == 0:
        row |= {"offline": scores[0], "delta": scores[-1] - scores[0], "drop": scores[0] - scores.min()}
        row["recovery"] = recovery_steps(steps, scores)
    return row


def summarise(curve):
    """The table's row of a run, {column: value}, and the rows of its seeds."""
    rows = [summarise_seed(seed) for seed in curve.seeds]
    start = "pretrained" if curve.offset else "untrained"
    if "online" not in curve.phases:
        start = "no online phase"
    row = {"env": curve.env, "run": curve.run, "label": curve.name}
    row |= {"seeds": len(rows), "status": curve.status, "start": start}
    columns = {key: np.array([seed_row[key] for seed_row in rows]) for key in QUANTITIES}
    columns = {key: column[~np.isnan(column)] for key, column in columns.items()}
    row |= {key: column.mean() if len(column) else np.nan for key, column in columns.items()}
    row["recovered"] = np.nan
    if len(columns["recovery"]):
        row["recovery"] = np.median(columns["recovery"])
        row["recovered"] = int(np.isfinite(columns["recovery"]).sum())
    row["final_low"], row["final_high"] = bootstrap_interval(columns["final"])
    for key in ("offline", "final"):
        row[f"{key}_std"] = columns[key].std(ddof=1) if len(columns[key]) > 1 else np.nan
    row["iqm"] = iqm(columns["final"])
    row["iqm_low"], row["iqm_high"] = bootstrap_interval(columns["final"], iqm)
    return row, [{"label": curve.label} | seed_row for seed_row in rows]


def text(value):
    """A table's cell."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "not recovered"
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.1f}"


def print_table(env, rows):
    """The columns most looked at, and the label at the end of the line, where its length does no harm."""
    layout = "{:>5} {:>7} {:>6} {:>14} {:>6} {:>13} {:>6}  {}"
    print(f"\n{env}")
    print(layout.format("seeds", "offline", "final", "95% interval", "drop", "recovery", "auc", "run"))
    for row in rows:
        interval = f"{text(row['final_low'])} to {text(row['final_high'])}" if row["seeds"] > 1 else "-"
        recovery = short(row["recovery"]) if math.isfinite(row["recovery"]) else text(row["recovery"])
        if row["recovered"] < row["seeds"]:
            recovery = f"{recovery.replace('not recovered', 'never')} ({row['recovered']} of {row['seeds']})"
        score = [text(row[key]) for key in ("seeds", "offline", "final")]
        label = row["label"] if row["status"] == "finished" else f"{row['label']} ({row['status']})"
        print(layout.format(*score, interval, text(row["drop"]), recovery, text(row["auc"]), label))


def markdown_table(rows):
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[text(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_cell(value):
    if not isinstance(value, float):
        return value
    return round(float(value), 4) if math.isfinite(value) else text(value).strip("-")


def write_tables(prefix, tables, notes, y):
    """The table as .csv, and as .md with a row per seed; `tables` is {env: (rows, rows of seeds)}."""
    document = f"# Learning curves\n\n![curves]({prefix.name}.png)\n\nScores: {Y_LABELS[y]}. "
    document += "The columns are defined at the top of `plot_curves.py`.\n"
    for env, (rows, seed_rows) in tables.items():
        document += f"\n## {env}\n\n{markdown_table(rows)}\n\nPer seed:\n\n{markdown_table(seed_rows)}\n"
    document += "".join(f"\n- {note}" for note in notes) + "\n" * bool(notes)
    Path(f"{prefix}.md").write_text(document)
    with open(f"{prefix}.csv", "w", newline="") as file:
        rows = [row | {"y": y} for rows, _ in tables.values() for row in rows]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([rows[0], *([csv_cell(value) for value in row.values()] for row in rows)])


def draw_curve(ax, curve, total, faint):
    """Mean and band of the phases on the x axis, or a dotted line at the last score."""
    name = f"{curve.label}, {curve.count}"
    if curve.status != "finished":
        name += f" ({curve.status})"
    look = {"color": curve.color, "lw": 1.2 if faint else 1.8}
    if not total and "online" not in curve.phases:
        final = np.mean([seed.series["offline"][1][-1] for seed in curve.seeds])
        ax.axhline(final, **look, ls=":", label=f"{name}: last score")
        return
    for phase in sorted(curve.phases if total else curve.phases & {"online"}):
        x, values = align(curve.seeds, phase)
        if total and phase == "online":
            x = x + curve.offset
        low, high = np.transpose([bootstrap_interval(column) for column in values.T])
        marker = "." if len(x) == 1 else None
        ax.plot(x, np.nanmean(values, axis=0), **look, ls=curve.style, marker=marker, label=name)
        ax.fill_between(x, low, high, color=curve.color, alpha=0.06 if faint else 0.16, lw=0, zorder=1)


def draw_starts(ax, curves, total, scores):
    """The pretrained scores, each once, and where the online phases start if the offline ones are drawn."""
    grey = {"color": "0.4", "lw": 1.0, "zorder": 1.5}
    dotted = {(curve.run, len(curve.seeds)) for curve in curves if not total and "online" not in curve.phases}
    starts = {curve.start: curve for curve in reversed(curves) if "online" in curve.phases and curve.offset}
    for (run, _, num_starts), curve in starts.items():
        steps, values = align(curve.seeds, "online")
        if scores and steps[0] == 0 and (run, num_starts) not in dotted:
            ax.axhline(np.nanmean(values[:, 0]), **grey, ls="--", label="pretrained score")
    if total:
        for offset in sorted({curve.offset for curve in starts.values()}):
            ax.axvline(offset, **grey, ls="-.", label="online phase starts")


def draw_panel(ax, env, curves, args):
    """One environment. Without any online phase the x axis counts gradient updates."""
    online = any("online" in curve.phases for curve in curves)
    total = args.x == "total" or not online
    for curve in curves:
        draw_curve(ax, curve, total, faint=len(curves) > 4)
    draw_starts(ax, curves, total, scores=not args.metric)
    x_label = "online env steps"
    if total:
        x_label = "offline gradient updates + online env steps" if online else "offline gradient updates"
    datasets = {data_words(curve.config) for curve in curves} - {""}
    title = f"{env}, {datasets.pop()}" if len(datasets) == 1 else env
    ax.set(title=textwrap.fill(title, 46), xlabel=x_label, ylabel=args.metric or Y_LABELS[args.y])
    ax.xaxis.set_major_formatter(short)
    ax.margins(x=0.02)
    ax.grid(color="0.92", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def make_figure(panels, args):
    """One panel per environment, and one legend below them all, where it covers nothing."""
    num_columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    handles = {}
    for ax, (env, curves) in zip(axes, panels.items(), strict=False):
        draw_panel(ax, env, curves, args)
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for ax in axes[len(panels) :]:
        ax.remove()
    most_seeds = max(len(curve.seeds) for curves in panels.values() for curve in curves)
    if most_seeds > 1:
        band = "lowest to highest seed" if most_seeds <= 3 else "95% bootstrap interval over seeds"
        handles[band] = Patch(color="0.45", alpha=0.3, lw=0)
    legend_columns = 2 if len(handles) > 3 and max(map(len, handles)) <= 45 else 1
    where = {"loc": "outside lower center", "ncols": legend_columns, "frameon": False, "handlelength": 2.5}
    labels = [textwrap.fill(label, 95) for label in handles]
    figure.legend(handles.values(), labels, fontsize=9, **where)
    legend_rows = math.ceil(len(handles) / legend_columns)
    figure.set_size_inches(7.2 if num_columns == 1 else 9.6, 4.2 * num_rows + 0.2 * legend_rows)
    return figure


def output_prefix(args):
    """The path that the suffixes are added to."""
    name = "-".join(["curves", *re.findall(r"\w+", args.metric)])
    if not args.out:
        return args.runs[0] / name
    if args.out.endswith("/") or Path(args.out).is_dir():
        return Path(args.out) / name
    return Path(re.sub(r"\.(png|svg|md|csv)$", "", args.out))


def main(args):
    curves, notes = find_curves(args)
    curves, left_out = choose_curves(curves, args)
    notes += left_out
    panels, tables, prefix = {}, {}, output_prefix(args)
    for curve in curves:
        panels.setdefault(curve.env, []).append(curve)
        row, seed_rows = summarise(curve)
        rows = tables.setdefault(curve.env, ([], []))
        rows[0].append(row)
        rows[1].extend(seed_rows)
    figure, suffixes = make_figure(panels, args), ["png", "svg"]
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": "curves"}):
            figure.savefig(f"{prefix}.png", dpi=150)
            figure.savefig(f"{prefix}.svg", metadata={"Date": None})
        if not args.metric:
            write_tables(prefix, tables, notes, args.y)
            suffixes += ["md", "csv"]
    except OSError as error:
        fail(f"--out {prefix}: {error.strerror or error}; name a folder or prefix that can be written")
    if not args.metric:
        for env, (rows, _) in tables.items():
            print_table(env, rows)
    lines = [f"note: {note}" for note in notes] + [f"wrote {prefix}.{suffix}" for suffix in suffixes]
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Args))
