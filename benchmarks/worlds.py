"""Every system on every simulated world, over seeds: quality and what the generator writes, as one table.

usage: python benchmarks/worlds.py [--users 1000] [--items 1000] [--seeds 5] [--domains ecommerce …] [--languages zh en] [--out worlds.json]
A run that was interrupted goes on: finished worlds are read from --out.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np

from genre_nb.cli import demo_config
from genre_nb.evaluation import Evaluation, attribute_match, comparison_table, distinct_n, self_bleu
from genre_nb.preprocessing import Analyzer
from genre_nb.recommender import GenreRecommender
from genre_nb.simulation import DOMAINS, LANGUAGES, World


def written(world: World, shop: GenreRecommender, n: int = 60) -> dict[str, float]:
    "Descriptions for users' interests: attribute match, distinct-2, Self-BLEU, share that the parser rejects."
    interests = [t for t in world.users["profile"] if t][:n]
    texts = shop.generate(interests, 2, kind="interests")
    parsed = [world.parse(t.split(" · ")[-1]) for t in texts["description"]]
    wanted = [world.wanted(t) for t in texts["asked"]]
    tokens = [Analyzer(stem=False, stop_words=False)(t) for t in texts["description"]]
    return {"attribute match": float(np.nanmean(attribute_match([p.attributes for p in parsed], wanted))), "distinct-2": distinct_n(tokens, 2),
            "self-BLEU": self_bleu(texts["description"].tolist(), world.language), "rejected": float(np.mean([not p.grammatical for p in parsed]))}


def run(domain: str, language: str, users: int, items: int, seed: int) -> dict:
    "Fit and measure one world."
    world = World(domain, language, users, items, seed)
    start = time.perf_counter()
    shop = GenreRecommender(demo_config().seeded(seed)).fit(world.dataset())
    report = shop.evaluate(oracle=world.true_relevance)
    keep = [report.best_baseline, "popularity", "ease", "item_knn", "bm25", "dense", "generated", *(n for n in report.systems if n.startswith(("genre", "oracle")))]
    return {"best_baseline": report.best_baseline, "weights": report.weights, "written": written(world, shop), "seconds": time.perf_counter() - start,
            "ndcg@10": {n: report.systems[n].per_user["ndcg@10"].tolist() for n in dict.fromkeys(keep)}}


def main() -> None:
    "All worlds, one after the other."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), choices=LANGUAGES)
    parser.add_argument("--out", type=Path, default=Path("worlds.json"))
    options = parser.parse_args()
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    for domain in options.domains:
        for language in options.languages:
            for seed in range(options.seeds):
                key = f"{domain}-{language}-{options.users}-{options.items}-{seed}"
                if key not in done:
                    done[key] = run(domain, language, options.users, options.items, seed)
                    options.out.write_text(json.dumps(done))
                print(key, round(done[key]["seconds"]), "s", done[key]["written"], flush=True)
            show([done[f"{domain}-{language}-{options.users}-{options.items}-{s}"] for s in range(options.seeds)])


def show(runs: list[dict]) -> None:
    "Systems that every seed has, pooled; and the lift of genre over each seed's best baseline."
    import pandas as pd
    from genre_nb.evaluation import paired_lift
    runs = [{**r, "ndcg@10": {**r["ndcg@10"], "best baseline": r["ndcg@10"][r["best_baseline"]]}} for r in runs]
    names = [n for n in runs[0]["ndcg@10"] if all(n in r["ndcg@10"] for r in runs)]
    pooled = {n: Evaluation.pool([Evaluation(pd.DataFrame({"ndcg@10": r["ndcg@10"][n]}), {}) for r in runs]) for n in names}
    print(comparison_table(pooled, ["ndcg@10"]).to_string())
    for over in ("best baseline", "genre_gan_off", "genre_features_only"): print("genre over", over, paired_lift(pooled["genre"], pooled[over], "ndcg@10"), flush=True)


if __name__ == "__main__": main()
