#!/usr/bin/env python3
"""Writes a BERT checkpoint as an ONNX graph, from its weights alone: no deep-learning framework is needed.

Comes in: a folder with config.json and model.safetensors (BertModel or BertForSequenceClassification).
Goes out: one model.onnx (opset 12), checked in ONNX Runtime against the f64 reference before the script ends well.
It never changes a weight's value or type: all is f32.

Inputs: input_ids, attention_mask, token_type_ids, int64 [batch, seq], padding on the right with attention_mask 0.
Output: last_hidden_state f32 [batch, seq, hidden], or logits f32 [batch, labels] for a checkpoint with a head.

The nodes are laid out the way ONNX Runtime's optimiser looks for them (attention, GELU with bias, layer norm with
residual become one kernel each), out of operators that tract runs as well.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reference_bert import Bert, Config, load_weights, minilm_folder

# ONNX Runtime's attention fusion compares the versions of operators with a list, and from opset 13 on some BERT operators are
# missing from it: the same graph runs unfused. Opset 12 has no LayerNormalization, but its parts are fused into one as well.
OPSET = 12
IR_VERSION = 7  # what opset 12 came with
# Added to the score of a padded token. Finite, so that a text without any token gives numbers and not NaN; exp(-10000) is
# exactly 0 in f32; and f16 can hold it.
MASKED = -10_000.0
# What f32 arithmetic may differ from f64 by, relative to the largest value of the output.
TOLERANCE = 2e-5


class Graph:
    """Collects nodes and weights; every method returns the name of the tensor that it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """A weight or constant under `name`; the same name twice is the same tensor."""
        if name not in self.initialisers:
            self.initialisers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, dtype=np.float32))

    def indices(self, name: str, values: list[int]) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


