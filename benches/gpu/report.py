"""The report: the stages' JSON files come in, one page of Markdown goes out, with what is asked for beside what was found. Pure."""

from collections.abc import Callable

# (stage, what, how it reads, the figure in the stage's results, whether that is enough)
Target = tuple[str, str, str, Callable[[dict], float | bool | None], Callable[[float | bool], bool]]


def batches(results: dict, model: str, least_tokens: int = 0) -> list[dict]:
    """Rows of a model with so many tokens at least."""
    rows = results.get("batches", [])
    return [row for row in rows if row["model"] == model and row["sequences"] * row["tokens"] >= least_tokens]


def least_ratio(results: dict, rival: str) -> float | None:
    """The least of: the rival's time over ours, over all batches of 32 × 128 tokens or more."""
    found = [row for model in ("MiniLM-L6", "BERT-base") for row in batches(results, model, 32 * 128)]
    found = [row["seconds"] for row in found if rival in row["seconds"]]
    return min((row[rival]["median_s"] / row["ours"]["median_s"] for row in found), default=None)


def least_share(results: dict) -> float | None:
    """The least share of the matrix rate that BERT-base reaches in batches of 32 × 128 tokens or more."""
    return min((row["share_of_matrix_rate"] for row in batches(results, "BERT-base", 32 * 128)), default=None)


def http_ratio(results: dict) -> float | None:
    """Our requests a second over the rival's, many callers."""
    found = next((load for name, load in results.get("loads", {}).items() if name.startswith("256")), {})
    if not {"ours", "sentence-transformers"} <= found.keys():
        return None
    return found["ours"]["requests_per_s"] / found["sentence-transformers"]["requests_per_s"]


def http_median(results: dict) -> float | None:
    """Milliseconds of one caller with 128 tokens."""
    found = next((load for name, load in results.get("loads", {}).items() if name.startswith("1 caller")), {})
    return found["ours"]["e2e_ms"]["p50"] if "ours" in found else None


def residue(results: dict) -> float | None:
    """The share of a model's device memory that is missing after all cycles."""
    return results.get("cycles", {}).get("residue_share")


def lost_tasks(results: dict) -> float | None:
    """Tasks without an answer while the device had no room."""
    found = results.get("without_room")
    return None if found is None else float(found["tasks"] - found["answered"])


def passed(results: dict) -> bool | None:
    """Whether every program of tests passed."""
    runs = results.get("runs")
    return None if not runs else all(run["passed"] for run in runs.values())


TARGETS: list[Target] = [
    ("tests", "kernels against their oracles, models on the device", "pass", passed, bool),
    ("sanitizer", "compute-sanitizer", "clean", passed, bool),
    ("encoders", "BERT-base, f16, batches of 32 × 128 tokens and more, of the matrix rate", "≥ 0.50", least_share, lambda x: x >= 0.5),
    ("encoders", "against sentence-transformers, f16", "≥ 1.50", lambda r: least_ratio(r, "sentence-transformers"), lambda x: x >= 1.5),
    ("encoders", "against PyTorch, compiled, f16", "≥ 1.00", lambda r: least_ratio(r, "torch-compiled"), lambda x: x >= 1.0),
    ("encoders", "against PyTorch, SDPA, f16", "≥ 1.00", lambda r: least_ratio(r, "torch-sdpa"), lambda x: x >= 1.0),
    ("http", "256 callers, mixed lengths, against sentence-transformers behind HTTP", "≥ 2.50", http_ratio, lambda x: x >= 2.5),
    ("http", "one caller, 128 tokens, median, ms", "≤ 2.00", http_median, lambda x: x <= 2.0),
    ("memory", "device memory left behind after 200 cycles, share of a model", "≤ 0.05", residue, lambda x: x <= 0.05),
    ("memory", "tasks lost without room, of 100", "0", lost_tasks, lambda x: x == 0),
]


def shown(figure: float | bool | None) -> str:
    """A figure as it stands in the table."""
    if figure is None:
        return "not measured"
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    return f"{figure:.2f}"


def report(stages: dict[str, dict], head: dict) -> str:
    """The page."""
    lines = [f"# On a GPU: {head.get('gpu') or 'none'}", "", *[f"- {key}: {value}" for key, value in head.items()], "", "## What is asked for", ""]
    lines += ["| stage | what | asked | found | |", "|---|---|--:|--:|---|"]
    for stage, what, asked, figure_of, is_enough in TARGETS:
        figure = figure_of(stages.get(stage, {}))
        verdict = "" if figure is None else ("met" if is_enough(figure) else "**not met**")
        lines.append(f"| {stage} | {what} | {asked} | {shown(figure)} | {verdict} |")
    lines += ["", "## Stages", "", "| stage | outcome | s |", "|---|---|--:|"]
    lines += [f"| {name} | {results['outcome']} | {results['seconds']} |" for name, results in stages.items()]
    encoders = stages.get("encoders", {})
    if "ceilings" in encoders:
        lines += ["", "## Ceilings", "", "Through PyTorch on random data.", "", "| what | |", "|---|--:|"]
        for name, value in encoders["ceilings"].items():
            unit, scale = ("GB/s", 1e9) if name.startswith("copy") else ("TFLOP/s", 1e12)
            lines.append(f"| {name} | {value / scale:.1f} {unit} |")
    if encoders.get("batches"):
        lines += ["", "## Encoders", "", "Milliseconds for a batch, median; f16.", ""]
        names = list(dict.fromkeys(name for row in encoders["batches"] for name in row["seconds"]))
        lines.append(f"| model | batch | {' | '.join(names)} | of the matrix rate |")
        lines.append(f"|---|---|{'--:|' * (len(names) + 1)}")
        for row in encoders["batches"]:
            times = [f"{row['seconds'][name]['median_s'] * 1e3:.3f}" if name in row["seconds"] else "" for name in names]
            batch = f"{row['sequences']} × {row['tokens']}"
            lines.append(f"| {row['model']} | {batch} | {' | '.join(times)} | {row['share_of_matrix_rate']:.2f} |")
    return "\n".join(lines) + "\n"
