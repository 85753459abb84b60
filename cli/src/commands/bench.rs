//! `neurogrid bench`: arguments become a plan, the plan's stages run one after another, a report is printed and kept.

use crate::args::{Bench, BenchLoad, BenchOutput, BenchRequests, BenchServer, Global};
use crate::bench::api::{Kind, Shape};
use crate::bench::client::Client;
use crate::bench::length::Length;
use crate::bench::load::{self, Asker, Live, Load, Stage};
use crate::bench::prompts::{self, Prompts, Source};
use crate::bench::report::{Asked, Machine, Report, StageReport};
use crate::bench::{plot, process, server, table};
use crate::{output, shutdown};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How long a load is measured when nothing is said.
const DURATION: Duration = Duration::from_secs(30);

/// Fine enough for the eye.
const REDRAW: Duration = Duration::from_millis(200);

/// What the arguments ask, the same for every kind.
struct Plan {
    server: BenchServer,
    load: BenchLoad,
    requests: BenchRequests,
    output: BenchOutput,
    kind: Kind,
    prompt_tokens: Length,
    shared_prefix_tokens: u32,
    /// What an answer may have; embeddings have none.
    output_tokens: Length,
    ignore_eos: bool,
    temperature: f64,
    /// In one request.
    texts: usize,
}

impl From<Bench> for Plan {
    fn from(bench: Bench) -> Self {
        let kind = match &bench {
            Bench::Chat(_) => Kind::Chat,
            Bench::Completions(_) => Kind::Completions,
            Bench::Embeddings(_) => Kind::Embeddings,
        };
        match bench {
            Bench::Chat(texts) | Bench::Completions(texts) => Self {
                server: texts.server,
                load: texts.load,
                requests: texts.requests,
                output: texts.output,
                kind,
                prompt_tokens: texts.prompt_tokens,
                shared_prefix_tokens: texts.shared_prefix_tokens,
                output_tokens: texts.output_tokens,
                ignore_eos: texts.ignore_eos,
                temperature: texts.temperature,
                texts: 1,
            },
            Bench::Embeddings(vectors) => Self {
                server: vectors.server,
                load: vectors.load,
                requests: vectors.requests,
                output: vectors.output,
                kind,
                prompt_tokens: vectors.prompt_tokens,
                shared_prefix_tokens: 0,
                output_tokens: Length::Fixed(1),
                ignore_eos: false,
                temperature: 0.0,
                texts: vectors.texts as usize,
            },
        }
    }
}

impl Plan {
    fn source(&self) -> anyhow::Result<Source> {
        Ok(match &self.requests.prompts {
            Some(file) => Source::File { lines: prompts::read(file, self.kind)?, output: self.output_tokens },
            None => Source::Synthetic {
                prompt: self.prompt_tokens,
                shared_prefix: self.shared_prefix_tokens,
                output: self.output_tokens,
            },
        })
    }

    fn stages(&self) -> Vec<Stage> {
        let in_flight_max = self.load.in_flight_max as usize;
        let mut loads: Vec<Load> =
            self.load.rate.iter().map(|rate| Load::Open { per_second: *rate, in_flight_max }).collect();
        loads.extend(self.load.concurrency.iter().map(|callers| Load::Closed { callers: *callers as usize }));
        if loads.is_empty() {
            loads.push(Load::Closed { callers: 1 });
        }
        let duration = self.load.duration.or_else(|| self.load.requests.is_none().then_some(DURATION));
        let stage = |(index, load)| Stage {
            load,
            warmup: self.load.warmup,
            duration,
            requests: self.load.requests,
            seed: self.load.seed,
            first: index as u64 * prompts::STAGE,
        };
        loads.into_iter().enumerate().map(stage).collect()
    }
}

