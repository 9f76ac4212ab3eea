"""Results of an evaluation, and the self-contained HTML page of a run."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import importlib.metadata
import io
import pathlib
import platform
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass
class Report:
    """Metrics, tables, figures and images of one evaluation.

    Attributes:
      metrics: name -> number. The first is the headline.
      tables: title -> rows (dicts with the same keys).
      figures: title -> matplotlib figure.
      images: title -> uint8 [H, W, 3] image, such as a grid of samples, or [T, H, W, 3] frames, shown as an animation.
      arrays: name -> array; `--save_arrays` writes them as NAME.npy (embeddings, landmarks, ...).
      notes: name of a measure -> its definition, one sentence.
    """

    metrics: dict[str, float]
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __or__(self, other: Report) -> Report:
        """Merges two reports: own entries first; the other's entries replace those of the same name."""
        fields = (field.name for field in dataclasses.fields(self))
        return Report(*({**getattr(self, name), **getattr(other, name)} for name in fields))


FRAME_MILLISECONDS = 200
"""Time of each frame of an animation."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 0.6rem 0; } th, td { padding: 0.25rem 0.8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #d8dee6; }
img { max-width: 100%; height: auto; } img.pixels { min-width: 50%; image-rendering: pixelated; }
pre { background: #f4f6f9; padding: 0.8rem; overflow-x: auto; font-size: 13px; }
"""


def write_html(
    path: pathlib.Path,
    title: str,
    report: Report,
    history: Sequence[Mapping[str, float]],
    config: str,
    about: str = "",
    run: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page: metrics, tables, figures, images, training curves, circumstances and the configuration.

    Args:
      path: the file, replaced atomically.
      title, about: heading and first paragraph.
      report: the final evaluation.
      history: the points of metrics.jsonl.
      config: the run's configuration as text.
      run: of `circumstances`.
    """
    escape = html.escape
    parts = [f"<h1>{escape(title)}</h1><p>{escape(about)}</p>"]
    numbers = [{"metric": k, "value": v} for k, v in report.metrics.items()]
    for name, rows in {"Result": numbers, **report.tables}.items():
        parts.append(f"<h2>{escape(name)}</h2>{_table(rows)}")
    parts.extend(f"<p>{escape(name)}: {escape(text)}.</p>" for name, text in report.notes.items())
    pictures = {name: _figure_png(figure) for name, figure in report.figures.items()}
    pictures |= {name: _image_png(image) for name, image in report.images.items()}
    if history:
        pictures["Training"] = _figure_png(curves(history))
    for name, png in pictures.items():
        data, kind = base64.b64encode(png).decode(), "pixels" if name in report.images else "figure"
        parts.append(
            f'<h2>{escape(name)}</h2><img class="{kind}" alt="{escape(name)}" src="data:image/png;base64,{data}">'
        )
    if run:
        parts.append(f"<h2>Run</h2>{_table([{'what': k, 'value': v} for k, v in run.items()])}")
    parts.append(f"<h2>Configuration</h2><pre>{escape(config)}</pre>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    temporary = path.with_suffix(".tmp")
    temporary.write_text(head + "\n".join(parts) + "</html>\n")
    temporary.replace(path)


def circumstances(state: Any, seconds: float) -> dict[str, Any]:
    """What a result depends on besides its configuration: commit, versions, devices; parameters and time.

    Args:
      state: of the run; None of a method without training.
      seconds: since the command began.
    """
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
    params = getattr(state, "params", None)
    return {
        "commit": commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **({} if params is None else {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}),
        "seconds of this command": round(seconds),
    }


def commit() -> str:
    """Describes the checked out commit; "unknown" without a repository or a git program."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent, check=False)
    except FileNotFoundError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """One panel over steps per metric logged more than once (or per metric, if none was)."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in history:
        for name, value in point.items():
            if name != "step":
                series[name].append((point["step"], value))
    series = {name: points for name, points in series.items() if len(points) > 1} or series
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure, axes = new_figure(4.2 * columns, 2.8 * rows, rows, columns)
    for panel, (name, points) in zip(np.ravel(axes), series.items(), strict=False):
        panel.plot(*zip(*points, strict=True), marker="o" if len(points) < 3 else None)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("step", fontsize=9)
    for panel in np.ravel(axes)[len(series) :]:
        panel.set_axis_off()
    return figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure in the common style: size in inches, light grid, no frame, no global state (safe in threads).

    Notebooks show it also where pyplot was not imported.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = functools.partial(_figure_png, figure)
    axes = figure.subplots(rows, columns)
    for axis in np.ravel(axes):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, 3] uint8 -> one image, row by row; the last row is padded with white."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, h, w, c), 255, np.uint8)
    canvas[:n] = images
    return canvas.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>empty</p>"
    cells = [[str(k) for k in rows[0]]] + [[_number(v) for v in row.values()] for row in rows]
    lines = [
        "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in line)
        for line, tag in zip(cells, ["th"] + ["td"] * len(rows))
    ]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _image_png(image: np.ndarray) -> bytes:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in (image if image.ndim == 4 else [image]))
    buffer = io.BytesIO()
    first.save(buffer, format="png", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
    return buffer.getvalue()
