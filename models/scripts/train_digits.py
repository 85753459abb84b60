#!/usr/bin/env python3
"""Trains the bundled classifier of 8x8 handwritten digits and writes it as safetensors and as ONNX.

Comes in: the digits that scikit-learn carries (no network). Goes out: the model's folder with both files, its config.json, and
the digits that training never saw, for the tests. It never looks at the held-out digits before the last epoch is over, and
writes nothing when the model is not good enough.

The model: logits = W_2 relu(W_1 relu(W_0 (x / 16) + b_0) + b_1) + b_2, trained with Adam (Kingma and Ba 2014) on the mean
cross-entropy, on digits that are moved and turned a little at random.
"""

import os

# One thread: the order of additions, and with it every byte of the result, must not depend on how many cores there are.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 8
HELD_OUT = 0.25
LAYERS = [64, 160, 96, 10]
INPUT_SCALE = 1 / 16  # pixels are counts of 0..=16 set points in a 4x4 cell
EPOCHS = 80
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
ACCURACY_MIN = 0.97
BYTES_MAX = 200_000
GOLDEN_ROWS = 16
OPSET = 13
IR_VERSION = 7

MODELS = Path(__file__).resolve().parent.parent


def augment(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each 8x8 image moved by up to 0.7 pixels, turned by up to 10 degrees and scaled by up to 10 %. images [n, 64] -> [n, 64]."""
    centre = np.array([3.5, 3.5])
    out = np.empty_like(images)
    for row, image in enumerate(images):
        angle = np.deg2rad(random.uniform(-10, 10))
        scale = random.uniform(0.9, 1.1, size=2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
        offset = centre - turn @ centre + random.uniform(-0.7, 0.7, size=2)
        out[row] = affine_transform(image.reshape(8, 8), turn, offset, order=1).ravel()
    return out


class Mlp:
    """The layers' weights [out, in] and biases [out], in the type of the arrays that it is made from."""

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray]):
        self.weights = weights
        self.biases = biases

    @staticmethod
    def random(sizes: list[int], random: np.random.Generator) -> "Mlp":
        """He et al. 2015: normal weights of variance 2 / inputs, which keep a ReLU network's signal in range; biases 0."""
        pairs = list(zip(sizes[:-1], sizes[1:]))
        return Mlp(
            [random.normal(0, np.sqrt(2 / fan_in), (out, fan_in)) for fan_in, out in pairs],
            [np.zeros(out) for _, out in pairs],
        )

    def astype(self, kind: type) -> "Mlp":
        return Mlp([weight.astype(kind) for weight in self.weights], [bias.astype(kind) for bias in self.biases])

    def activations(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Every layer's input and, last, the logits."""
        x = [pixels * INPUT_SCALE]
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            y = x[-1] @ weight.T + bias
            x.append(y if index + 1 == len(self.weights) else np.maximum(y, 0))
        return x

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return self.activations(pixels)[-1]

    def gradients(self, pixels: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """Of the mean cross-entropy, with respect to each weight and then each bias."""
        x = self.activations(pixels)
        exponentials = np.exp(x[-1] - x[-1].max(axis=1, keepdims=True))
        delta = exponentials / exponentials.sum(axis=1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        weights, biases = [], []
        for index in reversed(range(len(self.weights))):
            weights.insert(0, delta.T @ x[index])
            biases.insert(0, delta.sum(axis=0))
            delta = (delta @ self.weights[index]) * (x[index] > 0)
        return weights + biases


def train(pixels: np.ndarray, labels: np.ndarray) -> Mlp:
    """Adam with decoupled weight decay, the rate falling to 0 along a cosine."""
    random = np.random.default_rng(SEED)
    model = Mlp.random(LAYERS, random)
    parameters = model.weights + model.biases
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    steps = EPOCHS * -(-len(pixels) // BATCH)
    step = 0
    for _ in range(EPOCHS):
        order = random.permutation(len(pixels))
        moved = augment(pixels[order], random)
        for start in range(0, len(pixels), BATCH):
            step += 1
            rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            gradients = model.gradients(moved[start : start + BATCH], labels[order][start : start + BATCH])
            for p, g, m, v in zip(parameters, gradients, first, second):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                p -= rate * (update + (WEIGHT_DECAY * p if p.ndim == 2 else 0))
    return model


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def onnx_model(model: Mlp) -> onnx.ModelProto:
    """pixels f32 [n, 64] -> Mul -> (Gemm, Relu)* -> Gemm -> logits f32 [n, 10]."""
    nodes, x = [helper.make_node("Mul", ["pixels", "input_scale"], ["scaled"], name="scale")], "scaled"
    initialisers = [numpy_helper.from_array(np.array(INPUT_SCALE, dtype=np.float32), "input_scale")]
    for index, (weight, bias) in enumerate(zip(model.weights, model.biases)):
        name, last = f"layers.{index}", index + 1 == len(model.weights)
        initialisers += [
            numpy_helper.from_array(weight, f"{name}.weight"),
            numpy_helper.from_array(bias, f"{name}.bias"),
        ]
        out = "logits" if last else f"{name}.out"
        nodes.append(helper.make_node("Gemm", [x, f"{name}.weight", f"{name}.bias"], [out], name=name, transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"{name}.relu"], name=f"{name}.relu"))
        x = f"{name}.relu"
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", LAYERS[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", LAYERS[-1]])],
        initializer=initialisers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="neurogrid")
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    return proto


