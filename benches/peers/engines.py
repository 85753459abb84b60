"""The offline peers, one per process: texts come in as lines of JSON, their embeddings or the time they took go out.

    python -m benches.peers.engines ENGINE FOLDER THREADS

Standard input, one object a line; standard output, one answer each:

  {"embed": [text]}                 -> {"embeddings": [[f32]]}
  {"time": [text], "calls_of": n}   -> {"seconds": s, "cpu_seconds": s, "latencies": [s]}

`calls_of` texts go into one call of the library, 0: all into one.

The first line out, before any comes in, is {"ready": version} or {"missing": reason}. Timed is what a caller of the
library waits for: tokenisation, the model, pooling, normalisation.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Protocol

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

BATCH = 32


class Engine(Protocol):
    """What every offline peer does."""

    def embed(self, texts: list[str]) -> "list[list[float]] | object": ...


class OnnxRuntime:
    """ONNX Runtime by hand, as its best user would: texts sorted by length, batches of 32 padded to their own longest,
    mean pooling over what is not padding, normalised. All cores in one call (`intra_op`), graph optimised in full."""

    def __init__(self, graph: Path, folder: Path, threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def embed(self, texts: list[str]) -> object:
        import numpy as np

        encodings = self._tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda place: len(encodings[place].ids))
        out: np.ndarray | None = None
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            lengths = np.array([len(encodings[place].ids) for place in places])
            ids = np.zeros((len(places), lengths.max()), dtype=np.int64)
            for row, place in enumerate(places):
                ids[row, : lengths[row]] = encodings[place].ids
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            (hidden,) = self._session.run(None, inputs)
            # [b, 1, s] @ [b, s, h]: the sum over the tokens of each text in one product, without a copy of the hidden
            # states.
            pooled = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0] / lengths[:, None].astype(np.float32)
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            if out is None:
                out = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            out[places] = pooled
        return out


class SentenceTransformers:
    """sentence-transformers on PyTorch; it sorts by length itself."""

    def __init__(self, folder: Path, threads: int) -> None:
        import sentence_transformers
        import torch

        torch.set_num_threads(threads)
        self._model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._model.max_seq_length = 512

    def embed(self, texts: list[str]) -> object:
        return self._model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


class FastEmbed:
    """fastembed with our graph from disk, as a custom model; it does not sort, and pads a batch to its longest."""

    NAME = "local/all-MiniLM-L6-v2"

    def __init__(self, folder: Path, threads: int) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
        TextEmbedding.add_custom_model(
            model=self.NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(url="file://" + str(folder)),  # named because it must be; never asked
            dim=hidden,
            model_file="model.onnx",
        )
        self._model = TextEmbedding(self.NAME, threads=threads, specific_model_path=str(folder))

    def embed(self, texts: list[str]) -> object:
        import numpy as np

        return np.stack(list(self._model.embed(texts, batch_size=BATCH)))


def quantised(folder: Path) -> Path:
    """The graph with its matrix products in int8: weights per channel, activations by the range of each call.
    Made once."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph, out = folder / "model.onnx", folder.parent / "onnx-int8.onnx"
    if not out.is_file() or out.stat().st_mtime < graph.stat().st_mtime:
        partial = out.with_suffix(".partial")
        quantize_dynamic(graph, partial, per_channel=True, weight_type=QuantType.QInt8)
        partial.rename(out)
    return out


# Name -> (package that must be there, how it is made, precision).
ENGINES = {
    "onnxruntime": ("onnxruntime", lambda folder, n: OnnxRuntime(folder / "model.onnx", folder, n), "f32"),
    "onnxruntime-int8": ("onnxruntime", lambda folder, n: OnnxRuntime(quantised(folder), folder, n), "int8"),
    "sentence-transformers": ("sentence-transformers", SentenceTransformers, "f32"),
    "fastembed": ("fastembed", FastEmbed, "f32"),
}


def timed(engine: Engine, texts: list[str], calls_of: int) -> dict:
    """Embeds all texts in calls of so many, and says how long that took."""
    size = calls_of or len(texts)
    latencies = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), size):
        called = time.perf_counter()
        engine.embed(texts[start : start + size])
        latencies.append(time.perf_counter() - called)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "latencies": latencies,
    }


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # Whatever a library prints goes to standard error; standard output carries answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    package, make, _precision = ENGINES[name]
    try:
        version = metadata.version(package)
        engine = make(folder, threads)
    except (ImportError, metadata.PackageNotFoundError) as error:
        answer({"missing": f"{package}: {error}; see requirements-optional.txt"})
        return
    answer({"ready": f"{package} {version}"})
    for line in sys.stdin:
        order = json.loads(line)
        if "embed" in order:
            answer({"embeddings": [[float(value) for value in row] for row in engine.embed(order["embed"])]})
        else:
            answer(timed(engine, order["time"], order["calls_of"]))


if __name__ == "__main__":
    main()
