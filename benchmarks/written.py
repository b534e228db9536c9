"""What the generator of a saved model writes for real users, and what it is grounded to, in numbers: no text of the data is kept.

usage: python benchmarks/written.py MODEL [MODEL …] [--users 500] [--summary nbs/results/written.json]
A MODEL is a folder that `GenreRecommender.save` or `genre fit` wrote; `genre evaluate --out OUT` leaves one in OUT/model. What is
counted stands in the docstring of `facts_of_texts` (benchmarks/seeds.py).
"""
import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from seeds import facts_of_texts  # noqa: E402

from genre_nb.recommender import GenreRecommender  # noqa: E402


def main() -> None:
    "Load, write, count, show."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--users", type=int, default=500, help="test users at most")
    parser.add_argument("--summary", type=Path, help="write the numbers there; what it holds of other runs stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.summary.read_text(encoding="utf-8")) if options.summary and options.summary.exists() else {}
    for folder in options.models:
        try: shop = GenreRecommender.load(folder)
        except ValueError as error: sys.exit(f"{folder}: {error}")
        facts = facts_of_texts(shop, shop.question("test"), options.users)
        found[f"{shop.data.name}.{shop.config.protocol}"] = {name: round(value, 4) for name, value in facts.items()} | {"hard_negatives": shop.config.hard_negatives}
    print(pd.DataFrame(found).T.round(3).to_string())
    if options.summary: options.summary.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
