"""Speed and memory of the first stages: seconds to fit, requests per second, size of what is saved.

    python benchmarks/retrieval_speed.py                                  # a simulated shop
    python benchmarks/retrieval_speed.py --data FOLDER                    # own or public data (default: $GENRE_DATA/local-yelp, if set)
    python benchmarks/retrieval_speed.py --ease-items 16805               # EASE alone on a random catalogue of this size (slow)

Seconds are wall-clock, `cpu` is processor time: on a busy machine compare the latter.
"""
import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from genre_nb.collaborative_filtering import EASE, ItemKNN, ease_weights
from genre_nb.datasets import RecDataset
from genre_nb.retrieval import BM25, TFIDF, Dense, Fusion, Popularity
from genre_nb.simulation import World


def timed(call) -> tuple:
    "(result, seconds, processor seconds)"
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def megabytes() -> float:
    "The most memory this process has used so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if os.uname().sysname == "Linux" else 1e6)


def measure(data: RecDataset, n_requests: int, k: int) -> list[dict]:
    "One row for each first stage."
    requests = data.requests(np.arange(min(n_requests, data.n_users)))
    stages = [Popularity(), BM25(), TFIDF(), Dense(), ItemKNN(), EASE(), Fusion([EASE(), BM25()]), Fusion([EASE(), BM25()], how="zsum")]
    rows = []
    for stage in stages:
        _, fit, fit_cpu = timed(lambda: stage.fit(data))
        _, answer, answer_cpu = timed(lambda: stage.retrieve(requests, k))
        saved = sum(array.nbytes for array in stage.state()[0].values()) / 1e6
        rows.append({"stage": stage.name, "fit_seconds": round(fit, 2), "fit_cpu": round(fit_cpu, 2), "requests_per_second": round(len(requests) / answer),
                     "requests_per_cpu_second": round(len(requests) / max(answer_cpu, 1e-6)), "saved_mb": round(saved, 2)})
        print(f"{stage.name:18} fit {fit:7.2f} s ({fit_cpu:.2f} cpu)   {len(requests) / answer:9,.0f} requests/s   {saved:8.2f} MB", flush=True)
    return rows


def measure_ease(n_items: int, per_user: int = 15) -> dict:
    "EASE on random ticks: only the number of items matters."
    n_users = n_items
    rng = np.random.default_rng(0)
    ticks = sp.csr_matrix((np.ones(n_users * per_user, np.float32), (np.repeat(np.arange(n_users), per_user), rng.integers(0, n_items, n_users * per_user))),
                          shape=(n_users, n_items))
    before = megabytes()
    _, wall, cpu = timed(lambda: ease_weights(ticks, 300.0))
    row = {"items": n_items, "seconds": round(wall, 1), "cpu": round(cpu, 1), "memory_mb": round(megabytes() - before), "table_mb": round(4 * n_items**2 / 1e6)}
    print("EASE alone:", row)
    return row


def main() -> None:
    "Read the options, measure, print, and write JSON where asked for."
    real = os.environ.get("GENRE_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(real, "local-yelp") if real else None, help="a folder with interactions and items")
    parser.add_argument("--users", type=int, default=2000, help="users and items of the simulated shop")
    parser.add_argument("--requests", type=int, default=5000, help="how many requests to answer")
    parser.add_argument("--k", type=int, default=200, help="length of the lists")
    parser.add_argument("--ease-items", type=int, default=0, help="also time EASE alone at this size")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = RecDataset.from_folder(options.data) if options.data else World(n_users=options.users, n_items=options.users).dataset()
    if not data.splits: data = data.split_random()
    print(data)
    rows = {"data": repr(data), "stages": measure(data, options.requests, options.k)}
    if options.ease_items: rows["ease"] = measure_ease(options.ease_items)
    if options.out: options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