def write_model(model: Mlp, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for index, (weight, bias) in enumerate(zip(model.weights, model.biases)):
        tensors[f"layers.{index}.weight"] = np.ascontiguousarray(weight)
        tensors[f"layers.{index}.bias"] = bias
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.onnx").write_bytes(onnx_model(model).SerializeToString(deterministic=True))
    config = {
        "architectures": ["Mlp"],
        "model_type": "mlp",
        "input": "pixels",
        "output": "logits",
        "input_scale": INPUT_SCALE,
        "layers": LAYERS,
        "id2label": {str(digit): str(digit) for digit in range(LAYERS[-1])},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_files(folder: Path, pixels: np.ndarray, expected: np.ndarray) -> None:
    """Both files, read back and run, must give the f64 logits but for f32 rounding, and be small enough to bundle."""
    tensors = load_file(folder / "model.safetensors")
    count = len(LAYERS) - 1
    read = Mlp(
        [tensors[f"layers.{i}.weight"] for i in range(count)], [tensors[f"layers.{i}.bias"] for i in range(count)]
    )
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    answers = {
        "model.safetensors": read.logits(pixels.astype(np.float32)),
        "model.onnx": session.run(["logits"], {"pixels": pixels.astype(np.float32)})[0],
    }
    for name, answer in answers.items():
        difference = float(np.abs(answer - expected).max())
        size = (folder / name).stat().st_size
        print(f"{folder / name}: {size} bytes, logits differ from f64 by at most {difference:.2e}")
        if difference > 1e-4:
            raise SystemExit(f"{name} does not compute what was trained")
        if size >= BYTES_MAX:
            raise SystemExit(f"{name} is too large to bundle: {BYTES_MAX} bytes are the limit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Trains the digits classifier on scikit-learn's digits with a fixed seed and split, prints its accuracy on the held-out quarter, "
        f"and fails below {ACCURACY_MIN:.0%}. Writes model.safetensors, model.onnx and config.json into a folder, and the held-out digits into a JSON file."
    )
    parser.add_argument(
        "--out", type=Path, default=MODELS / "bundled/digits", help="folder for the model (default: %(default)s)"
    )
    parser.add_argument(
        "--heldout",
        type=Path,
        default=MODELS / "tests/data/digits_heldout.json",
        help="file for the held-out digits (default: %(default)s)",
    )
    arguments = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels)
    pixels_train, pixels_test, labels_train, labels_test = split
    model = train(pixels_train, labels_train).astype(np.float32)

    exact = model.astype(np.float64)  # the weights as they are shipped, the arithmetic in f64
    logits = exact.logits(pixels_test)
    reached = accuracy(logits, labels_test)
    correct = int((logits.argmax(axis=1) == labels_test).sum())
    print(
        f"trained on {len(labels_train)} digits; training accuracy {accuracy(exact.logits(pixels_train), labels_train):.2%}"
    )
    print(f"held-out accuracy {reached:.2%} ({correct} of {len(labels_test)})")
    if reached < ACCURACY_MIN:
        raise SystemExit(f"below {ACCURACY_MIN:.0%}: nothing written")

    write_model(model, arguments.out)
    check_files(arguments.out, pixels_test, logits)
    heldout = {
        "what": "digits that the bundled classifier was not trained on; golden logits computed in f64 for the first rows",
        "pixels": pixels_test.astype(int).tolist(),
        "labels": labels_test.tolist(),
        "accuracy": reached,
        "golden_logits": logits[:GOLDEN_ROWS].tolist(),
    }
    arguments.heldout.parent.mkdir(parents=True, exist_ok=True)
    arguments.heldout.write_text(json.dumps(heldout, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
