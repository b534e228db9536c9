"""Modules are what the notebooks say, notebooks are clean and in order, README.md is nbs/index.ipynb, imports go downwards."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIP = shutil.ignore_patterns(".git", ".venv*", "_proc", "_docs", "*.egg-info", "genre-demo", "build", ".hypothesis", ".pytest_cache")


def copy(tmp_path):
    return Path(shutil.copytree(ROOT, tmp_path / "p", ignore=SKIP))


def tree(folder, pattern):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob(pattern)) if "__pycache__" not in f.parts}


def nbdev(command, folder):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}   # under IN_TEST nbdev_export silently does nothing
    subprocess.run([Path(sys.executable).parent / command], cwd=folder, check=True, env=env)


def test_exports_in_sync(tmp_path):
    folder = copy(tmp_path)
    for module in (folder / "genre_nb").glob("*.py"):
        if module.name != "__init__.py": module.unlink()
    nbdev("nbdev_export", folder)
    assert tree(ROOT / "genre_nb", "*.py") == tree(folder / "genre_nb", "*.py"), "run `make export`"


def test_notebooks_clean(tmp_path):
    folder = copy(tmp_path)
    nbdev("nbdev_clean", folder)
    assert tree(ROOT / "nbs", "*.ipynb") == tree(folder / "nbs", "*.ipynb"), "run `make nbs` or nbdev_clean"


def test_readme_is_the_index(tmp_path):
    subprocess.run([sys.executable, ROOT / ".ci" / "readme.py", tmp_path / "README.md"], check=True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8"), "run `make readme`"


def test_readme_shows_the_saved_results():
    demo = json.loads((ROOT / "nbs" / "results" / "demo.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("popularity", "ease", demo["best_baseline"], "genre", "genre_gan_off", "genre_features_only", "oracle"):
        value = demo["systems"][name]["ndcg@10"]
        assert f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in readme, f"{name}: run `make nbs ARGS=nbs/index.ipynb` and `make readme`"
    for lift in ("lift_vs_best_baseline", "lift_vs_gan_off", "lift_vs_features_only"): assert f"{demo[lift]['ndcg@10']['mean']:+.1%}" in readme
    for number, where in ((23, "over the first stage"), (23, "over a wrong one brings"), (24, "rule kept,"), (25, "masked,")):
        closing = next((ROOT / "nbs").glob(f"{number}_*.ipynb")).read_text(encoding="utf-8").split('"**The article promises')[1]
        lift = re.search(re.escape(where) + r" ([+-][\d.]+% \[[^\]]+\])", closing)[1]
        assert lift in readme, f"{number}: run `make nbs ARGS=nbs/index.ipynb` and `make readme`"


def numbers():
    "module → number of its notebook"
    return {nb.stem[3:]: int(nb.stem[:2]) for nb in (ROOT / "nbs").glob("[01][0-9]_*.ipynb")}


def test_imports_go_downwards():
    order = numbers()
    assert len(order) >= 14
    for module, number in order.items():
        text = (ROOT / "genre_nb" / f"{module}.py").read_text(encoding="utf-8")
        used = set(re.findall(r"^\s*from (?:genre_nb)?\.?(\w+) import", text, flags=re.M)) & set(order)
        assert all(order[u] < number for u in used), f"{module} imports a module that is taught later: {used}"


def test_no_name_is_defined_twice():
    for module in numbers():
        body = ast.parse((ROOT / "genre_nb" / f"{module}.py").read_text(encoding="utf-8")).body
        names = [n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert len(names) == len(set(names)), f"{module} defines a name twice"


def test_no_star_imports_in_modules():
    for module in numbers():
        assert not re.search(r"^from .* import \*", (ROOT / "genre_nb" / f"{module}.py").read_text(encoding="utf-8"), flags=re.M)


def test_saved_outputs_hold_no_errors():
    for nb in (ROOT / "nbs").glob("*.ipynb"):
        for cell in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
            assert not any(o.get("output_type") == "error" for o in cell.get("outputs", [])), nb.name
