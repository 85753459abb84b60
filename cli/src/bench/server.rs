//! What must be known of a server before it is loaded: that it answers, which model is asked, how it counts tokens. What is wrong
//! is said here once, with what to do, and not a thousand times as errors of a run.

use super::api::{Kind, Shape};
use super::client::{Client, Clock};
use super::prompts::{Ask, Counting, Prompts};
use super::record::{Answer, Failure};
use crate::settings::nearest;

/// Words of the prompts by which a server's counting is found, and how many of each are asked. The difference of the two is what
/// words add; small, so that any model takes them.
const PROBE_WORDS: (u32, u32) = (8, 72);
const PROBES: u32 = 4;

/// The model that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) model: String,
    /// What the server lists, where it does.
    pub(crate) listed: Option<Vec<String>>,
}

/// Asks a server which models it has, and takes the one that is named, or the only one.
///
/// # Errors
/// When it does not answer, or it is not clear which model is meant.
pub(crate) async fn choose(client: &Client, named: Option<String>) -> anyhow::Result<Chosen> {
    let listed = match client.models().await {
        Ok(listed) => listed,
        // A server may refuse the list and take requests; with a model's name that will show.
        Err(Failure::Status(status, _)) if named.is_some() && !matches!(status, 401 | 403) => None,
        Err(failure) => anyhow::bail!(advice(client, "/v1/models", &failure, None)),
    };
    let model = the_one(client.address(), named, listed.as_deref()).map_err(anyhow::Error::msg)?;
    Ok(Chosen { model, listed })
}

fn the_one(address: &str, named: Option<String>, listed: Option<&[String]>) -> Result<String, String> {
    match (named, listed) {
        (Some(model), _) => Ok(model),
        (None, Some([model])) => Ok(model.clone()),
        (None, Some([])) => Err(format!("{address} lists no models; load one there, or name it with --model")),
        (None, Some(models)) => {
            Err(format!("{address} has several models; name one with --model: {}", models.join(", ")))
        }
        (None, None) => Err(format!("{address} does not list its models; name the one to ask with --model")),
    }
}

/// Sends some first requests, to see that they are answered and how many tokens the server counts in a word.
///
/// # Errors
/// When a request that any model should answer fails.
pub(crate) async fn prepare(
    client: &Client,
    shape: &Shape,
    chosen: &Chosen,
    prompts: &Prompts,
) -> anyhow::Result<Counting> {
    let refused = |failure: &Failure| {
        let route = format!("/v1/{}", shape.kind.route());
        anyhow::anyhow!(advice(client, &route, failure, Some(chosen)))
    };
    if !prompts.is_synthetic() {
        let first = Ask { max_tokens: 1, ..prompts.ask(0) };
        return match send(client, shape, &first).await {
            Ok(_) | Err(Failure::Empty) => Ok(Counting::default()),
            Err(failure) => Err(refused(&failure)),
        };
    }
    let mut sums = [Some(0); 2];
    for probe in 0..PROBES {
        for (sum, words) in sums.iter_mut().zip([PROBE_WORDS.0, PROBE_WORDS.1]) {
            match send(client, shape, &prompts.probe(words, probe)).await {
                Ok(answer) => *sum = sum.and_then(|sum: u64| Some(sum + answer.usage.prompt?)),
                // A text that ended at once, or a model too small for the longer probe: its counting stays unknown.
                Err(Failure::Empty) => *sum = None,
                Err(Failure::Status(400..500, _)) if words == PROBE_WORDS.1 => *sum = None,
                Err(failure) => return Err(refused(&failure)),
            }
        }
    }
    let mean = |sum: u64| sum as f64 / f64::from(PROBES);
    Ok(match sums {
        [Some(short), Some(long)] => Counting::of((PROBE_WORDS.0, mean(short)), (PROBE_WORDS.1, mean(long))),
        _ => Counting::default(),
    })
}

async fn send(client: &Client, shape: &Shape, ask: &Ask) -> Result<Answer, Failure> {
    let body = shape.body(ask).to_string().into_bytes();
    client.ask(shape.kind, body, ask.prompts.len(), Clock::start()).await
}

