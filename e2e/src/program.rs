//! One started program: arguments go in, its ready event comes out; it is killed when dropped.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a program may take to say that it is ready. Far above what it takes: test machines are busy.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a program may take to end after SIGTERM; its own limit is 25 s.
const END_WITHIN: Duration = Duration::from_secs(40);

/// A running `neurogrid`.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
    log: PathBuf,
}

/// The executable: `NEUROGRID_TEST_BIN`, or the one that cargo put beside this test.
///
/// # Panics
/// When there is none.
pub fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("NEUROGRID_TEST_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test.ancestors().nth(2).expect("tests stand in target/PROFILE/deps");
    let path = folder.join(format!("neurogrid{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: run `cargo build -p neurogrid` first", path.display());
    path
}

/// A `neurogrid` command with nothing of this machine's settings.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(executable());
    for (name, _) in std::env::vars_os() {
        let ours = name.to_string_lossy().starts_with("NEUROGRID_");
        if ours || ["HF_ENDPOINT", "HF_TOKEN"].iter().any(|other| name == *other) {
            command.env_remove(&name);
        }
    }
    let home = folder.join("home");
    command.env("HOME", &home).env("XDG_DATA_HOME", folder.join("data")).env("XDG_CACHE_HOME", folder.join("cache"));
    command.env("XDG_CONFIG_HOME", home.join(".config"));
    if let Some(library) = std::env::var_os("NEUROGRID_TEST_ORT") {
        command.env("NEUROGRID_ONNX_LIBRARY", library);
    }
    command.stdin(Stdio::null());
    command
}

/// A port of loopback that was free a moment ago, below those that systems give to outgoing connections: a program that is
/// killed and started again finds it free.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests run in processes of their own: each begins elsewhere.
    let start = std::process::id() as u16 % 1_000 * 10;
    let mut ports = (0..10_000).map(|_| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000);
    ports.find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).expect("loopback has free ports")
}

impl Program {
    /// Starts it in its own folder and waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, or is not ready in time; with the end of its log.
    pub fn start(folder: &Path, args: &[&str]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join("log.txt");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = command(folder);
        command.args(["--json"]).args(args).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", executable().display()))?;
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            // Reads to the end, so that the program never waits for a full pipe.
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str::<Value>(&line).ok().filter(|event| event["event"] == "ready");
                if let Some(event) = event {
                    drop(sender.try_send(event));
                }
            }
        });
        let mut program = Self { child, ready: Value::Null, log };
        match receiver.recv_timeout(READY_WITHIN) {
            Ok(ready) => program.ready = ready,
            Err(reason) => anyhow::bail!("neurogrid {args:?} is not ready ({reason}):\n{}", program.log_tail()),
        }
        Ok(program)
    }

    /// A text of the ready event, such as an address.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn said(&self, name: &str) -> String {
        self.ready[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.ready)).to_owned()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is not there any more.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child that was not waited for can be signalled");
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        let until = Instant::now() + END_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < until, "it does not end:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Memory that it has resident, in bytes, as the system counts it.
    pub fn resident_bytes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid().as_raw_nonzero())).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * 4096)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}:\n{}", self.log.display(), self.log_tail());
        }
    }
}
