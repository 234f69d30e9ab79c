"""plot_curves.py on small hand-made runs: numbers, labels, the picture, what is skipped, errors."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plot_curves
from plot_curves import Args

RESULTS = Path(plot_curves.__file__).parent / "results"
PRETRAINED = {"script": "offline_pretrain_sac", "run": "pretraining", "gradient_step": 50_000}
DATA = {"name": "medium-replay", "source": "hopper/medium-replay-v0"}


def write_seed(runs, run, number, rows, script="online_finetune_sac", env="Hopper-v4", args=(), **config):
    """A seed of the second house; `rows` are (phase, gradient_step, env_step, score).

    An evaluation has two episodes, 10 below and 10 above the score.
    """
    folder = runs / env / run / f"seed{number}"
    folder.mkdir(parents=True)
    steps = {phase + "_steps": 4000 for phase in {row[0] for row in rows}}
    starts = (
        PRETRAINED | {"path": "pretraining/seed1", "starts": 3} if script == "online_finetune_sac" else None
    )
    base = {
        "format": 2,
        "script": script,
        "env": env,
        "num_seeds": 3,
        "args": steps | dict(args),
        "scores": [0, 200],
    }
    base |= {"shape": {"num_critics": 2}, "dataset": None, "checkpoint": starts, "status": "finished"}
    (folder / "config.json").write_text(json.dumps(base | config))
    lines = ["phase,gradient_step,env_step,episode,return,length,seconds"]
    for phase, gradient_step, env_step, score in rows:
        lines += [f"{phase},{gradient_step},{env_step},{i},{score + 20 * i - 10},9,1" for i in (0, 1)]
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    return folder


def online(*scores, start=50_000, every=1000):
    return [("online", start + every * i, every * i, score) for i, score in enumerate(scores)]


def offline(*scores, every=10_000):
    return [("offline", every * i, 0, score) for i, score in enumerate(scores)]


def curves_of(*runs, **options):
    args = Args(runs=runs, **options)
    curves, notes = plot_curves.find_curves(args)
    curves, left_out = plot_curves.choose_curves(curves, args)
    return curves, notes + left_out


def labels_of(*runs, **options):
    return [curve.name for curve in curves_of(*runs, **options)[0]]


def draw(*runs, **options):
    """The axes by environment, and the texts of the legend."""
    panels = {}
    for curve in curves_of(*runs, **options)[0]:
        panels.setdefault(curve.env, []).append(curve)
    figure = plot_curves.make_figure(panels, Args(runs=runs, **options))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return dict(zip(panels, figure.axes, strict=True)), legend


def lines_of(ax, style="-"):
    return [(list(x), list(y)) for x, y in (li.get_data() for li in ax.lines if li.get_linestyle() == style)]


def plot(*runs, **options):
    """Rows of curves.csv by label."""
    plot_curves.main(Args(runs=runs, **options))
    with open(runs[0] / "curves.csv", newline="") as file:
        return {row["label"]: row for row in csv.DictReader(file)}


# ---- numbers ----


def test_every_quantity_of_one_seed(tmp_path, capsys):
    write_seed(tmp_path, "run", 1, online(100, 40, 60, 120, 130, 150), num_seeds=1)
    row = plot(tmp_path)["SAC finetuned"]
    words = {"env": "Hopper-v4", "run": "run", "seeds": "1", "status": "finished", "start": "pretrained"}
    assert words.items() <= row.items()
    expected = {"offline": 100, "final": 150, "last_five": 100, "delta": 50, "drop": 60, "recovery": 3000}
    expected |= {"auc": (70 + 50 + 90 + 125 + 140) / 5, "recovered": 1, "iqm": 150}
    assert {key: float(row[key]) for key in expected} == expected
    assert {row[key] for key in ("final_low", "final_high", "iqm_low", "final_std", "offline_std")} == {""}
    assert "    1     100    150              -   60.0            3k   95.0  SAC" in capsys.readouterr().out


def test_quantities_over_seeds(tmp_path):
    for seed, final in enumerate((200, 300, 400, 1000), start=1):
        write_seed(tmp_path, "run", seed, online(100, 50 * seed, final), num_seeds=4)
    (row,) = plot(tmp_path).values()
    expected = {"final": 475, "iqm": 350, "delta": 375, "drop": 50 / 4, "offline_std": 0}
    assert {key: float(row[key]) for key in expected} == expected
    squares = 275**2 + 175**2 + 75**2 + 525**2
    assert float(row["final_std"]) == pytest.approx((squares / 3) ** 0.5, abs=1e-3)
    assert 200 < float(row["final_low"]) < 475 < float(row["final_high"]) < 1000
    document = (tmp_path / "curves.md").read_text()
    assert "| 4 | finished | pretrained | 100 | 475 |" in document
    assert "| SAC finetuned | 4 | finished | online 2k of 4k | 100 | 1000 | 433 |" in document


@pytest.mark.parametrize(
    "scores, expected",
    [
        ((100, 100, 120), 0),
        ((100, 50, 100), 2),
        ((100, 50, 60, 70), math.inf),
        ((100, 90, 110, 120, 30, 40, 110, 120, 130), 3),  # from the last score above, not the first dip
        ((100, 30, 101, 40, 40, 110, 110, 110), 5),  # one lucky evaluation is no recovery
        ((100, 30, 40, 105), 3),  # at the end there is nothing that could confirm it
    ],
)
def test_recovery(scores, expected):
    assert plot_curves.recovery_steps(np.arange(len(scores)), np.array(scores, dtype=float)) == expected


def test_recovery_over_seeds_is_the_median_and_not_recovered_the_longest(tmp_path, capsys):
    for seed, scores in enumerate(((100, 50, 110), (100, 50, 60), (100, 50, 70)), start=1):
        write_seed(tmp_path, "run", seed, online(*scores))
    row = plot(tmp_path)["SAC finetuned"]
    assert (row["recovery"], row["recovered"]) == ("not recovered", "1")
    assert "never (1 of 3)" in capsys.readouterr().out
    write_seed(tmp_path, "run", 4, online(100, 50, 110))
    write_seed(tmp_path, "run", 5, online(100, 110, 110))
    (row,) = [plot_curves.summarise(curve)[0] for curve in curves_of(tmp_path)[0]]
    assert (row["recovery"], row["recovered"]) == (2000, 3)


def test_scratch_and_offline_runs_have_fewer_quantities(tmp_path):
    write_seed(tmp_path, "a", 1, online(5, 50, start=0), script="sac_scratch")
    write_seed(tmp_path, "b", 1, offline(5, 300, 250), script="iql")
    rows = plot(tmp_path)
    scratch, iql = rows["SAC from scratch"], rows["IQL pretrained"]
    assert (scratch["start"], float(scratch["offline"])) == ("untrained", 5)
    assert (iql["start"], float(iql["offline"]), float(iql["final"])) == ("no online phase", 250, 250)
    assert {iql[key] for key in ("delta", "drop", "recovery", "auc", "recovered")} == {""}


def test_iqm_by_hand():
    assert plot_curves.iqm(np.array([0.0, 10.0])) == pytest.approx(5)
    assert plot_curves.iqm(np.array([90.0, 0.0, 30.0])) == pytest.approx((0 + 4 * 30 + 90) / 6)
    ten = np.array([0, 0, 10, 20, 30, 40, 50, 60, 999, 999.0])
    assert plot_curves.iqm(ten) == pytest.approx((0.5 * 10 + 20 + 30 + 40 + 50 + 0.5 * 60) / 5)
    assert plot_curves.iqm(np.array([[1.0, 3.0], [5.0, 9.0]])) == pytest.approx([2, 7])


def test_bootstrap_interval_is_about_four_standard_errors_wide():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, np.nan])
    low, high = plot_curves.bootstrap_interval(values)
    assert (low, high) == plot_curves.bootstrap_interval(values)
    assert high - low == pytest.approx(3.92 * np.std(values[:5]) / np.sqrt(5), rel=0.15)
    assert np.isnan(plot_curves.bootstrap_interval(values[:1])).all()
    assert plot_curves.bootstrap_interval(values[:3]) == (1, 4)  # of three, the lowest and the highest


def test_normalised_score_of_both_houses(tmp_path):
    write_seed(tmp_path, "second", 1, online(100, 50, 300), num_seeds=1)  # scores 0 and 200
    write_seed(tmp_path, "without", 1, online(1, 2, start=0), script="sac_scratch", scores=None)
    first = write_seed(tmp_path, "first", 1, [], script="iql", format=1, args={"online_steps": 9})
    header = "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\n"
    (first / "eval.csv").write_text(header + "online,5,0,0,777,9,12.5,1\n")
    rows = plot(tmp_path, y="score")
    finals = {label: (float(row["final"]), row["y"]) for label, row in rows.items()}
    assert finals == {"SAC finetuned": (150, "score"), "IQL from scratch": (12.5, "score")}
    assert float(rows["SAC finetuned"]["drop"]) == 25


# ---- what is read and what is not ----


def test_half_a_line_half_an_evaluation_and_a_repeated_row(tmp_path):
    folder = write_seed(tmp_path, "run", 1, online(100, 200, 300), status="running")
    with open(folder / "eval.csv", "a") as file:
        file.writelines(
            f"online,51000,1000,{episode},500,9,9\n" for episode in (0, 1)
        )  # again, after a resume
        file.write("online,53000,3000,0,9999,9,2\nonline,53000,3000,1,99")
    (curve,) = curves_of(tmp_path)[0]
    assert plot_curves.summarise(curve)[0]["final"] == 300  # neither a cut number nor one episode of two
    assert list(curve.seeds[0].series["online"][1]) == [100, 500, 300]


@pytest.mark.parametrize(
    "text", [None, '{"script": "iql", "env": "Hop', "[1]", "{}", '{"script": 1, "env": 2}']
)
def test_a_folder_without_a_usable_config_is_skipped_with_a_note(tmp_path, text):
    write_seed(tmp_path, "good", 1, online(100, 200))
    config = write_seed(tmp_path, "bad", 1, online(100, 200)) / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    curves, notes = curves_of(tmp_path)
    assert [curve.run for curve in curves] == ["good"]
    assert notes == [f"{config.parent}: skipped, its config.json is missing, cut or not a run's"]


def test_unfinished_runs_are_marked_and_empty_ones_left_out(tmp_path):
    write_seed(tmp_path, "run", 1, online(100, 200, 300))
    write_seed(tmp_path, "run", 2, online(100, 100), status="failed")
    write_seed(tmp_path, "run", 3, [])
    write_seed(tmp_path, "other", 1, offline(10, 20), script="iql", status="running")
    curves, notes = curves_of(tmp_path)
    unfinished = "1 of 2 seeds failed, online 1k of 4k"
    assert [curve.status for curve in curves] == [unfinished, "running or killed, offline 10k of 4k"]
    assert notes == ["Hopper-v4/run: 1 of 3 seeds left out, no return in the files"]
    axes, legend = draw(tmp_path)
    assert f"SAC finetuned, 2 seeds ({unfinished})" in legend
    assert ([0, 1000, 2000], [100, 150, 300]) in lines_of(
        axes["Hopper-v4"]
    )  # of the seeds that have the step


def test_seeds_of_a_run_in_several_folders_are_one_run(tmp_path):
    write_seed(tmp_path / "one", "run", 1, online(100, 200))
    write_seed(tmp_path / "two", "run", 2, online(100, 200))
    (curve,) = curves_of(tmp_path / "one", tmp_path / "two", tmp_path / "two/Hopper-v4/run")[0]
    assert [seed.number for seed in curve.seeds] == [1, 2]


# ---- labels ----

FIRST_HOUSE = {
    "td3": "TD3+BC online|TD3+BC pretrained|TD3 from scratch|TD3 online"
    "|TD3-C online, epsilon 0.001, dual lr 0.01|TD3-C online, epsilon 1e-05, dual lr 0.001",
    "cql": "SAC finetuned, from CQL|SAC finetuned, from CQL, Q-filter 25|CQL online"
    "|CQL online, alpha 5 to 0, abrupt|CQL online, alpha 5 to 0, linear|CQL pretrained",
    "o3f": "O3F (LAPO) online, best of 1|O3F (LAPO) online, best of 100"
    "|O3F (LAPO) online, best of 100, policy updates per step 5"
    "|O3F (LAPO) online, best of 100, subset size 5|O3F (LAPO) pretrained",
    "random": "SAC from scratch with data, offline ratio 0.5|SAC pretrained|SAC finetuned"
    "|TD3+BC pretrained|TD3 online",
}


@pytest.mark.parametrize("folder", FIRST_HOUSE)
def test_labels_of_the_first_house(folder):
    assert labels_of(RESULTS / folder / "runs") == FIRST_HOUSE[folder].split("|")


def test_labels_name_treatments_always_and_other_options_where_they_differ(tmp_path):
    treatments = {"q_filter_percentile": 25.0, "offline_ratio": 0.0, "epsilon": math.inf, "dual_lr": 0.5}
    write_seed(tmp_path, "a", 1, online(1, 2), args=treatments | {"tau": 0.1})
    assert labels_of(tmp_path) == ["SAC finetuned, online rows only, Q-filter 25"]
    for run, tau in (("b", 0.1), ("c", 0.2)):
        args = {
            "offline_ratio": 0.5,
            "offline_ratio_end": 0.0,
            "tau": tau,
            "dual_lr": 0.7,
            "epsilon": math.inf,
        }
        write_seed(tmp_path, run, 1, online(1, 2), args=args)
    annealed = "SAC finetuned, offline ratio 0.5 to 0"
    assert {*labels_of(tmp_path)} >= {annealed, f"{annealed}, tau 0.2"}


def test_runs_never_share_a_label(tmp_path):
    write_seed(tmp_path, "a", 1, online(1, 2), args={"seed": 1})
    write_seed(tmp_path, "b", 1, online(1, 2), args={"seed": 1})
    assert labels_of(tmp_path) == ["SAC finetuned, a", "SAC finetuned, b"]
    write_seed(tmp_path / "c", "c", 1, offline(1, 2), script="iql", args={"offline_steps": 9000})
    write_seed(tmp_path / "c", "d", 1, offline(1, 2), script="iql", args={"offline_steps": 50_000, "seed": 4})
    assert labels_of(tmp_path / "c") == [
        "IQL pretrained, offline steps 50k",
        "IQL pretrained, offline steps 9k",
    ]


def test_several_seeds_from_one_start_are_called_so(tmp_path):
    for seed in (1, 2):
        write_seed(
            tmp_path, "run", seed, online(1, 2), checkpoint=PRETRAINED | {"path": "seed1", "starts": 1}
        )
    assert labels_of(tmp_path) == ["SAC finetuned, 2 seeds from one start"]
    assert draw(tmp_path)[1][0] == "SAC finetuned, 2 seeds from one start"


def test_data_stand_in_the_title_or_where_they_differ_in_the_labels(tmp_path):
    write_seed(tmp_path, "a", 1, offline(1, 2), script="iql", dataset=DATA)
    assert draw(tmp_path)[0]["Hopper-v4"].get_title() == "Hopper-v4, self-collected medium-replay data"
    write_seed(tmp_path, "b", 1, offline(1, 2), script="iql", dataset={"name": "expert", "source": "x.hdf5"})
    axes, _ = draw(tmp_path)
    assert axes["Hopper-v4"].get_title() == "Hopper-v4"
    assert labels_of(tmp_path) == [
        "IQL pretrained, expert data",
        "IQL pretrained, self-collected medium-replay data",
    ]


def test_rename_by_label_and_by_folder(tmp_path):
    write_seed(tmp_path, "a", 1, online(1, 2), args={"q_filter_percentile": 25.0})
    write_seed(tmp_path, "b", 1, online(1, 2))
    pairs = ("SAC finetuned, Q-filter 25=filtered = better", "b=plain")
    assert labels_of(tmp_path, rename=pairs) == ["filtered = better", "plain"]


def test_filters_take_a_label_a_folder_a_part_or_a_glob(tmp_path):
    for env in ("Hopper-v4", "Walker2d-v4"):
        write_seed(tmp_path, "plain", 1, online(1, 2), env=env)
        write_seed(tmp_path, "filter", 1, online(1, 2), env=env, args={"q_filter_percentile": 25.0})

    def chosen(**options):
        return {(curve.env, curve.run) for curve in curves_of(tmp_path, **options)[0]}

    assert chosen(env=("Walker",)) == {("Walker2d-v4", "plain"), ("Walker2d-v4", "filter")}
    assert {run for _, run in chosen(label=("SAC finetuned",))} == {"plain"}  # exact, though part of another
    assert {run for _, run in chosen(label=("*filter 25",))} == {"filter"}
    assert {run for _, run in chosen(label=("finetuned",))} == {"plain", "filter"}
    assert {run for _, run in chosen(label=("plain", "filter"))} == {"plain", "filter"}


# ---- the picture ----


def three_runs(tmp_path):
    write_seed(tmp_path, "pretraining", 1, offline(10, 80), script="offline_pretrain_sac", num_seeds=1)
    one = PRETRAINED | {"path": "seed1", "starts": 1}
    write_seed(tmp_path, "a", 1, online(80, 120), num_seeds=1, checkpoint=one)
    write_seed(
        tmp_path, "b", 1, online(80, 90), num_seeds=1, checkpoint=one, args={"q_filter_percentile": 25.0}
    )


def test_a_pretrained_score_is_drawn_once(tmp_path):
    three_runs(tmp_path)
    axes, legend = draw(tmp_path)
    assert [y for _, y in lines_of(axes["Hopper-v4"], ":")] == [[80, 80]]
    assert (lines_of(axes["Hopper-v4"], "--"), "pretrained score" in legend) == ([], False)
    axes, legend = draw(tmp_path, label=("finetuned",))  # without the pretraining itself
    assert [y for _, y in lines_of(axes["Hopper-v4"], "--")] == [[80, 80]]
    assert legend.count("pretrained score") == 1


def test_total_steps_put_the_online_phase_behind_the_offline_one(tmp_path):
    three_runs(tmp_path)
    axes, legend = draw(tmp_path, x="total")
    online_lines = [([50_000, 51_000], [80, 120]), ([50_000, 51_000], [80, 90])]
    assert lines_of(axes["Hopper-v4"]) == [([0, 10_000], [10, 80]), *online_lines]
    assert [x for x, _ in lines_of(axes["Hopper-v4"], "-.")] == [[50_000, 50_000]]
    assert "online phase starts" in legend


def test_offline_runs_alone_are_drawn_over_their_updates(tmp_path):
    write_seed(tmp_path, "iql", 1, offline(10, 70), script="iql")
    axes, _ = draw(tmp_path)
    assert lines_of(axes["Hopper-v4"]) == [([0, 10_000], [10, 70])]
    assert axes["Hopper-v4"].get_xlabel() == "offline gradient updates"


def test_one_panel_per_environment_and_one_colour_per_label(tmp_path):
    for env in ("Hopper-v4", "Walker2d-v4"):
        write_seed(tmp_path, "a", 1, online(1, 2), env=env)
    write_seed(tmp_path, "b", 1, online(3, 4, start=0), script="sac_scratch")
    axes, legend = draw(tmp_path)
    assert [ax.get_title() for ax in axes.values()] == ["Hopper-v4", "Walker2d-v4"]
    colors = {tuple(li.get_ydata()): li.get_color() for ax in axes.values() for li in ax.lines[:2]}
    assert legend == ["SAC from scratch, 1 seed", "SAC finetuned, 1 seed", "pretrained score"]
    assert colors[3, 4] == plot_curves.COLORS[0]
    assert colors[1, 2] == axes["Walker2d-v4"].lines[0].get_color() == plot_curves.COLORS[1]


def test_a_band_is_drawn_with_several_seeds_only(tmp_path):
    write_seed(tmp_path, "a", 1, online(1, 2))
    write_seed(tmp_path, "b", 1, online(1, 2, start=0), script="sac_scratch")
    write_seed(tmp_path, "b", 2, online(3, 8, start=0), script="sac_scratch")
    axes, legend = draw(tmp_path)
    paths = [band.get_paths() for band in axes["Hopper-v4"].collections]
    heights = [np.nanmax(path[0].vertices[:, 1]) if path else 0 for path in paths]
    assert heights[0] == 8 and not heights[1] > 0
    assert "lowest to highest seed" in legend


def test_metric_is_drawn_without_a_table(tmp_path, capsys):
    folder = write_seed(tmp_path, "a", 1, offline(10, 90) + online(100, 200, start=10_000), script="iql")
    lines = ["phase,gradient_step,env_step,name,value", "offline,5000,0,q,4", "online,10900,1000,q,3"]
    lines += ["online,10900,1000,other,7", "online,11900,2000,q,nan", "online,12900,3000,q,1"]
    (folder / "metrics.csv").write_text("\n".join(lines))  # the last line is unfinished
    axes, _ = draw(tmp_path, x="total", metric="q")
    assert lines_of(axes["Hopper-v4"]) == [([5000], [4]), ([11_000], [3])]
    plot_curves.main(Args(runs=(tmp_path,), metric="q"))
    assert {path.name for path in tmp_path.glob("curves*")} == {"curves-q.png", "curves-q.svg"}
    assert "auc" not in capsys.readouterr().out


# ---- files and the command line ----


def test_equal_runs_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        for seed in (1, 2, 3):
            write_seed(tmp_path / name, "run", seed, online(100, 90 + seed, 200 * seed))
        plot(tmp_path / name)
    for suffix in ("png", "svg", "md", "csv"):
        assert (tmp_path / f"a/curves.{suffix}").read_bytes() == (
            tmp_path / f"b/curves.{suffix}"
        ).read_bytes()


def test_out_is_a_prefix_or_a_folder(tmp_path):
    write_seed(tmp_path / "runs", "run", 1, online(100, 200))
    plot_curves.main(Args(runs=(tmp_path / "runs",), out=f"{tmp_path}/figures/v1.2.png"))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"v1.2.png", "v1.2.svg", "v1.2.md", "v1.2.csv"}
    prefixes = [
        plot_curves.output_prefix(Args(out=out, metric="q/min")) for out in ("", "new/", str(tmp_path))
    ]
    assert prefixes == [Path("runs/curves-q-min"), Path("new/curves-q-min"), tmp_path / "curves-q-min"]


BAD = {
    "nowhere": "runs: nowhere is not a folder; give the folder",
    "void": "runs: void holds no run; looked for <env>/<run>/seed<k>",
    "empty": "--y return: no run has one yet; wait for an evaluation",
    "runs copy": "are the same run and seed; give one of them",
    "runs --env Ant": "--env Ant: matches no run; choose among: Hopper-v4",
    "runs --label iql": "--label iql: matches no run; choose among: SAC finetuned",
    "runs --metric foo": "--metric foo: no run has it; choose among: loss, q",
    "plain --y score": "--y score: no run has one yet; wait for an evaluation, or use --y return",
    "runs --rename iql=IQL": "--rename iql=IQL: write OLD=NEW, OLD one of: SAC finetuned",
    "pair --rename a=x b=x": "--rename: two runs would be called x",
    "runs --out file.txt/curves": "--out file.txt/curves: ",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    metrics = write_seed(Path("runs"), "run", 1, online(100, 200)) / "metrics.csv"
    metrics.write_text("phase,gradient_step,env_step,name,value\nonline,0,0,q,1\nonline,0,0,loss,1\n")
    write_seed(Path("copy"), "run", 1, online(100, 200))
    write_seed(Path("empty"), "run", 1, [])
    write_seed(Path("plain"), "run", 1, online(100), scores=None)
    write_seed(Path("pair"), "a", 1, online(100))
    write_seed(Path("pair"), "b", 1, online(100))
    Path("void").mkdir()
    Path("file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        plot_curves.main(plot_curves.tyro.cli(Args, args=command.replace(" b=x", " --rename b=x").split()))
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert BAD[command] in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_any_matplotlib_backend(tmp_path):
    write_seed(tmp_path / "runs", "run", 1, online(100, 200))
    command = [sys.executable, plot_curves.__file__, "runs", "--label", "SAC*"]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MPLBACKEND": "module://nowhere"}, capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "runs/curves.png").read_bytes().startswith(b"\x89PNG")
