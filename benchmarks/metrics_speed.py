"""Speed of the batched ranking metrics against a Python loop over users and, where installed, ranx.

usage: python benchmarks/metrics_speed.py [--users 21000] [--items 17000] [--relevant 20] [--k 10] [--repeats 3]

Prints seconds and ratios; every contender computes precision, recall, nDCG, MRR, MAP and hit rate at k from lists that
exist already, and their means are asserted to agree. All start from the same (users, k) array and sparse matrix, so
building what a contender wants (sorted keys, Python sets, ranx's containers) is shown both inside and outside its time.
Compiling is not counted.
"""
import argparse
import math
import resource
import time

import numpy as np
import torch
from scipy import sparse

from genre_nb.evaluation import RANKING_METRICS, evaluate_lists, list_hits, ranking_metrics

NAMES = ("precision", "recall", "ndcg", "mrr", "map", "hit_rate")


def loop_over_users(lists: list[list[int]], liked: list[set], k: int) -> np.ndarray:
    "The six means, one user and one item at a time."
    rows = []
    for items, wants in zip(lists, liked):
        if not wants: continue
        ranks = [r for r, i in enumerate(items[:k], 1) if i in wants]
        dcg = sum(1 / math.log2(r + 1) for r in ranks)
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(wants)) + 1))
        ap = sum(hit / r for hit, r in enumerate(ranks, 1)) / len(wants)
        rows.append((len(ranks) / k, len(ranks) / len(wants), dcg / ideal, 1 / ranks[0] if ranks else 0, ap, bool(ranks)))
    return np.mean(rows, 0)


def best_time(function, repeats: int) -> tuple[float, object]:
    "Shortest of several runs, and the result."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def with_ranx(lists: np.ndarray, relevant: sparse.csr_matrix, k: int, repeats: int):
    "Seconds, seconds of preparation and means of ranx, or None where it is not installed."
    try: import ranx
    except ImportError: return None
    names = [f"{name}@{k}" for name in NAMES]
    score = [float(k - r) for r in range(k)]
    start = time.perf_counter()
    qrels = ranx.Qrels({str(b): dict.fromkeys(map(str, relevant[b].indices), 1) for b in range(len(lists))})
    run = ranx.Run({str(b): dict(zip(map(str, row), score)) for b, row in enumerate(lists)})
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    ranx.evaluate(qrels, run, names, make_comparable=False)
    print(f"ranx, first call with its compilation: {time.perf_counter() - start:.1f} s")
    seconds, result = best_time(lambda: ranx.evaluate(qrels, run, names, make_comparable=False), repeats)
    return seconds, prepared, np.array([result[name] for name in names])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 21_000), ("items", 17_000), ("relevant", 20), ("k", 10), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-ranx", action="store_true", help="skip ranx, whose first compilation takes a minute")
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    lists = (rng.integers(0, a.items, (a.users, 1)) + np.arange(a.k) * (a.items // a.k)) % a.items
    columns = rng.integers(0, a.items, (a.users, a.relevant))
    columns[::2, 0] = lists[::2, a.k // 2]                       # every second user gets a hit for sure
    rows = np.repeat(np.arange(a.users), a.relevant)
    relevant = sparse.csr_matrix((np.ones(len(rows)), (rows, columns.ravel())), shape=(a.users, a.items))
    print(f"{a.users} users × {a.items} items, {a.relevant} relevant each, lists of {a.k}, "
          f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")

    tensor = torch.from_numpy(lists)
    ours, result = best_time(lambda: ranking_metrics(tensor, relevant, (a.k,)), a.repeats)
    means = np.array([result[f"{name}@{a.k}"].nanmean().item() for name in NAMES])
    core, _ = best_time(lambda hits=list_hits(tensor, relevant): [m(hits[0].double(), hits[1], a.k) for m in RANKING_METRICS.values()], a.repeats)
    print(f"{'':16} {'from lists and csr':>20} {'ratio':>7} {'metrics alone':>15} {'ratio':>7}")
    def report(name, whole, alone): print(f"{name:16} {whole:18.3f} s {whole / ours:7.1f} {alone:13.4f} s {alone / core:7.1f}")
    report("batched torch", ours, core)

    start = time.perf_counter()
    pointers, indices = relevant.indptr.tolist(), relevant.indices.tolist()
    as_lists, as_sets = lists.tolist(), [set(indices[i:j]) for i, j in zip(pointers, pointers[1:])]
    prepared = time.perf_counter() - start
    slow, expected = best_time(lambda: loop_over_users(as_lists, as_sets, a.k), 1)
    assert np.allclose(means, expected), "batched and looped metrics differ"
    report("Python loop", prepared + slow, slow)

    if not a.no_ranx and (other := with_ranx(lists, relevant, a.k, a.repeats)):
        assert np.allclose(means, other[2]), "batched metrics and ranx differ"
        report("ranx, compiled", other[1] + other[0], other[0])

    start = time.perf_counter()
    evaluation = evaluate_lists(tensor, relevant, n_items=a.items, ks=(a.k,), popularity=np.arange(a.items),
                                item_vectors=rng.normal(size=(a.items, 64)), cold=np.arange(a.items) < a.items // 10)
    print(f"everything (diversity, novelty, Gini …): {time.perf_counter() - start:.3f} s")
    start = time.perf_counter()
    evaluation.summary(n_boot=1000)
    print(f"1,000 bootstrap resamples of all {len(evaluation.metrics)} metrics: {time.perf_counter() - start:.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB (a dense float32 relevance matrix alone: {4 * a.users * a.items / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
