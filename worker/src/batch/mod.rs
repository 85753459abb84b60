//! The queue before one device: jobs go in from any thread, the device's thread takes batches and commands out, commands
//! first, and hands outputs back. It decides nothing: [`policy`] does; it computes nothing: [`backlog`] does.
//!
//! The device's thread sleeps here and is woken here, so a task crosses one thread boundary on its way in and one on
//! its way out, and nothing is put together before the device is free to take it.
//!
//! Bounds: a job holds a permit of [`crate::admission`], so there are never more jobs than permits; commands are given by
//! callers who wait for their answer.

pub mod backlog;
pub mod policy;
mod room;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use models::engine::Output;
use tokio::sync::oneshot;

use crate::Error;
use crate::error::Stage;
use backlog::{Backlog, Batch, Finished, JobId, LaneId, Step, Submission};
use policy::{Limits, Policy};

type Reply = oneshot::Sender<Result<Ran, Error>>;

/// What a job's items gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    /// In the order of the items.
    pub outputs: Vec<Output>,
    /// From arrival to the start of the first batch.
    pub queued: Duration,
    /// From the start of the first batch to the end of the last.
    pub device: Duration,
}

/// What the device's thread is to do.
#[derive(Debug)]
pub enum Work<C> {
    /// Carry out a command.
    Command(C),
    /// Run a batch.
    Batch(Batch),
    /// End.
    Stop,
}

/// Jobs and commands for one device's thread. Cheap to clone.
#[derive(Debug)]
pub struct Queue<C>(Arc<Shared<C>>);

impl<C> Clone for Queue<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<C> {
    state: Mutex<State<C>>,
    wake: Condvar,
}

#[derive(Debug)]
struct State<C> {
    backlog: Backlog<Reply>,
    commands: VecDeque<C>,
    stopped: bool,
}

impl<C> State<C> {
    /// What to do next, else for how long there is nothing, where that is known.
    fn next(&mut self) -> Result<Work<C>, Option<Duration>> {
        if let Some(command) = self.commands.pop_front() {
            return Ok(Work::Command(command));
        }
        if self.stopped {
            return Ok(Work::Stop);
        }
        let now = Instant::now();
        tell_all(self.backlog.expire(now), &Error::DeadlineExceeded { stage: Stage::Queued });
        match self.backlog.next(now) {
            Step::Run(batch) => Ok(Work::Batch(batch)),
            Step::Idle => Err(None),
            Step::WaitUntil(until) => Err(Some(until.saturating_duration_since(now))),
        }
    }
}

