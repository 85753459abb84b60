//! The embedded store: one SQLite file. Commands go to one writer thread that commits them in groups, questions to a small
//! pool of readers. A command's answer is given only after its group is committed: to the disk itself, or for claims and
//! renewals to the system, from where a crash of this process does not take it.

mod commands;
mod queries;
mod rows;

use super::*;
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Most commands in one transaction. Bounds how long the first waits for the last.
const GROUP_MAX: usize = 256;

/// Commands that wait for the writer; when it is full, callers wait.
const QUEUE_MAX: usize = 1024;

/// Version of `schema.sql`, kept in the file's `user_version`.
const SCHEMA_VERSION: i64 = 1;

/// Where the file is and how it is used.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database file; made when it is not there. A lock file is kept beside it.
    pub path: PathBuf,
    /// Limits.
    pub limits: Limits,
    /// The clock.
    pub clock: Clock,
    /// Reading connections. Two serve a small machine; each takes some memory.
    pub readers: usize,
}

/// See the module's head.
#[derive(Debug)]
pub struct Sqlite {
    clock: Clock,
    limits: Limits,
    /// `None` once closed.
    writer: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Arc<Mutex<Vec<Connection>>>,
    read_permits: Semaphore,
    /// Held as long as the store is open: two coordinators on one file would each believe in their own counters.
    _lock: std::fs::File,
}

/// What a command's answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The disk: it outlives a power cut.
    Disk,
    /// The system: it outlives this process. See [`Store::claim`].
    System,
}

/// Does its work inside the group's transaction and hands back what tells the caller, once the group's fate is known.
struct Command {
    durability: Durability,
    run: Box<dyn FnOnce(&Connection) -> Answer + Send>,
}
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Error::Engine(error.to_string())
    }
}

impl Sqlite {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When another process has it, it is damaged or of a newer version, or the disk refuses.
    pub fn open(options: Options) -> Result<Self, Error> {
        let io =
            |what: &str, error: std::io::Error| Error::Engine(format!("{}: {what}: {error}", options.path.display()));
        if let Some(folder) = options.path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| io("cannot make its folder", e))?;
        }
        let lock_path = options.path.with_extension("lock");
        let lock = std::fs::File::create(&lock_path).map_err(|e| io("cannot make its lock file", e))?;
        lock.try_lock().map_err(|_| {
            Error::Engine(format!("{} is in use by another process; stop it first", options.path.display()))
        })?;
        let writer = connect(&options.path)?;
        migrate(&writer)?;
        let open = commands::open_tasks(&writer)?;
        let readers = (0..options.readers.max(1)).map(|_| connect(&options.path)).collect::<Result<Vec<_>, _>>()?;
        for reader in &readers {
            reader.pragma_update(None, "query_only", true)?;
        }
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_groups(&writer, receiver))
            .map_err(|e| io("cannot start its writer", e))?;
        let store = Self {
            clock: options.clock,
            limits: options.limits,
            writer: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            read_permits: Semaphore::new(readers.len()),
            readers: Arc::new(Mutex::new(readers)),
            _lock: lock,
        };
        tracing::info!(path = %options.path.display(), open, "store opened");
        Ok(store)
    }

    /// Runs one command in the writer's next group, and waits until it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        command: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.write_to(Durability::Disk, command).await
    }

    async fn write_to<T: Send + 'static>(
        &self,
        durability: Durability,
        command: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let run = Box::new(move |connection: &Connection| -> Answer {
            let result = inside_savepoint(connection, command);
            // A caller that went away does not need its answer.
            Box::new(move |committed| drop(sender.send(committed.and(result))))
        });
        let command = Command { durability, run };
        let writer = self.writer.lock().expect("never poisoned: nothing panics inside").clone().ok_or(Error::Closed)?;
        writer.send(command).await.map_err(|_| Error::Closed)?;
        receiver.await.map_err(|_| Error::Closed)?
    }

    /// Runs one question on a reading connection.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _permit = self.read_permits.acquire().await.map_err(|_| Error::Closed)?;
        let readers = self.readers.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let pool = || readers.lock().expect("never poisoned: nothing panics inside");
            let connection = pool().pop().ok_or(Error::Closed)?;
            let answer = query(&connection);
            pool().push(connection);
            answer
        });
        answer.await.map_err(|error| Error::Engine(error.to_string()))?
    }
}

