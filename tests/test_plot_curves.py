"""plot_curves.py on small hand-made runs: every quantity of the table, the labels, the axes, the errors."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import o3f_select
import plot_curves
from plot_curves import Args

RESULTS = Path(plot_curves.__file__).parent / "results"
FINETUNE = "online_finetune_sac-medium-replay"


def write_seed(runs, run, seed, rows, env="Hopper-v4", **config):
    """A seed folder with two episodes an evaluation, 10 below and 10 above the score that `rows` gives.

    rows: (phase, gradient_step, env_step, score); the normalised score is a tenth of the return.
    """
    folder = runs / env / run / f"seed{seed}"
    folder.mkdir(parents=True)
    base = {"script": run.split("-")[0], "run": run, "env": env, "seed": seed, "status": "finished"}
    dataset = {"name": "medium-replay"} if "medium-replay" in run else None
    steps = {"offline_steps": 0, "online_steps": 4000, "checkpoint": None, "dataset": dataset}
    (folder / "config.json").write_text(json.dumps(base | steps | config))
    lines = ["phase,gradient_step,env_step,episode,return,length,normalized_score,seconds"]
    for phase, gradient_step, env_step, score in rows:
        for episode, value in enumerate((score - 10, score + 10)):
            lines.append(f"{phase},{gradient_step},{env_step},{episode},{value},100,{value / 10},1.5")
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    return folder


def online(*scores, start=50_000, every=1000):
    """Rows of an online phase whose parameters had seen `start` updates."""
    return [("online", start + every * i, every * i, score) for i, score in enumerate(scores)]


def offline(*scores, every=10_000):
    return [("offline", every * i, 0, score) for i, score in enumerate(scores)]


def run_main(runs, capsys, **options):
    """(rows of curves.csv by run name, what was printed)."""
    plot_curves.main(Args(runs=(runs,), **options))
    with open(runs / "curves.csv", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}, capsys.readouterr().out


def table(runs, **options):
    """The rows of the table by run name, without drawing."""
    args = Args(runs=(runs,), **options)
    seeds, _ = plot_curves.choose_seeds(plot_curves.find_seeds(args), args)
    curves = [curve for _, curves in plot_curves.make_panels(seeds) for curve in curves]
    return {curve.run: plot_curves.summarise(curve)[0] for curve in curves}


def panels_of(runs, **options):
    args = Args(runs=(runs,), **options)
    seeds, notes = plot_curves.choose_seeds(plot_curves.find_seeds(args), args)
    panels = plot_curves.make_panels(seeds)
    figure, more = plot_curves.make_figure(panels, args)
    return figure, panels, notes + more


def drawn(ax, color):
    """The (x, y) of the solid lines of one colour."""
    lines = [line for line in ax.get_lines() if line.get_color() == color and line.get_linestyle() == "-"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines if len(line.get_xdata()) > 1]


def test_every_quantity_of_one_seed(tmp_path, capsys):
    write_seed(tmp_path, FINETUNE, 1, online(100, 40, 60, 120, 130))
    rows, printed = run_main(tmp_path, capsys)
    row = rows[FINETUNE]
    assert (row["env"], row["seeds"], row["status"], row["start"]) == (
        "Hopper-v4",
        "1",
        "finished",
        "pretrained",
    )
    assert float(row["offline"]) == 100
    assert float(row["final"]) == 130
    assert float(row["last_five"]) == 90
    assert float(row["delta"]) == 30
    assert float(row["drop"]) == 60
    assert float(row["recovery"]) == 3000
    assert float(row["auc"]) == pytest.approx((70 + 50 + 90 + 125) / 4)
    assert row["recovered"] == "1"
    assert float(row["iqm"]) == 130
    assert row["final_low"] == row["final_high"] == row["iqm_low"] == row["final_std"] == row["offline_std"] == ""
    for suffix in ("png", "svg", "md", "csv"):
        assert str(tmp_path / f"curves.{suffix}") in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_means_iqm_and_interval_over_seeds(tmp_path, capsys):
    for seed, final in enumerate((200, 300, 400, 1000), start=1):
        write_seed(tmp_path, FINETUNE, seed, online(100, 50 * seed, final))
    row = run_main(tmp_path, capsys)[0][FINETUNE]
    assert float(row["final"]) == 475
    assert float(row["iqm"]) == 350
    assert float(row["delta"]) == 375
    assert float(row["drop"]) == 50 / 4
    assert float(row["last_five"]) == pytest.approx((350 + 500 + 650 + 1300) / 12, abs=1e-3)
    assert 200 <= float(row["final_low"]) < 475 < float(row["final_high"]) <= 1000
    squares = 275**2 + 175**2 + 75**2 + 525**2
    assert float(row["final_std"]) == pytest.approx((squares / 3) ** 0.5, abs=1e-3)
    assert float(row["offline_std"]) == 0
    document = (tmp_path / "curves.md").read_text()
    assert f"| Hopper-v4 | {FINETUNE} | 4 | finished | pretrained | 100 | 475 |" in document
    assert f"| {FINETUNE} | 4 | finished | 2k of 4k | 100 | 1000 |" in document


def test_last_five_leaves_out_the_earlier_ones(tmp_path):
    write_seed(tmp_path, FINETUNE, 1, online(9999, 9999, 1, 2, 3, 4, 5))
    assert table(tmp_path)[FINETUNE]["last_five"] == 3


@pytest.mark.parametrize(
    "scores, expected",
    [
        ((100, 100, 120), 0),
        ((100, 50, 100), 2),
        ((100, 50, 60, 70), np.inf),
        (
            (100, 90, 110, 120, 30, 40, 110, 120, 130),
            3,
        ),  # counted from the last score above, not the first dip
        ((100, 30, 101, 40, 40, 110, 110, 110), 5),  # one lucky evaluation is no recovery
        ((100, 30, 40, 105), 3),  # at the end there is nothing that could confirm it
    ],
)
def test_recovery(scores, expected):
    assert plot_curves.recovery_steps(np.arange(len(scores)), np.array(scores, dtype=float)) == expected


def test_not_recovered_is_said_and_counts_as_longest(tmp_path, capsys):
    for seed, scores in enumerate(((100, 50, 110), (100, 50, 60), (100, 50, 70)), start=1):
        write_seed(tmp_path, FINETUNE, seed, online(*scores))
    rows, printed = run_main(tmp_path, capsys)
    assert (rows[FINETUNE]["recovery"], rows[FINETUNE]["recovered"]) == ("not recovered", "1")
    assert "not recovered (1 of 3)" in printed
    write_seed(tmp_path, FINETUNE, 4, online(100, 50, 110))
    write_seed(tmp_path, FINETUNE, 5, online(100, 110, 110))
    row = table(tmp_path)[FINETUNE]
    assert (row["recovery"], row["recovered"]) == (2000, 3)


def test_scratch_and_offline_only_rows(tmp_path, capsys):
    write_seed(tmp_path, "sac_scratch", 1, online(5, 50, start=0))
    write_seed(tmp_path, "iql-medium-replay", 1, offline(5, 300, 250), offline_steps=20_000)
    rows, printed = run_main(tmp_path, capsys)
    assert (rows["sac_scratch"]["start"], float(rows["sac_scratch"]["offline"])) == ("untrained", 5)
    iql = rows["iql-medium-replay"]
    assert (iql["start"], float(iql["offline"]), float(iql["final"])) == ("no online phase", 250, 250)
    assert iql["delta"] == iql["drop"] == iql["recovery"] == iql["auc"] == iql["recovered"] == ""
    assert "nan" not in printed


def test_iqm_by_hand():
    assert plot_curves.iqm(np.array([7.0])) == 7
    assert plot_curves.iqm(np.array([0.0, 10.0])) == pytest.approx(5)
    assert plot_curves.iqm(np.array([90.0, 0.0, 30.0])) == pytest.approx((0 + 4 * 30 + 90) / 6)
    assert plot_curves.iqm(np.array([1000.0, 2.0, 4.0, -1000.0])) == pytest.approx(3)
    ten = np.array([0, 0, 10, 20, 30, 40, 50, 60, 999, 999.0])
    assert plot_curves.iqm(ten) == pytest.approx((0.5 * 10 + 20 + 30 + 40 + 50 + 0.5 * 60) / 5)
    assert plot_curves.iqm(np.array([[1.0, 3.0], [5.0, 9.0]])) == pytest.approx([2, 7])


def test_bootstrap_interval():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, np.nan])
    low, high = plot_curves.bootstrap_interval(values)
    assert (low, high) == plot_curves.bootstrap_interval(values)
    assert 1 < low < 6.2 < high < 16
    spread = np.std(values[:5]) / np.sqrt(5)  # the bootstrap's standard error; the interval is about 4 of it
    assert high - low == pytest.approx(3.92 * spread, rel=0.15)
    assert np.isnan(plot_curves.bootstrap_interval(values[:1])).all()
    assert plot_curves.bootstrap_interval(values, plot_curves.iqm) != (low, high)


def test_equal_runs_give_equal_bytes(tmp_path, capsys):
    for name in ("a", "b"):
        for seed in (1, 2, 3):
            write_seed(tmp_path / name, FINETUNE, seed, online(100, 90 + seed, 200 * seed))
        run_main(tmp_path / name, capsys)
    for suffix in ("png", "svg", "md", "csv"):
        same = [(tmp_path / name / f"curves.{suffix}").read_bytes() for name in ("a", "b")]
        assert same[0] == same[1], suffix


def test_seeds_of_different_length(tmp_path):
    write_seed(tmp_path, FINETUNE, 1, online(100, 200, 300))
    write_seed(tmp_path, FINETUNE, 2, online(100, 100), status="failed")
    figure, panels, notes = panels_of(tmp_path)
    ((x, mean),) = drawn(figure.axes[0], panels[0][1][0].color)
    assert (x, mean) == ([0, 1000, 2000], [100, 150, 300])
    assert any("1 to 2 of 2 seeds" in note for note in notes)
    assert any(note == f"Hopper-v4/{FINETUNE} seed 2: failed, at 1k of 4k env steps" for note in notes)
    legend = figure.axes[0].get_legend().get_texts()[0].get_text()
    assert legend == f"{FINETUNE}, 2 seeds (1 of 2 seeds incomplete, 1k of 4k)"


def test_incomplete_runs_are_named(tmp_path, capsys):
    write_seed(tmp_path, FINETUNE, 1, online(100, 200), status="running")
    crashed = write_seed(tmp_path, "iql-medium-replay", 3, offline(10, 20), offline_steps=50_000)
    (crashed / "config.json").write_text('{"script": "iql", "env": "Hop')
    missing = write_seed(tmp_path, "sac_scratch", 1, [], status="failed")
    (missing / "eval.csv").unlink()
    rows, printed = run_main(tmp_path, capsys)
    assert rows[FINETUNE]["status"] == "incomplete, 1k of 4k"
    assert f"{FINETUNE} seed 1: running or killed, at 1k of 4k env steps" in printed
    assert rows["iql-medium-replay"]["status"] == "incomplete, 10k offline"
    assert "iql-medium-replay seed 3: config.json unreadable, at 10k gradient updates" in printed
    assert "sac_scratch" not in rows
    assert "sac_scratch seed 1: no return in its files, left out (failed)" in printed
    assert "- Hopper-v4/sac_scratch" in (tmp_path / "curves.md").read_text()


def test_truncated_line_and_half_an_evaluation(tmp_path):
    folder = write_seed(tmp_path, FINETUNE, 1, online(100, 200), status="running")
    with open(folder / "eval.csv", "a") as file:
        file.write("online,52000,2000,0,9999,100,1.0,2.5\nonline,52000,2000,1,99")
    assert table(tmp_path)[FINETUNE]["final"] == 200  # neither a cut number nor one episode of two is a score
    with open(folder / "eval.csv", "a") as file:
        file.write("99,100,1.0,2.5\n")
    assert table(tmp_path)[FINETUNE]["final"] == 9999


def test_rows_written_again_after_a_resume_count_once(tmp_path):
    folder = write_seed(tmp_path, FINETUNE, 1, online(100, 200, 300))
    with open(folder / "eval.csv", "a") as file:
        file.writelines(f"online,51000,1000,{episode},500,100,50,9\n" for episode in (0, 1))
    row = table(tmp_path)[FINETUNE]
    assert (row["final"], row["auc"]) == (300, (300 + 400) / 2)


def test_normalised_score(tmp_path, capsys):
    write_seed(tmp_path, FINETUNE, 1, online(100, 50, 300))
    without = write_seed(tmp_path, "sac_scratch", 1, online(1, 2, start=0))
    text = "phase,gradient_step,env_step,episode,return,length,normalized_score,seconds\nonline,0,0,0,5,9,,1\n"
    (without / "eval.csv").write_text(text)
    rows, printed = run_main(tmp_path, capsys, y="score")
    assert set(rows) == {FINETUNE}
    assert (float(rows[FINETUNE]["final"]), float(rows[FINETUNE]["drop"]), rows[FINETUNE]["y"]) == (
        30,
        5,
        "score",
    )
    assert "sac_scratch seed 1: no score in its files" in printed
    figure, _, _ = panels_of(tmp_path, y="score")
    assert figure.axes[0].get_ylabel() == "normalised score (%)"


def test_total_steps(tmp_path):
    write_seed(tmp_path, "td3_bc-medium-replay", 1, offline(10, 90) + online(100, 200, start=10_000))
    write_seed(tmp_path, FINETUNE, 1, online(80, 120, start=50_000))
    write_seed(tmp_path, "sac_scratch", 1, online(1, 2, start=0))
    figure, panels, _ = panels_of(tmp_path, x="total")
    ax = figure.axes[0]
    colors = {curve.run: curve.color for curve in panels[0][1]}
    assert drawn(ax, colors["td3_bc-medium-replay"]) == [
        ([0, 10_000], [10, 90]),
        ([10_000, 11_000], [100, 200]),
    ]
    assert drawn(ax, colors[FINETUNE]) == [([50_000, 51_000], [80, 120])]
    assert drawn(ax, colors["sac_scratch"]) == [([0, 1000], [1, 2])]
    switches = {line.get_xdata()[0] for line in ax.get_lines() if line.get_color() == "0.45"}
    assert switches == {10_000, 50_000}
    assert "online phase starts" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_online_steps_and_the_pretrained_score(tmp_path):
    write_seed(tmp_path, "td3_bc-medium-replay", 1, offline(10, 90) + online(100, 200, start=10_000))
    write_seed(tmp_path, "iql-medium-replay", 1, offline(10, 70))
    write_seed(tmp_path, "sac_scratch", 1, online(1, 2, start=0))
    figure, panels, _ = panels_of(tmp_path)
    ax = figure.axes[0]
    colors = {curve.run: curve.color for curve in panels[0][1]}
    assert drawn(ax, colors["td3_bc-medium-replay"]) == [([0, 1000], [100, 200])]
    circles = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert [(line.get_color(), line.get_ydata()[0]) for line in circles] == [(colors["td3_bc-medium-replay"], 100)]
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[100, 100]]
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert [(line.get_color(), set(line.get_ydata())) for line in dotted] == [(colors["iql-medium-replay"], {70})]
    assert ax.get_xlabel() == "online env steps"


def test_offline_runs_alone_are_drawn_over_their_updates(tmp_path):
    write_seed(tmp_path, "iql-medium-replay", 1, offline(10, 70))
    figure, panels, _ = panels_of(tmp_path)
    assert drawn(figure.axes[0], panels[0][1][0].color) == [([0, 10_000], [10, 70])]
    assert figure.axes[0].get_xlabel() == "gradient updates, offline"


def test_band_only_with_several_seeds(tmp_path):
    write_seed(tmp_path, FINETUNE, 1, online(100, 200))
    write_seed(tmp_path, "sac_scratch", 1, online(1, 2, start=0))
    write_seed(tmp_path, "sac_scratch", 2, online(3, 8, start=0))
    figure, _, _ = panels_of(tmp_path)
    heights = [
        np.ptp(band.get_paths()[0].vertices[:, 1]) if band.get_paths() else 0 for band in figure.axes[0].collections
    ]
    assert [np.nan_to_num(height) > 0 for height in heights] == [False, True]


def test_metric(tmp_path, capsys):
    folder = write_seed(tmp_path, "td3_bc-medium-replay", 1, offline(10, 90) + online(100, 200, start=10_000))
    write_seed(tmp_path, "sac_scratch", 1, online(1, 2, start=0))
    lines = ["phase,gradient_step,env_step,name,value", "offline,5000,0,critic_loss,4", "offline,5000,0,q,7"]
    lines += ["online,10900,1000,critic_loss,3", "online,10900,1000,q,nan", "online,11900,2000,critic_loss,2"]
    lines += ["offline,10000,0,critic_loss,5", "online,12400,2500,critic_loss,nan"]
    lines += ["online,12900,3000,critic_loss,1"]
    (folder / "metrics.csv").write_text("\n".join(lines))  # the last line is unfinished
    figure, panels, notes = panels_of(tmp_path, x="total", metric="critic_loss")
    ax = figure.axes[0]
    expected = [
        ([5000, 10_000], [4, 5]),
        ([11_000, 12_000], [3, 2]),
    ]  # counted from the evaluation at env_step 0
    assert drawn(ax, panels[0][1][0].color) == expected
    assert {line.get_xdata()[0] for line in ax.get_lines() if line.get_color() == "0.45"} == {10_000}
    assert ax.get_ylabel() == "critic_loss"
    assert notes == ["Hopper-v4/sac_scratch seed 1: no critic_loss in its files, left out (finished)"]
    plot_curves.main(Args(runs=(tmp_path,), metric="critic_loss"))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"curves-critic_loss.{s}" for s in ("png", "svg")
    }
    assert "auc" not in capsys.readouterr().out


def test_labels():
    def labels(*runs, scratch=()):
        config = {"dataset": {"name": "medium-replay"}}
        return plot_curves.shorten(dict.fromkeys(runs, config) | dict.fromkeys(scratch, {}))

    qf = f"{FINETUNE}-qf25"
    assert labels(FINETUNE, qf) == (
        {FINETUNE: "online_finetune_sac", qf: "online_finetune_sac-qf25"},
        "medium-replay",
    )
    assert labels(FINETUNE, qf, scratch=["sac_scratch-utd2"])[0]["sac_scratch-utd2"] == "sac_scratch-utd2"
    assert labels(FINETUNE, "iql-medium") == ({FINETUNE: FINETUNE, "iql-medium": "iql-medium"}, "")
    assert labels(FINETUNE) == ({FINETUNE: FINETUNE}, "")
    clash = ("iql-medium-replay", "td3_bc-medium-replay")
    assert labels(*clash, scratch=["iql"]) == ({run: run for run in (*clash, "iql")}, "")
    rates = ("iql-medium-lr1e-4", "iql-medium-wd3e-4")
    assert labels(*rates)[0] == {rates[0]: "iql-lr1e-4", rates[1]: "iql-wd3e-4"}
    origins = ("td3_c-from-td3_bc-d1", "td3_c-from-iql-d1")
    assert labels(*origins)[0] == {origins[0]: "td3_c-from-td3_bc", origins[1]: "td3_c-from-iql"}
    assert labels("a-x-y1", "b-x-y2", "c-x-y1")[1] == "x"


@pytest.mark.parametrize("name", ["medium-replay", "my-own-data-beef"])
def test_a_label_tells_whole_options(name):
    """Of names as the scripts make them: what all runs share goes, and nothing of any other option."""
    source, base = {"run": f"o3f_select-{name}-offline15k"}, {"online_steps": 2000, "updates_per_step": 5}
    dataset = o3f_select.Dataset(name, *[None] * 7)
    others = {"policy_updates_per_step": 5, "q_filter_actions": "policy", "layer_norm": True, "optimism": -1.0}
    others |= {"critic_lr": 1e-5, "replay": "online", "num_candidates": 1, "offline_ratio": 0.5, "subset_size": 3}
    runs = {}
    for more in [{}, *({option: value} for option, value in others.items())]:
        args = o3f_select.Args(**base, **more)
        runs[o3f_select.run_name(args, dataset, source)] = {"args": asdict(args), "dataset": {"name": name}}
    labels, shared = plot_curves.shorten(runs)
    ends = "", "-policy-updates-per-step5", "-q-filter-actionspolicy", "-layer-norm", "-optimism-1"
    ends += "-critic-lr1e-05", "-online", "-n1", "-ratio0.5", "-subset-size3"
    assert list(labels.values()) == [f"o3f_select{end}" for end in ends]
    assert shared == f"{name}, online2k, updates-per-step5, from-o3f_select, offline15k"


def test_labels_of_earlier_names():
    """In which the source came first and lacked its dataset."""
    runs, labels = RESULTS / "o3f/runs", {}
    for label in ("*offline0*", "*"):
        _, panels, _ = panels_of(runs, label=(label,))
        labels[label] = [curve.label for curve in panels[0][1]]
    ends = "", "-n1", "-policy-updates-per-step5", "-subset-size5"
    assert labels["*offline0*"] == [f"o3f_select{end}" for end in ends]
    assert labels["*"] == [*labels["*offline0*"], "o3f_select-offline15k"]
    runs = RESULTS / "td3/runs"
    labels = [curve.label for curve in panels_of(runs, label=("td3_c-medium*",))[1][0][1]]
    assert labels == [f"td3_c-{end}" for end in ("no-clip-dqda-epsiloninf", "dual-lr0.001", "epsilon0.001")]


def test_panels_and_filters(tmp_path, capsys):
    for env in ("Hopper-v4", "Walker2d-v4"):
        for run in (FINETUNE, f"{FINETUNE}-qf25", "iql-medium-replay"):
            write_seed(tmp_path, run, 1, online(100, 200), env=env)
    write_seed(tmp_path, "awac-medium-replay", 1, online(100, 200))
    figure, panels, _ = panels_of(tmp_path)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["Hopper-v4 (medium-replay)", "Walker2d-v4 (medium-replay)"]
    by_panel = [{curve.run: curve.color for curve in curves} for _, curves in panels]
    assert by_panel[1].items() <= by_panel[0].items()
    assert len(set(by_panel[0].values())) == 4

    def chosen(**options):
        return {(curve.env, curve.run) for _, curves in panels_of(tmp_path, **options)[1] for curve in curves}

    assert {env for env, _ in chosen(env=("Walker",))} == {"Walker2d-v4"}
    assert {run for _, run in chosen(label=("*qf25", "iql"))} == {f"{FINETUNE}-qf25", "iql-medium-replay"}
    assert {run for _, run in chosen(label=(FINETUNE,))} == {FINETUNE}
    assert {run for _, run in chosen(label=("online_f",))} == {FINETUNE, f"{FINETUNE}-qf25"}


def test_any_level_and_several_folders(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        write_seed(tmp_path / name, FINETUNE, seed, online(100, 200))
    args = Args(runs=(tmp_path / "one", tmp_path / "two", tmp_path / "two" / "Hopper-v4" / FINETUNE))
    assert [seed.number for seed in plot_curves.find_seeds(args)] == [1, 2]
    alone = Args(runs=(tmp_path / "two" / "Hopper-v4" / FINETUNE / "seed2",))
    assert [(seed.env, seed.run) for seed in plot_curves.find_seeds(alone)] == [("Hopper-v4", FINETUNE)]


def test_out(tmp_path):
    runs, figures = tmp_path / "runs", tmp_path / "figures"
    write_seed(runs, FINETUNE, 1, online(100, 200))
    plot_curves.main(Args(runs=(runs,), out=f"{figures}/v1.2.png"))
    assert {path.name for path in figures.iterdir()} == {"v1.2.png", "v1.2.svg", "v1.2.md", "v1.2.csv"}
    assert not list(runs.glob("curves*"))
    prefixes = {out: plot_curves.output_prefix(Args(runs=(runs,), out=out)) for out in ("", "new/", str(figures))}
    assert prefixes == {"": runs / "curves", "new/": Path("new/curves"), str(figures): figures / "curves"}
    assert plot_curves.output_prefix(Args(runs=(runs,), metric="q/min")) == runs / "curves-q-min"


def test_short_numbers():
    assert [plot_curves.short(n) for n in (0, 500, 2500, 10_000, 1_500_000)] == [
        "0",
        "500",
        "2.5k",
        "10k",
        "1.5M",
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": ("nowhere",)}, "runs: nowhere is not a folder; give the folder"),
        ({"runs": ("void",)}, "runs: void holds no run; looked for <env>/<script>/seed<k>"),
        ({"runs": ("empty",)}, "runs: the eval.csv of all 1 seeds are missing or empty"),
        ({"runs": ("runs", "copy")}, "are the same run and seed; give one of them"),
        ({"env": ("Ant",)}, "--env Ant: matches no run; choose among Hopper-v4"),
        ({"label": ("iql", "sac")}, f"--label iql: matches no run; choose among {FINETUNE}"),
        ({"metric": "foo"}, "--metric foo: no run has it; choose among critic_loss, q"),
        ({"y": "score", "runs": ("plain",)}, "--y score: no run has normalised scores; use --y return"),
        ({"out": "file.txt/curves"}, "--out file.txt/curves: "),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    folder = write_seed(Path("runs"), FINETUNE, 1, online(100, 200))
    (folder / "metrics.csv").write_text(
        "phase,gradient_step,env_step,name,value\nonline,0,0,q,1\nonline,0,0,critic_loss,1\n"
    )
    write_seed(Path("copy"), FINETUNE, 1, online(100, 200))
    write_seed(Path("empty"), FINETUNE, 1, [])
    plain = write_seed(Path("plain"), FINETUNE, 1, [])
    (plain / "eval.csv").write_text("phase,gradient_step,env_step,episode,return\nonline,0,0,0,1\n")
    Path("void").mkdir()
    Path("file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    if "runs" in options:
        options = options | {"runs": tuple(Path(name) for name in options["runs"])}
    with pytest.raises(SystemExit) as stop:
        plot_curves.main(Args(**options))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_command_line(tmp_path):
    write_seed(tmp_path / "runs", FINETUNE, 1, online(100, 200))
    command = [sys.executable, plot_curves.__file__, "runs", "--label", "iql", "--label", "awac"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: --label iql: matches no run; choose among {FINETUNE}\n"
