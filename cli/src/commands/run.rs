//! `neurogrid run`: one inference, in this process, on a worker, or through a coordinator.

use super::chat;
use crate::args::{Access, Global, Run, Target};
use crate::output;
use anyhow::Context;
use coordinator_client::api::Problem;
use coordinator_client::api::task::{SubmitTask, TaskResult};
use coordinator_client::wire::task::{ClassifyInput, EmbedInput, InferInput, RerankInput, Text};
use coordinator_client::wire::{TaskInput, TaskOutput, Tensor};
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

/// Runs it.
pub(crate) async fn run(global: &Global, run: Run) -> anyhow::Result<ExitCode> {
    let (model, input, target) = match run {
        Run::Chat { model, message, system, writing, target } => {
            let chat = chat::Chat { model, message: message.join(" "), system, writing, target: *target };
            return chat::chat(global, chat).await;
        }
        Run::Generate { model, prompt, writing, target } => {
            return chat::generate(global, model, prompt, writing, *target).await;
        }
        Run::Embed { .. } | Run::Rerank { .. } | Run::Classify { .. } | Run::Infer { .. } => task(run)?,
    };
    let labels = label_rows(&input);
    let output = match (&target.coordinator, &target.worker) {
        (Some(url), _) => remote(&format!("{}/api/tasks", url.trim_end_matches('/')), model, input, &target).await?,
        (None, Some(url)) => {
            remote(&format!("{}/api/tasks/execute", url.trim_end_matches('/')), model, input, &target).await?
        }
        (None, None) => local(model, input, &target).await?,
    };
    output::print(global.json, &output, |output| text(output, &labels))?;
    Ok(ExitCode::SUCCESS)
}

/// What the arguments ask.
fn task(run: Run) -> anyhow::Result<(String, TaskInput, Target)> {
    Ok(match run {
        Run::Embed { model, texts, input_type, prompt_name, dimensions, target } => {
            let inputs = words(lines_if_empty(texts)?);
            let input = EmbedInput { inputs, input_type, prompt_name, dimensions, normalize: None, truncate: false };
            (model, TaskInput::Embed(input), target)
        }
        Run::Rerank { model, query, documents, top_n, target } => {
            let documents = lines_if_empty(documents)?;
            (model, TaskInput::Rerank(RerankInput { query, documents, top_n, truncate: false }), target)
        }
        Run::Classify { model, texts, tensors, top_n, target } => {
            let (inputs, tensors) = match tensors {
                Some(file) => (vec![], read_tensors(&file)?),
                None => (words(lines_if_empty(texts)?), vec![]),
            };
            let input = ClassifyInput { inputs, tensors, top_n, truncate: false };
            (model, TaskInput::Classify(input), target)
        }
        Run::Infer { model, tensors, output, target } => {
            let input = InferInput { inputs: read_tensors(&tensors)?, outputs: output };
            (model, TaskInput::Infer(input), target)
        }
        Run::Chat { .. } | Run::Generate { .. } => anyhow::bail!("a text is no single task"),
    })
}

fn words(texts: Vec<String>) -> Vec<Text> {
    texts.into_iter().map(Text::Words).collect()
}

fn lines_if_empty(texts: Vec<String>) -> anyhow::Result<Vec<String>> {
    if !texts.is_empty() {
        return Ok(texts);
    }
    if std::io::stdin().is_terminal() {
        eprintln!("reading lines from the terminal; end with Ctrl-D");
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input is not UTF-8 text")?;
    let lines: Vec<String> = text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
    anyhow::ensure!(!lines.is_empty(), "nothing to do: give texts as arguments, or lines on standard input");
    Ok(lines)
}

fn read_tensors(file: &Path) -> anyhow::Result<Vec<Tensor>> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input is not UTF-8 text")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    serde_json::from_str(&text).with_context(|| format!("{} is not a JSON list of tensors", file.display()))
}

/// Runs it in this process.
async fn local(model: String, input: TaskInput, target: &Target) -> anyhow::Result<TaskOutput> {
    let request = worker::convert::request_of(input)?;
    let access = Access { api_key: None, insecure: false };
    // The worker's API is bound to a free port of loopback and never served.
    let mut options = super::serving::options(([127, 0, 0, 1], 0).into(), &access, &target.serving);
    options.devices.devices = super::serving::find_devices(&target.serving).await?;
    let worker = worker::build(options)?;
    let handle = worker.handle();
    let done = handle.execute(worker::NewTask::new(model, request)).await?;
    tracing::info!(model = done.model, class = done.execution_class, "ran in {:?}", done.timings.device);
    Ok(worker::convert::output_of(done.reply))
}

/// Runs it over HTTP. Workers and coordinators take and give the same shapes.
async fn remote(url: &str, model: String, input: TaskInput, target: &Target) -> anyhow::Result<TaskOutput> {
    let client = crate::http::client()?;
    let mut request = client.post(url).header("Prefer", "wait=300").json(&SubmitTask::new(model, input));
    if let Some(key) = &target.api_key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.with_context(|| format!("{url} cannot be reached; is it running?"))?;
    let status = response.status();
    let body = response.bytes().await.with_context(|| format!("{url} broke off its answer"))?;
    if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
        return Err(problem.into());
    }
    anyhow::ensure!(status.is_success(), "{url} answered {status}: {}", String::from_utf8_lossy(&body));
    if status.as_u16() == 202 {
        let accepted = String::from_utf8_lossy(&body);
        anyhow::bail!("the task still waits after five minutes; ask for it later: {accepted}");
    }
    let result: TaskResult = serde_json::from_slice(&body).with_context(|| format!("{url} gave no task's result"))?;
    Ok(result.output)
}

/// What a classification's rows are called in the text output.
fn label_rows(input: &TaskInput) -> Vec<String> {
    match input {
        TaskInput::Rerank(input) => input.documents.clone(),
        TaskInput::Classify(ClassifyInput { inputs, .. }) => {
            let name = |text: &Text| match text {
                Text::Words(words) => words.clone(),
                Text::Ids(ids) => format!("{ids:?}"),
            };
            inputs.iter().map(name).collect()
        }
        TaskInput::Embed(_) | TaskInput::Infer(_) | TaskInput::Generate(_) | TaskInput::Chat(_) => vec![],
    }
}

/// The output for people.
fn text(output: &TaskOutput, names: &[String]) -> String {
    let name = |index: usize| names.get(index).cloned().unwrap_or_else(|| format!("row {index}"));
    match output {
        TaskOutput::Embed { embeddings } => {
            let row = |row: &[f32]| row.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            embeddings.rows().map(row).collect::<Vec<_>>().join("\n")
        }
        TaskOutput::Rerank { results } => {
            let row = |score: &coordinator_client::wire::task::Score| {
                vec![format!("{:.4}", score.score), name(score.index as usize)]
            };
            output::table(&results.iter().map(row).collect::<Vec<_>>())
        }
        TaskOutput::Classify { results } => {
            let mut rows = Vec::new();
            for (index, labels) in results.iter().enumerate() {
                rows.extend(labels.iter().map(|l| vec![name(index), l.label.clone(), format!("{:.4}", l.score)]));
            }
            output::table(&rows)
        }
        TaskOutput::Infer { outputs } => {
            let line = |tensor: &Tensor| serde_json::to_string(tensor).unwrap_or_else(|error| error.to_string());
            outputs.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        TaskOutput::Generate(written) | TaskOutput::Chat(written) => written.text.clone(),
    }
}
