"""Same name, same text: the rule that replaces a shared module. Standard library only.

    python tests/test_no_drift.py                        report the drift, exit 1 if there is any
    python tests/test_no_drift.py --take sac_scratch.py  copy that script's shared blocks into the others

A script is cut into blocks, and blocks with one name have one text in every script:
- a function, class or constant at the top level, with its decorators and the comment lines right above it;
- a field of `Args`, called `Args.gamma`: type, default, group, and its comment where tyro looks for it:
  behind the field, or as a string below it, or else in the comment lines right above it;
- a section of `main`, called `main: Environments`: from its title to the next title.
A title in `main` is a comment line of its own, indented like the body, that follows a blank line or opens the
body; right below other code it is an ordinary comment. Other comment lines in `Args` are titles of groups.
The module's docstring and its imports are free, and so is whatever has a name of its own.
"""

import argparse
import ast
import difflib
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUMBING_RULE = "# ---- plumbing: the same text in every script ----"
MAX_FILE, MAX_ALGORITHM, MAX_FUNCTION, MAX_NESTING = 1575, 350, 90, 3
DIFF_LINES = 24
LEVELS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)

# Blocks that differ because they are the algorithm, with the reason. One that no longer differs leaves.
HOOKS: dict[str, str] = {
    "ALGORITHM": "the family",
    "Critic": "of one kind of network or another",
    "Agent": "a temperature or none, and what kind of policy",
    "select_action": "a draw from the policy, or the policy's action with noise",
    "best_action": "of a distribution or not",
    "critic_loss": "the algorithm",
    "actor_loss": "the algorithm",
    "value_loss": "the algorithm",
    "update": "the algorithm",
    "main: Checks": "what a script reads: a dataset, a checkpoint, both or neither",
    "main: Agent and replay": "a new agent or a loaded one, with or without online rows",
    "main: Training": "the phases a script has",
}
# Fields of Args whose default differs, with the reason. One that no longer differs leaves.
DEFAULTS_MAY_DIFFER: dict[str, str] = {
    "warmup_steps": "0 after pretraining SAC, 1,000 in TD3-C's paper, 5,000 where there is no policy yet",
    "offline_steps": "500,000 in TD3-C's paper",
    "online_steps": "0 where the offline phase is the main one",
    "policy_delay": "TD3's is 2",
    "num_critics": "5 in O3F's paper",
    "num_candidates": "100 in O3F's paper, an option elsewhere",
    "updates_per_step": "20 in O3F's paper",
    "layer_norm": "none in CQL's paper",
    "clip_dqda": "on in TD3-C; off in TD3+BC, where it would break the invariance to the rewards' scale",
    "epsilon": "TD3-C's bound; off where the constraint is an option",
}
# Advertised pairs: the blocks that differ between two scripts or exist in only one of them.
PAIRS: dict[tuple[str, str], set[str]] = {
    ("sac_scratch.py", "online_finetune_sac.py"): {
        *("Args.checkpoint", "Args.warmup_steps", "Args.save_dataset"),
        *("Args.bc_alpha", "Args.bc_alpha_end", "Args.anneal", "check_anneal", "scheduled"),  # the bonus
        *("BORDER", "Agent", "log_density", "actor_loss"),
        *("Args.num_critics", "Args.layer_norm", "Args.hidden_dim"),  # the checkpoint's
        *("OTHER_PHASE_ARGS", "OBJECTIVE_ARGS", "as_option"),
        *("PRETRAINING", "find_checkpoints", "load_checkpoints", "check_new_dataset", "write_minari"),
        *("main: Checks", "main: Agent and replay", "main: Training"),
    },
    ("td3_bc.py", "td3_c.py"): {
        *(
            "Args.offline_steps",
            "Args.online_steps",
            "Args.normalize_obs",
            "standardize",
            "train_offline",
            "next_command",
        ),
        *(
            "LOG_DUAL_MIN",
            "LOG_DUAL_MAX",
            "Args.alpha",
            "Args.scratch",
            "Args.epsilon",
            "Args.dual_init",
            "Args.dual_lr",
            "Args.clip_dqda",
        ),
        *("actor_loss", "update", "main: Checks", "main: Agent and replay", "main: Training"),
    },
}
# Tools, whose Args and main are their own affair, and scripts without an algorithm above a rule line.
# (watch_policy.py needs the other scripts: it loads the one that a checkpoint names.)
STANDALONE = {"plot_curves.py", "run_experiments.py", "watch_policy.py"}
NO_RULE_LINE = STANDALONE | {"collect_dataset.py"}


