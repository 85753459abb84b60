#!/usr/bin/env python3
"""Makes small files that a model loader must refuse, and an index that says why each must be refused.

Comes in: nothing. Goes out: one folder of files, none over a few kB, and index.json:
  [{"file": ..., "kind": "onnx" | "safetensors", "fault": ..., "why": ...}, ...]
The fault is what a loader must name: "domain" (an operator of a foreign domain), "program" (an operator that carries one),
"external" (data outside the model's folder), "pickle", "depth" (too many graphs inside graphs), "damaged". Rows whose fault is
null are controls: next neighbours of the bad files that are good, so that a loader which refuses everything fails too.
Nothing in here does harm when it is opened by mistake: the pickles hold plain numbers and the paths are only named.
"""

import argparse
import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file

DATA = Path(__file__).resolve().parent.parent / "tests/data"
OPSET = 17
IR_VERSION = 8
FOREIGN_DOMAIN = "com.example.foreign"
KNOWN_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators
NESTED = 40  # graphs inside graphs; more than any exporter writes, and than protobuf readers follow
WEIGHTS = np.arange(4, dtype=np.float32)


File = tuple[str, bytes, str | None, str]  # name, content, fault, why


def external(location: str, name: str = "w", count: int = len(WEIGHTS)) -> TensorProto:
    """A tensor whose bytes are said to lie in the file `location`."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * count))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    nodes: list, *, initialisers: list = (), sparse: list = (), functions: list = (), domains: list = ()
) -> bytes:
    """A graph x f32 [4] -> y f32 [4] of the given parts, as bytes."""
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        initializer=list(initialisers),
        sparse_initializer=list(sparse),
    )
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    proto: ModelProto = helper.make_model(
        graph, opset_imports=opsets, functions=list(functions), producer_name="neurogrid"
    )
    proto.ir_version = IR_VERSION
    return proto.SerializeToString(deterministic=True)


def add_w() -> list:
    return [helper.make_node("Add", ["x", "w"], ["y"])]


def sparse(values: TensorProto, indices: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=values, indices=indices, dims=[4])


def choice(branch_node) -> list:
    """y = branch, through both arms of an If: the node lies in a graph inside the graph."""
    arm = helper.make_graph([branch_node], "arm", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])])
    yes = numpy_helper.from_array(np.array(True), "yes")
    return [
        helper.make_node("Constant", [], ["condition"], value=yes),
        helper.make_node("If", ["condition"], ["y"], then_branch=arm, else_branch=arm),
    ]


def field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds bytes: its key, its length as a varint, the bytes."""
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + content


def nested(levels: int) -> bytes:
    """A good model with one more node: an If inside an If, `levels` deep. Protobuf libraries refuse to write it, so that it is
    put together by hand: GraphProto.node is field 1, NodeProto.op_type 4 and .attribute 5, AttributeProto.g 6, ModelProto.graph 7."""
    node = field(4, b"Identity")
    for _ in range(levels):
        node = field(4, b"If") + field(5, field(1, b"then_branch") + field(6, field(1, node)))
    return model([helper.make_node("Identity", ["x"], ["y"])]) + field(7, field(1, node))


def function(node) -> tuple[list, list]:
    """A graph that calls a model-local function, and the function, whose body is `node`."""
    domains = ["", node.domain] if node.domain else [""]
    opsets = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains]
    body = helper.make_function(KNOWN_DOMAIN, "Body", ["a"], ["b"], [node], opsets)
    return [helper.make_node("Body", ["x"], ["y"], domain=KNOWN_DOMAIN)], [body]


