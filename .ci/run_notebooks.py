"""Execute nbdev notebooks in place and keep the outputs, honouring `#| eval: false` and tst_flags
(what `jupyter execute`, nbmake, nbval and JupyterLab's Run All do NOT honour), then clean them.
usage: python .ci/run_notebooks.py [--flags "slow gpu"] nbs/*.ipynb"""
import os, sys, time, argparse
from pathlib import Path
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline"); os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("MATPLOTLIBRC", str(Path(__file__).resolve().parents[1] / "nbs"))
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.all import working_directory
from nbdev.config import get_config
from nbdev.clean import clean_nb
from nbdev.process import NBProcessor
from nbdev.frontmatter import FrontmatterProc

def run(fn, force=()):
    cfg = get_config(); skip = set(cfg.tst_flags.split()) - set(force)
    nb = NBProcessor(fn, procs=FrontmatterProc, process=True).nb
    src = read_nb(fn)                          # untouched copy: only outputs are taken over
    def no_eval(c):
        if c.cell_type != "code" or "nbdev_export(" in c.source: return True
        d = getattr(c, "directives_", {}) or {}
        return d.get("eval:", [""])[0].lower() == "false" or bool(skip & d.keys())
    for c in nb.cells:                         # execnb keeps a stale output if the cell now prints nothing
        if c.cell_type == "code" and not no_eval(c): c["outputs"] = []
    k = CaptureShell(fn, mpl_format="png")
    with working_directory(fn.parent): k.run_all(nb, exc_stop=True, preproc=no_eval)
    if k.exc: raise SystemExit(k.prettytb(fname=fn))
    for a, b in zip(src.cells, nb.cells):
        if a.cell_type == "code" and not no_eval(b): a["outputs"] = b.get("outputs", [])
    clean_nb(src, clean_ids=True); write_nb(src, fn)

if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("nbs", nargs="+", type=Path); p.add_argument("--flags", default="")
    a = p.parse_args(); sys.path.insert(0, str(get_config().config_path))
    for f in a.nbs:
        t = time.time(); run(f.absolute(), a.flags.split()); print(f"{f}: {time.time()-t:.1f}s")