@dataclass
class Block:
    """Lines of a script, numbered from 1, both ends included. A field of Args is head + default + tail."""

    first: int
    last: int
    head: str
    default: str = ""
    tail: str = ""  # the comment behind a field or the string below it
    group: str = ""  # the title above a field's group

    def compared(self, with_default: bool = True) -> str:
        text = self.head + (self.default if with_default else "") + self.tail
        return f"{self.group}\n{text}" if self.group else text


class Script:
    """A parsed script and its blocks, in the order of the file."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.source = path.read_text(encoding="utf-8")
        self.lines = self.source.split("\n")
        self.tree = ast.parse(self.source, filename=str(path))
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        self.comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
        self.blocks: dict[str, Block] = {}
        self.repeated: list[str] = []
        for node in self.tree.body:
            self.cut(node)

    def cut(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom) or is_string(node):
            return
        # A statement that binds nothing goes by its first line.
        names = bound_names(node) or [self.line(node.lineno)]
        if self.name in STANDALONE and (names[0] in ("Args", "main") or names[0].startswith("if __name__")):
            return
        if names == ["Args"]:
            self.cut_args(node)
        elif names == ["main"]:
            self.cut_main(node)
        else:
            for name in names:
                self.add(name, self.block(self.first_row(node), self.last_row(node)))

    def cut_args(self, node: ast.ClassDef) -> None:
        self.add("Args", self.block(self.first_row(node), node.lineno))
        group, end = "", node.lineno
        for item, below in pairwise([*node.body, None]):
            if isinstance(item, ast.FunctionDef):
                self.add(f"Args.{item.name}", self.block(self.first_row(item), item.end_lineno))
            if isinstance(item, ast.AnnAssign):
                field = self.field(item, below if below and is_string(below) else item)
                titles = [self.comments[row] for row in range(end + 1, field.first) if self.alone(row)]
                field.group = group = "\n".join(titles) or group
                self.add(f"Args.{item.target.id}", field)
            end = item.end_lineno

    def cut_main(self, node: ast.FunctionDef) -> None:
        titles = [row for row in range(node.lineno, node.end_lineno) if self.is_title(row, node)]
        starts = [self.first_row(node), *titles, self.last_row(node) + 1]
        names = ["(before its first title)", *(self.comments[row].lstrip("# ") for row in titles)]
        for name, (first, following) in zip(names, pairwise(starts), strict=True):
            self.add(f"main: {name}", self.block(first, following - 1))

    def field(self, item: ast.AnnAssign, end: ast.stmt) -> Block:
        rows = range(item.lineno, item.end_lineno + 1)
        tail = "".join(f"  {self.comments[row]}" for row in rows if row in self.comments)
        tail += "".join(f"\n{line}" for line in self.lines[item.end_lineno : end.end_lineno])
        first = item.lineno if tail else self.first_row(item)
        annotation = ast.get_source_segment(self.source, item.annotation)
        declared = f"{' ' * item.col_offset}{item.target.id}: {annotation}"
        head = "\n".join([*self.lines[first - 1 : item.lineno - 1], declared])
        default = f" = {ast.get_source_segment(self.source, item.value)}" if item.value else ""
        return Block(first, end.end_lineno, head, default, tail)

    def add(self, key: str, block: Block) -> None:
        if key in self.blocks:
            here = f"{self.name}:{block.first}"
            self.repeated.append(f"{here}: `{key}` again, after line {self.blocks[key].first}")
        self.blocks.setdefault(key, block)

    def block(self, first: int, last: int) -> Block:
        while not self.line(last).strip():
            last -= 1
        return Block(first, last, "\n".join(self.lines[first - 1 : last]))

    def line(self, row: int) -> str:
        return self.lines[row - 1]

    def alone(self, row: int) -> bool:
        """Whether the line holds nothing but a comment."""
        return row in self.comments and self.line(row).lstrip() == self.comments[row]

    def is_title(self, row: int, main: ast.FunctionDef) -> bool:
        at_body = self.line(row).startswith(" " * main.body[0].col_offset + "#")
        above = self.line(row - 1).strip()
        return self.alone(row) and at_body and (not above or above.endswith((":", '"""')))

    def first_row(self, node: ast.stmt) -> int:
        """With the decorators and the comment lines right above."""
        row = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        while self.alone(row - 1) and self.line(row - 1) != PLUMBING_RULE:
            row -= 1
        return row

    def last_row(self, node: ast.stmt) -> int:
        """With the indented comments below the last statement of a top-level block."""
        row = node.end_lineno
        while row < len(self.lines) and (not self.line(row + 1) or self.line(row + 1)[0].isspace()):
            row += 1
        return row


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def load(root: Path) -> list[Script]:
    return [Script(path) for path in sorted(root.glob("*.py")) if path.name != "conftest.py"]


