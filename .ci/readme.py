"""README.md from nbs/index.ipynb: its text, its code and its saved outputs.  usage: python .ci/readme.py [FILE]"""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
HIDE = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"no_input"}},
               "MarkdownExporter": {"preprocessors": ["nbconvert.preprocessors.TagRemovePreprocessor"]}})
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`. Edit the notebook, not this file. -->\n\n"


def render() -> str:
    "The README's text."
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        if "#| echo: false" in cell.source: cell.metadata["tags"] = ["no_input"]
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        for output in cell.outputs:
            if "text/markdown" in output.get("data", {}): output.data = {"text/markdown": output.data["text/markdown"]}
            elif "text/plain" in output.get("data", {}): output.data = {"text/plain": output.data["text/plain"]}
    body, _ = MarkdownExporter(config=HIDE).from_notebook_node(nb)
    body = re.sub(r"\]\((\d\d_\w+\.ipynb)\)", r"](nbs/\1)", body)
    body = re.sub(r"\]\(figures/", r"](nbs/figures/", body)
    return NOTE + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


if __name__ == "__main__": Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "README.md").write_text(render(), encoding="utf-8")