class Exporter:
    """Builds the graph of one checkpoint. Shapes: b = batch, s = seq, h = hidden, a = heads, d = h / a."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.weights = {name: value.astype(np.float32) for name, value in weights.items()}
        self.graph = Graph()

    def weight(self, name: str) -> str:
        return self.graph.constant(name, self.weights[name])

    def dense(self, x: str, name: str) -> str:
        """[.., in] -> [.., out]; the weight is stored as [in, out], which is how MatMul reads it."""
        kernel = self.graph.constant(f"{name}.weight.transposed", self.weights[f"{name}.weight"].T)
        product = self.graph.node("MatMul", [x, kernel], f"{name}/product")
        return self.graph.node("Add", [product, self.weight(f"{name}.bias")], f"{name}/out")

    def residual_norm(self, update: str, x: str, name: str) -> str:
        total = self.graph.node("Add", [update, x], f"{name}/residual")
        return self.norm(total, name)

    def norm(self, x: str, name: str) -> str:
        """(x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dimension."""
        graph = self.graph
        mean = graph.node("ReduceMean", [x], f"{name}/mean", axes=[-1])
        centred = graph.node("Sub", [x, mean], f"{name}/centred")
        squared = graph.node("Pow", [centred, graph.scalar("two.f32", 2.0)], f"{name}/squared")
        variance = graph.node("ReduceMean", [squared], f"{name}/variance", axes=[-1])
        steadied = graph.node(
            "Add", [variance, graph.scalar("layer_norm_eps", self.config.layer_norm_eps)], f"{name}/steadied"
        )
        deviation = graph.node("Sqrt", [steadied], f"{name}/deviation")
        normal = graph.node("Div", [centred, deviation], f"{name}/normal")
        scaled = graph.node("Mul", [normal, self.weight(f"{name}.weight")], f"{name}/scaled")
        return graph.node("Add", [scaled, self.weight(f"{name}.bias")], f"{name}/out")

    def embeddings(self) -> str:
        """Word + position + token type, normalised: [b, s, h]. Position i is row i of its table."""
        graph = self.graph
        words = graph.node(
            "Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"], "embeddings/words"
        )
        types = graph.node(
            "Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "embeddings/types"
        )
        shape = graph.node("Shape", ["input_ids"], "embeddings/shape")
        length = graph.node(
            "Slice",
            [shape, graph.indices("one", [1]), graph.indices("two", [2]), graph.indices("zero", [0])],
            "embeddings/length",
        )
        table = self.weight("embeddings.position_embeddings.weight")
        positions = graph.node(
            "Slice", [table, graph.indices("zero", [0]), length, graph.indices("zero", [0])], "embeddings/positions"
        )
        typed = graph.node("Add", [words, types], "embeddings/words_and_types")
        return self.norm(graph.node("Add", [typed, positions], "embeddings/sum"), "embeddings.LayerNorm")

    def mask(self) -> str:
        """attention_mask [b, s] of 1 and 0 -> [b, 1, 1, s] of 0 and MASKED, to be added to the scores."""
        graph = self.graph
        heads = graph.node("Unsqueeze", ["attention_mask"], "mask/heads", axes=[1])
        queries = graph.node("Unsqueeze", [heads], "mask/queries", axes=[2])
        kept = graph.node("Cast", [queries], "mask/kept", to=TensorProto.FLOAT)
        dropped = graph.node("Sub", [graph.scalar("one.f32", 1.0), kept], "mask/dropped")
        return graph.node("Mul", [dropped, graph.scalar("masked.f32", MASKED)], "mask/added")

    def attention(self, x: str, mask: str, layer: str) -> str:
        """softmax(Q K^T / sqrt d + mask) V, heads side by side again: [b, s, h]."""
        graph, config = self.graph, self.config
        width = config.hidden // config.heads
        split = graph.indices("split_heads", [0, 0, config.heads, width])
        join = graph.indices("join_heads", [0, 0, config.hidden])

        def heads(name: str, order: list[int]) -> str:
            flat = self.dense(x, f"{layer}.attention.self.{name}")
            cut = graph.node("Reshape", [flat, split], f"{layer}.attention.self.{name}/cut")
            return graph.node("Transpose", [cut], f"{layer}.attention.self.{name}/heads", perm=order)

        query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
        scores = graph.node("MatMul", [query, key], f"{layer}/scores")
        scaled = graph.node("Div", [scores, graph.scalar("sqrt_width", math.sqrt(width))], f"{layer}/scaled")
        masked = graph.node("Add", [scaled, mask], f"{layer}/masked")
        weights = graph.node("Softmax", [masked], f"{layer}/weights", axis=3)
        mixed = graph.node("MatMul", [weights, value], f"{layer}/mixed")
        ordered = graph.node("Transpose", [mixed], f"{layer}/ordered", perm=[0, 2, 1, 3])
        return graph.node("Reshape", [ordered, join], f"{layer}/joined")

    def activation(self, x: str, layer: str) -> str:
        """x / 2 * (1 + erf(x / sqrt 2)), or the larger of x and 0."""
        graph = self.graph
        if self.config.activation == "relu":
            return graph.node("Relu", [x], f"{layer}/activated")
        scaled = graph.node("Div", [x, graph.scalar("sqrt_two", math.sqrt(2.0))], f"{layer}/gelu_scaled")
        error = graph.node("Erf", [scaled], f"{layer}/gelu_erf")
        shifted = graph.node("Add", [error, graph.scalar("one.f32", 1.0)], f"{layer}/gelu_shifted")
        doubled = graph.node("Mul", [x, shifted], f"{layer}/gelu_doubled")
        return graph.node("Mul", [doubled, graph.scalar("half.f32", 0.5)], f"{layer}/activated")

    def encoder(self) -> str:
        x, mask = self.embeddings(), self.mask()
        for index in range(self.config.layers):
            layer = f"encoder.layer.{index}"
            attended = self.dense(self.attention(x, mask, layer), f"{layer}.attention.output.dense")
            x = self.residual_norm(attended, x, f"{layer}.attention.output.LayerNorm")
            widened = self.activation(self.dense(x, f"{layer}.intermediate.dense"), layer)
            x = self.residual_norm(self.dense(widened, f"{layer}.output.dense"), x, f"{layer}.output.LayerNorm")
        return x

    def head(self, hidden: str) -> str:
        """W_c tanh(W_p h_0 + b_p) + b_c: [b, labels]."""
        first = self.graph.node(
            "Gather", [hidden, self.graph.constant("first", np.array(0, dtype=np.int64))], "pooler/first", axis=1
        )
        pooled = self.graph.node("Tanh", [self.dense(first, "pooler.dense")], "pooler/out")
        return self.dense(pooled, "classifier")

    def model(self) -> onnx.ModelProto:
        hidden = self.encoder()
        if self.config.architecture == "BertForSequenceClassification":
            labels = len(self.weights["classifier.bias"])
            last, output, shape = self.head(hidden), "logits", ["batch", labels]
        else:
            last, output, shape = hidden, "last_hidden_state", ["batch", "seq", self.config.hidden]
        self.graph.nodes[-1].output[0] = output
        assert self.graph.nodes[-1].name == last, "the last node makes the output"
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        graph = helper.make_graph(
            self.graph.nodes,
            self.config.architecture,
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            initializer=list(self.graph.initialisers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="neurogrid")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def export(folder: Path, out: Path) -> onnx.ModelProto:
    """Reads the checkpoint in `folder`, writes its graph to `out`, and returns the graph."""
    model = Exporter(Config.read(folder), load_weights(folder)).model()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
    return model


def difference_from_reference(folder: Path, graph: Path) -> float:
    """Runs a padded batch of random token ids in ONNX Runtime and each row alone in f64; the largest difference over the
    valid tokens, relative to the largest value. A row without any valid token must give finite numbers."""
    import onnxruntime

    reference = Bert(folder)
    config = reference.config
    random = np.random.default_rng(20)
    longest = min(config.positions, 96)
    lengths = [longest, 1, 2, 17, 0]
    ids = random.integers(0, config.vocabulary, size=(len(lengths), longest))
    types = np.sort(random.integers(0, config.token_types, size=ids.shape), axis=1)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
    if not np.isfinite(got).all():
        raise SystemExit(f"{graph}: NaN or infinity in the output")
    worst, largest = 0.0, 0.0
    for row, length in enumerate(lengths):
        if length == 0:
            continue
        expected = reference.hidden_states(ids[row, :length].tolist(), types[row, :length].tolist())
        answer = got[row, :length]
        if config.architecture == "BertForSequenceClassification":
            expected, answer = reference.logits(expected), got[row]
        worst = max(worst, float(np.abs(answer - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return worst / largest


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Reads config.json and model.safetensors of a BERT checkpoint, writes model.onnx, and checks it in ONNX "
        f"Runtime against the f64 reference (fails above {TOLERANCE:g} of the largest value)."
    )
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the installed all-MiniLM-L6-v2)")
    parser.add_argument(
        "--out", type=Path, required=True, help="the ONNX file to write; its folder is made where missing"
    )
    arguments = parser.parse_args()

    folder = arguments.model or minilm_folder()
    export(folder, arguments.out)
    difference = difference_from_reference(folder, arguments.out)
    print(
        f"{arguments.out}: {arguments.out.stat().st_size} bytes; differs from the f64 reference by {difference:.2e} of the largest value"
    )
    if difference > TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE:g}: the export is wrong")


if __name__ == "__main__":
    main()
