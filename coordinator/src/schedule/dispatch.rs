//! The tasks that run the schedule: one makes claims as the policy says and turns what was claimed into offers, one sweeps
//! what ran out, one collects what nobody refers to. Each claim of a link runs by itself, so that a slow one holds up nobody.

use super::board::Fetching;
use super::policy::{Candidate, Fit, Plan, Waiting, plan};
use crate::grid::Grid;
use crate::nodes::link::Link;
use crate::nodes::session::release;
use crate::options::millis;
use crate::store::{Claim, Claimed, State, Want};
use crate::tasks::hub::News;
use crate::tasks::{internal, to_wire};
use coordinator_client::wire::{Frame, Offer};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most tasks of one claim: a claim is one transaction, which others wait for.
const CLAIM_MAX: usize = 256;

/// Makes claims until the coordinator stops.
pub(crate) async fn run(grid: Arc<Grid>) {
    grid.board.wake_and_resync();
    loop {
        let now = Instant::now();
        let due = grid.board.due(now);
        if grid.board.starts_resync() {
            let depths = grid.store.depths().await;
            if let Err(error) = &depths {
                tracing::error!(%error, "the store did not say what waits; asked again soon");
            }
            grid.board.resynced(depths.ok());
        }
        make_claims(&grid);
        let poll = grid.options.schedule.poll.mul_f64(rand::random_range(0.75..=1.25));
        let nap = due.map_or(poll, |due| poll.min(due.saturating_duration_since(now)));
        tokio::select! {
            biased;
            () = grid.closing.cancelled() => return,
            () = grid.board.woken() => {}
            () = tokio::time::sleep(nap) => {
                if nap == poll {
                    grid.board.wake_and_resync();
                }
            }
        }
    }
}

/// How every connected link fits what waits.
pub(crate) fn candidates(grid: &Grid, links: &[Arc<Link>], waiting: &[Waiting]) -> Vec<Candidate> {
    let registered: Vec<Option<u64>> =
        waiting.iter().map(|line| Some(grid.registry.find(&line.want.model)?.manifest.total_bytes())).collect();
    let fit = |link: &Link, line: &Waiting, bytes: Option<u64>| match link.fit(&line.want, bytes) {
        Fit::No => Fit::No,
        _ if grid.board.is_barred(link.session, &line.want) => Fit::Barred,
        fit => fit,
    };
    let candidate = |link: &Arc<Link>| Candidate {
        free: if grid.board.is_claiming(link.session) { 0 } else { link.free().min(CLAIM_MAX) },
        busy: link.busy(),
        fits: waiting.iter().zip(&registered).map(|(line, bytes)| fit(link, line, *bytes)).collect(),
    };
    links.iter().map(candidate).collect()
}

fn make_claims(grid: &Arc<Grid>) {
    let waiting = grid.board.waiting(Instant::now().checked_sub(grid.options.schedule.fetch_max));
    if waiting.is_empty() {
        return;
    }
    let links = grid.presence.all();
    for Plan { candidate, wants, max, fetch } in plan(&candidates(grid, &links, &waiting), &waiting) {
        let link = links[candidate].clone();
        let wants: Vec<Want> = wants.into_iter().map(|index| waiting[index].want.clone()).collect();
        if fetch {
            for want in &wants {
                let fetching = Fetching { node: link.node.clone(), session: link.session, since: Instant::now() };
                grid.board.fetch_begins(want.model.clone(), fetching);
            }
        }
        grid.board.claim_begins(link.session);
        grid.tracker.spawn(claim(grid.clone(), link, wants, max, fetch));
    }
}

