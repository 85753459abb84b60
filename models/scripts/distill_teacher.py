"""What the bundled encoder's teacher says: texts go in, all-MiniLM-L6-v2's embeddings come out, kept on disk.

Comes in: texts, and a folder with the teacher as model.onnx (export_minilm_onnx.py writes it) and its tokenizer.json.
Goes out: embeddings f16 [n, 384], mean pooled and normalised. A run that was stopped goes on where it stopped.
It never pads a text to more than its neighbours in length, and cuts after 512 tokens, the most that the teacher has positions for.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from tqdm import tqdm

from reference_bert import load_tokenizer

TOKENS_MAX = 512
# Padded tokens of a batch: more of them do not fit a core's cache and take a third longer per token.
BATCH_TOKENS = 1024
# Texts of a file in the cache: what a stopped run may lose.
CHUNK = 4096


def pack(all_ids: list[list[int]]) -> list[list[int]]:
    """Texts of like length together, as many as fit a batch: lists of indices."""
    batches: list[list[int]] = [[]]
    for at in sorted(range(len(all_ids)), key=lambda at: len(all_ids[at])):
        if batches[-1] and (len(batches[-1]) + 1) * len(all_ids[at]) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(at)
    return batches


class Teacher:
    """The teacher in ONNX Runtime."""

    def __init__(self, folder: Path, threads: int) -> None:
        if not (folder / "model.onnx").is_file():
            raise SystemExit(f"{folder}: no model.onnx; write it with export_minilm_onnx.py --out {folder}/model.onnx")
        # Several batches at once, each on one thread: threads that share a batch wait for one another.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.pool = ThreadPoolExecutor(threads)
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.enable_truncation(TOKENS_MAX)

    def count_tokens(self, texts: list[str]) -> np.ndarray:
        """How many of the teacher's tokens each text has, [CLS] and [SEP] counted."""
        return np.array([len(encoding.ids) for encoding in self.tokenizer.encode_batch(texts)])

    def embed(self, texts: list[str]) -> np.ndarray:
        """Normalised means of the last hidden states, f32 [n, 384]."""
        all_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        batches = pack(all_ids)
        out = np.zeros((len(texts), 384), dtype=np.float32)
        answers = self.pool.map(lambda rows: self._embed_batch([all_ids[at] for at in rows]), batches)
        for rows, embeddings in zip(batches, answers):
            out[rows] = embeddings
        return out

    def _embed_batch(self, rows: list[list[int]]) -> np.ndarray:
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self.session.run(None, feeds)
        mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed_cached(self, texts: list[str], cache: Path, what: str) -> np.ndarray:
        """The same as f16, from `cache` where it holds them already, chunk by chunk."""
        cache.mkdir(parents=True, exist_ok=True)
        parts = []
        for start in tqdm(range(0, len(texts), CHUNK), desc=f"teacher reads {what}", unit="chunk"):
            chunk = texts[start : start + CHUNK]
            file = cache / f"{hashlib.sha256(chr(0).join(chunk).encode()).hexdigest()[:24]}.npy"
            if not file.is_file():
                part = file.with_suffix(".part.npy")
                np.save(part, self.embed(chunk).astype(np.float16))
                part.rename(file)
            parts.append(np.load(file))
        return np.concatenate(parts)
