//! Bad input of every kind, to a worker and through the grid: each gets a problem with a code, and what others ask at the
//! same time is answered.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::{Program, digits, http, tiny_bert};
use serde_json::{Value, json};

/// Largest body that either program takes is 64 MiB.
const HUGE: usize = 100 << 20;

fn classify(tensor: Value) -> Value {
    json!({"kind": "classify", "model": "digits", "input": {"tensors": [tensor], "top_n": 1}})
}

fn pixels(datatype: &str, shape: &[usize], data: &Value) -> Value {
    classify(json!({"name": "pixels", "datatype": datatype, "shape": shape, "data": data}))
}

/// Requests that are wrong, with the codes that may answer them.
fn bad() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let zeros = json!(vec![0.0; 64]);
    let long = "word ".repeat(3_000);
    let embed = |model: &str, text: &str| json!({"kind": "embed", "model": model, "input": {"inputs": [text]}});
    let text = |value: Value| value.to_string().into_bytes();
    let nan = pixels("FP32", &[1, 64], &zeros).to_string().replacen("0.0", "NaN", 1).into_bytes();
    let infinite = pixels("FP32", &[1, 64], &zeros).to_string().replacen("0.0", "1e999", 1).into_bytes();
    let mut not_utf8 = text(embed("tiny-bert", "x"));
    let at = not_utf8.windows(3).position(|window| window == b"\"x\"").unwrap() + 1;
    not_utf8[at] = 0xff;
    vec![
        ("a wrong shape", text(pixels("FP32", &[1, 63], &json!(vec![0.0; 63]))), &["wrong_shape"]),
        ("too few values", text(pixels("FP32", &[1, 64], &json!([1.0]))), &["wrong_shape", "invalid_json"]),
        ("a wrong type", text(pixels("INT64", &[1, 64], &json!(vec![0; 64]))), &["wrong_type"]),
        ("an unknown model", text(embed("nobody/has-this", "x")), &["model_not_found"]),
        ("a text that is too long", text(embed("tiny-bert", &long)), &["too_long"]),
        (
            "a kind that the model has not",
            text(embed("digits", "x")),
            &["wrong_task", "invalid_input", "not_supported"],
        ),
        ("not a number", nan, &["invalid_json"]),
        ("a number that is no f32", infinite, &["invalid_json", "not_finite"]),
        ("what is not UTF-8", not_utf8, &["not_utf8"]),
        ("half a body", b"{\"kind\": \"embed\"".to_vec(), &["invalid_json"]),
        ("100 MB", vec![b' '; HUGE], &["payload_too_large"]),
    ]
}

/// Sends it and returns the code of its problem, or of the failed task.
async fn code_of(client: &reqwest::Client, url: &str, body: Vec<u8>) -> anyhow::Result<String> {
    let request = client.post(url).header("Content-Type", "application/json").header("Prefer", "wait=60").body(body);
    let response = request.send().await?;
    let status = response.status();
    let kind =
        response.headers().get("Content-Type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let text = response.text().await?;
    anyhow::ensure!(status.is_client_error() && kind == "application/problem+json", "{status} {kind}: {text}");
    let problem: Value = serde_json::from_str(&text)?;
    Ok(problem["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_code_and_touches_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_bert();
    let args =
        ["up", "--bind", "127.0.0.1:0", "--worker-bind", "127.0.0.1:0", "--model-folder", model.to_str().unwrap()];
    let program = Program::start(folder.path(), &args).unwrap();
    let (client, digits) = (http::client(), digits::held_out());
    let worker = format!("{}/api/tasks/execute", program.said("worker"));
    let grid = format!("{}/api/tasks", program.said("coordinator"));
    for url in [&worker, &grid] {
        for (what, body, codes) in bad() {
            let others = (0..4).map(|index| {
                let request = client.post(url).header("Prefer", "wait=60").json(&digits.task(index));
                async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
            });
            let (code, others) = tokio::join!(code_of(&client, url, body), futures_util::future::join_all(others));
            match code {
                Ok(code) => assert!(codes.contains(&code.as_str()), "{url}: {what}: {code}"),
                // A server that refuses a body by its length closes before all of it was sent.
                Err(error) if what == "100 MB" && error.downcast_ref::<reqwest::Error>().is_some() => {}
                Err(error) => panic!("{url}: {what}: {error:#}"),
            }
            for (index, answer) in others.iter().enumerate() {
                assert_eq!(digits::best_label(answer), Some(digits.label(index)), "{url}: beside {what}: {answer}");
            }
        }
    }
    assert!(program.terminate().unwrap().success());
}