def onnx_files() -> list[File]:
    """Every ONNX file."""
    values, indices = numpy_helper.from_array(WEIGHTS[:2], "w"), numpy_helper.from_array(np.array([0, 2]), "w_indices")
    outside = "../../etc/passwd"
    foreign = helper.make_node("Steal", ["x"], ["y"], domain=FOREIGN_DOMAIN)
    foreign_call, foreign_body = function(helper.make_node("Steal", ["a"], ["b"], domain=FOREIGN_DOMAIN))
    data_call, data_body = function(helper.make_node("Constant", [], ["b"], value=external(outside, "c")))
    external_indices = TensorProto(
        name="w_indices", data_type=TensorProto.INT64, dims=[2], data_location=TensorProto.EXTERNAL
    )
    external_indices.external_data.add(key="location", value=outside)
    constant_sparse = helper.make_node("Constant", [], ["w"], sparse_value=sparse(external(outside, "v", 2), indices))
    whole = model(add_w(), initialisers=[numpy_helper.from_array(WEIGHTS, "w")])
    return [
        ("good.onnx", whole, None, "plain operators, weights inside the file"),
        (
            "external_inside.onnx",
            model(add_w(), initialisers=[external("weights.bin")]),
            None,
            "external data in a file beside the model",
        ),
        (
            "good_if.onnx",
            model(choice(helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(WEIGHTS, "c")))),
            None,
            "a constant inside a branch",
        ),
        (
            "good_sparse.onnx",
            model(add_w(), sparse=[sparse(values, indices)]),
            None,
            "a sparse initialiser inside the file",
        ),
        ("custom_domain.onnx", model([foreign], domains=[FOREIGN_DOMAIN]), "domain", "an operator of a foreign domain"),
        (
            "custom_domain_in_branch.onnx",
            model(choice(helper.make_node("Steal", ["x"], ["b"], domain=FOREIGN_DOMAIN)), domains=[FOREIGN_DOMAIN]),
            "domain",
            "an operator of a foreign domain inside the branch of an If",
        ),
        (
            "custom_domain_in_function.onnx",
            model(foreign_call, functions=foreign_body, domains=[KNOWN_DOMAIN]),
            "domain",
            "an operator of a foreign domain inside a function of the model",
        ),
        (
            "program.onnx",
            model(
                [
                    helper.make_node(
                        "EPContext", ["x"], ["y"], domain=KNOWN_DOMAIN, ep_cache_context="program", embed_mode=1
                    )
                ],
                domains=[KNOWN_DOMAIN],
            ),
            "program",
            "an operator that carries a compiled program",
        ),
        ("nested.onnx", nested(NESTED), "depth", f"{NESTED} graphs inside graphs"),
        (
            "external_memory.onnx",
            model(add_w(), initialisers=[external("*/_ORT_MEM_ADDR_/*")]),
            "external",
            "external data at an address of the process, in ONNX Runtime's own notation",
        ),
        (
            "external_parent.onnx",
            model(add_w(), initialisers=[external(outside)]),
            "external",
            "external data above the model's folder",
        ),
        (
            "external_absolute.onnx",
            model(add_w(), initialisers=[external("/etc/passwd")]),
            "external",
            "external data at an absolute path",
        ),
        (
            "external_back_and_forth.onnx",
            model(add_w(), initialisers=[external("weights/../../weights.bin")]),
            "external",
            "external data above the model's folder by a path that starts inside it",
        ),
        (
            "external_windows.onnx",
            model(add_w(), initialisers=[external("..\\..\\secret.bin")]),
            "external",
            "external data above the model's folder, with backslashes",
        ),
        (
            "external_drive.onnx",
            model(add_w(), initialisers=[external("C:\\secret.bin")]),
            "external",
            "external data on another drive",
        ),
        (
            "external_empty.onnx",
            model(add_w(), initialisers=[external("")]),
            "external",
            "external data without a file name",
        ),
        (
            "external_sparse_values.onnx",
            model(add_w(), sparse=[sparse(external(outside, "w", 2), indices)]),
            "external",
            "external data in the values of a sparse initialiser",
        ),
        (
            "external_sparse_indices.onnx",
            model(add_w(), sparse=[sparse(values, external_indices)]),
            "external",
            "external data in the indices of a sparse initialiser",
        ),
        (
            "external_constant.onnx",
            model([helper.make_node("Constant", [], ["w"], value=external(outside, "c")), *add_w()]),
            "external",
            "external data in a node's attribute",
        ),
        (
            "external_sparse_constant.onnx",
            model([constant_sparse, *add_w()]),
            "external",
            "external data in the sparse tensor of a node's attribute",
        ),
        (
            "external_in_branch.onnx",
            model(choice(helper.make_node("Constant", [], ["b"], value=external(outside, "c")))),
            "external",
            "external data inside the branch of an If",
        ),
        (
            "external_in_function.onnx",
            model(data_call, functions=data_body, domains=[KNOWN_DOMAIN]),
            "external",
            "external data inside a function of the model",
        ),
        ("cut_off.onnx", whole[: len(whole) // 2], "damaged", "the second half of the file is missing"),
        ("empty.onnx", b"", "damaged", "no byte at all"),
        (
            "pickle_as.onnx",
            pickle.dumps({"weight": [1.0]}, protocol=4),
            "pickle",
            "a pickle under the name of an ONNX file",
        ),
    ]


def safetensors(header: dict | bytes, data: bytes, length: int | None = None) -> bytes:
    """The format: 8 bytes of header length, the header as JSON, the tensors' bytes. `length` is what the file claims, if not the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def torch_zip() -> bytes:
    """A zip as torch.save writes it: a pickle named data.pkl among others. Its dates are fixed, so that its bytes are."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("archive/data.pkl", pickle.dumps({"weight": [1.0, 2.0]}, protocol=2)),
            ("archive/version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return out.getvalue()


def safetensors_files() -> list[File]:
    """Every file that says it is safetensors."""
    one, data = {"w": entry(0, 16, [4])}, WEIGHTS.tobytes()
    good = safetensors(one, data)
    huge = 2**62
    files = [
        ("good.safetensors", good, None, "one tensor of four numbers"),
        ("empty.safetensors", b"", "damaged", "no byte at all"),
        ("seven_bytes.safetensors", good[:7], "damaged", "shorter than the header's length"),
        ("cut_header.safetensors", good[:20], "damaged", "the file ends inside its header"),
        ("cut_data.safetensors", good[:-4], "damaged", "the file ends inside a tensor"),
        ("trailing.safetensors", good + b"more", "damaged", "bytes that belong to no tensor"),
        ("header_2_to_60.safetensors", safetensors(one, data, length=2**60), "damaged", "a header of 2^60 bytes"),
        (
            "header_2_to_64.safetensors",
            safetensors(one, data, length=2**64 - 1),
            "damaged",
            "a header length that overflows when 8 is added",
        ),
        ("header_no_json.safetensors", safetensors(b"{not json", data), "damaged", "a header that is not JSON"),
        ("header_no_utf8.safetensors", safetensors(b'{"\xff\xfe":{}}', data), "damaged", "a header that is not UTF-8"),
        (
            "overlap.safetensors",
            safetensors({"a": entry(0, 12, [3]), "b": entry(8, 16, [2])}, data),
            "damaged",
            "two tensors that share bytes",
        ),
        (
            "hole.safetensors",
            safetensors({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])}, data),
            "damaged",
            "bytes between two tensors",
        ),
        (
            "past_the_end.safetensors",
            safetensors({"w": entry(0, 1600, [400])}, data),
            "damaged",
            "a tensor that ends after the file",
        ),
        (
            "backwards.safetensors",
            safetensors({"w": entry(16, 0, [4])}, data),
            "damaged",
            "a tensor that ends before it starts",
        ),
        (
            "wrong_size.safetensors",
            safetensors({"w": entry(0, 16, [5])}, data),
            "damaged",
            "a shape that needs more bytes than the tensor has",
        ),
        (
            "overflowing_shape.safetensors",
            safetensors({"w": entry(0, 16, [huge, huge])}, data),
            "damaged",
            "a shape whose size overflows",
        ),
        (
            "unknown_type.safetensors",
            safetensors({"w": entry(0, 16, [4], "F33")}, data),
            "damaged",
            "an unknown number type",
        ),
        ("torch_zip.safetensors", torch_zip(), "pickle", "a zip with a pickle, as torch.save writes it"),
        ("torch_zip.bin", torch_zip(), "pickle", "a zip with a pickle, as torch.save writes it, under its usual name"),
    ]
    for protocol in (2, 3, 4, 5):
        content = pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol)
        files.append((f"pickle_{protocol}.safetensors", content, "pickle", f"a pickle of protocol {protocol}"))
    files.append(
        (
            "pickle_2.bin",
            pickle.dumps({"weight": [1.0, 2.0]}, protocol=2),
            "pickle",
            "a pickle of protocol 2, under its usual name",
        )
    )
    return files


