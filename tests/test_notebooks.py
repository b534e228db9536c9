"""Every notebook is a test: it runs from top to bottom, without the cells flagged slow or gpu (NB_FLAGS=slow runs them)."""
import os
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

CFG = get_config()
NBS = sorted(Path(p) for p in nbglob(CFG.nbs_path, as_path=True))
FORCE = os.environ.get("NB_FLAGS", "").split()


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.name)
def test_notebook(nb, capfd, monkeypatch):
    monkeypatch.setenv("MATPLOTLIBRC", str(Path(CFG.nbs_path).absolute()))
    ok, _ = run_nb(nb.absolute(), skip_flags=CFG.tst_flags.split(), force_flags=FORCE, basepath=CFG.config_path)
    assert ok, capfd.readouterr().err


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.name)
def test_size(nb):
    assert nb.stat().st_size <= 500 * 1024, f"{nb.name} is larger than 500 KiB: fewer or smaller figures"
