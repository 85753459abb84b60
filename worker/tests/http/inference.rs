//! Inference in the shapes of other systems' clients: OpenAI's, the rerankers', and the Open Inference Protocol's, whose
//! bodies are those that the Python client `tritonclient` sends and reads.

use ::models::load::Backend;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, send};
use crate::bench::{Bench, start, start_with};

const LENGTH: &str = "Inference-Header-Content-Length";

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Sends JSON with raw bytes behind it, as `tritonclient` does: a length of the JSON, no content type.
async fn raw(bench: &Bench, path: &str, json: &Value, bytes: &[u8]) -> Answer {
    let json = json.to_string();
    let request = bench.api.request(Method::POST, path).header(LENGTH, json.len());
    send(request.body([json.as_bytes(), bytes].concat())).await
}

/// JSON and raw bytes of an answer, as `tritonclient` takes them apart.
fn parts(answer: &Answer) -> (Value, Vec<u8>) {
    assert_eq!(answer.status, 200, "{answer:?}");
    match answer.header(LENGTH) {
        Some(length) => {
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
            let (json, bytes) = answer.body.split_at(length.parse().unwrap());
            (serde_json::from_slice(json).unwrap(), bytes.to_vec())
        }
        None => {
            assert_eq!(answer.header("content-type"), Some("application/json"));
            (answer.json(), Vec::new())
        }
    }
}

