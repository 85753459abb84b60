//! Kills at random while thousands of tasks run, then judges the recorded history: every accepted task ended once, none is
//! lost, none was settled twice.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::history::{self, Attempt, Task};
use e2e::{Program, digits, free_port, http};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Tasks that are submitted; `NEUROGRID_TEST_CHAOS_TASKS` sets another number.
const TASKS: usize = 5_000;
/// Kills at least; `NEUROGRID_TEST_CHAOS_KILLS` sets another number.
const KILLS: usize = 50;
/// Callers that submit at one time.
const CALLERS: usize = 8;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One of the three programs, in a folder that outlives it.
struct Slot {
    folder: PathBuf,
    args: Vec<String>,
    program: Option<Program>,
}

impl Slot {
    fn new(folder: &Path, args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let mut slot = Self { folder: folder.to_owned(), args, program: None };
        slot.start();
        slot
    }

    fn start(&mut self) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.program = Some(Program::start(&self.folder, &args).unwrap());
    }

    fn kill(&mut self) {
        self.program.take().expect("it runs between kills").kill();
    }
}

/// Submits its share; repeats each submit under its key until it is accepted.
async fn submit_share(url: String, share: Vec<usize>, pace: Arc<AtomicUsize>, total: usize) -> Vec<(String, String)> {
    let (client, digits) = (http::client(), digits::held_out());
    let mut accepted = Vec::new();
    for index in share {
        // Spread over the kills: the last tasks come when the last kills do.
        while index * KILLS > (pace.load(Ordering::SeqCst) + 2) * total {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let key = format!("digit-{index}");
        let mut task = digits.task(index);
        task["failures_max"] = 1_000.into(); // being near a killed worker is no fault of a task
        let id = http::until("the task is accepted", Duration::from_secs(120), async || {
            let request = client.post(format!("{url}/api/tasks")).header("Idempotency-Key", &key).json(&task);
            let response = request.send().await?;
            let status = response.status();
            let body = response.text().await?;
            // The model is unknown until a worker has said hello again.
            anyhow::ensure!(status.is_success(), "{status}: {body}");
            let body: serde_json::Value = serde_json::from_str(&body)?;
            Ok(body["id"].as_str().map(str::to_owned))
        });
        let id = id.await.unwrap();
        accepted.push((key, id));
    }
    accepted
}

/// Kills one of the programs after another at random moments and starts it again, until enough were killed.
fn kill_at_random(mut slots: Vec<Slot>, kills: usize, done: &AtomicUsize, seed: u64) -> Vec<Slot> {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
        // Workers four times as often as the coordinator.
        let victim = if random.random_ratio(1, 5) { 0 } else { 1 + (random.next_u32() % 2) as usize };
        slots[victim].kill();
        std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
        slots[victim].start();
        done.fetch_add(1, Ordering::SeqCst);
    }
    slots
}

async fn recorded(client: &reqwest::Client, url: &str, key: &str, id: &str) -> anyhow::Result<Option<Task>> {
    let status = http::get(client, &format!("{url}/api/tasks/{id}")).await?;
    let state = status["state"].as_str().unwrap_or_default().to_owned();
    if state == "queued" || state == "leased" {
        return Ok(None);
    }
    let attempts = http::get(client, &format!("{url}/api/tasks/{id}/attempts")).await?;
    let attempts: Vec<Attempt> = serde_json::from_value(attempts)?;
    Ok(Some(Task { id: id.into(), key: key.into(), state, attempts }))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_settled_twice_while_everything_is_killed() {
    let (tasks, kills) = (number("NEUROGRID_TEST_CHAOS_TASKS", TASKS), number("NEUROGRID_TEST_CHAOS_KILLS", KILLS));
    let seed = number("NEUROGRID_TEST_CHAOS_SEED", 20_261_121) as u64;
    println!("{tasks} tasks, {kills} kills, seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let bind = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{bind}");
    let worker = ["worker", "--coordinator", &url, "--bind", "127.0.0.1:0", "--preload", "digits"];
    let slots = vec![
        Slot::new(&folder.path().join("coordinator"), &["coordinator", "--bind", &bind]),
        Slot::new(&folder.path().join("a"), &worker),
        Slot::new(&folder.path().join("b"), &worker),
    ];

    let (killed, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let killer = {
        let (killed, over) = (killed.clone(), over.clone());
        tokio::task::spawn_blocking(move || {
            let slots = kill_at_random(slots, kills, &killed, seed);
            over.store(true, Ordering::SeqCst);
            slots
        })
    };
    let shares = (0..CALLERS).map(|caller| (caller..tasks).step_by(CALLERS).collect());
    let pace = |share| submit_share(url.clone(), share, killed.clone(), tasks);
    let accepted = futures_util::future::join_all(shares.map(pace)).await.concat();
    let slots = killer.await.unwrap();
    assert!(over.load(Ordering::SeqCst) && killed.load(Ordering::SeqCst) >= kills);
    assert_eq!(accepted.len(), tasks);

    let client = http::client();
    let digits = digits::held_out();
    let (mut history, mut lost) = (HashMap::new(), 0);
    for (key, id) in &accepted {
        let ended = http::until("the task has ended", Duration::from_secs(120), async || {
            recorded(&client, &url, key, id).await
        });
        let task = ended.await.unwrap();
        lost += task.attempts.len() - 1;
        history.insert(id.clone(), task);
    }
    println!("{} kills; {lost} attempts were lost or given back and repeated", killed.load(Ordering::SeqCst));
    assert_eq!(history::violations(&accepted, &history), [""; 0]);
    assert!(lost > 0, "no kill hit a running task: this run proved nothing");

    // Every answer belongs to its own question.
    let mut right = 0;
    for (key, id) in accepted.iter().step_by(10) {
        let index: usize = key.trim_start_matches("digit-").parse().unwrap();
        let result = http::get(&client, &format!("{url}/api/tasks/{id}/result")).await.unwrap();
        right += usize::from(digits::best_label(&result) == Some(digits.label(index)));
    }
    let asked = accepted.len().div_ceil(10);
    assert!(right * 100 >= asked * 95, "{right} of {asked} answers are right");
    let stats = http::get(&client, &format!("{url}/api/stats")).await.unwrap();
    println!("stats: {stats}");
    drop(slots);
}
