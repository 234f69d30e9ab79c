"""Short whole runs of the other methods: offline, handed over, online, cut and resumed, compiled.

What all scripts share is tested once, in test_runs.py and test_plumbing.py; test_no_drift.py carries it over.
"""

import importlib
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from torch.utils._pytree import tree_leaves

from test_runs import SMALL, returns, rows, run_folder

OFFLINE = f"{SMALL} --num-seeds 2 --eval-every 20 --log-every 10 --offline-steps 40 --hidden-dim 16"
OFFLINE += " --dataset hopper/tiny-v0"
ONLINE = f"{SMALL} --num-seeds 2 --eval-every 20 --log-every 10 --online-steps 40"
TWO_PHASES = {
    "cql_sac": "--cql-actions 2",
    "iql": "--beta 1",
    "awac": "--awac-lambda 2",
    "awr": "--returns-every 10",
    "bear": "--mmd-warmup 10",
    "o3f_select": "--num-candidates 3 --updates-per-step 2 --policy-updates-per-step 2",
}
STANDS_STILL = {"cql_sac": {"target_actor"}}  # SAC's checkpoints have one


def state_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt")["state"]


def folder_beside(offline: Path) -> Path:
    """The one other run; long names are cut, so that no pattern finds it."""
    (folder,) = set(offline.parent.iterdir()) - {offline}
    return folder


def assert_moved(before: dict, after: dict, but: set[str]) -> None:
    """Every network and every target has other parameters."""
    networks = [name for name, part in before.items() if isinstance(part, dict) and "adam" not in name]
    assert len(networks) >= 3
    for name in networks:
        pairs = zip(tree_leaves(before[name]), tree_leaves(after[name]), strict=True)
        assert (name in but) != all(not torch.equal(one, two) for one, two in pairs), name


@pytest.mark.parametrize("script", TWO_PHASES)
def test_offline_then_online_from_its_checkpoint(call, script):
    options = TWO_PHASES[script]
    call(script, f"{OFFLINE} {options}")
    offline = run_folder(f"{script}-*")
    module, saved = importlib.import_module(script), torch.load(offline / "seed2" / "checkpoint.pt")
    start = module.ALGORITHM(module.Args(), **saved["shape"]).init(2)
    assert saved["gradient_step"] == 40 and saved["state"]["actor_adam"]["t"] > 0
    assert_moved(start, saved["state"], but=STANDS_STILL.get(script, set()))
    out, _ = call(script, f"{ONLINE} {options} --offline-steps 0")
    assert out.count("regime: return ") == 1
    online = folder_beside(offline)
    per_step = 2 if script == "o3f_select" else 1
    for seed in ("seed1", "seed2"):
        assert returns(online / seed, env_step=0) == returns(offline / seed, gradient_step=40)
        assert torch.load(online / seed / "checkpoint.pt")["gradient_step"] == 40 + 40 * per_step
        assert_moved(state_of(offline / seed), state_of(online / seed), but=STANDS_STILL.get(script, set()))


@pytest.mark.parametrize("script", TWO_PHASES)
def test_both_phases_in_one_run_that_is_cut_online(call, monkeypatch, capsys, script):
    module = importlib.import_module(script)
    command = f"{OFFLINE} {TWO_PHASES[script]} --online-steps 40 --offline-ratio 0.5 --offline-ratio-end 0"
    add, added = module.Replay.add, []

    def add_and_stop(self, *row):
        add(self, *row)
        added.append(self.added)
        if len(added) == 25:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module.Replay, "add", add_and_stop)
    with pytest.raises(SystemExit) as ended:
        call(script, command)
    assert ended.value.code == 128 + signal.SIGTERM and capsys.readouterr().out.count("regime: return ") == 1
    folder = run_folder(f"{script}-*")
    out, _ = call(script, f"--resume {folder}")
    assert "regime" not in out
    assert "resumes at online step 25" in out and added == [*range(1, 26), *range(26, 41)]
    phases = [(row["phase"], row["env_step"]) for row in rows(folder / "seed1" / "eval.csv")[::2]]
    assert phases == [("offline", "0")] * 3 + [("online", step) for step in ("0", "20", "40")]
    per_step = 2 if script == "o3f_select" else 1
    saved = torch.load(folder / "seed2" / "checkpoint.pt")
    assert saved["gradient_step"] == 40 + per_step * (40 - 16)  # the first online batch needs 16 rows
    assert all(leaf.isfinite().all() for leaf in tree_leaves(saved["state"]))


def test_cql_is_finetuned_by_sac(call):
    call("cql_sac", f"{OFFLINE} --cql-actions 2 --cql-threshold 5")
    offline = run_folder("cql_sac-*")
    call("online_finetune_sac", f"{ONLINE} --checkpoint {offline}")
    online = folder_beside(offline)
    for seed in ("seed1", "seed2"):
        assert returns(online / seed, env_step=0) == returns(offline / seed, gradient_step=40)
    assert_moved(state_of(offline / seed), state_of(online / seed), but=set())


def test_cal_ql_learns_from_returns_offline_and_online(call):
    call("cql_sac", f"{OFFLINE} --cql-actions 2 --calibrated --gamma 0.9 --online-steps 40")
    folder = run_folder("cql_sac-*/seed1")
    gaps = [float(row["value"]) for row in rows(folder / "metrics.csv") if row["name"] == "cql/gap"]
    assert len(gaps) == 8 and np.isfinite(gaps).all()
    assert torch.load(folder / "checkpoint.pt")["gradient_step"] == 80