def shared(scripts: list[Script]) -> Iterator[tuple[str, list[Script]]]:
    for key in dict.fromkeys(key for script in scripts for key in script.blocks):
        holders = [script for script in scripts if key in script.blocks]
        if len(holders) > 1:
            yield key, holders


def is_field(key: str, fields) -> bool:
    return key.startswith("Args.") and key[5:] in fields


def difference(key: str, a: Script, b: Script) -> str:
    one, two = a.blocks[key], b.blocks[key]
    texts = [block.compared().split("\n") for block in (one, two)]
    diff = list(difflib.unified_diff(*texts, n=1, lineterm=""))
    shown = diff[2:][:DIFF_LINES] + ["..."] * (len(diff) > DIFF_LINES + 2)
    place = f"{a.name}:{one.first} (-) and {b.name}:{two.first} (+)"
    return "\n".join([f"`{key}` differs between {place}", *("    " + line for line in shown)])


# The rules: each takes the scripts and yields one message for each thing that is wrong.


def text_drift(scripts: list[Script], hooks=HOOKS, free=DEFAULTS_MAY_DIFFER) -> Iterator[str]:
    for key, (first, *others) in shared(scripts):
        with_default = not is_field(key, free)
        text = first.blocks[key].compared(with_default)
        if key not in hooks:
            drifted = [other for other in others if other.blocks[key].compared(with_default) != text]
            yield from (difference(key, first, other) for other in drifted)


def order_drift(scripts: list[Script]) -> Iterator[str]:
    for a, b in combinations(scripts, 2):
        common = [key for key in a.blocks if key in b.blocks]
        swapped = [pair for pair in pairwise(common) if b.blocks[pair[0]].first > b.blocks[pair[1]].first]
        for one, two in swapped[:1]:
            here = f"{a.name}:{a.blocks[one].first} has `{one}` before `{two}`"
            yield f"{here}, {b.name}:{b.blocks[one].first} has it after"


def pair_drift(scripts: list[Script], pairs=PAIRS) -> Iterator[str]:
    by_name = {script.name: script for script in scripts}
    for (name_a, name_b), declared in pairs.items():
        if name_a not in by_name or name_b not in by_name:
            continue
        a, b = by_name[name_a], by_name[name_b]
        for key in dict.fromkeys([*a.blocks, *b.blocks]):
            one, two = a.blocks.get(key), b.blocks.get(key)
            if key in declared or (one and two and one.compared() == two.compared()):
                continue
            only = f"{name_a}:{one.first}" if one else f"{name_b}:{two.first}"
            what = difference(key, a, b) if one and two else f"`{key}` exists only in {only}"
            yield f"{what}\n    and PAIRS[{name_a!r}, {name_b!r}] does not list it"


def stale_lists(scripts: list[Script], hooks=HOOKS, free=DEFAULTS_MAY_DIFFER) -> Iterator[str]:
    for key, holders in shared(scripts):
        names = ", ".join(holder.name for holder in holders)
        if key in hooks and len({holder.blocks[key].compared() for holder in holders}) == 1:
            yield f"`{key}` is in HOOKS and has one text in {names}: take it out"
        if is_field(key, free) and len({holder.blocks[key].default for holder in holders}) == 1:
            yield f"`{key[5:]}` is in DEFAULTS_MAY_DIFFER and has one default in {names}: take it out"


