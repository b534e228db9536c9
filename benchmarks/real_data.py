"""GENRE on public data: every system of `genre evaluate`, set by set, and one file of results for the notebooks and the README.

usage: python benchmarks/real_data.py --data FOLDER_OF_SETS --out runs [--sets local-yelp …] [--protocols warm item-cold] [--seeds 1]
                                      [--config options.yaml] [--contaminate 0.1] [--label hard0]
                                      [--summary nbs/results/real.json]
FOLDER_OF_SETS (default: the environment variable GENRE_DATA) holds one folder for each set, with interactions and items. A finished
run has a metrics.json and is not run again; an interrupted one goes on. With --collect-only nothing is run.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

METRICS = ("ndcg@10", "precision@10", "recall@10", "hit_rate@10", "coverage@10", "novelty@10", "gini@10", "diversity@10")
LIFTS = ("lift_vs_best_baseline", "lift_vs_gan_off", "lift_vs_features_only", "lift_vs_text_only", "lift_vs_g_off", "lift_vs_d_shuffled")
SETS = ("ecommerce-amazon-cn", "local-yelp", "movies-agent4rec", "games-amazon", "books-goodreads")
COMMAND = [sys.executable, "-c", "from genre_nb.cli import main; main()"]


def name_of(data: str, protocol: str, seed: int, label: str | None = None) -> str: return ".".join([data, protocol, str(seed), *([label] if label else [])])


def run(folder: Path, protocol: str, seed: int, out: Path, options: list[str]) -> None:
    "One `genre evaluate`, unless its metrics are there; what it says goes to a file beside them."
    if (out / "metrics.json").exists(): return
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run([*COMMAND, "evaluate", "--data", str(folder), "--protocol", protocol, "--seed", str(seed), "--out", str(out), *options], stdout=log, stderr=log)
    result = "finished" if done.returncode == 0 else f"exit code {done.returncode}, see {out / 'log.txt'},"
    print(f"{out.name}: {result} after {time.perf_counter() - start:.0f} s", flush=True)


def further(options: argparse.Namespace, protocol: str) -> list[str]:
    "Options of `genre evaluate` that all runs of a protocol have in common; fakes are judged among cold items only."
    return [*(["--config", str(options.config)] if options.config else []),
            *(["--contaminate", f"{options.contaminate:g}"] if options.contaminate and protocol == "item-cold" else [])]


def collected(out: Path) -> dict[str, dict]:
    "What the finished runs say, without their long parts."
    found = {}
    for file in sorted(out.glob("*.*.*/metrics.json")):
        metrics = json.loads(file.read_text(encoding="utf-8"))
        found[file.parent.name] = {
            "best_baseline": metrics["best_baseline"], "weights": metrics["weights"], "hard_negatives": metrics["config"].get("hard_negatives", 0), **{key: metrics[key] for key in ("users", "versions", "validation_ndcg@10") if key in metrics}, "seconds": {k: round(v) for k, v in metrics["seconds"].items()},
            "systems": {name: {m: values[m] for m in METRICS if m in values} for name, values in metrics["systems"].items()},
            **{lift: {"ndcg@10": metrics[lift]["ndcg@10"]} for lift in LIFTS if lift in metrics},
            **({"contaminated": metrics["contaminated"]} if "contaminated" in metrics else {})}
    return found


def show(found: dict[str, dict]) -> None:
    "One line for each run."
    print("| run | best baseline | its nDCG@10 | genre | over the best baseline | over GAN off | minutes |\n|---|---|---|---|---|---|---|")
    for name, r in found.items():
        lifts = [f"{v['mean']:+.1%} [{v['low']:+.1%}, {v['high']:+.1%}]" for v in (r[lift]["ndcg@10"] for lift in LIFTS[:2])]
        means = [f"{r['systems'][n]['ndcg@10']['mean']:.4f}" for n in (r["best_baseline"], "genre")]
        print(f"| {name} | {r['best_baseline']} | {' | '.join(means)} | {' | '.join(lifts)} | {r['seconds']['total'] / 60:.1f} |")


def main() -> None:
    "Run what is missing, then collect."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GENRE_DATA"), help="folder of sets (default: GENRE_DATA)")
    parser.add_argument("--out", type=Path, required=True, help="a folder for each run is made there")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--protocols", nargs="+", default=["warm", "item-cold"], choices=("warm", "item-cold", "user-cold"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--config", type=Path, help="options of GenreConfig for every run, YAML or JSON; give a --label, or take another --out than without")
    parser.add_argument("--label", help="end of the names of these runs, beside those of the same question without it")
    parser.add_argument("--contaminate", type=float, help="item-cold only: fakes among the cold items, in parts of their number; the study has them on local-yelp, 0.1")
    parser.add_argument("--summary", type=Path, help="write the results there; what it holds of other runs stays")
    parser.add_argument("--collect-only", action="store_true", help="run nothing, read what is finished")
    options = parser.parse_args()
    if not options.collect_only:
        if options.data is None: sys.exit("give --data, or set GENRE_DATA to the folder that holds the sets")
        missing = [s for s in options.sets if not (Path(options.data) / s).is_dir()]
        if missing: sys.exit(f"{options.data} has no folder {missing[0]!r}; it holds: {', '.join(sorted(p.name for p in Path(options.data).iterdir() if p.is_dir()))}")
        for seed in range(options.seeds):
            for protocol in options.protocols:
                for data in options.sets: run(Path(options.data) / data, protocol, seed, options.out / name_of(data, protocol, seed, options.label), further(options, protocol))
    found = collected(options.out)
    show(found)
    if options.summary and options.summary.exists(): found = json.loads(options.summary.read_text(encoding="utf-8")) | found
    found = dict(sorted(found.items(), key=lambda kept: (kept[0].split(".")[1] == "item-cold", kept[0])))
    if options.summary: options.summary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
