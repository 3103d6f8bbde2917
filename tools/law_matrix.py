"""Writes docs/laws.md: the laws of attention layers, the layers to which each law applies, and the mutants.

python tools/law_matrix.py            writes the page
python tools/law_matrix.py --check    exits with code 1 if the page is not current
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from seqtk.attention import attentions  # noqa: E402
from seqtk.testing.laws import LAWS  # noqa: E402
from tests.laws.mutants import CLASS_MUTANTS, SLOW_MUTANTS, SOURCE_MUTANTS  # noqa: E402
from tests.laws.references import cases  # noqa: E402

PAGE = ROOT / "docs" / "laws.md"
HEAD = """# The laws of attention

A law is a property that every attention layer must have. The tests check each law for every registered layer, in every
role that the layer declares. To check your own layer:

```python
from seqtk.testing.laws import run_laws

run_laws("retention", oracle=retention, variants={"": {}, "no-gate": {"gate": False}})
```

`oracle` computes the layer's output from its equations with plain loops over a `seqtk.testing.reference.Problem`:
see [adding an attention layer](adding-an-attention.md#the-laws). `variants` lists settings to check.

`python tools/law_matrix.py` writes this page.

## Two sizes

Each law is checked on a small batch of rows of different lengths, at one or both sizes:

- **short**: rows of 6, 4 and 1 positions, width 8. All variants of a layer's settings are checked.
- **long**: rows of 293 and 131 positions, width 16. They fill several blocks, chunks and windows of every layer. Only
  variants that run different code at this length are checked.

One law uses 2,100 positions, because layers with linear cost process a few heads at a time from 2,048 positions on.

## The laws
"""


def page() -> str:
    """Returns the text of docs/laws.md."""
    lines = [HEAD, "| law | property | roles | sizes |", "|---|---|---|---|"]
    for name, law in LAWS.items():
        roles = ", ".join(str(role.name).lower() for role in law.roles)
        sizes = "compilation" if law.slow else ", ".join(law.sizes)
        lines.append(f"| `{name}` | {law.statement} | {roles} | {sizes} |")
    lines += ["", "## Which laws apply to which layer", ""]
    lines += ["The letters give the size: S short, L long. Laws that apply to every layer are omitted.", ""]
    applied = {
        kind: {(case.law.name, case.subject.size.name) for case in cases(kind, slow=True)} for kind in attentions
    }
    common = set.intersection(*applied.values())
    shown = [
        name for name, law in LAWS.items() if any((name, size) in set.union(*applied.values()) for size in law.sizes)
    ]
    shown = [name for name in shown if not all((name, size) in common for size in LAWS[name].sizes)]
    lines += [f"| layer | {' | '.join(f'`{name}`' for name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for kind in attentions:
        cells = [
            "".join(size[0].upper() for size in LAWS[name].sizes if (name, size) in applied[kind]) for name in shown
        ]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    lines += [
        "",
        "## Mutants",
        "",
        "A mutant is a layer with a deliberate fault. The tests check that each fault is detected by a law.",
        "",
    ]
    lines += ["Faults inserted into the source code of seqtk's layers:", ""]
    lines += ["| fault | detected by | layer |", "|---|---|---|"]
    for mutant in SOURCE_MUTANTS:
        layer, _, law = mutant.case.rpartition("-")
        lines.append(f"| {mutant.fault} | `{law}` | {layer} |")
    lines += [
        "",
        "Faulty variants of softmax attention and of the random Synthesizer:",
        "",
        "| fault | detected by |",
        "|---|---|",
    ]
    lines += [f"| {mutant.fault} | `{mutant.law}` |" for mutant in CLASS_MUTANTS + SLOW_MUTANTS]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/laws.md.")
    parser.add_argument("--check", action="store_true", help="Only check that the page is current.")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/laws.md is not current. Run: python tools/law_matrix.py")


if __name__ == "__main__":
    main()
