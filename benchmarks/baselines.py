"""All baselines, tuned with the same budget on validation, read once on test: the table that a re-ranker has to beat.

    python benchmarks/baselines.py --data FOLDER                              # own or public data with a split (or one is made, by time)
    python benchmarks/baselines.py --data FOLDER --protocol item-cold         # nothing but the text of the tested items is known
    python benchmarks/baselines.py --data FOLDER --only ease,ials,mult_vae    # some of them, and no fusions
    python benchmarks/baselines.py --data FOLDER --without mult_vae           # all but some, and fusions of the rest
    python benchmarks/baselines.py --data FOLDER --out baselines.json         # finished baselines are read from there: stop and go on
    … --out baselines.json --summary nbs/results/baselines.json               # for the notebooks: without the single trials, beside other sets

Every baseline of `genre_nb.collaborative_filtering.SPACES` gets the same number of trials (`--budget`), drawn with `--seed`, judged by
nDCG@10 on validation. Then fusions of the best are tuned in the same way. Everything is fitted on train; the test split is read once for
each, with the settings that validation chose. Item-cold: while settings are chosen the test items are hidden as well, and only
first stages that read take part.
"""
import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from genre_nb.collaborative_filtering import SPACES, Space, fusion_space, tune_baseline
from genre_nb.datasets import RecDataset, Requests
from genre_nb.evaluation import Evaluation, evaluate_lists, versions
from genre_nb.retrieval import Retriever

METRICS = ("precision@10", "recall@10", "ndcg@10", "hit_rate@10", "mrr@10")
FUSED = 4                                         # so many of the best single baselines may enter a fusion


@dataclass
class Question:
    "Requests, what they liked later, and what may be recommended."
    requests: Requests                  # B
    relevant: sp.csr_matrix             # (B, I)
    allowed: torch.Tensor | None        # (I,) bool; None: everything but the history


def ask(data: RecDataset, split: str, history: tuple[str, ...], protocol: str, most: int, seed: int) -> Question:
    "Users with something to find in `split` and a positive in train, at most `most` of them, drawn with the seed."
    before, later = data.matrix(*history), data.matrix(split)
    later = sp.csr_matrix(later - later.multiply(before))
    later.eliminate_zeros()
    users = np.flatnonzero((np.diff(later.indptr) > 0) & (np.diff(data.matrix("train").indptr) > 0))
    if most and len(users) > most: users = np.sort(np.random.default_rng(seed).choice(users, most, replace=False))
    allowed = torch.from_numpy(np.array(data.item_part == split)) if protocol == "item-cold" else None
    return Question(data.requests(users, splits=history, with_profile=False), later[users], allowed)


def load(folder: Path, protocol: str, seed: int) -> RecDataset:
    "The data with its published split, or one made as the protocol says."
    data = RecDataset.from_folder(folder)
    if protocol == "item-cold": return data.split_item_cold(seed=seed)
    if {"train", "valid", "test"} <= set(data.splits): return data
    return data.split_by_time() if "timestamp" in data.interactions else data.split_random(seed=seed)


def named(option: str, given: str, known: Iterable[str]) -> list[str]:
    "Names with commas between. Stops at one that is not known."
    names = [name.strip() for name in given.split(",")]
    if wrong := [name for name in names if name not in known]: raise SystemExit(f"{option} {wrong[0]}: choose from {', '.join(known)}")
    return names


def taking_part(data: RecDataset, protocol: str, only: str | None, clock: bool, without: str | None = None) -> dict[str, Space]:
    "The baselines that make sense here."
    spaces = {name: space for name, space in SPACES.items()
              if (space.reads or protocol != "item-cold") and (not space.clock or clock and "timestamp" in data.interactions)}
    if only is not None: return {name: spaces[name] for name in named("--only", only, spaces)}
    if without is not None:
        for name in named("--without", without, SPACES): spaces.pop(name, None)
    if "ials" in spaces and not find_spec("implicit"):
        print("ials is left out: it needs the library implicit (pip install 'genre_nb[als]')")
        del spaces["ials"]
    return spaces