def names_twice(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        yield from script.repeated


def first_party_imports(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        root = script.path.parent
        for node in ast.walk(script.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            for name in names:
                top = name.split(".")[0]
                if not top or (root / f"{top}.py").exists() or any((root / top).glob("*.py")):
                    yield f"{script.name}:{node.lineno}: imports {name}: a script copied alone must run"


def rule_line(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        count = script.lines.count(PLUMBING_RULE)
        if script.name not in NO_RULE_LINE and count != 1:
            yield f"{script.name}: the rule line must occur once, not {count} times: {PLUMBING_RULE}"


def size_caps(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        length = len(script.source.splitlines())
        algorithm = script.lines.index(PLUMBING_RULE) if PLUMBING_RULE in script.lines else 0
        if length > MAX_FILE:
            yield f"{script.name}: {length} lines, at most {MAX_FILE}"
        if algorithm > MAX_ALGORITHM:
            yield f"{script.name}: {algorithm} lines above the rule line, at most {MAX_ALGORITHM}"
        for node in ast.walk(script.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = node.end_lineno - node.lineno + 1
            depth, row = deepest(node)
            if length > MAX_FUNCTION:
                yield f"{script.name}:{node.lineno}: `{node.name}` has {length} lines, at most {MAX_FUNCTION}"
            if depth > MAX_NESTING:
                yield f"{script.name}:{row}: `{node.name}` nests {depth} deep, at most {MAX_NESTING}"


def deepest(node: ast.AST, depth: int = 0) -> tuple[int, int]:
    """The deepest nesting and its line. An elif adds nothing; a function inside starts again at 0."""
    found = depth, getattr(node, "lineno", 0)
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If)
        is_elif = is_elif and child.col_offset == node.col_offset
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            below = depth + (isinstance(child, LEVELS) and not is_elif)
            found = max(found, deepest(child, below), key=lambda pair: pair[0])
    return found


def dead_args(scripts: list[Script]) -> Iterator[str]:
    for script in scripts:
        attributes = [node for node in ast.walk(script.tree) if isinstance(node, ast.Attribute)]
        read = {ast.unparse(node).removeprefix("self.") for node in attributes if isinstance(node.ctx, ast.Load)}
        for key, block in script.blocks.items():
            if key.startswith("Args.") and not key.startswith("Args.__") and f"args.{key[5:]}" not in read:
                yield f"{script.name}:{block.first}: `{key}` is never read as `args.{key[5:]}`"


RULES = (text_drift, order_drift, pair_drift, stale_lists, names_twice)
RULES += (first_party_imports, rule_line, size_caps, dead_args)


def pytest_generate_tests(metafunc):
    metafunc.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])


def test_scripts(rule):
    problems = list(rule(load(ROOT)))
    assert not problems, "\n" + "\n\n".join(problems)


def take(source: Script, others: list[Script], hooks=HOOKS, free=DEFAULTS_MAY_DIFFER) -> dict[str, list[str]]:
    """Copies the shared blocks of one script into the others; returns the blocks changed in each."""
    changed = {}
    for other in others:
        edits = {}
        for key in [key for key in source.blocks if key in other.blocks and key not in hooks]:
            theirs, mine = source.blocks[key], other.blocks[key]
            default = mine.default if is_field(key, free) else theirs.default
            text = theirs.head + default + theirs.tail
            if text != mine.head + mine.default + mine.tail:
                edits[mine.first, mine.last] = key, text
        for (first, last), (_, text) in sorted(edits.items(), reverse=True):
            other.lines[first - 1 : last] = text.split("\n")
        if edits:
            other.path.write_text("\n".join(other.lines), encoding="utf-8")
            changed[other.name] = [key for key, _ in edits.values()]
    return changed


def command_line() -> int:
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    parser.add_argument("--take", metavar="SCRIPT", help="copy this script's shared blocks into the others")
    args = parser.parse_args()
    scripts = load(ROOT)
    if args.take:
        by_name = {script.name: script for script in scripts}
        if args.take not in by_name:
            parser.error(f"--take: no script {args.take!r}; there are {', '.join(by_name)}")
        source = by_name.pop(args.take)
        changed = take(source, list(by_name.values()))
        print("\n".join(f"{name}: took {', '.join(keys)}" for name, keys in changed.items()) or "nothing to take")
        scripts = load(ROOT)
    problems = [problem for rule in RULES for problem in rule(scripts)]
    print("\n\n".join(problems) or f"{len(scripts)} scripts, no drift")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command_line())