impl Drop for Sqlite {
    /// What was accepted is committed before the file is let go.
    fn drop(&mut self) {
        self.writer.lock().expect("never poisoned: nothing panics inside").take();
        if let Some(thread) = self.thread.lock().expect("never poisoned: nothing panics inside").take() {
            drop(thread.join());
        }
    }
}

fn connect(path: &std::path::Path) -> Result<Connection, Error> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // An answer given is an answer kept, also when the power goes.
    reach(&connection, Durability::Disk)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

fn migrate(connection: &Connection) -> Result<(), Error> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        SCHEMA_VERSION => Ok(()),
        0 => {
            let script = include_str!("schema.sql");
            connection.execute_batch(&format!("BEGIN; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))?;
            Ok(())
        }
        newer => Err(Error::Engine(format!(
            "the file has schema version {newer}, this program knows {SCHEMA_VERSION}; use a newer program"
        ))),
    }
}

/// The writer's life: take what waits, run it in one transaction, commit, answer.
fn write_groups(connection: &Connection, mut commands: mpsc::Receiver<Command>) {
    let mut group: Vec<Command> = Vec::with_capacity(GROUP_MAX);
    let mut answers: Vec<Answer> = Vec::with_capacity(GROUP_MAX);
    let mut reached = Durability::Disk;
    while commands.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        let needs_disk = group.iter().any(|command| command.durability == Durability::Disk);
        let needed = if needs_disk { Durability::Disk } else { Durability::System };
        let mut fate = if needed == reached { Ok(()) } else { reach(connection, needed) };
        if fate.is_ok() {
            reached = needed;
            fate = connection.execute_batch("BEGIN IMMEDIATE");
        }
        answers.extend(group.drain(..).map(|command| (command.run)(connection)));
        let fate = fate.and_then(|()| connection.execute_batch("COMMIT")).map_err(Error::from);
        if let Err(error) = &fate {
            tracing::error!(%error, commands = answers.len(), "a group of commands was not committed");
            if !connection.is_autocommit() {
                drop(connection.execute_batch("ROLLBACK"));
            }
        }
        for answer in answers.drain(..) {
            answer(fate.clone());
        }
    }
}

/// Sets what commits wait for. In WAL mode a commit to the disk takes all those before it along.
fn reach(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Disk => "FULL",
        Durability::System => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)
}

/// A command that fails must not leave half of itself in the group.
fn inside_savepoint<T>(
    connection: &Connection,
    command: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    if connection.is_autocommit() {
        return Err(Error::Engine("no transaction could be begun; is the disk full?".into()));
    }
    connection.prepare_cached("SAVEPOINT command")?.execute([])?;
    let result = command(connection);
    if result.is_err() {
        connection.prepare_cached("ROLLBACK TO command")?.execute([])?;
    }
    connection.prepare_cached("RELEASE command")?.execute([])?;
    result
}