class Study:
    "Tunes, reads test, remembers."

    def __init__(self, options: argparse.Namespace, data: RecDataset):
        self.options, self.data = options, data
        self.valid = ask(data, "valid", ("train",), options.protocol, options.users, options.seed)
        self.test = ask(data, "test", ("train", "valid"), options.protocol, 0, options.seed)
        self.setup = {"data": options.data.resolve().name, "protocol": options.protocol, "budget": options.budget, "seed": options.seed,
                      "users": options.users, "validation_requests": len(self.valid.requests), "test_requests": len(self.test.requests)}
        self.done = self.read()
        self.fitted: dict[str, Retriever] = {}

    def read(self) -> dict[str, dict]:
        "What an earlier run has finished. Stops where that run asked another question."
        path = self.options.out
        if path is None or not path.exists(): return {}
        saved = json.loads(path.read_text(encoding="utf-8"))
        other = {k: (saved["setup"].get(k), v) for k, v in self.setup.items() if saved["setup"].get(k) != v}
        if other: raise SystemExit(f"{path} was made with other options ({other}): give another --out, or delete it")
        return saved["baselines"]

    def write(self) -> None:
        "The whole table so far, replaced in one step."
        if self.options.out is None: return
        text = json.dumps({"setup": self.setup, "versions": versions(("torch", "numpy", "scipy", "implicit")), "baselines": self.done}, indent=1, ensure_ascii=False)
        part = self.options.out.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self.options.out)

    def summarise(self, path: Path) -> None:
        "This table without its trials; what the file holds of other sets stays."
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[f"{self.setup['data']}.{self.setup['protocol']}"] = {
            **{key: self.setup[key] for key in ("budget", "seed", "validation_requests", "test_requests")},
            "baselines": {name: {key: value for key, value in entry.items() if key != "all_trials"} for name, entry in self.done.items()}}
        path.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def run(self, name: str, space: Space) -> None:
        "One baseline, unless it is done."
        if name in self.done: return
        start = time.perf_counter()
        stage, result = tune_baseline(space, self.data, self.valid.requests, self.valid.relevant, budget=self.options.budget,
                                      seed=self.options.seed, allowed=self.valid.allowed)
        found = judge(stage, self.test, self.data.n_items)
        self.done[name] = {"settings": result.best, "trials": len(result.trials), "validation_ndcg@10": result.value,
                           "test": found.summary(metrics=[m for m in METRICS if m in found.metrics] + ["coverage@10"]),
                           "seconds": round(time.perf_counter() - start, 1), "all_trials": result.trials.to_dict("records")}
        self.fitted[name] = stage
        self.write()
        print(row(name, self.done[name]), flush=True)

    def member(self, name: str) -> Retriever:
        "A tuned baseline, fitted again where an earlier run tuned it."
        if name not in self.fitted:
            self.fitted[name] = SPACES[name].make(self.data, **self.done[name]["settings"]).fit(self.data)
        return self.fitted[name]

    def fuse(self, names: list[str]) -> None:
        "z-sum and reciprocal ranks of the best single baselines: the best one, and the best of them that reads if none of those does."
        best = sorted((n for n in names if n in self.done), key=lambda n: -self.done[n]["validation_ndcg@10"])
        chosen = best[:FUSED]
        if not any(SPACES[n].reads for n in chosen): chosen += [n for n in best if SPACES[n].reads][:1]
        if len(chosen) < 2: return
        for how in ("zsum", "rrf"):
            label = f"{how}({'+'.join(chosen)})"
            if label not in self.done: self.run(label, fusion_space({n: self.member(n) for n in chosen}, how))


def judge(stage: Retriever, question: Question, n_items: int) -> Evaluation:
    "The one look at the test split."
    lists, _ = stage.retrieve(question.requests, 10, allowed=question.allowed)
    catalogue = None if question.allowed is None else question.allowed.numpy()
    return evaluate_lists(lists, question.relevant, n_items=n_items, ks=(10,), catalogue=catalogue, users=question.requests.users)


def row(name: str, entry: dict) -> str:
    "A line of the table."
    cells = [f"{entry['test'][m]['mean']:.3f} [{entry['test'][m]['low']:.3f}, {entry['test'][m]['high']:.3f}]" for m in METRICS[:3]]
    settings = ", ".join(f"{k}={v:g}" if isinstance(v, (int, float)) else f"{k}={v}" for k, v in entry["settings"].items())
    return f"| {name} | {' | '.join(cells)} | {entry['validation_ndcg@10']:.3f} | {entry['trials']} | {entry['seconds']:.0f} | {settings} |"


def main() -> None:
    "Read the options, tune, print, and write JSON where asked for."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with interactions and items")
    parser.add_argument("--protocol", choices=("warm", "item-cold"), default="warm", help="what is known when it is tested")
    parser.add_argument("--budget", type=int, default=12, help="settings tried for each baseline, the same for all")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", help="names, with commas between; fusions are left out then")
    chosen.add_argument("--without", help="names, with commas between, that are left out; the rest is fused")
    parser.add_argument("--users", type=int, default=0, help="choose on at most so many users, drawn at random (0: all); all are tested on")
    parser.add_argument("--no-clock", action="store_true", help="timestamps are only an order: no recent or decayed popularity")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="JSON; finished baselines are read from it and kept")
    parser.add_argument("--summary", type=Path, help="JSON for the notebooks: settings and test values, no trials")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load(options.data, options.protocol, options.seed)
    spaces = taking_part(data, options.protocol, options.only, not options.no_clock, options.without)
    study = Study(options, data)
    print(data)
    print(f"{options.protocol}: {len(study.valid.requests)} users to choose on, {len(study.test.requests)} to test on, {options.budget} trials each\n")
    print("| baseline | P@10 | R@10 | nDCG@10 | validation | trials | seconds | chosen |\n|---|---|---|---|---|---|---|---|")
    for name, entry in study.done.items(): print(row(name, entry))
    try:
        for name, space in spaces.items(): study.run(name, space)
        if options.only is None: study.fuse(list(spaces))
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; the same command goes on{'' if options.out else ', if it is given --out'}")
    if options.summary: study.summarise(options.summary)
    best = max(study.done, key=lambda name: study.done[name]["validation_ndcg@10"])
    print(f"\nbest on validation: {best}, test nDCG@10 {study.done[best]['test']['ndcg@10']['mean']:.4f}")


if __name__ == "__main__":
    main()
