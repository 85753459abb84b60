//! Why a task waits: what is known of it and of the connected nodes goes in, one exact reason comes out. Pure.

use super::policy::Fit;
use coordinator_client::api::task::{WaitCode, Waits};

/// A connected node, as seen by one task.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// For people.
    pub(crate) node: String,
    /// How it fits the task's kind and model.
    pub(crate) fit: Fit,
    /// Whether it has the model, whatever kind of task it runs.
    pub(crate) has_model: bool,
    /// How many more tasks it takes.
    pub(crate) free: usize,
    /// How many it has.
    pub(crate) busy: usize,
    /// Whether it takes nothing more.
    pub(crate) draining: bool,
}

/// Everything that a reason may need.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    pub(crate) model: String,
    pub(crate) now_ms: i64,
    pub(crate) not_before_ms: i64,
    /// What the last failed attempt said.
    pub(crate) failure: Option<String>,
    /// The model's size in the registry, if it is there.
    pub(crate) registered_bytes: Option<u64>,
    /// Who fetches the model.
    pub(crate) fetching: Option<String>,
    /// Tasks before it for the same kind and model.
    pub(crate) ahead: Option<u64>,
    pub(crate) nodes: Vec<Seen>,
}

impl Case {
    /// The first thing that stands in the task's way.
    pub(crate) fn reason(&self) -> Waits {
        let nodes = &self.nodes;
        if self.not_before_ms > self.now_ms {
            let failure = self.failure.as_deref().unwrap_or("it was given back");
            let detail = format!("tried again in {} ms, after: {failure}", self.not_before_ms - self.now_ms);
            let until_ms = Some(self.not_before_ms);
            return Waits { code: WaitCode::BackingOff, detail, ahead: None, until_ms };
        }
        let able: Vec<&Seen> = nodes.iter().filter(|node| node.fit >= Fit::Barred).collect();
        let (code, detail) = if nodes.is_empty() {
            (WaitCode::NoNode, "no node is connected; start one with `neurogrid worker --coordinator URL`".into())
        } else if able.is_empty() {
            self.nobody_able()
        } else if able.iter().all(|node| node.draining) {
            (WaitCode::NodesDraining, format!("{} can do it, but takes nothing more: it drains", names(&able)))
        } else if able.iter().all(|node| node.draining || node.free == 0) {
            let busy: usize = able.iter().map(|node| node.busy).sum();
            let ahead = self.ahead.map_or(String::new(), |ahead| format!("; {ahead} wait before it"));
            (WaitCode::NodesBusy, format!("{} can do it and is full, with {busy} tasks{ahead}", names(&able)))
        } else if able.iter().all(|node| node.draining || node.free == 0 || node.fit == Fit::Barred) {
            let failure = self.failure.as_deref().unwrap_or("it was given back");
            (
                WaitCode::BackingOff,
                format!("{} could do it, but is passed over for a while after: {failure}", names(&able)),
            )
        } else {
            (WaitCode::Dispatching, format!("about to be given to {}", names(&able)))
        };
        let ahead = if code == WaitCode::NodesBusy { self.ahead } else { None };
        Waits { code, detail, ahead, until_ms: None }
    }

