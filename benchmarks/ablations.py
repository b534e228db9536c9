"""D's dial w from realness (0) to relevance (1), and D shuffled, on one set: what do D's scores tell the final order?

usage: python benchmarks/ablations.py --data FOLDER [--protocol item-cold] [--w 0 0.25 0.5 0.75 1] [--seeds 1] [--out ablations.json]
First stages and the scorer are fitted once for each seed, both players once for each w; weights are chosen on validation each time.
A value of w that stands in --out is not run again. For each w: the first stage; the first stage + D with λ = 1, the weight of theory;
GENRE with the weights of validation; GENRE without G (γ = 0); and the two with D shuffled, its scores dealt anew within each list.
What D knows is the lift over D shuffled, paired by user. `validation` says what these weights were chosen by: the first stage, the best
weights without players, the chosen ones; whoever wants to choose w looks there.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from genre_nb.datasets import RecDataset
from genre_nb.evaluation import Evaluation, evaluate_lists, paired_lift, versions
from genre_nb.recommender import GenreConfig, GenreRecommender, ShuffledJudge
from genre_nb.reranking import Weights

METRICS = ("ndcg@10", "precision@10", "recall@10")


def ordered(shop: GenreRecommender, question, weights: Weights, shuffle: bool = False, extra: int = 0) -> Evaluation:
    "What these weights make of the first stage's candidates, 1,024 requests at a time."
    reranker, lists = shop.reranker(), []
    if shuffle: reranker.judge = ShuffledJudge(reranker.judge, shop.config.seed)
    if not weights.behaviour: reranker.scorer = None
    if not weights.match: reranker.match = None
    for start in range(0, len(question), 1024):
        part = question[slice(start, start + 1024)]
        items, scores = part.lists(shop.first, min(shop.config.rerank.candidates, shop.data.n_items))
        items, scores = shop.lengthen(shop.trained, part, items, scores, extra)
        lists.append(reranker.rerank(part.requests, items, scores, weights=weights).items[:, :10])
    return evaluate_lists(torch.cat(lists), question.relevant, n_items=shop.data.n_items, ks=(10,))


def on_validation(trials: pd.DataFrame, extra: int) -> dict[str, float]:
    "nDCG@10 of the first stage's order, of the best weights without players, and of the chosen ones."
    own = trials[trials["generated"] == 0]
    alone = own[(own[["judge", "match"]] == 0).all(axis=1)]
    return {"first stage": float(alone.loc[alone["behaviour"] == 0, "value"].iloc[0]), "features only": float(alone["value"].max()), "genre": float(trials.loc[trials["generated"] == extra, "value"].max())}


def measure(shop: GenreRecommender, w: float) -> dict:
    "Both players with this w, their weights, and the six orders of test."
    if shop.config.gan.w != w:
        shop.config = shop.config.model_copy(update={"gan": shop.config.gan.model_copy(update={"w": w})})
        shop.trained = shop.train_players(True)
        shop.choose_weights(shop.trained)
    chosen, theory, question = shop.trained.weights, Weights(behaviour=0.0, judge=1.0, match=0.0), shop.question("test")
    systems = {"first stage": ordered(shop, question, Weights(behaviour=0.0)), "first stage + D": ordered(shop, question, theory),
               "first stage + D shuffled": ordered(shop, question, theory, shuffle=True), "genre": ordered(shop, question, chosen, extra=shop.trained.extra),
               "genre, D shuffled": ordered(shop, question, chosen, shuffle=True, extra=shop.trained.extra),
               "genre, no G": ordered(shop, question, chosen.model_copy(update={"match": 0.0}))}
    last = pd.DataFrame(shop.trained.gan.rows).dropna(subset=["auc_match"]).iloc[-1]
    return {"weights": chosen.model_dump(), "first_stage": shop.first_name, "auc_match": float(last["auc_match"]), "auc_real": float(last["auc_real"]), "validation": on_validation(shop.trained.trials, shop.trained.extra), "versions": versions(),
            "systems": {name: {m: v for m, v in found.summary().items() if m in METRICS} for name, found in systems.items()},
            "lifts": {name: paired_lift(systems[name], systems["first stage"]) for name in systems if name != "first stage"},
            "knowledge": {"at λ = 1": paired_lift(systems["first stage + D"], systems["first stage + D shuffled"]), "in GENRE": paired_lift(systems["genre"], systems["genre, D shuffled"])}}


def main() -> None:
    "Run what is missing, then show."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions and items")
    parser.add_argument("--protocol", default="item-cold", choices=("warm", "item-cold", "user-cold"))
    parser.add_argument("--w", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("ablations.json"))
    options = parser.parse_args()
    if not options.data.is_dir(): sys.exit(f"--data {options.data}: there is no such folder")
    if options.seeds < 1: sys.exit(f"--seeds {options.seeds}: give at least 1")
    if not all(0 <= w <= 1 for w in options.w): sys.exit(f"--w {' '.join(f'{w:g}' for w in options.w)}: give numbers from 0 to 1")
    start = time.perf_counter()
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for seed in range(options.seeds):
        missing = [w for w in options.w if f"{options.data.name}.{options.protocol}.{seed}.{w:g}" not in found]
        if not missing: continue
        config = GenreConfig(protocol=options.protocol).seeded(seed)
        shop = GenreRecommender(config.model_copy(update={"gan": config.gan.model_copy(update={"w": missing[0]})})).fit(RecDataset.from_folder(options.data))
        for w in missing:
            found[f"{options.data.name}.{options.protocol}.{seed}.{w:g}"] = measure(shop, w)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"seed {seed}, w = {w:g}: done after {time.perf_counter() - start:.0f} s", flush=True)
    show = lambda v: f"{v['mean']:+.1%} [{v['low']:+.1%}, {v['high']:+.1%}]"
    table = {key: {"λ": run["weights"]["judge"], "AUC match": round(run["auc_match"], 2), "AUC real": round(run["auc_real"], 2),
                   **({"on validation": f"{run['validation']['genre'] / run['validation']['first stage'] - 1:+.1%}"} if "validation" in run else {}),
                   **{name: show(v) for name, v in run["lifts"].items()}, **{f"D knows, {where}": show(v) for where, v in run.get("knowledge", {}).items()}}
             for key, run in found.items()}
    print(pd.DataFrame(table).T.to_string())


if __name__ == "__main__": main()