/// Claims for one link and offers what it got.
async fn claim(grid: Arc<Grid>, link: Arc<Link>, wants: Vec<Want>, max: usize, fetch: bool) {
    let asked = Claim {
        node: link.node.clone(),
        session: link.session,
        wants: wants.clone(),
        max,
        lease_ms: millis(grid.options.nodes.lease),
    };
    grid.metrics.claims.increment(1);
    let claimed = match grid.store.claim(asked).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::error!(node = link.node.short(), %error, "a claim failed; tried again soon");
            vec![]
        }
    };
    if claimed.is_empty() {
        grid.metrics.claims_empty.increment(1);
        if fetch {
            wants.iter().for_each(|want| grid.board.fetch_ended(&want.model, link.session));
        }
    }
    let got: Vec<Want> = claimed.iter().map(|task| Want { kind: task.kind, model: task.model.clone() }).collect();
    let mut is_sent = true;
    for task in claimed {
        is_sent &= offer(&grid, &link, task).await;
    }
    grid.board.claim_ended(link.session, wants, max, &got);
    if !is_sent {
        release(&grid, &link).await;
    } else if !got.is_empty() && grid.presence.get_session(&link.node, link.session).is_none() {
        // It went meanwhile, and whoever releases what it had may have been here before. What it takes up again within
        // the grace belongs to its new session.
        if naps(&grid, grid.options.nodes.grace).await {
            release(&grid, &link).await;
        }
    }
}

/// Offers a claimed task to its link. `false` when the link takes no more frames.
async fn offer(grid: &Grid, link: &Link, task: Claimed) -> bool {
    let attempt = task.attempt;
    let (input, offered) = match grid.to_offer(&task).await {
        Ok(to_offer) => to_offer,
        Err(error) => {
            tracing::error!(task = %attempt.task, %error, "a task cannot be offered");
            let failed = grid.give_back(attempt, &link.node, internal(error.to_string()), true, None).await;
            if let Err(error) = failed {
                tracing::error!(task = %attempt.task, %error, "a damaged task waits until its lease is over");
            }
            return true;
        }
    };
    let left = |deadline: i64| u64::try_from(deadline - grid.store.now_ms()).unwrap_or(0);
    let frame = Frame::Offer(Box::new(Offer {
        attempt: to_wire(attempt),
        model: task.model,
        input,
        deadline_in_ms: task.deadline_ms.map(left),
        priority: i32::from(task.priority),
        trace_parent: None,
    }));
    grid.metrics.offered.increment(1);
    grid.hub.tell(attempt.task, News::State(State::Leased));
    link.offer(to_wire(attempt), offered, frame)
}

/// Takes back leases that ran out and ends what is too late, until the coordinator stops.
pub(crate) async fn sweep(grid: Arc<Grid>) {
    while naps(&grid, grid.options.schedule.sweep).await {
        let swept = match grid.store.sweep().await {
            Ok(swept) => swept,
            Err(error) => {
                tracing::error!(%error, "the sweep failed; tried again soon");
                continue;
            }
        };
        for holder in &swept.lost {
            if let Some(link) = grid.presence.get(&holder.node) {
                link.let_go(to_wire(holder.attempt));
            }
            grid.stop(holder, "the lease ran out");
        }
        for holder in &swept.expired_holders {
            grid.stop(holder, "the deadline passed");
        }
        for id in &swept.expired {
            grid.hub.tell(*id, News::State(State::Expired));
        }
        grid.metrics.expired.increment(swept.expired.len() as u64);
        let lost: Vec<_> = swept.lost.iter().map(|holder| holder.attempt.task).collect();
        grid.taken_back(&lost).await;
    }
}

/// Removes blobs that nothing refers to, until the coordinator stops.
pub(crate) async fn collect(grid: Arc<Grid>) {
    while naps(&grid, grid.options.registry.collect).await {
        match grid.registry.collect(grid.options.registry.collect_after).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "blobs that nothing refers to were removed"),
            Err(error) => tracing::error!(%error, "blobs could not be collected; tried again later"),
        }
    }
}

/// Sleeps; `false` when the coordinator stops.
async fn naps(grid: &Grid, nap: Duration) -> bool {
    tokio::select! {
        biased;
        () = grid.closing.cancelled() => false,
        () = tokio::time::sleep(nap) => true,
    }
}
