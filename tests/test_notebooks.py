"""Every notebook is a test: it runs from top to bottom, without the cells flagged slow or gpu (NB_FLAGS=slow runs them)."""
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

CFG = get_config()
NBS = sorted(Path(p) for p in nbglob(CFG.nbs_path, as_path=True))
FORCE = os.environ.get("NB_FLAGS", "").split()


def saved_elsewhere(folder: Path, plain=Figure.savefig):
    "`savefig` that leaves the stored figures of the book alone: a run of the tests changes no file that is under version control."
    def savefig(self, fname, *args, **options):
        inside = isinstance(fname, (str, Path)) and Path(fname).parent == Path("figures")
        return plain(self, folder / Path(fname).name if inside else fname, *args, **options)
    return savefig


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.name)
def test_notebook(nb, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(Figure, "savefig", saved_elsewhere(tmp_path))
    monkeypatch.setenv("MATPLOTLIBRC", str(Path(CFG.nbs_path).absolute()))
    ok, _ = run_nb(nb.absolute(), skip_flags=CFG.tst_flags.split(), force_flags=FORCE, basepath=CFG.config_path)
    assert ok, capfd.readouterr().err
    unknown = [file.name for file in tmp_path.iterdir() if not (nb.parent / "figures" / file.name).exists()]
    assert not unknown, f"{nb.name} makes {unknown[0]}, which is not stored: run `make nbs ARGS=nbs/{nb.name}` and commit it"


@pytest.mark.parametrize("nb", NBS, ids=lambda p: p.name)
def test_size(nb):
    assert nb.stat().st_size <= 500 * 1024, f"{nb.name} is larger than 500 KiB: fewer or smaller figures"