/// Why a first request failed, and what to do.
fn advice(client: &Client, route: &str, failure: &Failure, chosen: Option<&Chosen>) -> String {
    let address = client.address();
    let unknown = chosen.and_then(|chosen| Some((&chosen.model, not_listed(chosen)?)));
    match (failure, unknown) {
        (Failure::Unreachable(cause), _) => {
            format!("{address} cannot be reached ({cause}); is the server running, and is this its address?")
        }
        (Failure::Timeout, _) => {
            format!("{address}{route} did not answer in time; is the server busy? --timeout lets requests take longer")
        }
        (Failure::Status(status @ (401 | 403), said), _) => {
            format!("{address} answered {status} ({said}); give its key with --api-key or NEUROGRID_API_KEY")
        }
        (Failure::Status(status @ (400 | 404 | 422), said), Some((model, listed))) => {
            let meant = nearest(model, listed).map_or(String::new(), |name| format!("; did you mean {name}?"));
            format!(
                "{address}{route} answered {status} ({said}); it lists no model {model}, but {}{meant}",
                listed.join(", ")
            )
        }
        (Failure::Status(status @ (404 | 405), said), _) => {
            format!("{address}{route} answered {status} ({said}); does this server speak OpenAI's API under /v1?")
        }
        (Failure::Status(status, said), _) => format!("{address}{route} answered {status}: {said}"),
        (failure, _) => format!("{address}{route} gave no whole answer ({}): {}", failure.kind(), failure.message()),
    }
}

/// What the server lists, when the model is not among it. `name` means `name@version` too.
fn not_listed(chosen: &Chosen) -> Option<&[String]> {
    let Chosen { model, listed } = chosen;
    let is_meant = |name: &String| name == model || name.split_once('@').is_some_and(|(name, _)| name == model);
    listed.as_deref().filter(|listed| !listed.is_empty() && !listed.iter().any(is_meant))
}

/// The routes that a kind of request is for, as words.
pub(crate) fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat => "chats",
        Kind::Completions => "completions",
        Kind::Embeddings => "embeddings",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_only_model_need_not_be_named() {
        let one = |named: Option<&str>, listed: Option<&[&str]>| {
            the_one("http://h", named.map(Into::into), listed.map(names).as_deref())
        };
        assert_eq!(one(None, Some(&["a"])), Ok("a".into()));
        assert_eq!(one(Some("b"), Some(&["a"])), Ok("b".into()));
        assert_eq!(one(Some("b"), None), Ok("b".into()));
        for (listed, says) in [(Some(["a", "b"].as_slice()), "a, b"), (Some(&[]), "load one"), (None, "--model")] {
            let refused = one(None, listed).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }

    /// What is said of a failure by a server that lists `tiny-chat@1`.
    fn check(model: &str, failure: Failure, says: &[&str]) {
        let client = Client::new("http://h:1", None, Duration::from_secs(1)).unwrap();
        let chosen = Chosen { model: model.into(), listed: Some(names(&["tiny-chat@1"])) };
        let advice = advice(&client, "/v1/chat/completions", &failure, Some(&chosen));
        for part in says {
            assert!(advice.contains(part), "{part:?} is not in {advice:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        check(
            "tiny-chat",
            Failure::Unreachable("refused".into()),
            &["http://h:1 cannot be reached (refused)", "running"],
        );
        check("tiny-chat", Failure::Status(401, "no key".into()), &["401 (no key)", "--api-key"]);
        check("tiny-chta", Failure::Status(404, "?".into()), &["no model tiny-chta", "did you mean tiny-chat@1?"]);
        check("other", Failure::Status(400, "?".into()), &["no model other, but tiny-chat@1"]);
        check("tiny-chat", Failure::Status(404, "?".into()), &["speak OpenAI's API"]);
        check("tiny-chat", Failure::Status(500, "boom".into()), &["answered 500: boom"]);
        check("tiny-chat", Failure::CutOff("x".into()), &["cut_off"]);
    }
}