#[tokio::test]
async fn openai_clients_get_embeddings_as_floats_and_as_base64() {
    let bench = start();
    let body = json!({"model": "texts", "input": ["a", "b c"], "encoding_format": "float", "user": "somebody"});
    let floats = bench.api.post("/v1/embeddings", body).await.ok();
    assert_eq!((&floats["object"], &floats["model"]), (&json!("list"), &json!("texts@1")));
    assert_eq!(floats["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    assert_eq!((&floats["data"][1]["index"], &floats["data"][1]["object"]), (&json!(1), &json!("embedding")));
    let vector: Vec<f32> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
    assert_eq!(vector.len(), 8);
    assert!((vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);

    let body = json!({"model": "texts@1", "input": "b c", "encoding_format": "base64"});
    let base64 = bench.api.post("/v1/embeddings", body).await.ok();
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(data_encoding::BASE64.decode(text.as_bytes()).unwrap(), bytes_of(&vector));

    let models = bench.api.get("/v1/models").await.ok();
    assert_eq!(models["object"], "list");
    let one = bench.api.get("/v1/models/texts").await.ok();
    assert!(models["data"].as_array().unwrap().contains(&one));
    assert_eq!((&one["id"], &one["object"]), (&json!("texts@1"), &json!("model")));
    for input in [json!(7), json!([]), json!(["a", 1]), Value::Null] {
        let answer = bench.api.post("/v1/embeddings", json!({"model": "texts", "input": input})).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn rerankers_clients_get_the_best_first() {
    let bench = start();
    let body = json!({"model": "pairs", "query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2,
        "return_documents": true});
    let answer = bench.api.post("/v1/rerank", body).await.ok();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
    for result in results {
        let text = ["a", "b", "c"][result["index"].as_u64().unwrap() as usize];
        assert_eq!(result["document"]["text"], text);
    }
    assert_eq!(answer["usage"]["prompt_tokens"], 9);
}

#[tokio::test]
async fn the_protocols_server_and_models_describe_themselves() {
    let bench = start();
    let server = bench.api.get("/v2").await.ok();
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    for path in
        ["/v2/health/live", "/v2/health/ready", "/v2/models/tensors/ready", "/v2/models/tensors/versions/1/ready"]
    {
        assert_eq!(bench.api.get(path).await.status, 200, "{path}");
    }
    for path in ["/v2/models/tensors", "/v2/models/tensors/versions/1"] {
        let want = json!({
            "name": "tensors", "versions": ["1"], "platform": "fake_fake",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
        });
        assert_eq!(bench.api.get(path).await.ok(), want);
    }
}

#[tokio::test]
async fn tensors_travel_as_json_and_as_raw_bytes_in_every_mixture() {
    let bench = start();
    let values = [1.0f32, -2.0, 0.5, 4.0];
    let doubled = [2.0f32, -4.0, 1.0, 8.0];
    let spec = |more: Value| {
        let mut input = json!({"name": "x", "shape": [1, 4], "datatype": "FP32"});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([input])
    };
    let as_json = || (spec(json!({"data": values})), vec![]);
    let as_bytes = || (spec(json!({"parameters": {"binary_data_size": 16}})), bytes_of(&values));
    // What `tritonclient` says of outputs: nothing, all as bytes, or each by itself.
    let wants = [
        (json!({}), false),
        (json!({"parameters": {"binary_data_output": true}}), true),
        (json!({"outputs": [{"name": "y", "parameters": {"binary_data": true}}]}), true),
        (json!({"outputs": [{"name": "y", "parameters": {"binary_data": false}}]}), false),
        (json!({"outputs": [{"name": "y"}]}), false),
        (
            json!({"outputs": [{"name": "y", "parameters": {"binary_data": false}}],
            "parameters": {"binary_data_output": true}}),
            false,
        ),
    ];
    for path in ["/v2/models/tensors/infer", "/v2/models/tensors/versions/1/infer"] {
        for (inputs, bytes) in [as_json(), as_bytes()] {
            for (want, is_binary) in &wants {
                let mut body = json!({"id": "7", "inputs": inputs});
                body.as_object_mut().unwrap().extend(want.as_object().unwrap().clone());
                let (json, raw) = parts(&raw(&bench, path, &body, &bytes).await);
                let head = (&json["id"], &json["model_name"], &json["model_version"]);
                assert_eq!(head, (&json!("7"), &json!("tensors"), &json!("1")));
                let output = &json["outputs"][0];
                assert_eq!((&output["name"], &output["datatype"]), (&json!("y"), &json!("FP32")));
                assert_eq!(output["shape"], json!([1, 4]));
                if *is_binary {
                    assert_eq!(output["parameters"]["binary_data_size"], 16);
                    assert!(output.get("data").is_none());
                    assert_eq!(raw, bytes_of(&doubled));
                } else {
                    assert_eq!(output["data"], json!(doubled));
                    assert_eq!(raw, b"");
                }
            }
        }
    }
    // Without the header all is JSON; more parameters than are known are let through.
    let body = json!({"inputs": spec(json!({"data": [values]})), "parameters": {"sequence_id": 0, "priority": 0}});
    let answer = bench.api.post("/v2/models/tensors/infer", body).await.ok();
    assert_eq!(answer["outputs"][0]["data"], json!(doubled));
    assert!(answer.get("id").is_none());
}

#[tokio::test]
async fn bad_inferences_are_refused_with_the_reason() {
    let bench = start();
    let input = |more: Value| {
        let mut input = json!({"name": "x", "shape": [1, 4], "datatype": "FP32"});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"inputs": [input]})
    };
    let size = |bytes: u64| json!({"parameters": {"binary_data_size": bytes}});
    let good = bytes_of(&[1.0; 4]);
    let longer = bytes_of(&[1.0; 5]);
    let cases: Vec<(Value, &[u8], &str)> = vec![
        (json!({}), &[], "invalid_json"),
        (json!({"inputs": []}), &[], "invalid_input"),
        (input(json!({})), &[], "invalid_input"),
        (input(size(16)), &good[..12], "invalid_input"),
        (input(size(12)), &good, "wrong_shape"),
        (input(size(16)), &longer, "invalid_input"),
        (input(size(12)), &good[..12], "wrong_shape"),
        (input(size(u64::MAX)), &good, "invalid_input"),
        (input(json!({"data": [1, 2, 3, 4], "parameters": {"binary_data_size": 16}})), &good, "invalid_input"),
        (input(json!({"shape": [1, -4], "data": [1, 2, 3, 4]})), &[], "invalid_json"),
        (input(json!({"shape": [1, 5], "data": [1, 2, 3, 4]})), &[], "wrong_shape"),
        (input(json!({"shape": [4, 1], "data": [1, 2, 3, 4]})), &[], "wrong_shape"),
        (input(json!({"datatype": "FP8", "data": [1, 2, 3, 4]})), &[], "wrong_type"),
        (input(json!({"datatype": "INT32", "data": [1, 2, 3, 4]})), &[], "wrong_type"),
        (input(json!({"datatype": "FP16", "data": [1, 2, 3, 4]})), &[], "invalid_input"),
        (input(json!({"data": ["a", "b", "c", "d"]})), &[], "invalid_json"),
        (input(json!({"data": {"a": 1}})), &[], "invalid_json"),
        (input(json!({"name": "z", "data": [1, 2, 3, 4]})), &[], "invalid_input"),
        (input(json!({"parameters": {"shared_memory_region": "r"}})), &[], "invalid_input"),
    ];
    for (body, bytes, code) in cases {
        let answer = raw(&bench, "/v2/models/tensors/infer", &body, bytes).await;
        assert_eq!(answer.json()["code"], code, "{body}");
        let problem = answer.problem(400, code);
        assert_eq!(problem["error"], problem["detail"]);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let answer = raw(&bench, "/v2/models/tensors/infer", &input(size(16)), &bytes_of(&[1.0, bad, 2.0, 3.0])).await;
        answer.problem(400, "not_finite");
    }
    for outputs in [json!([{"name": "z"}]), json!([{"name": "y", "parameters": {"classification": 3}}])] {
        let mut body = input(size(16));
        body["outputs"] = outputs;
        raw(&bench, "/v2/models/tensors/infer", &body, &good).await.problem(400, "invalid_input");
    }
    for length in ["-1", "x", "1000000"] {
        let request = bench.api.request(Method::POST, "/v2/models/tensors/infer").header(LENGTH, length);
        send(request.body(input(json!({})).to_string())).await.problem(400, "invalid_input");
    }
    raw(&bench, "/v2/models/texts/infer", &input(size(16)), &good).await.problem(400, "wrong_task");
    raw(&bench, "/v2/models/tensors/versions/2/infer", &input(size(16)), &good).await.problem(404, "model_not_found");
}

#[tokio::test]
async fn numbers_that_json_cannot_carry_travel_as_raw_bytes_only() {
    let bench = start();
    let input = json!([{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 3e38]}]);
    bench.api.post("/v2/models/tensors/infer", json!({"inputs": input})).await.problem(400, "not_finite");
    let body = json!({"inputs": input, "parameters": {"binary_data_output": true}});
    let (_, bytes) = parts(&raw(&bench, "/v2/models/tensors/infer", &body, &[]).await);
    assert_eq!(bytes, bytes_of(&[2.0, 4.0, 6.0, f32::INFINITY]));
}

/// Digits that the bundled model was not trained on.
fn digits(count: usize) -> (Vec<f32>, Vec<u64>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/data/digits_heldout.json");
    let held_out: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pixels: Vec<Vec<f32>> = serde_json::from_value(held_out["pixels"].clone()).unwrap();
    let labels: Vec<u64> = serde_json::from_value(held_out["labels"].clone()).unwrap();
    (pixels[..count].concat(), labels[..count].to_vec())
}

#[tokio::test]
async fn the_bundled_model_answers_alike_on_every_backend_and_in_every_shape() {
    const COUNT: usize = 16;
    let (pixels, labels) = digits(COUNT);
    let mut of_all: Vec<Vec<f32>> = Vec::new();
    for backend in [Backend::Candle, Backend::Onnx] {
        let bench = start_with(|options| {
            options.compute.backend = backend;
            options.compute.loader = None;
        });
        let tensor = json!({"name": "pixels", "datatype": "FP32", "shape": [COUNT, 64], "data": pixels});
        let task = json!({"kind": "classify", "model": "digits", "input": {"tensors": [tensor], "top_n": 1}});
        let results = bench.api.execute(task).await.ok()["output"]["results"].clone();
        let best = |row: &Value| row[0]["label"].as_str().unwrap().parse::<u64>().unwrap();
        let right = results.as_array().unwrap().iter().zip(&labels).filter(|(row, label)| best(row) == **label).count();
        assert!(right * 10 >= COUNT * 9, "{right} of {COUNT}");

        let body = json!({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [COUNT, 64],
            "parameters": {"binary_data_size": COUNT * 64 * 4}}], "parameters": {"binary_data_output": true}});
        let answer = raw(&bench, "/v2/models/digits/infer", &body, &bytes_of(&pixels)).await;
        let (json, bytes) = parts(&answer);
        assert_eq!(json["outputs"][0]["shape"], json!([COUNT, 10]));
        let logits = bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
        let body = json!({"inputs": [tensor]});
        let said: Vec<f32> = serde_json::from_value(
            bench.api.post("/v2/models/digits/infer", body).await.ok()["outputs"][0]["data"].clone(),
        )
        .unwrap();
        assert_eq!(said, logits);
        of_all.push(logits);

        let mut nan = pixels.clone();
        nan[70] = f32::NAN;
        let body = json!({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [COUNT, 64],
            "parameters": {"binary_data_size": COUNT * 64 * 4}}]});
        raw(&bench, "/v2/models/digits/infer", &body, &bytes_of(&nan)).await.problem(400, "not_finite");
    }
    let (one, other) = (&of_all[0], &of_all[1]);
    assert!(one.iter().zip(other).all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs().max(1.0)), "{one:?}\n{other:?}");
}