/// Runs it.
pub(crate) async fn run(global: &Global, bench: Bench) -> anyhow::Result<ExitCode> {
    let plan = Plan::from(bench);
    check(&plan)?;
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let source = plan.source()?;
    let seed = plan.load.seed;
    let stop = shutdown::on_signal()?;
    let client = Client::new(&plan.server.url, plan.server.api_key.clone(), plan.server.timeout)?;
    let prepare = async {
        let chosen = server::choose(&client, plan.server.model.clone()).await?;
        let shape = Shape {
            kind: plan.kind,
            model: chosen.model.clone(),
            ignore_eos: plan.ignore_eos,
            temperature: plan.temperature,
            extra: plan.requests.extra.clone(),
        };
        let probing = Prompts::new(source.clone(), seed, prompts::Counting::default(), plan.texts);
        let counting = server::prepare(&client, &shape, &chosen, &probing).await?;
        anyhow::Ok((shape, counting))
    };
    let (shape, counting) = tokio::select! {
        biased;
        () = stop.cancelled() => anyhow::bail!("ended before the first request was measured"),
        prepared = prepare => prepared?,
    };
    let (address, model) = (client.address().to_owned(), shape.model.clone());
    let asker = Arc::new(Asker { client, shape, prompts: Prompts::new(source, seed, counting, plan.texts) });
    let mut stages = Vec::new();
    for stage in plan.stages() {
        let live = Arc::new(Live::default());
        let bar = bar(&stage, &live);
        let taken = load::run(&stage, asker.clone(), plan.server.pid, &stop, live).await;
        bar.abort();
        stages.push(StageReport::new(&stage, &taken, plan.output.slo));
        if stop.is_cancelled() {
            break;
        }
    }
    let report = Report {
        date,
        command: command(std::env::args()),
        version: env!("CARGO_PKG_VERSION"),
        machine: machine(),
        server: address,
        model,
        kind: plan.kind,
        asked: asked(&plan, counting),
        is_interrupted: stop.is_cancelled(),
        stages,
    };
    output::print(global.json, &report, table::text)?;
    keep(plan.output.save.as_deref(), || Ok(serde_json::to_string_pretty(&report)? + "\n"))?;
    keep(plan.output.plot.as_deref(), || Ok(plot::svg(&report)))?;
    let has_answers = report.stages.iter().any(|stage| stage.requests.answered > 0);
    Ok(match (report.is_interrupted, has_answers) {
        // What shells give for a program that Ctrl-C ended.
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

/// What would be found out too late.
fn check(plan: &Plan) -> anyhow::Result<()> {
    for file in [&plan.output.save, &plan.output.plot].into_iter().flatten() {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        anyhow::ensure!(
            folder.is_dir(),
            "{} cannot be written: there is no folder {}",
            file.display(),
            folder.display()
        );
    }
    if let Some(pid) = plan.server.pid {
        anyhow::ensure!(cfg!(target_os = "linux"), "--pid: only Linux tells what a process uses; leave it out here");
        anyhow::ensure!(process::used(pid).is_some(), "--pid: this machine has no process {pid}");
    }
    anyhow::ensure!(!plan.server.timeout.is_zero(), "--timeout: a request needs some time; leave it out for 5min");
    anyhow::ensure!(
        plan.load.duration.is_none_or(|duration| !duration.is_zero()),
        "--duration: nothing can be measured in no time; leave it out for 30s"
    );
    Ok(())
}

fn asked(plan: &Plan, counting: prompts::Counting) -> Asked {
    let is_text = plan.kind.is_stream();
    Asked {
        prompts: plan.requests.prompts.as_ref().map(|file| file.display().to_string()),
        prompt_tokens: plan.requests.prompts.is_none().then_some(plan.prompt_tokens),
        shared_prefix_tokens: plan.shared_prefix_tokens,
        output_tokens: is_text.then_some(plan.output_tokens),
        texts: (!is_text).then_some(plan.texts),
        ignore_eos: plan.ignore_eos,
        temperature: is_text.then_some(plan.temperature),
        extra: plan.requests.extra.clone(),
        seed: plan.load.seed,
        counting,
    }
}

/// Writes a file, if one was asked for.
fn keep(file: Option<&Path>, text: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text()?).with_context(|| format!("cannot write {}", file.display()))
}

/// The command line as it is kept: without the key.
fn command(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_key = false;
    let shown = arguments.skip(1).map(|argument| {
        if std::mem::replace(&mut is_key, argument == "--api-key") {
            return "…".into();
        }
        if argument.starts_with("--api-key=") { "--api-key=…".into() } else { argument }
    });
    std::iter::once("neurogrid".to_owned()).chain(shown).collect()
}

fn machine() -> Machine {
    Machine {
        processor: worker::hardware::cpu::cpu().model,
        threads: worker::hardware::threads(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

/// A bar on the terminal for as long as the returned task lives; nothing where standard error is none.
fn bar(stage: &Stage, live: &Arc<Live>) -> Drawing {
    const STEPS: u64 = 1_000;
    let bar = ProgressBar::new(STEPS);
    bar.set_style(ProgressStyle::with_template("{msg}  [{bar:24}] {elapsed}").expect("a valid template"));
    let (bar_of_task, live, stage) = (bar.clone(), live.clone(), stage.clone());
    let task = tokio::spawn(async move {
        let began = Instant::now();
        loop {
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (answered, failed, dropped) = (count(&live.answered), count(&live.failed), count(&live.dropped));
            let of_time = stage
                .duration
                .map_or(0.0, |duration| began.elapsed().as_secs_f64() / (stage.warmup + duration).as_secs_f64());
            let of_requests =
                stage.requests.map_or(0.0, |requests| (answered + failed + dropped) as f64 / requests as f64);
            bar_of_task.set_position((of_time.max(of_requests).min(1.0) * STEPS as f64) as u64);
            let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
            bar_of_task.set_message(format!(
                "{}: {} sent, {answered} answered, {} under way, {failed} failed{dropped}",
                table::name(stage.load),
                count(&live.sent),
                live.in_flight()
            ));
            tokio::time::sleep(REDRAW).await;
        }
    });
    Drawing { task, bar }
}

/// A bar that is drawn.
struct Drawing {
    task: tokio::task::JoinHandle<()>,
    bar: ProgressBar,
}

impl Drawing {
    fn abort(self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_kept_without_its_key() {
        let kept = |line: &str| command(line.split(' ').map(Into::into)).join(" ");
        assert_eq!(
            kept("/path/neurogrid bench chat --api-key secret --rate 2"),
            "neurogrid bench chat --api-key … --rate 2"
        );
        assert_eq!(kept("n bench chat --api-key=secret"), "neurogrid bench chat --api-key=…");
    }
}