def check_with_safetensors(folder: Path, files: list[File]) -> None:
    """The safetensors library must agree on every file: an index that is wrong would teach the loader's tests to be wrong."""
    for name, _, fault, why in files:
        try:
            load_file(folder / name)
            refused = False
        except (SafetensorError, KeyError):
            refused = True
        if refused != (fault is not None):
            raise SystemExit(f"{name} ({why}): the safetensors library {'refuses' if refused else 'accepts'} it")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Writes hostile and damaged ONNX and safetensors files, and index.json that says why each must be refused. Reads nothing."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DATA / "hostile",
        help="folder to write into; it is emptied first (default: %(default)s)",
    )
    arguments = parser.parse_args()

    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    (arguments.out / "weights.bin").write_bytes(WEIGHTS.tobytes())
    kinds = {"onnx": onnx_files(), "safetensors": safetensors_files()}
    index = []
    for kind, files in kinds.items():
        for name, content, fault, why in files:
            (arguments.out / name).write_bytes(content)
            index.append({"file": name, "kind": kind, "fault": fault, "why": why})
    check_with_safetensors(arguments.out, kinds["safetensors"])
    lines = ",\n".join(json.dumps(row) for row in index)
    (arguments.out / "index.json").write_text(f"[\n{lines}\n]\n")
    good = sum(row["fault"] is None for row in index)
    print(f"{arguments.out}: {len(index) - good} files to refuse, {good} to accept")


if __name__ == "__main__":
    main()
