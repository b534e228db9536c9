"""How much memory and time a large shop takes: makes one, and runs `genre evaluate` on it in a process of its own.

usage: python benchmarks/scale.py --out runs/scale [--users 100000] [--items 10000] [--likes 1000000] [--limit-gib 8] [--evaluate "--protocol user-cold"]
                                  [--summary nbs/results/scale.json]
The shop is made up, so that nothing has to be downloaded: every user has a few topics out of forty, every item has one and a title
made of its words, fame follows Zipf's law, and a tenth of the likes each is held out for validation and test. Prints wall time, CPU
time, peak memory, and peak memory relative to the table of one float32 for every user and item, which nothing may ever build.
Exit code 1 where the peak is above --limit-gib. A finished run is not repeated; an interrupted one goes on.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

TOPICS, WORDS = 40, 25   # topics, and words of each


def make_shop(folder: Path, users: int, items: int, likes: int, seed: int = 0) -> int:
    "interactions.csv.gz and items.csv.gz; returns how many likes are left once those that came twice are merged."
    rng = np.random.default_rng(seed)
    topic = rng.integers(TOPICS, size=items)
    fame = 1 / (rng.permutation(items) + 10.0)
    titles = [" ".join(f"w{t}x{w}" for w in rng.choice(WORDS, size=4, replace=False)) for t in topic]
    pd.DataFrame({"item_id": np.arange(items), "title": titles, "category": [f"topic {t}" for t in topic]}).to_csv(folder / "items.csv.gz", index=False)
    shelves = [np.flatnonzero(topic == t) for t in range(TOPICS)]
    taste = rng.integers(TOPICS, size=(users, 3))
    user = np.sort(rng.integers(users, size=likes))
    wanted = taste[user, rng.integers(3, size=likes)]
    item = np.empty(likes, dtype=np.int64)
    for t, shelf in enumerate(shelves):
        rows = np.flatnonzero(wanted == t)
        if len(shelf): item[rows] = rng.choice(shelf, size=len(rows), p=fame[shelf] / fame[shelf].sum())
        else: item[rows] = rng.integers(items, size=len(rows))
    table = pd.DataFrame({"user_id": user, "item_id": item}).drop_duplicates()
    table["split"] = rng.choice(["train", "valid", "test"], p=[0.8, 0.1, 0.1], size=len(table))
    table.to_csv(folder / "interactions.csv.gz", index=False)
    return len(table)


def main() -> None:
    "Make, run, report."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the shop, the model and the metrics go there")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--likes", type=int, default=1_000_000)
    parser.add_argument("--limit-gib", type=float, default=8.0)
    parser.add_argument("--evaluate", default="", help="further options of `genre evaluate`, in one string")
    parser.add_argument("--summary", type=Path, help="JSON for the notebooks: sizes, time and memory")
    options = parser.parse_args()
    if min(options.users, options.items, options.likes) < 1: sys.exit("--users, --items and --likes must be at least 1")
    shop = options.out / "shop"
    shop.mkdir(parents=True, exist_ok=True)
    if not (shop / "interactions.csv.gz").exists():
        rows = make_shop(shop, options.users, options.items, options.likes)
        print(f"{shop}: {options.users:,} users × {options.items:,} items × {rows:,} likes", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-c", "from genre_nb.cli import main; main()", "evaluate", "--data", str(shop), "--out", str(options.out / "run"), *options.evaluate.split()]
    done = subprocess.run(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode: sys.exit(f"`genre evaluate` stopped with exit code {done.returncode}; the same command goes on")
    peak, table = used.ru_maxrss / 2**20, 4 * options.users * options.items / 2**30
    metrics = json.loads((options.out / "run" / "metrics.json").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - start
    print(f"wall {seconds:.0f} s, CPU {used.ru_utime + used.ru_stime:.0f} s, peak {peak:.2f} GiB (limit {options.limit_gib:g}), "
          f"{peak / table:.2f} times the table of users and items; nDCG@10 genre {metrics['systems']['genre']['ndcg@10']['mean']:.4f}, popularity {metrics['systems']['popularity']['ndcg@10']['mean']:.4f}")
    if options.summary:
        found = {"users": options.users, "items": options.items, "likes": len(pd.read_csv(shop / "interactions.csv.gz")),
                 "wall_s": round(seconds), "cpu_s": round(used.ru_utime + used.ru_stime), "peak_gib": round(peak, 2), "table_gib": round(table, 2), "evaluate": options.evaluate, "versions": metrics.get("versions", {})}
        options.summary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if peak > options.limit_gib: sys.exit(1)


if __name__ == "__main__": main()