#[async_trait::async_trait]
impl Store for Sqlite {
    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    async fn submit(&self, task: NewTask) -> Result<Submitted, Error> {
        let (now, max) = (self.now_ms(), self.limits.tasks_open_max);
        self.write(move |c| commands::submit(c, now, max, &task)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, Error> {
        let now = self.now_ms();
        self.write_to(Durability::System, move |c| commands::claim(c, now, &claim)).await
    }

    async fn renew(
        &self,
        node: &NodeId,
        session: u64,
        running: &[Attempt],
        lease_ms: i64,
    ) -> Result<Vec<Attempt>, Error> {
        let (until, node, running) = (self.now_ms() + lease_ms, node.clone(), running.to_vec());
        self.write_to(Durability::System, move |c| commands::renew(c, until, &node, session, &running)).await
    }

    async fn adopt(&self, node: &NodeId, session: u64, running: &[Attempt], lease_ms: i64) -> Result<Adopted, Error> {
        let (now, node, running) = (self.now_ms(), node.clone(), running.to_vec());
        self.write(move |c| commands::adopt(c, now, &node, session, &running, lease_ms)).await
    }

    async fn release(&self, node: &NodeId, session: u64) -> Result<Vec<TaskId>, Error> {
        let (now, node) = (self.now_ms(), node.clone());
        self.write(move |c| commands::release(c, now, &node, session)).await
    }

    async fn finish(
        &self,
        attempt: Attempt,
        node: &NodeId,
        output: Vec<u8>,
        facts: String,
    ) -> Result<Settlement, Error> {
        let (now, node) = (self.now_ms(), node.clone());
        self.write(move |c| commands::finish(c, now, attempt, &node, &output, &facts)).await
    }

    async fn give_back(
        &self,
        attempt: Attempt,
        node: &NodeId,
        failure: Failure,
        delay_ms: i64,
        counts: bool,
    ) -> Result<GivenBack, Error> {
        let (now, node) = (self.now_ms(), node.clone());
        let excluded_until_ms = now + super::passed_over_ms(&self.limits, delay_ms, counts);
        self.write(move |c| {
            let again = commands::Again { not_before_ms: now + delay_ms, excluded_until_ms };
            commands::give_back(c, now, attempt, &node, &failure, again, counts)
        })
        .await
    }

    async fn cancel(&self, id: TaskId) -> Result<Option<Cancelled>, Error> {
        let now = self.now_ms();
        self.write(move |c| commands::cancel(c, now, id)).await
    }

    async fn sweep(&self) -> Result<Swept, Error> {
        let (now, retention_ms) = (self.now_ms(), self.limits.retention_ms);
        self.write(move |c| commands::sweep(c, now, now - retention_ms)).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, Error> {
        self.read(move |c| queries::task(c, id)).await
    }

    async fn input(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error> {
        self.read(move |c| queries::payload(c, "input", id)).await
    }

    async fn output(&self, id: TaskId) -> Result<Option<Vec<u8>>, Error> {
        self.read(move |c| queries::payload(c, "output", id)).await
    }

    async fn attempts(&self, id: TaskId) -> Result<Vec<AttemptRecord>, Error> {
        self.read(move |c| queries::attempts(c, id)).await
    }

    async fn tasks(&self, filter: Filter) -> Result<Vec<Task>, Error> {
        self.read(move |c| queries::tasks(c, &filter)).await
    }

    async fn counts(&self) -> Result<[u64; 7], Error> {
        self.read(queries::counts).await
    }

    async fn depths(&self) -> Result<Vec<Depth>, Error> {
        self.read(queries::depths).await
    }

    async fn put_node(&self, node: Node) -> Result<(), Error> {
        self.write(move |c| commands::put_node(c, &node)).await
    }

    async fn node(&self, id: &NodeId) -> Result<Option<Node>, Error> {
        let id = id.clone();
        self.read(move |c| queries::node(c, &id)).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.read(queries::nodes).await
    }

    async fn set_node_state(&self, id: &NodeId, state: NodeState) -> Result<bool, Error> {
        let id = id.clone();
        self.write(move |c| commands::set_node_state(c, &id, state)).await
    }

    async fn put_model(&self, model: Model) -> Result<Put, Error> {
        self.write(move |c| commands::put_model(c, &model)).await
    }

    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, Error> {
        let (name, version) = (name.to_owned(), version.map(str::to_owned));
        self.read(move |c| queries::model(c, &name, version.as_deref())).await
    }

    async fn models(&self) -> Result<Vec<Model>, Error> {
        self.read(queries::models).await
    }

    async fn remove_model(&self, name: &str, version: &str) -> Result<bool, Error> {
        let (name, version) = (name.to_owned(), version.to_owned());
        self.write(move |c| commands::remove_model(c, &name, &version)).await
    }
}
