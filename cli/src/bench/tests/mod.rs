//! Load on a server of the tests' own. What is asserted are counts, what was asked, and bounds that the server's own clock
//! gives; no test expects anything to be done in some time.

mod fake;
mod shown;

use super::api::{Kind, Shape};
use super::client::Client;
use super::length::Length;
use super::load::{self, Asker, Live, Load, Stage, Taken};
use super::prompts::{Counting, Prompts, Source};
use super::report::{Counts, StageReport};
use super::server;
use fake::{Answer, Request, Seen};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Far above what any machine needs: no test waits so long.
const NEVER: Duration = Duration::from_secs(300);

fn asker(address: &str, kind: Kind, timeout: Duration) -> Arc<Asker> {
    let client = Client::new(address, Some("key".into()), timeout).unwrap();
    let (model, extra) = ("fake".into(), serde_json::Map::new());
    let shape = Shape { kind, model, ignore_eos: true, temperature: 0.0, extra };
    let source = Source::Synthetic { prompt: Length::Fixed(8), shared_prefix: 0, output: Length::Fixed(5) };
    let texts = if kind == Kind::Embeddings { 3 } else { 1 };
    Arc::new(Asker { client, shape, prompts: Prompts::new(source, 1, Counting::default(), texts) })
}

fn requests(load: Load, count: u64) -> Stage {
    Stage { load, warmup: Duration::ZERO, duration: None, requests: Some(count), seed: 1, first: 0 }
}

/// So fast that a stage of some hundred requests takes moments.
fn open(in_flight_max: usize) -> Load {
    Load::Open { per_second: 2_000.0, in_flight_max }
}

async fn run(stage: &Stage, asker: Arc<Asker>) -> (Taken, StageReport) {
    let taken = load::run(stage, asker, None, &CancellationToken::new(), Arc::new(Live::default())).await;
    let report = StageReport::new(stage, &taken, Some("e2e=1h".parse().unwrap()));
    (taken, report)
}

fn answered(count: u64) -> Counts {
    Counts { due: count, answered: count, ..Counts::default() }
}

#[tokio::test]
async fn every_request_of_both_loops_is_asked_and_counted_once() {
    for kind in [Kind::Chat, Kind::Completions] {
        for load in [open(64), Load::Closed { callers: 4 }] {
            let (address, seen) = fake::serve(|request: Request, _| async move { fake::text(&request, 5, 5) }).await;
            let (_, report) = run(&requests(load, 60), asker(&address, kind, NEVER)).await;
            assert_eq!(report.requests, answered(60), "{load:?} {:?}", report.errors);
            assert_eq!((report.tokens.output_mean, report.tokens.prompt_mean), (Some(5.0), Some(21.0)));
            assert_eq!(report.itl_ms.unwrap().samples, 60.0 * 4.0);
            assert_eq!((report.ttft_ms.unwrap().samples, report.goodput.unwrap().share), (60.0, 1.0));
            assert!(report.output_tokens_per_s.unwrap() > 0.0 && report.window_s > 0.0);
            let seen = seen.requests.lock().await;
            assert_eq!(seen.len(), 60);
            let first = &seen[0];
            assert_eq!(first.line, format!("POST /v1/{} HTTP/1.1", kind.route()));
            assert_eq!(first.key.as_deref(), Some("Bearer key"));
            assert_eq!((&first.body["max_tokens"], &first.body["ignore_eos"]), (&5.into(), &true.into()));
            // Nobody asks what another asked.
            let mut prompts: Vec<String> = seen.iter().map(|request| request.body.to_string()).collect();
            prompts.sort_unstable();
            prompts.dedup();
            assert_eq!(prompts.len(), 60);
        }
    }
}

#[tokio::test]
async fn embeddings_are_counted_by_their_vectors() {
    let (address, _) = fake::serve(|request: Request, _| async move {
        // The fourth answer lacks a vector.
        let count = if request.number == 3 { 2 } else { 3 };
        let vectors = vec![serde_json::json!({ "embedding": [0.5] }); count];
        let body = serde_json::json!({ "data": vectors, "usage": { "prompt_tokens": 24 } });
        Answer::Whole(200, "application/json", body.to_string())
    })
    .await;
    let (_, report) = run(&requests(Load::Closed { callers: 1 }, 10), asker(&address, Kind::Embeddings, NEVER)).await;
    assert_eq!(report.requests, Counts { due: 10, answered: 9, failed: 1, ..Counts::default() });
    assert_eq!(report.errors["malformed"].example, "3 texts were asked, 2 vectors came");
    assert_eq!((report.tokens.prompt_mean, report.ttft_ms), (Some(24.0), None));
    assert_eq!(report.e2e_ms.unwrap().samples, 9.0);
}