    fn nobody_able(&self) -> (WaitCode, String) {
        let Self { kind, model, nodes, .. } = self;
        if let Some(node) = &self.fetching {
            return (WaitCode::ModelFetching, format!("node {node} is fetching {model}"));
        }
        let has: Vec<&Seen> = nodes.iter().filter(|node| node.has_model).collect();
        if !has.is_empty() {
            let detail = format!("{} has {model}, but does not run {kind} on it", names(&has));
            return (WaitCode::KindNotServed, detail);
        }
        let fetch: Vec<&Seen> = nodes.iter().filter(|node| node.fit == Fit::Fetch).collect();
        if fetch.iter().any(|node| !node.draining && node.free > 0) {
            return (
                WaitCode::Dispatching,
                format!("about to be given to {}, which will fetch {model}", names(&fetch)),
            );
        }
        if !fetch.is_empty() {
            return (WaitCode::NodesBusy, format!("{} could fetch {model}, but is full or drains", names(&fetch)));
        }
        let detail = match self.registered_bytes {
            None => format!(
                "none of {} connected nodes has {model}, and it is not in the registry; register it, or connect a node that has it",
                nodes.len()
            ),
            Some(bytes) => format!(
                "none of {} connected nodes has {model}, and none fetches it: it takes {bytes} bytes of memory and a node that runs {kind}",
                nodes.len()
            ),
        };
        (WaitCode::ModelMissing, detail)
    }
}

/// Names of nodes for people, the first few.
fn names(nodes: &[&Seen]) -> String {
    match nodes {
        [one] => format!("node {}", one.node),
        [first, rest @ ..] => format!("each of {} nodes ({}, …)", rest.len() + 1, first.node),
        [] => "no node".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(fit: Fit, has_model: bool, free: usize, draining: bool) -> Seen {
        Seen { node: "n1".into(), fit, has_model, free, busy: 3, draining }
    }

    fn case(nodes: &[Seen]) -> Case {
        Case {
            kind: "embed",
            model: "m@1".into(),
            now_ms: 1_000,
            not_before_ms: 0,
            failure: None,
            registered_bytes: None,
            fetching: None,
            ahead: Some(2),
            nodes: nodes.to_vec(),
        }
    }

    fn check(case: &Case, code: WaitCode, part: &str) {
        let waits = case.reason();
        assert_eq!(waits.code, code, "{case:?}: {}", waits.detail);
        assert!(waits.detail.contains(part), "{:?} should say {part:?}", waits.detail);
    }

    #[test]
    fn every_reason_says_what_stands_in_the_way() {
        check(&case(&[]), WaitCode::NoNode, "neurogrid worker");
        let stranger = seen(Fit::No, false, 4, false);
        check(&case(std::slice::from_ref(&stranger)), WaitCode::ModelMissing, "not in the registry");
        let registered = Case { registered_bytes: Some(77), ..case(std::slice::from_ref(&stranger)) };
        check(&registered, WaitCode::ModelMissing, "77 bytes");
        check(&case(&[seen(Fit::No, true, 4, false)]), WaitCode::KindNotServed, "does not run embed");
        let fetching = Case { fetching: Some("n7".into()), ..case(&[stranger]) };
        check(&fetching, WaitCode::ModelFetching, "n7 is fetching m@1");
        check(&case(&[seen(Fit::Fetch, false, 1, false)]), WaitCode::Dispatching, "will fetch");
        check(&case(&[seen(Fit::Fetch, false, 0, false)]), WaitCode::NodesBusy, "could fetch");
        check(&case(&[seen(Fit::Loaded, true, 4, true)]), WaitCode::NodesDraining, "drains");
        let full = seen(Fit::Loaded, true, 0, false);
        check(&case(std::slice::from_ref(&full)), WaitCode::NodesBusy, "with 3 tasks; 2 wait before it");
        check(&case(&[full.clone(), full.clone()]), WaitCode::NodesBusy, "each of 2 nodes");
        assert_eq!(case(&[full]).reason().ahead, Some(2));
        let barred = Case { failure: Some("out of memory".into()), ..case(&[seen(Fit::Barred, true, 4, false)]) };
        check(&barred, WaitCode::BackingOff, "after: out of memory");
        check(&case(&[seen(Fit::Cached, true, 1, false)]), WaitCode::Dispatching, "n1");
        let failed = Case { not_before_ms: 1_250, failure: Some("boom".into()), ..case(&[]) };
        check(&failed, WaitCode::BackingOff, "in 250 ms, after: boom");
        assert_eq!(failed.reason().until_ms, Some(1_250));
    }
}
