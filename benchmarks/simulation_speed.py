"""How fast a simulated world is made, against writing it to a folder and reading it back with pandas and our checks.

usage: python benchmarks/simulation_speed.py [--users 1000] [--items 1000] [--repeats 3] [--domains ecommerce …] [--languages zh en]

CPU seconds of this process (the best of several seeds), and the ratio of making to reading: simulation should cost no more than a few
times what its own files cost.
"""
import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from genre_nb.datasets import RecDataset
from genre_nb.simulation import DOMAINS, World


def cpu_seconds(function: Callable[[int], object], repeats: int) -> tuple[float, object]:
    "Least CPU time of a few calls, each with its own seed, and the last result."
    seconds = []
    for seed in range(repeats):
        start = time.process_time()
        result = function(seed)
        seconds.append(time.process_time() - start)
    return min(seconds), result


def measure(domain: str, language: str, options: argparse.Namespace) -> dict[str, float]:
    "One world: make, write, read."
    made, world = cpu_seconds(lambda seed: World(domain, language, n_users=options.users, n_items=options.items, seed=seed), options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        written, _ = cpu_seconds(lambda seed: world.dataset().to_folder(Path(folder)), options.repeats)
        read, data = cpu_seconds(lambda seed: RecDataset.from_folder(Path(folder)), options.repeats)
    return {"interactions": len(data.interactions), "make, s": made, "write, s": written, "read, s": read, "make / read": made / read}


def main() -> None:
    "Measure and print."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="seeds; the fastest counts")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--languages", nargs="+", default=["zh", "en"], choices=["zh", "en"])
    options = parser.parse_args()
    rows = {f"{domain}, {language}": measure(domain, language, options) for domain in options.domains for language in options.languages}
    print(pd.DataFrame(rows).T.round(2).to_string())


if __name__ == "__main__": main()