@pytest.mark.parametrize("options", ["", "--epsilon inf --no-clip-dqda", "--alpha 2.5 --num-candidates 3"])
def test_td3_bc_is_finetuned_by_each_arm_of_td3_c(call, options):
    call("td3_bc", f"{OFFLINE} --normalize-obs")
    offline = run_folder("td3_bc-*")
    out, _ = call("td3_c", f"{ONLINE} --warmup-steps 0 {options}")
    assert "regime: return " in out
    online = folder_beside(offline)
    for seed in ("seed1", "seed2"):
        assert returns(online / seed, env_step=0) == returns(offline / seed, gradient_step=40)
        assert torch.load(online / seed / "checkpoint.pt")["gradient_step"] == 80
    before, after = state_of(offline / seed), state_of(online / seed)
    assert_moved(before, after, but=set())
    assert torch.equal(before["obs_mean"], after["obs_mean"]) and before["obs_mean"].abs().max() > 0
    assert before["actor_adam"]["t"] == 20  # the policy moves in every second update


def test_td3_from_nothing(call):
    call("td3_c", f"{ONLINE} --scratch --hidden-dim 16 --warmup-steps 20 --network relu --epsilon inf")
    saved = torch.load(run_folder("td3_c-*/seed2") / "checkpoint.pt")
    assert saved["gradient_step"] == 20 and saved["shape"]["network"] == "relu"


COMPILED = TWO_PHASES | {"td3_bc": "--q-filter-percentile 25", "cql_sac": "--cql-actions 2 --cql-threshold 5"}


SLOW = {"cql_sac", "awr", "bear", "o3f_select"}  # to trace
MARKED = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMPILED]


@pytest.mark.parametrize("script", MARKED)
def test_fifty_compiled_updates_give_the_eager_numbers(call, monkeypatch, script):
    """The graph as it is traced, without C++ code generation, which test_runs.py tries once."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    command = OFFLINE.replace("--compile off", "").replace("--offline-steps 40", "--offline-steps 50")
    states = []
    for choice in ("off", "on"):
        with inductor.patch(fallback_random=True):  # else compiled code has a random stream of its own
            out, _ = call(script, f"{command} {COMPILED[script]} --compile {choice} --runs-dir {choice}")
        assert ("compiling" in out) == (choice == "on") and "eagerly" not in out
        states.append(state_of(run_folder("*/seed2", choice)))
    for eager, compiled in zip(*map(tree_leaves, states), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)


CASES = [
    ("cql_sac", "--offline-steps 0", "there is nothing to do without --online-steps"),
    ("iql", "--checkpoint x", "--checkpoint x: is continued online"),
    (
        "awac",
        "--offline-steps 0 --online-steps 9 --hidden-dim 8",
        "--hidden-dim 8: the checkpoint decides that",
    ),
    ("iql", "--expectile-end 0.9", "--expectile-end 0.9: needs --online-steps"),
    ("cql_sac", "--cql-alpha-end 0", "--cql-alpha-end 0.0: needs --online-steps"),
    ("iql", "--offline-steps 0 --online-steps 9 --no-normalize-reward", "False: the checkpoint decides that"),
    ("awac", "--candidate-std 0.5 --dataset hopper/tiny-v0", "have no effect with --num-candidates 0"),
    ("cql_sac", "--offline-steps 0 --online-steps 9", "python cql_sac.py --env Hopper-v4 makes one"),
    ("td3_c", "", "python td3_bc.py --env Hopper-v4 makes one"),
    ("o3f_select", "--critic-subset 6 --dataset hopper/tiny-v0", "--critic-subset 6: there are 5 critics"),
]


@pytest.mark.parametrize(("script", "arguments", "expected"), CASES, ids=[f"{s} {a}" for s, a, _ in CASES])
def test_bad_input(call, capsys, script, arguments, expected):
    with pytest.raises(SystemExit) as ended:
        call(script, arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and expected in error
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "script", ["sac_scratch", "online_finetune_sac", "td3_c", "iql", "awac", "bear", "o3f_select"]
)
def test_candidates_are_rated_by_the_critics_and_not_by_their_targets(script):
    module = importlib.import_module(script)
    shape = {"obs_dim": 3, "action_dim": 2, "hidden_dim": 8, "num_critics": 5}
    shape |= {"network": "layernorm"} if script == "td3_c" else {"layer_norm": False}
    algorithm = module.ALGORITHM(module.Args(num_candidates=4), **shape)
    state, obs = algorithm.init(0) | {"target_critic": None}, torch.ones(3)
    noise = {name: torch.randn(sizes) for name, sizes in algorithm.act_noise.items()}
    action, _ = algorithm.act(state, obs, noise)
    own, _ = algorithm.act(state, obs, noise | {"candidates": torch.zeros(4, 2)})  # the policy's own action
    candidates = (own + algorithm.args.candidate_std * noise["candidates"]).clamp(-1, 1)
    q = algorithm.critics(state["critic"], obs.expand(4, 3), candidates).mean(0)
    assert torch.equal(action, candidates[q.argmax()])
