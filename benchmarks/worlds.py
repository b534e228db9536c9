"""Every system on the simulated worlds, over seeds: the quality of the lists and of what the generator writes.

usage: python benchmarks/worlds.py [--seeds 5] [--domains ecommerce social news] [--languages zh en] [--out worlds.json]
                                   [--summary nbs/results/worlds.json]
One world of 1,000 users and 1,000 items takes 2.5 to 3.5 minutes on one core. A run that was interrupted goes on: finished
worlds are read from --out. Several processes may share the work if each has its own --out; --also reads theirs for the tables.
"""
import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from genre_nb.cli import demo_config
from genre_nb.evaluation import Evaluation, attribute_match, comparison_table, distinct_n, paired_lift, self_bleu, versions
from genre_nb.preprocessing import Analyzer
from genre_nb.recommender import GenreRecommender
from genre_nb.simulation import DOMAINS, LANGUAGES, World

METRICS = ("ndcg@10", "precision@10", "recall@10")
OVER = {"lift_vs_best_baseline": "best baseline", "lift_vs_gan_off": "genre_gan_off", "lift_vs_features_only": "genre_features_only",
        "lift_vs_d_shuffled": "genre_d_shuffled", "lift_vs_g_off": "genre_g_off"}


def judged(world: World, texts: list[str], asked: list[str]) -> dict[str, float]:
    "Attribute match, distinct-2, Self-BLEU and the share that the parser rejects, of texts that answer interests."
    parsed = [world.parse(t.split(" · ")[-1]) for t in texts]
    match = attribute_match([p.attributes for p in parsed], [world.wanted(a) for a in asked])
    tokens = [Analyzer(stem=False, stop_words=False)(t) for t in texts]
    return {"attribute_match": float(np.nanmean(match)), "distinct_2": distinct_n(tokens, 2),
            "self_bleu": self_bleu(texts, world.language), "rejected": float(np.mean([not p.grammatical for p in parsed]))}


def written(world: World, shop: GenreRecommender, n: int = 100) -> dict[str, dict[str, float]]:
    "Two texts for each of n users' interests: by G after the game, by its twin without the game, and two real ones at random."
    interests = [t for t in world.users["profile"] if t][:n]
    twin = copy.copy(shop)
    twin.trained = shop.gan_off
    found = {}
    for name, model in (("genre", shop), ("genre_gan_off", twin)):
        texts = model.generate(interests, 2, kind="interests")
        found[name] = judged(world, texts["description"].tolist(), texts["asked"].tolist())
        asked = texts["asked"].tolist()
    rows = np.random.default_rng(0).integers(len(world.items), size=len(asked))
    real = [f"{t} · {d}" for t, d in zip(world.items["title"].iloc[rows], world.items["description"].iloc[rows])]
    return {**found, "real, at random": judged(world, real, asked)}


def run(domain: str, language: str, users: int, items: int, seed: int) -> dict:
    "Fit and measure one world."
    world = World(domain, language, users, items, seed)
    start = time.perf_counter()
    shop = GenreRecommender(demo_config().seeded(seed)).fit(world.dataset())
    report = shop.evaluate(oracle=world.true_relevance)
    return {"best_baseline": report.best_baseline, "weights": report.weights, "seconds": time.perf_counter() - start, "written": written(world, shop),
            "coverage@10": {n: e.overall["coverage@10"] for n, e in report.systems.items()},
            "per_user": {m: {n: np.round(e.per_user[m], 5).tolist() for n, e in report.systems.items()} for m in METRICS}}


def evaluations(found: dict) -> dict[str, Evaluation]:
    "A saved run → system → Evaluation; the best validated baseline of the run once more under that name."
    names = {**{n: n for n in found["coverage@10"]}, "best baseline": found["best_baseline"]}
    return {name: Evaluation(pd.DataFrame({m: found["per_user"][m][n] for m in METRICS}), {"coverage@10": found["coverage@10"][n]})
            for name, n in names.items()}


def summary(runs: list[dict]) -> dict:
    "Seeds of one world as one: systems that every seed has with intervals over users, lifts, and texts with their range over seeds."
    each = [evaluations(r) for r in runs]
    names = [n for n in each[0] if all(n in e for e in each)]
    pooled = {n: Evaluation.pool([e[n] for e in each]) for n in names}
    lifts = {key: {"ndcg@10": paired_lift(pooled["genre"], pooled[over], "ndcg@10"),
                   "seeds": [paired_lift(e["genre"], e[over], "ndcg@10")["mean"] for e in each]} for key, over in OVER.items()}
    texts = {who: {m: [r["written"][who][m] for r in runs] for m in values} for who, values in runs[0]["written"].items()}
    return {"seeds": len(runs), "seconds": float(np.mean([r["seconds"] for r in runs])), "best_baselines": [r["best_baseline"] for r in runs], "weights": [r["weights"] for r in runs],
            "systems": {n: e.summary() for n, e in pooled.items()}, **lifts,
            "written": {who: {m: {"mean": float(np.mean(v)), "low": min(v), "high": max(v), "seeds": v} for m, v in values.items()} for who, values in texts.items()}}


def show(name: str, found: dict) -> None:
    "One world's tables."
    print(f"\n{name}: {found['seeds']} seeds, {found['seconds']:.0f} s each; best validated baselines {', '.join(found['best_baselines'])}")
    print(comparison_table(found["systems"], ["ndcg@10", "precision@10", "recall@10", "coverage@10"]).to_string())
    for key in OVER: print(key, {k: v and round(v, 3) for k, v in found[key]["ndcg@10"].items()}, np.round(found[key]["seeds"], 3).tolist())
    print(pd.DataFrame({who: {m: v["mean"] for m, v in values.items()} for who, values in found["written"].items()}).T.round(3).to_string(), flush=True)


def main() -> None:
    "All worlds, one after the other."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--domains", nargs="+", default=["ecommerce", "social", "news"], choices=DOMAINS)
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), choices=LANGUAGES)
    parser.add_argument("--out", type=Path, default=Path("worlds.json"), help="finished runs, user by user")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="files that other processes wrote as --out")
    parser.add_argument("--summary", type=Path, help="write the tables there, as the notebooks and the README read them")
    options = parser.parse_args()
    done = {}
    for file in (*options.also, options.out): done |= json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {}
    for seed in range(options.seeds):
        for domain in options.domains:
            for language in options.languages:
                key = f"{domain}-{language}-{options.users}-{options.items}-{seed}"
                if key not in done:
                    done[key] = run(domain, language, options.users, options.items, seed)
                    options.out.write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8")
                found.setdefault(f"{domain}-{language}", []).append(done[key])
                print(key, round(done[key]["seconds"]), "s", done[key]["written"]["genre"], flush=True)
    tables = {name: summary(runs) for name, runs in found.items()}
    for name, table in tables.items(): show(name, table)
    if options.summary: options.summary.write_text(json.dumps({"users": options.users, "items": options.items, "versions": versions(), "worlds": tables}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