impl<C> Queue<C> {
    /// An empty queue.
    pub fn new(policy: Policy) -> Self {
        let state = State { backlog: Backlog::new(policy), commands: VecDeque::new(), stopped: false };
        Self(Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a lane, or changes it.
    pub fn set_lane(&self, lane: LaneId, limits: Limits, is_ready: bool) {
        self.state().backlog.set_lane(lane, limits, is_ready);
        self.0.wake.notify_one();
    }

    /// Lets a lane's jobs wait until it is set again.
    pub fn hold_lane(&self, lane: LaneId) {
        self.state().backlog.hold_lane(lane);
    }

    /// Halves a lane's limits to less than what just did not fit. Returns false when that was one item.
    pub fn halve(&self, lane: LaneId, cost: usize, items: usize) -> bool {
        self.state().backlog.halve(lane, cost, items)
    }

    /// Closes a lane; its jobs fail with this error.
    pub fn close_lane(&self, lane: LaneId, error: &Error) {
        let replies = self.state().backlog.close_lane(lane);
        tell_all(replies, error);
    }

    /// Puts a job in. Awaiting the ticket gives the outputs; dropping it takes the job out again.
    ///
    /// # Errors
    /// When the lane is closed.
    pub fn submit(&self, lane: LaneId, submission: Submission) -> Result<Ticket<C>, Closed> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        if state.stopped {
            return Err(Closed);
        }
        let id = state.backlog.insert(Instant::now(), lane, submission, sender).map_err(|_| Closed)?;
        drop(state);
        self.0.wake.notify_one();
        Ok(Ticket { queue: self.clone(), id, receiver })
    }

    /// Gives a command, which overtakes all jobs. Returns false when the thread has ended.
    pub fn command(&self, command: C) -> bool {
        let mut state = self.state();
        if state.stopped {
            return false;
        }
        state.commands.push_back(command);
        drop(state);
        self.0.wake.notify_one();
        true
    }

    /// Ends the device's thread after what it does now; all jobs fail with this error.
    pub fn stop(&self, error: &Error) {
        let mut state = self.state();
        state.stopped = true;
        let replies = state.backlog.clear();
        drop(state);
        self.0.wake.notify_one();
        tell_all(replies, error);
    }

    /// What to do next. Called by the device's thread, which sleeps here.
    pub fn take(&self) -> Work<C> {
        let mut state = self.state();
        loop {
            state = match state.next() {
                Ok(work) => return work,
                Err(None) => self.0.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Err(Some(time)) => self.0.wake.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// What to do now; nothing when there is nothing yet. Called by the device's thread when it has other work.
    pub fn take_now(&self) -> Option<Work<C>> {
        self.state().next().ok()
    }

    /// One more batch for an engine that runs some side by side; nothing when the device's thread should look first, because there
    /// is a command, nothing waits, or it is another lane's turn.
    pub fn take_side(&self, lane: LaneId) -> Option<Batch> {
        let mut state = self.state();
        if state.stopped || !state.commands.is_empty() {
            return None;
        }
        let now = Instant::now();
        let expired = state.backlog.expire(now);
        let batch = state.backlog.next_side(now, lane);
        drop(state);
        tell_all(expired, &Error::DeadlineExceeded { stage: Stage::Queued });
        batch
    }

    /// Hands outputs back, each with where its item came from.
    pub fn deliver(&self, outputs: impl IntoIterator<Item = ((JobId, usize), Output)>) {
        let now = Instant::now();
        let mut state = self.state();
        let finished: Vec<Finished<Reply>> =
            outputs.into_iter().filter_map(|(origin, output)| state.backlog.deliver(now, origin, output)).collect();
        drop(state);
        for Finished { reply, outputs, queued, device } in finished {
            // The caller may have left between the lock and here.
            let _ = reply.send(Ok(Ran { outputs, queued, device }));
        }
    }

    /// Fails the jobs of these items.
    pub fn fail(&self, origins: &[(JobId, usize)], error: &Error) {
        let mut state = self.state();
        let ids = state.backlog.jobs_of(origins);
        let replies: Vec<Reply> = ids.into_iter().filter_map(|id| state.backlog.remove(id)).collect();
        drop(state);
        tell_all(replies, error);
    }

    /// Whether somebody still waits for this job.
    pub fn is_wanted(&self, id: JobId) -> bool {
        self.state().backlog.is_wanted(id)
    }

    /// Jobs that are not finished, and how many of their items are not sent.
    pub fn depth(&self) -> (usize, usize) {
        self.state().backlog.depth()
    }
}

fn tell_all(replies: Vec<Reply>, error: &Error) {
    for reply in replies {
        // A caller who left meanwhile need not be told.
        let _ = reply.send(Err(error.clone()));
    }
}

/// The lane is closed: its model was unloaded meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// A job in the queue. Dropping it takes the job out.
#[derive(Debug)]
pub struct Ticket<C> {
    queue: Queue<C>,
    id: JobId,
    receiver: oneshot::Receiver<Result<Ran, Error>>,
}

impl<C> Ticket<C> {
    /// Waits for the outputs. Dropping the future takes the job out of the queue.
    ///
    /// # Errors
    /// The job's failure.
    pub async fn outputs(mut self) -> Result<Ran, Error> {
        let gone = || Error::Internal("the device's thread dropped a job".into());
        (&mut self.receiver).await.unwrap_or_else(|_| Err(gone()))
    }
}

impl<C> Drop for Ticket<C> {
    fn drop(&mut self) {
        // Told or not: a job that is there no more is not found.
        if !self.receiver.is_terminated() {
            drop(self.queue.state().backlog.remove(self.id));
        }
    }
}

#[cfg(test)]
mod fairness_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use models::engine::{Item, Tokens};

    fn queue() -> Queue<&'static str> {
        let queue = Queue::new(Policy { overtakes_max: 8 });
        queue.set_lane(1, Limits { cost: 100, items: 8, wait: Duration::ZERO, sides: 1, side_cost: 100 }, true);
        queue
    }

    fn submission(items: usize, deadline: Option<Instant>) -> Submission {
        let item = || Item::Tokens(Tokens { ids: vec![1], type_ids: vec![] });
        Submission { items: (0..items).map(|_| item()).collect(), priority: 5, deadline }
    }

    fn batch(queue: &Queue<&'static str>) -> Batch {
        match queue.take() {
            Work::Batch(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn outputs_reach_whoever_waits() {
        let queue = queue();
        let ticket = queue.submit(1, submission(2, None)).unwrap();
        let batch = batch(&queue);
        queue.deliver(batch.origins.iter().map(|&origin| (origin, Output::Vector(vec![origin.1 as f32]))));
        let ran = ticket.outputs().await.unwrap();
        assert_eq!(ran.outputs, [Output::Vector(vec![0.0]), Output::Vector(vec![1.0])]);
    }

    #[tokio::test]
    async fn a_dropped_ticket_never_reaches_the_device() {
        let queue = queue();
        drop(queue.submit(1, submission(1, None)).unwrap());
        let kept = queue.submit(1, submission(1, None)).unwrap();
        let batch = batch(&queue);
        assert_eq!(batch.origins.len(), 1);
        assert!(queue.is_wanted(batch.origins[0].0));
        drop(kept);
        assert!(!queue.is_wanted(batch.origins[0].0));
        assert_eq!(queue.depth(), (0, 0));
    }

    #[tokio::test]
    async fn commands_overtake_jobs_and_stop_fails_what_waits() {
        let queue = queue();
        let ticket = queue.submit(1, submission(1, None)).unwrap();
        queue.command("first");
        assert!(matches!(queue.take(), Work::Command("first")));
        queue.stop(&Error::Draining);
        assert!(matches!(queue.take(), Work::Stop));
        assert!(matches!(ticket.outputs().await, Err(Error::Draining)));
        assert!(queue.submit(1, submission(1, None)).is_err());
        assert!(!queue.command("late"));
    }

    #[tokio::test]
    async fn an_expired_job_is_answered_and_not_sent() {
        let queue = queue();
        let late = queue.submit(1, submission(1, Some(Instant::now()))).unwrap();
        let _on_time = queue.submit(1, submission(1, None)).unwrap();
        assert_eq!(batch(&queue).origins.len(), 1);
        assert!(matches!(late.outputs().await, Err(Error::DeadlineExceeded { stage: Stage::Queued })));
    }

    #[tokio::test]
    async fn a_failure_ends_only_the_jobs_that_it_names() {
        let queue = queue();
        let bad = queue.submit(1, submission(1, None)).unwrap();
        let good = queue.submit(1, submission(1, None)).unwrap();
        let batch = batch(&queue);
        queue.fail(&batch.origins[..1], &Error::Paused);
        queue.deliver([(batch.origins[1], Output::Vector(vec![]))]);
        assert!(matches!(bad.outputs().await, Err(Error::Paused)));
        assert!(good.outputs().await.is_ok());
    }
}
