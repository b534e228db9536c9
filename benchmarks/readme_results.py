"""The README's results: takes a folder that `genre demo` wrote and keeps the figures that nbs/index.ipynb shows.

usage: python benchmarks/readme_results.py genre-demo      (then: make nbs ARGS=nbs/index.ipynb && make readme)
"""
import json
import sys
from pathlib import Path

METRICS = ("ndcg@10", "recall@10", "coverage@10")
LIFTS = ("lift_vs_best_baseline", "lift_vs_gan_off", "lift_vs_features_only")


def main(folder: Path) -> None:
    "metrics.json → nbs/results/demo.json"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kept = {"dataset": metrics["dataset"], "best_baseline": metrics["best_baseline"], "seed": metrics["config"]["seed"],
            "seconds": round(metrics["seconds"]["total"]), "weights": metrics["weights"],
            "systems": {name: {m: values[m] for m in METRICS} for name, values in metrics["systems"].items()},
            **{lift: {"ndcg@10": metrics[lift]["ndcg@10"]} for lift in LIFTS}}
    target = Path(__file__).resolve().parents[1] / "nbs" / "results" / "demo.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"written: {target}")


if __name__ == "__main__": main(Path(sys.argv[1]))
