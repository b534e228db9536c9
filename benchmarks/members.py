"""What is each opinion in the first stage worth, and what would one more bring? Weights on one half of validation, judged on the other.

usage: python benchmarks/members.py --data FOLDER [--extras user_knn softmax_mf …] [--deals 2]
                                    [--summary nbs/results/members.json]
The members of `zsum(tuned)` are fitted as `genre evaluate` fits them under the protocol warm; the extras join by name, with their defaults
(`text_ease`: with the λ of `ease` and words and phrases). Then for the mixture of all members, for each mixture without one of them, and
for each with one extra, coordinate ascent finds the weights on half of the users of validation and the others judge it, and the other way
round, for each deal of halves. Test is not read. A fitted extra and a judged mixture are not kept: one set takes some minutes.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from genre_nb.collaborative_filtering import SPACES, TextEASE
from genre_nb.datasets import RecDataset
from genre_nb.evaluation import Evaluation, paired_lift, versions
from genre_nb.recommender import GenreConfig, GenreRecommender
from genre_nb.reranking import Opinions, ascend, opinions_of
from genre_nb.retrieval import Retriever

EXTRAS = ("user_knn", "ials", "bpr", "softmax_mf", "mult_vae", "text_ease")


def extra_stage(name: str, shop: GenreRecommender) -> Retriever:
    "One more first stage, fitted on train."
    if name == "text_ease": return TextEASE(shop.linear["l2"], views=("words", "phrases")).fit(shop.view)
    settings = {"factors": 64, "alpha": 3.0, "l2_per_alpha": 3.0} if name == "ials" else {}      # the library's defaults are for other data
    return SPACES[name].make(shop.view, **settings).fit(shop.view)


def some_members(opinions: Opinions, names: list[str]) -> Opinions:
    "The same candidates, fewer opinions."
    columns = [opinions.names.index(name) for name in names]
    return Opinions(tuple(names), opinions.codes, opinions.z[..., columns], opinions.likes, opinions.liked)


def held_out(opinions: Opinions, start: str, deals: int) -> np.ndarray:   # (B,)
    "nDCG@10 of every request under weights that it had no part in, mean over the deals."
    begin = torch.tensor([float(name == start) for name in opinions.names])
    whole = np.zeros((deals, len(opinions.codes)))
    for deal in range(deals):
        order = np.random.default_rng([0, 19, deal]).permutation(len(opinions.codes))
        sides = [np.sort(order[side::2]) for side in (0, 1)]
        for here, there in (sides, sides[::-1]): whole[deal, there] = opinions[there].each(ascend(opinions[here], begin)[0]).numpy()
    return whole.mean(0)


def measure(folder: Path, extras: list[str], deals: int, say) -> dict:
    "All mixtures of one set."
    shop = GenreRecommender(GenreConfig())
    shop.take(RecDataset.from_folder(folder))
    say("first stages")
    shop._fit_stages(say)
    stages = dict(shop.stages)
    for name in extras:
        say(name)
        stages[name] = extra_stage(name, shop)
    question = shop.question("valid", shop.config.fusion_users)
    opinions = opinions_of(stages, question.requests, question.relevant, question.closed, question.allowed, 50)
    own, start = list(shop.stages), max(shop.stages, key=shop.valid_ndcg.get)
    mixtures = {"all": own, **{f"without {name}": [n for n in own if n != name] for name in own}, **{f"with {name}": [*own, name] for name in extras}}
    found = {}
    for name, members in mixtures.items():
        first = start if start in members else max(members, key=lambda n: shop.valid_ndcg.get(n, 0.0))
        found[name] = Evaluation(pd.DataFrame({"ndcg@10": held_out(some_members(opinions, members), first, deals)}), {})
        say(f"{name}: {found[name].mean('ndcg@10'):.4f}")
    return {"users": len(question), "deals": deals, "versions": versions(), "members": own, "single": {name: round(shop.valid_ndcg[name], 5) for name in own},
            "ndcg@10": {name: round(e.mean("ndcg@10"), 5) for name, e in found.items()},
            "lifts": {name: paired_lift(e, found["all"]) for name, e in found.items() if name != "all"}}


def main() -> None:
    "Measure, show, keep."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with interactions and items")
    parser.add_argument("--extras", nargs="*", default=list(EXTRAS), choices=EXTRAS, help="`ials` needs the library implicit")
    parser.add_argument("--deals", type=int, default=2, help="how often the users are halved")
    parser.add_argument("--summary", type=Path, help="write the results there; what it holds of other sets stays")
    options = parser.parse_args()
    if not options.data.is_dir(): sys.exit(f"--data {options.data}: there is no such folder")
    if options.deals < 1: sys.exit(f"--deals {options.deals}: give at least 1")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    start, name = time.perf_counter(), options.data.resolve().name
    found = measure(options.data, options.extras, options.deals, lambda message: print(f"{time.strftime('%H:%M:%S')} {name}: {message}", flush=True))
    found["seconds"] = round(time.perf_counter() - start)
    print(pd.DataFrame({key: {"nDCG@10": found["ndcg@10"][key], "over all": f"{v['mean']:+.2%} [{v['low']:+.2%}, {v['high']:+.2%}]"} for key, v in found["lifts"].items()}).T.to_string())
    if options.summary:
        kept = json.loads(options.summary.read_text(encoding="utf-8")) if options.summary.exists() else {}
        options.summary.write_text(json.dumps(dict(sorted((kept | {name: found}).items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
