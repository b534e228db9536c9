"""Whom does re-ranking help? What the chosen weights gain on validation, by the length of the history that is asked with.

usage: python benchmarks/by_length.py MODEL [MODEL …] [--deals 6] [--summary nbs/results/by_length.json]
A MODEL is a folder that `GenreRecommender.save` or `genre fit` wrote. Validation asks with what stands in train, test with train and
validation, so with longer histories: for each model the quartiles of both, the gain of GENRE over its first stage in each quarter of
the validation users, and the gain where weights are found on one half of them and judged on the other, for each deal of halves: once
for all of the half, and once apart for those whose history is up to its median, and for the others. What test users like is not looked at.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from genre_nb.evaluation import Evaluation, paired_lift, ranking_metrics, versions
from genre_nb.recommender import GenreRecommender, Question
from genre_nb.reranking import Reranker, Weights, tune_weights

NOTHING = Weights(behaviour=0.0, judge=0.0, match=0.0)


class Asked:
    "Validation requests with their candidates, every part of whose score is computed once."

    def __init__(self, shop: GenreRecommender):
        self.question: Question = shop.question("valid", shop.config.rerank.tune_users)
        first = self.question.lists(shop.first, min(shop.config.rerank.candidates, shop.data.n_items))
        self.items, self.scores = shop.lengthen(shop.trained, self.question, *first, shop.trained.extra)
        self.reranker: Reranker = shop.reranker()
        self.parts = self.reranker.parts(self.question.requests, self.items, self.scores)
        self.lengths = np.diff(self.question.requests.history.indptr)

    def some(self, rows: np.ndarray) -> tuple:
        "Arguments of `rerank`, and the parts, of some requests."
        return (self.question.requests[rows], self.items[rows], self.scores[rows]), {name: part[rows] for name, part in self.parts.items()}

    def ndcg(self, weights: Weights, rows: np.ndarray) -> np.ndarray:   # (b,)
        "nDCG@10 of each of some requests."
        asked, parts = self.some(rows)
        ranked = self.reranker.rerank(*asked, weights=weights, parts=parts).items[:, :10]
        return ranking_metrics(ranked, self.question.relevant[rows], (10,))["ndcg@10"].numpy()

    def chosen_on(self, rows: np.ndarray) -> Weights:
        "Weights from these requests alone."
        asked, parts = self.some(rows)
        return tune_weights(self.reranker, *asked, self.question.relevant[rows], parts=parts)[0]

    def held_out(self, here: np.ndarray, there: np.ndarray, apart: bool) -> np.ndarray:   # (len(there),)
        "nDCG@10 of `there` with weights from `here`; `apart`: one set for histories up to the median of `here`, one for longer ones."
        if not apart: return self.ndcg(self.chosen_on(here), there)
        values, cut = np.zeros(len(there)), np.median(self.lengths[here])
        for short in (True, False):
            mine, theirs = (self.lengths[rows] <= cut if short else self.lengths[rows] > cut for rows in (here, there))
            if theirs.any(): values[theirs] = self.ndcg(self.chosen_on(here[mine] if mine.any() else here), there[theirs])
        return values


def lift(after: np.ndarray, before: np.ndarray) -> dict[str, float]:
    "Relative, paired by user."
    return paired_lift(*(Evaluation(pd.DataFrame({"ndcg@10": values}), {}) for values in (after, before)))


def measure(shop: GenreRecommender, deals: int) -> dict:
    "One model."
    asked = Asked(shop)
    rows = np.arange(len(asked.question))
    before, after = (asked.ndcg(weights, rows) for weights in (NOTHING, shop.trained.weights))
    quarter = np.digitize(asked.lengths, np.unique(np.quantile(asked.lengths, (0.25, 0.5, 0.75))))
    held = {apart: np.zeros((deals, len(rows))) for apart in (False, True)}
    for deal in range(deals):
        order = np.random.default_rng([0, 41, deal]).permutation(rows)
        sides = [np.sort(order[side::2]) for side in (0, 1)]
        for here, there in (sides, sides[::-1]):
            for apart, values in held.items(): values[deal, there] = asked.held_out(here, there, apart)
    of = {name: np.diff(shop.question(name).requests.history.indptr) for name in ("valid", "test")}
    groups = [quarter == q for q in np.unique(quarter)]
    return {"users": len(rows), "weights": shop.trained.weights.model_dump(), "history": {name: [float(v) for v in np.quantile(lengths, (0.25, 0.5, 0.75))] for name, lengths in of.items()},
            "quarters": [{"users": int(group.sum()), "history": float(np.median(asked.lengths[group])), **lift(after[group], before[group])} for group in groups],
            "in sample": lift(after, before), "held out": lift(held[False].mean(0), before), "held out, apart": lift(held[True].mean(0), before),
            "apart over together": lift(held[True].mean(0), held[False].mean(0)), "versions": versions()}


def main() -> None:
    "Load, ask, show, keep."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--deals", type=int, default=6, help="how often the users are halved")
    parser.add_argument("--summary", type=Path, help="write the results there; what it holds of other models stays")
    options = parser.parse_args()
    if options.deals < 1: sys.exit(f"--deals {options.deals}: give at least 1")
    torch.set_num_threads(1)
    found = json.loads(options.summary.read_text(encoding="utf-8")) if options.summary and options.summary.exists() else {}
    show = lambda v: f"{v['mean']:+.1%} [{v['low']:+.1%}, {v['high']:+.1%}]"
    for folder in options.models:
        try: shop = GenreRecommender.load(folder)
        except ValueError as error: sys.exit(f"{folder}: {error}")
        name = f"{shop.data.name}.{shop.config.protocol}"
        found[name] = measure(shop, options.deals)
        print(f"{name}: in sample {show(found[name]['in sample'])}, held out {show(found[name]['held out'])}, apart by length {show(found[name]['held out, apart'])}; by length of the history "
              + ", ".join(f"{q['history']:g}: {show(q)}" for q in found[name]["quarters"]) + f"; test asks with {found[name]['history']['test'][1]:g}", flush=True)
    if options.summary: options.summary.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
