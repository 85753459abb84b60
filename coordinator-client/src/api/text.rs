//! What is wrong with a text that is asked for, as far as that is known before any model is looked at. The ranges of sampling
//! are the sampler's to check. Pure.

use super::{Code, Problem};
use crate::wire::text::{JsonText, ToolChoice, WriteOptions, Written};
use crate::wire::{TaskInput, TaskOutput, task::Text};
use serde::Deserialize;

/// Stop strings of one text at most: every one is looked for behind every token. OpenAI takes 4; agents are known to send more.
pub const STOPS_MAX: usize = 16;

/// Bytes of one stop string at most: a text is held back for as long as a stop string may have begun.
pub const STOP_BYTES_MAX: usize = 256;

/// Tokens whose log-probabilities may be asked for beside the chosen one, as at OpenAI.
pub const LOGPROBS_MAX: u32 = 20;

/// Refuses what no model could write. Says nothing of inputs that are not texts to be written.
///
/// # Errors
/// `invalid_input`, with what to change.
pub fn check(input: &TaskInput) -> Result<(), Problem> {
    let refused = match input {
        TaskInput::Generate(input) => match &input.prompt {
            Text::Ids(ids) if ids.is_empty() => Err("the prompt has no token; give at least one".into()),
            _ => check_options(&input.options),
        },
        TaskInput::Chat(input) => check_messages(&input.messages)
            .and_then(|()| check_tools(input.tools.as_ref(), input.tool_choice.as_ref()))
            .and_then(|()| check_options(&input.options)),
        _ => Ok(()),
    };
    refused.map_err(|detail| Problem::new(Code::InvalidInput, detail))
}

fn check_options(options: &WriteOptions) -> Result<(), String> {
    if options.max_tokens == Some(0) {
        return Err("max_tokens is 0; ask for at least 1".into());
    }
    if options.stop.len() > STOPS_MAX {
        return Err(format!("{} stop strings are more than {STOPS_MAX}; give fewer", options.stop.len()));
    }
    if let Some(stop) = options.stop.iter().find(|stop| stop.len() > STOP_BYTES_MAX) {
        return Err(format!("a stop string of {} bytes is longer than {STOP_BYTES_MAX}; shorten it", stop.len()));
    }
    match options.logprobs {
        Some(count) if count > LOGPROBS_MAX => {
            Err(format!("log-probabilities of {count} tokens are more than {LOGPROBS_MAX}; ask for fewer"))
        }
        _ => Ok(()),
    }
}

fn check_messages(messages: &JsonText) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "role")]
        _role: String,
    }
    let read = serde_json::from_str::<Vec<Message>>(messages.as_str());
    let read = read.map_err(|e| format!("messages must be a list of objects with a role: {e}"))?;
    if read.is_empty() { Err("there is no message; give at least one".into()) } else { Ok(()) }
}

fn check_tools(tools: Option<&JsonText>, choice: Option<&ToolChoice>) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Tool {
        function: Function,
    }
    #[derive(Deserialize)]
    struct Function {
        name: String,
    }
    let read = tools.map_or(Ok(vec![]), |tools| serde_json::from_str::<Vec<Tool>>(tools.as_str()));
    let read =
        read.map_err(|e| format!(r#"tools must be a list of {{"type": "function", "function": {{"name": …}}}}: {e}"#))?;
    let mut names: Vec<&str> = read.iter().map(|tool| tool.function.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two tools are called {:?}; give each its own name", twice[0]));
    }
    match choice {
        Some(ToolChoice::Required) if names.is_empty() => {
            Err("tool_choice asks for a call, and there are no tools; give some".into())
        }
        Some(ToolChoice::Function(name)) if names.binary_search(&name.as_str()).is_err() => {
            Err(format!("tool_choice names {name:?}, which is none of the tools {names:?}"))
        }
        _ => Ok(()),
    }
}

/// The text that a task's output is.
///
/// # Errors
/// When the output is no text: a fault of whoever answered the task.
pub fn written(output: TaskOutput) -> Result<Written, Problem> {
    match output {
        TaskOutput::Generate(written) | TaskOutput::Chat(written) => Ok(written),
        _ => Err(Problem::new(Code::Internal, "the task's output is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::task::input_from_json;
    use crate::wire::TaskKind;

    /// `want` is a part of the refusal, or nothing where it is taken.
    fn check_json(kind: TaskKind, json: &str, want: Option<&str>) {
        let refused = check(&input_from_json(kind, json).unwrap()).err();
        match (&refused, want) {
            (None, None) => {}
            (Some(problem), Some(part)) => assert!(problem.detail.contains(part), "{json}: {problem}"),
            _ => panic!("{json}: {refused:?}, expected {want:?}"),
        }
    }

    #[test]
    fn what_no_model_could_write_is_refused() {
        let generate = |json: &str, want| check_json(TaskKind::Generate, json, want);
        generate(r#"{"prompt": ""}"#, None);
        generate(r#"{"prompt": [1], "options": {"max_tokens": 1, "logprobs": 20}}"#, None);
        generate(r#"{"prompt": []}"#, Some("no token"));
        generate(r#"{"prompt": "a", "options": {"max_tokens": 0}}"#, Some("at least 1"));
        generate(r#"{"prompt": "a", "options": {"logprobs": 21}}"#, Some("more than 20"));
        let stops = |count: usize| format!(r#"{{"prompt": "a", "options": {{"stop": {:?}}}}}"#, vec!["x"; count]);
        generate(&stops(STOPS_MAX), None);
        generate(&stops(STOPS_MAX + 1), Some("17 stop strings"));
        let long = |bytes: usize| format!(r#"{{"prompt": "a", "options": {{"stop": ["{}"]}}}}"#, "x".repeat(bytes));
        generate(&long(STOP_BYTES_MAX), None);
        generate(&long(STOP_BYTES_MAX + 1), Some("257 bytes"));
    }

    #[test]
    fn what_is_no_conversation_is_refused() {
        let chat = |json: &str, want| check_json(TaskKind::Chat, json, want);
        chat(r#"{"messages": [{"role": "user", "content": "a"}]}"#, None);
        chat(r#"{"messages": []}"#, Some("no message"));
        chat(r#"{"messages": "a"}"#, Some("a list of objects"));
        chat(r#"{"messages": [{"content": "a"}]}"#, Some("role"));
        let tools = |tools: &str, choice: &str| {
            format!(r#"{{"messages": [{{"role": "user"}}], "tools": {tools}, "tool_choice": {choice}}}"#)
        };
        let one = r#"[{"type": "function", "function": {"name": "f", "parameters": {}}}]"#;
        chat(&tools(one, "null"), None);
        chat(&tools(one, r#""required""#), None);
        chat(&tools(one, r#"{"function": "f"}"#), None);
        chat(&tools("null", r#""auto""#), None);
        chat(&tools(one, r#"{"function": "g"}"#), Some("none of the tools [\"f\"]"));
        chat(&tools("[]", r#""required""#), Some("there are no tools"));
        chat(&tools(r#"[{"function": {"name": "f"}}, {"function": {"name": "f"}}]"#, "null"), Some("its own name"));
        chat(&tools(r#"[{"name": "f"}]"#, "null"), Some("function"));
    }

    #[test]
    fn only_texts_are_texts() {
        assert!(written(TaskOutput::Infer { outputs: vec![] }).is_err());
    }
}
