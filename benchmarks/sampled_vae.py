"""Mult-VAE with the sum under its softmax over a sample of the items, against the same with the sum over all: what does the sample cost, what does it save?

usage: python benchmarks/sampled_vae.py --data FOLDER --tuned nbs/results/baselines.json [--negatives 2000] [--seeds 3] [--users 2000] [--summary nbs/results/sampled_vae.json]

The setting is the one that baselines.py chose for the set with the sample. Both forms are trained with each seed, one after the other on
the same thread, and judged by nDCG@10 on validation (at most `--users` of its people, the same as there). Test is not read.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from genre_nb.collaborative_filtering import MultVAE
from genre_nb.evaluation import evaluate_lists, versions

sys.path.insert(0, str(Path(__file__).parent))
from baselines import ask, load  # noqa: E402


def main() -> None:
    "Train, judge, print, and write JSON where asked for."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with interactions and items")
    parser.add_argument("--tuned", type=Path, required=True, help="summary of baselines.py that holds this set")
    parser.add_argument("--negatives", type=int, default=2000, help="items drawn in each step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=int, default=2000, help="of validation, at most")
    parser.add_argument("--summary", type=Path, help="write the results there; what it holds of other sets stays")
    options = parser.parse_args()
    for option in ("negatives", "seeds", "users"):
        if getattr(options, option) < 1: sys.exit(f"--{option} {getattr(options, option)}: give at least 1")
    name = f"{options.data.resolve().name}.warm"
    chosen = json.loads(options.tuned.read_text(encoding="utf-8")).get(name, {}).get("baselines", {}).get("mult_vae")
    if chosen is None: sys.exit(f"--tuned {options.tuned}: no mult_vae of {name} there; run baselines.py --data {options.data} --summary {options.tuned} first")
    torch.set_num_threads(1)
    data = load(options.data, "warm", 0)
    valid = ask(data, "valid", ("train",), "warm", options.users, 0)
    found: dict = {"settings": chosen["settings"], "items": data.n_items, "negatives": options.negatives, "validation_requests": len(valid.requests), "versions": versions(("torch", "numpy", "scipy"))}
    for kind, negatives in (("sampled", options.negatives), ("exact", None)):
        found[kind] = {"validation_ndcg@10": [], "seconds": []}
        for seed in range(options.seeds):
            start = time.perf_counter()
            stage = MultVAE(**chosen["settings"], negatives=negatives, seed=seed).fit(data)
            found[kind]["seconds"].append(round(time.perf_counter() - start, 1))
            lists, _ = stage.retrieve(valid.requests, 10)
            found[kind]["validation_ndcg@10"].append(float(evaluate_lists(lists, valid.relevant, n_items=data.n_items, ks=(10,)).mean("ndcg@10")))
            print(f"{name}, {kind}, seed {seed}: nDCG@10 {found[kind]['validation_ndcg@10'][-1]:.4f}, {found[kind]['seconds'][-1]:.0f} s", flush=True)
    ratio = lambda what: np.mean(found["sampled"][what]) / np.mean(found["exact"][what])
    print(f"sampled over exact: nDCG@10 × {ratio('validation_ndcg@10'):.3f}, time × {ratio('seconds'):.2f}")
    if options.summary:
        before = json.loads(options.summary.read_text(encoding="utf-8")) if options.summary.exists() else {}
        options.summary.write_text(json.dumps(dict(sorted((before | {name: found}).items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
