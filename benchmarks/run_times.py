"""How long the studies run, without the cells flagged slow or gpu, as `make test` runs them: the map in nbs/index.ipynb shows it.

usage: python benchmarks/run_times.py [nbs/2*.ipynb nbs/3*.ipynb] [--out nbs/results/run_times.json]     (one after the other, one thread)
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    "Run, stop at the first notebook that fails, write seconds by number of the notebook."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted([*(ROOT / "nbs").glob("2*.ipynb"), *(ROOT / "nbs").glob("3*.ipynb")]))
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "results" / "run_times.json")
    options = parser.parse_args()
    os.environ["MATPLOTLIBRC"] = str(ROOT / "nbs")
    seconds = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for notebook in options.notebooks:
        start = time.perf_counter()
        ok, _ = run_nb(notebook.absolute(), skip_flags=get_config().tst_flags.split(), basepath=ROOT)
        if not ok: sys.exit(f"{notebook} does not run; nothing is written for it")
        seconds[notebook.name[:2]] = round(time.perf_counter() - start)
        print(f"{notebook.name}: {seconds[notebook.name[:2]]} s", flush=True)
        options.out.write_text(json.dumps(dict(sorted(seconds.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
