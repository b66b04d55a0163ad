"""Markdown for the descriptions that MLflow's pages show.

MLflow breaks a line where the text has a newline, and puts the columns of a table side by side without a gap.
"""

from collections.abc import Iterable, Sequence

GAP = 3 * "\u00a0"  # no-break spaces, which Markdown keeps


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose columns stand apart on MLflow's pages, too."""
    texts = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [" | ".join(f"{cell}{GAP}" for cell in row) for row in texts]
    lines.insert(1, " | ".join(["---"] * len(header)))
    return "\n".join(f"| {line} |" for line in lines)