#[tokio::test]
async fn pieces_torn_anywhere_are_the_same_text() {
    let (address, _) = fake::serve(|request: Request, _| async move {
        let Answer::Stream(events) = fake::text(&request, 5, 5) else { unreachable!("a text is a stream") };
        let bytes: Vec<u8> = [b": a comment\r\n\r\n".as_slice(), &events.concat()].concat();
        // Each request is torn into pieces of another size, in the middle of letters too.
        Answer::Stream(bytes.chunks(1 + request.number as usize).map(<[u8]>::to_vec).collect())
    })
    .await;
    let (_, report) = run(&requests(Load::Closed { callers: 1 }, 40), asker(&address, Kind::Chat, NEVER)).await;
    assert_eq!(report.requests, answered(40), "{:?}", report.errors);
    assert_eq!((report.tokens.output_mean, report.tokens.pieces_mean), (Some(5.0), Some(5.0)));
}

#[tokio::test]
async fn every_way_to_fail_is_counted_under_its_name() {
    let (address, _) = fake::serve(|request: Request, _| async move {
        let piece = fake::event(r#"{"choices":[{"delta":{"content":"a"}}]}"#);
        let stream = |rest: &str| Answer::Stream(vec![format!("{piece}{rest}").into_bytes()]);
        match request.number {
            0 => Answer::Whole(503, "application/json", r#"{"error":{"message":"queue is full"}}"#.into()),
            1 => Answer::Whole(429, "text/plain", "slow down".into()),
            2 => stream(&fake::event(r#"{"error":{"message":"out of memory"}}"#)),
            3 => stream("event: error\ndata: gone\n\n"),
            4 => stream(""),
            5 => stream("data: {\"choi"),
            6 => Answer::Torn(piece.into_bytes()),
            // Tried once more, and no more than that.
            7 | 8 => Answer::Hangup,
            9 => stream(&fake::event("nonsense")),
            10 => Answer::Whole(200, "application/json", r#"{"choices":[{"message":{"content":"whole"}}]}"#.into()),
            11 => Answer::Stream(vec![fake::event("[DONE]").into_bytes()]),
            12 => Answer::Stream(vec![b"data: \xff\n\n".to_vec()]),
            14 => Answer::Hangup,
            _ => fake::text(&request, 2, 2),
        }
    })
    .await;
    let (_, report) = run(&requests(Load::Closed { callers: 1 }, 20), asker(&address, Kind::Chat, NEVER)).await;
    let errors: Vec<(&str, u64)> = report.errors.iter().map(|(kind, errors)| (kind.as_str(), errors.count)).collect();
    let want = [
        ("broken_connection", 2),
        ("cut_off", 2),
        ("error_in_stream", 2),
        ("http_429", 1),
        ("http_503", 1),
        ("malformed", 3),
        ("no_text", 1),
    ];
    assert_eq!(errors, want, "{:?}", report.errors);
    assert_eq!(report.requests, Counts { due: 20, answered: 8, failed: 12, ..Counts::default() });
    assert_eq!(report.errors["http_503"].example, "queue is full");
    assert_eq!(report.errors["error_in_stream"].example, "out of memory");
    assert_eq!(report.e2e_ms.unwrap().samples, 8.0);
    assert_eq!(report.goodput.unwrap().share, 0.4);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_timeout_and_a_closed_port_is_unreachable() {
    let (address, _) = fake::serve(|_: Request, _| async { Answer::Silence }).await;
    let (_, report) = run(&requests(open(8), 3), asker(&address, Kind::Chat, Duration::from_millis(50))).await;
    assert_eq!((report.requests.failed, report.errors["timeout"].count), (3, 3));

    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}");
    let (_, report) = run(&requests(open(8), 3), asker(&address, Kind::Chat, NEVER)).await;
    assert_eq!((report.requests.failed, report.errors["unreachable"].count), (3, 3));
}

#[tokio::test]
async fn what_is_due_during_a_stall_is_sent_and_its_wait_is_counted() {
    const COUNT: u64 = 100;
    // From the tenth request on nobody is answered until all have come: a load that waits for answers would wait for ever.
    let (address, seen) = fake::serve(|request: Request, seen: Arc<Seen>| async move {
        if request.number >= 10 {
            seen.until(COUNT).await;
        }
        seen.holds.lock().await.push(request.at.elapsed().as_secs_f64() * 1_000.0);
        fake::text(&request, 3, 3)
    })
    .await;
    let (taken, report) = run(&requests(open(COUNT as usize), COUNT), asker(&address, Kind::Chat, NEVER)).await;
    assert_eq!(report.requests, answered(COUNT), "{:?}", report.errors);
    // Every caller waited for longer than the server held its request: so did the callers of each rank.
    let mut holds = seen.holds.lock().await.clone();
    holds.sort_by(f64::total_cmp);
    let (ttft, hold) = (report.ttft_ms.unwrap(), |rank: usize| holds[rank - 1]);
    for (seen_by_callers, held) in
        [(ttft.p10, hold(10)), (ttft.p50, hold(50)), (ttft.p99, hold(99)), (ttft.max, hold(100))]
    {
        assert!(seen_by_callers >= held, "{ttft:?}");
    }
    // The longest of those waits began when the tenth request was due, not when there was time for it.
    assert!(taken.records.iter().all(|record| record.sent.is_some_and(|sent| sent >= record.due)));
    assert!(report.in_flight_peak >= 90, "{}", report.in_flight_peak);
}

#[tokio::test]
async fn what_is_due_beyond_the_bound_is_dropped_and_counted() {
    let live = Arc::new(Live::default());
    let looked_at = live.clone();
    // Nobody is answered before all that was due has been sent or dropped.
    let (address, seen) = fake::serve(move |request: Request, _| {
        let live = looked_at.clone();
        async move {
            while live.dropped.load(Ordering::Relaxed) < 16 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            fake::text(&request, 1, 1)
        }
    })
    .await;
    let stage = requests(open(4), 20);
    let taken = load::run(&stage, asker(&address, Kind::Chat, NEVER), None, &CancellationToken::new(), live).await;
    let report = StageReport::new(&stage, &taken, Some("e2e=1h".parse().unwrap()));
    assert_eq!(report.requests, Counts { due: 20, answered: 4, dropped: 16, ..Counts::default() });
    assert_eq!((report.in_flight_peak, seen.requests.lock().await.len()), (4, 4));
    // Dropped requests have no latency to hide in, and are not good.
    assert_eq!((report.e2e_ms.unwrap().samples, report.goodput.unwrap().share), (4.0, 0.2));
}

#[tokio::test]
async fn callers_of_a_closed_loop_have_one_request_each_under_way() {
    let (address, seen) = fake::serve(|request: Request, seen: Arc<Seen>| async move {
        // The first three wait for each other: all three callers are there at once.
        if request.number < 3 {
            seen.until(3).await;
        }
        fake::text(&request, 1, 1)
    })
    .await;
    let (_, report) = run(&requests(Load::Closed { callers: 3 }, 31), asker(&address, Kind::Chat, NEVER)).await;
    assert_eq!((report.requests, report.in_flight_peak), (answered(31), 3));
    assert_eq!(seen.requests.lock().await.len(), 31);
}

#[tokio::test]
async fn what_is_due_in_the_warm_up_is_asked_and_not_measured() {
    for load in [Load::Open { per_second: 400.0, in_flight_max: 64 }, Load::Closed { callers: 2 }] {
        let (address, seen) = fake::serve(|request: Request, _| async move { fake::text(&request, 1, 1) }).await;
        let stage = Stage { warmup: Duration::from_millis(100), ..requests(load, 10) };
        let (taken, report) = run(&stage, asker(&address, Kind::Chat, NEVER)).await;
        assert_eq!(report.requests, answered(10), "{load:?}");
        assert!(taken.records.len() > 10 && seen.requests.lock().await.len() == taken.records.len(), "{load:?}");
    }
}

#[tokio::test]
async fn a_stop_leaves_what_is_under_way_and_keeps_what_was_done() {
    for load in [open(64), Load::Closed { callers: 8 }] {
        let stop = CancellationToken::new();
        let live = Arc::new(Live::default());
        let (stops, looked_at, began) = (stop.clone(), live.clone(), Instant::now());
        // The first ten are answered, the others never; when those ten have their answers, all is stopped.
        let (address, _) = fake::serve(move |request: Request, _| {
            let (stop, live) = (stops.clone(), looked_at.clone());
            async move {
                if request.number < 10 {
                    return fake::text(&request, 1, 1);
                }
                if request.number == 14 {
                    while live.answered.load(Ordering::Relaxed) < 10 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    stop.cancel();
                }
                Answer::Silence
            }
        })
        .await;
        let stage = Stage { duration: Some(NEVER), requests: None, ..requests(load, 1) };
        let taken = load::run(&stage, asker(&address, Kind::Chat, NEVER), None, &stop, live).await;
        let report = StageReport::new(&stage, &taken, None);
        assert!(report.window_s <= began.elapsed().as_secs_f64());
        assert_eq!(report.requests.failed, 0, "{load:?} {:?}", report.errors);
        assert_eq!(report.requests.answered, 10, "{load:?} {:?}", report.requests);
        assert!(report.requests.unfinished >= 5, "{load:?} {:?}", report.requests);
    }
}

#[tokio::test]
async fn the_process_of_a_server_is_metered() {
    let (address, _) = fake::serve(|request: Request, _| async move { fake::text(&request, 1, 1) }).await;
    let stage = requests(Load::Closed { callers: 2 }, 50);
    let live = Arc::new(Live::default());
    let asker = asker(&address, Kind::Chat, NEVER);
    // The server is this process.
    let taken = load::run(&stage, asker, Some(std::process::id()), &CancellationToken::new(), live).await;
    if !cfg!(target_os = "linux") {
        eprintln!("skipped: only Linux tells what a process uses");
        return;
    }
    let (server, generator) = (taken.server.unwrap(), taken.generator.unwrap());
    assert!(server.rss_peak_bytes > 1 << 20 && server.over > Duration::ZERO);
    assert!(generator.cpu <= server.cpu + Duration::from_millis(50), "{server:?} {generator:?}");
}

#[tokio::test]
async fn a_server_is_asked_how_it_counts_before_it_is_loaded() {
    let (address, seen) = fake::serve(|request: Request, _| async move { fake::text(&request, 1, 1) }).await;
    let asker = asker(&address, Kind::Chat, NEVER);
    let chosen = server::choose(&asker.client, None).await.unwrap();
    assert_eq!(chosen.model, "fake");
    let counting = server::prepare(&asker.client, &asker.shape, &chosen, &asker.prompts).await.unwrap();
    assert_eq!(counting, Counting { tokens_per_word: 2.0, tokens_around: 5.0 });
    let probes = seen.requests.lock().await.len() as u64;
    // With that a prompt has the tokens that were asked for.
    let source = Source::Synthetic { prompt: Length::Fixed(105), shared_prefix: 0, output: Length::Fixed(5) };
    let counted = Asker { prompts: Prompts::new(source, 1, counting, 1), ..(*asker).clone() };
    let (_, report) = run(&requests(Load::Closed { callers: 1 }, 5), Arc::new(counted)).await;
    assert_eq!((report.tokens.prompt_mean, probes), (Some(105.0), 8));
}

#[tokio::test]
async fn a_server_that_refuses_is_found_before_it_is_loaded() {
    let refusing = |status: u16, body: &'static str| async move {
        let (address, _) =
            fake::serve(move |_: Request, _| async move { Answer::Whole(status, "application/json", body.into()) })
                .await;
        let asker = asker(&address, Kind::Chat, NEVER);
        let chosen = server::choose(&asker.client, Some("fakee".into())).await.unwrap();
        server::prepare(&asker.client, &asker.shape, &chosen, &asker.prompts).await.unwrap_err().to_string()
    };
    let refused = refusing(404, r#"{"error":{"message":"no model fakee"}}"#).await;
    assert!(refused.contains("did you mean fake?"), "{refused}");
    let refused = refusing(401, r#"{"error":{"message":"who are you"}}"#).await;
    assert!(refused.contains("who are you") && refused.contains("--api-key"), "{refused}");
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let client = Client::new(&format!("http://127.0.0.1:{port}"), None, NEVER).unwrap();
    let refused = server::choose(&client, None).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be reached"), "{refused}");
}
